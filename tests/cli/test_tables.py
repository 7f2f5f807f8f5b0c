"""Tables on a terminal and in a pipe."""

from __future__ import annotations

import os
import pty
import sys

import click
import pytest
from rich.text import Text

from xds.cli.tables import Table

NAME = "a-pod-with-a-long-name.and-a-namespace"

END = "\x03"
"""Marks the end of the output."""


def show_on_terminal(made: Table, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines that a terminal of the given width displays."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    other_end, end = pty.openpty()
    try:
        with os.fdopen(end, "w") as stdout, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stdout)
            made.show()
            stdout.write(END)
            stdout.flush()
            shown = ""
            while END not in shown:  # A terminal may deliver its output in parts.
                shown += os.read(other_end, 1 << 16).decode()
            return [line.rstrip() for line in click.unstyle(shown.partition(END)[0]).splitlines()]
    finally:
        os.close(other_end)


def table(*rows: tuple[str, str, str]) -> Table:
    made = Table("PROXY", "TYPE", "STATUS")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def test_last_column_wraps_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(("web.shop", "CDS", "rejected: no such certificate"), ("db.shop", "SDS", "synced"))
    assert show_on_terminal(made, 36, monkeypatch) == [
        "PROXY     TYPE  STATUS",
        "web.shop  CDS   rejected: no such",
        "                certificate",
        "db.shop   SDS   synced",
    ]


def test_names_are_not_truncated_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show_on_terminal(table((NAME, "CDS", "synced 20s ago")), 40, monkeypatch)
    assert [line.split() for line in lines[1:]] == [[NAME, "CDS", "synced", "20s"], ["ago"]]


def test_row_is_one_line_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "word " * 1000
    table((NAME, "CDS", text)).show()
    assert capsys.readouterr().out.splitlines()[1] == f"{NAME}  CDS   {text.rstrip()}"


def test_titles_repeat_only_when_columns_widen(capsys: pytest.CaptureFixture[str]) -> None:
    made = table(("web.shop", "CDS", "x"))
    for name in ("db.shop", "longer.shop", "web.shop"):
        made.show()
        made.add_row(*map(Text, (name, "CDS", "x")))
    made.show()
    made.show()
    assert capsys.readouterr().out.splitlines() == [
        "PROXY     TYPE  STATUS",
        "web.shop  CDS   x",
        "db.shop   CDS   x",
        "PROXY        TYPE  STATUS",
        "longer.shop  CDS   x",
        "web.shop     CDS   x",
    ]
