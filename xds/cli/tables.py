"""Tables as the subcommands print them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table


def table(*titles: str, header: bool = True) -> Table:
    """Make a table with these columns."""
    from rich.table import Table  # noqa: PLC0415

    made = Table(box=None, pad_edge=False, header_style="bold", show_header=header)
    for title in titles:
        made.add_column(title, overflow="fold")
    return made


def show(made: Table) -> None:
    """Print a table, in colours on a terminal unless NO_COLOR is set."""
    from rich.console import Console  # noqa: PLC0415

    # Where nobody looks, a program does: it gets a line for each row, however long.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    with console.capture() as drawn:
        console.print(made)
    for line in drawn.get().splitlines():
        typer.echo(line.rstrip())
