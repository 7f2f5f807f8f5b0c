"""Print rows while they are computed: as a table, JSON or YAML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import typer
from rich.text import Text

from xds.cli.output import TABLES, WideFormat, print_document, to_yaml
from xds.cli.tables import Table

BATCH = 200
"""Number of rows that a table prints at once, in aligned columns."""
Cells: TypeAlias = Sequence[str | Text]
"""The cells of a row of a table."""


class Rows:
    """Rows of one table, or items of one JSON or YAML list.

    Rows are printed as they are added, so memory does not grow with their number. Nothing is printed before
    the first row, or `close`.

    Args:
        output: the format.
        titles: the column titles.
        is_stream: whether rows can follow after `close`: print each item as a JSON line or YAML document.
    """

    def __init__(self, output: WideFormat, *titles: str, is_stream: bool = False) -> None:
        self._output = output
        self._table = Table(*titles)
        self._is_stream = is_stream
        self._count = 0

    def add_value(self, value: dict[str, Any]) -> None:
        """Add a row as an item of the JSON or YAML list."""
        if self._is_stream:
            print_document(value, self._output, is_stream=True)
        elif self._output == "json":
            typer.echo((",\n" if self._count else "[\n") + json.dumps(value), nl=False)
        else:
            typer.echo(to_yaml([value]), nl=False)
        self._count += 1

    def add_cells(self, cells: Cells) -> None:
        """Add a row as the cells of the table."""
        self._table.add_row(*cells)
        self._count += 1
        if self._count % BATCH == 0:
            self._table.show()

    def close(self) -> None:
        """Print the rest."""
        if self._output in TABLES:
            self._table.show()
        elif self._is_stream:
            pass
        elif self._output == "json":
            typer.echo("\n]" if self._count else "[]")
        else:
            typer.echo("" if self._count else "[]\n", nl=False)
