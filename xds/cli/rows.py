"""Print rows while they are computed: as a table, JSON or YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

import typer
import yaml
from rich.text import Text

from xds.cli.tables import Table

BATCH = 200
"""Number of rows that a table prints at once, in aligned columns."""


class Format(StrEnum):
    """An output format."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_table(self) -> bool:
        """Whether rows are lines under column titles."""
        return self in (Format.TABLE, Format.WIDE)


Cells: TypeAlias = Sequence[str | Text]
"""The cells of a row of a table."""


class Rows:
    """Rows of one table, or items of one JSON or YAML list.

    Rows are printed as they are added, so memory does not grow with their number. Nothing is printed before
    the first row, or `close`.
    """

    def __init__(self, output: Format, *titles: str) -> None:
        self._output = output
        self._table = Table(*titles)
        self._count = 0

    def add(self, value: Mapping[str, Any], cells: Cells) -> None:
        """Add a row.

        Args:
            value: the row as an item of a JSON or YAML list.
            cells: the row as the cells of a table.
        """
        if self._output is Format.JSON:
            typer.echo((",\n" if self._count else "[\n") + json.dumps(value), nl=False)
        elif self._output is Format.YAML:
            typer.echo(yaml.dump([value], Dumper=_Dumper, sort_keys=False, width=120), nl=False)
        else:
            self._table.add_row(*cells)
            if (self._count + 1) % BATCH == 0:
                self._table.show()
        self._count += 1

    def close(self) -> None:
        """Print the rest."""
        if self._output is Format.JSON:
            typer.echo("\n]" if self._count else "[]")
        elif self._output is Format.YAML:
            typer.echo("" if self._count else "[]\n", nl=False)
        else:
            self._table.show()


class _Dumper(yaml.CSafeDumper):
    """Writes values that occur repeatedly in full, instead of references to the first occurrence."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True
