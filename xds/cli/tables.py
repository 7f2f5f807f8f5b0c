"""Tables in kubectl's style: columns separated by spaces, without borders."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.text import Text

from xds.mesh.model.objects import printable

_GAP = 2
"""Spaces between columns."""
_MIN_LAST_WIDTH = 10
"""Minimum width of the last column, on a terminal that is too narrow for all columns."""


class Table:
    """Rows of cells under column titles.

    On a terminal, only the last column wraps long text. Elsewhere, each row is one line of any length.
    `show` can be called repeatedly: it prints the rows added since the last call, aligned with earlier rows.
    """

    def __init__(self, *titles: str) -> None:
        self._titles = titles
        self._widths = [0] * (len(titles) - 1)
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row, with one cell per title."""
        self._rows.append(tuple(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells))

    def show(self) -> None:
        """Print the new rows. Print the titles again if a column became wider.

        Uses color on a terminal unless NO_COLOR is set.
        """
        rows, self._rows = self._rows, []
        titles = tuple(Text(title, "bold") for title in self._titles)
        lines = [titles, *rows]
        needed = [max(line[column].cell_len for line in lines) for column in range(len(self._widths))]
        is_wider = any(width > previous for width, previous in zip(needed, self._widths, strict=True))
        self._widths = [max(pair) for pair in zip(needed, self._widths, strict=True)]
        console = Console(highlight=False)
        last_start = sum(self._widths) + _GAP * len(self._widths)
        last_width = max(line[-1].cell_len for line in lines)
        if sys.stdout.isatty():
            last_width = min(last_width, max(console.width - last_start, _MIN_LAST_WIDTH))
        printed = [
            line
            for row in (lines if is_wider else rows)
            for line in self._lines(row, console, last_start, last_width)
        ]
        if not printed:
            return
        with console.capture() as captured:
            console.print(Text("\n").join(printed), soft_wrap=True)
        for line in captured.get().splitlines():
            typer.echo(line.rstrip())

    def _lines(
        self, row: tuple[Text, ...], console: Console, last_start: int, last_width: int
    ) -> Iterator[Text]:
        """Yield the lines of a row. Only the last cell can have several."""
        line = Text()
        for cell, width in zip(row, self._widths, strict=False):
            line.append_text(cell).append(" " * (width - cell.cell_len + _GAP))
        fits = row[-1].cell_len <= last_width
        for part in [row[-1]] if fits else row[-1].wrap(console, last_width, overflow="fold"):
            yield line.append_text(part)
            line = Text(" " * last_start)
