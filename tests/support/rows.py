"""Reading the tables that commands print."""

from __future__ import annotations


def read_table(text: str) -> tuple[list[dict[str, str]], str]:
    """Return the rows of a table by title, and the text after the first empty line."""
    rows, _, footer = text.partition("\n\n")
    header, *lines = rows.splitlines()
    titles = header.split()
    starts = [header.index(title) for title in titles]
    columns = list(zip(titles, starts, [*starts[1:], None], strict=True))
    return [{title: line[start:end].strip() for title, start, end in columns} for line in lines], footer
