"""Print rows while they are computed: as a table, JSON or YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import typer
from rich.text import Text

from xds.cli.output import WideFormat, to_yaml
from xds.cli.tables import Table

BATCH = 200
"""Number of rows that a table prints at once, in aligned columns."""
Cells: TypeAlias = Sequence[str | Text]
"""The cells of a row of a table."""


class Rows:
    """Rows of one table, or items of one JSON or YAML list.

    Rows are printed as they are added, so memory does not grow with their number. Nothing is printed before
    the first row, or `close`.
    """

    def __init__(self, output: WideFormat, *titles: str) -> None:
        self._output = output
        self._table = Table(*titles)
        self._count = 0

    def add(self, value: Mapping[str, Any], cells: Cells) -> None:
        """Add a row.

        Args:
            value: the row as an item of a JSON or YAML list.
            cells: the row as the cells of a table.
        """
        if self._output is WideFormat.JSON:
            typer.echo((",\n" if self._count else "[\n") + json.dumps(value), nl=False)
        elif self._output is WideFormat.YAML:
            typer.echo(to_yaml([value]), nl=False)
        else:
            self._table.add_row(*cells)
            if (self._count + 1) % BATCH == 0:
                self._table.show()
        self._count += 1

    def close(self) -> None:
        """Print the rest."""
        if self._output is WideFormat.JSON:
            typer.echo("\n]" if self._count else "[]")
        elif self._output is WideFormat.YAML:
            typer.echo("" if self._count else "[]\n", nl=False)
        else:
            self._table.show()
