"""Tables as the subcommands print them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.text import Text

_GAP = 2
"""Spaces between columns."""
_LEAST = 10
"""Columns of the screen that the last column gets, however narrow the terminal is."""


class Table:
    """Rows under titles. On a terminal, what is too long in the last column goes on below; all other columns stay whole.

    It may be shown again and again, as rows are added: each is printed once, in the columns of those before.
    """

    def __init__(self, *titles: str) -> None:
        self._titles = titles
        self._widths = [0] * (len(titles) - 1)
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: Text) -> None:
        """Add a row, with a cell for each title."""
        self._rows.append(cells)

    def show(self) -> None:
        """Print what was added, in colours on a terminal unless NO_COLOR is set, and titles where columns begin anew."""
        from rich.console import Console  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        rows, self._rows = self._rows, []
        titles = tuple(Text(title, "bold") for title in self._titles)
        needed = [max(row[number].cell_len for row in (titles, *rows)) for number in range(len(self._widths))]
        if any(width > had for width, had in zip(needed, self._widths, strict=True)):
            self._widths = [max(pair) for pair in zip(needed, self._widths, strict=True)]
            rows.insert(0, titles)
        console = Console(highlight=False)
        taken = sum(self._widths) + _GAP * len(self._widths)
        # Where nobody looks, a program does: it gets a line for each row, however long.
        room = max(console.width - taken, _LEAST) if sys.stdout.isatty() else None
        with console.capture() as drawn:
            for *cells, last in rows:
                line = Text()
                for cell, width in zip(cells, self._widths, strict=True):
                    line.append_text(cell).append(" " * (width - cell.cell_len + _GAP))
                for part in last.wrap(console, room, overflow="fold") if room else (last,):
                    line.append_text(part)
                    line.rstrip()
                    console.print(line, soft_wrap=True)
                    line = Text(" " * taken)
        typer.echo(drawn.get(), nl=False)
