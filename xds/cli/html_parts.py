"""Parts of an HTML page: tables, lists and paragraphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Good(str):
    """Text of a cell that is as it should be."""

    __slots__ = ()


class Bad(str):
    """Text of a cell to look at."""

    __slots__ = ()


class Code(str):
    """Long text of a cell that can be broken anywhere, such as a digest."""

    __slots__ = ()


class Number(int):
    """A number of a cell, which is aligned on the right."""


def table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose first column names its rows."""
    lines = [f"<tr>{_cell(row[0], 'th')}{''.join(map(_cell, row[1:]))}</tr>" for row in rows]
    if not lines:
        return f'<p class="note">{escape(caption)} There is none.</p>\n'
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "\n".join(lines)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{' class=wide' if len(titles) > 3 else ''}>"
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _cell(value: object, tag: str = "td") -> str:
    scope = ' scope="row"' if tag == "th" else ""
    kind = {Good: "good", Bad: "bad", Code: "code", Number: "number"}.get(type(value), "")
    style = f' class="{kind}"' if kind else ""
    return f"<{tag}{scope}{style}>{escape(str(value))}</{tag}>"


def bullets(items: Sequence[str], none: str) -> str:
    """Return a list, or a text if it is empty."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>\n" if items else paragraph(none)


def paragraph(text: str) -> str:
    """Return a paragraph of secondary text."""
    return f'<p class="note">{escape(text)}</p>\n'
