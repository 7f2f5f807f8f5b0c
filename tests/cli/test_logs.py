"""Logs on a terminal and as logfmt, without control characters, secrets and long values."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

CODE = """
import logging, structlog
from xds.cli import logs
logs.configure()
log = structlog.get_logger()
log.info("hello", proxy="a~b", sources=["x", "y z"], text='one\\ntwo\\x1b[31m')
logging.getLogger("grpc").warning("from a library")
log.debug("too much")
def inner():
    secret = "PRIVATE KEY"
    raise RuntimeError("a bug")
try:
    inner()
except RuntimeError:
    log.exception("failed")
log.error("long", text="x" * 2000, names=["y" * 600] * 2, stack="line 1\\nline 2" + "\x1b" + "z" * 2000)
"""


def run(stderr: int, **env: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run(
        [sys.executable, "-c", CODE], stderr=stderr, check=True, env=environment | {"TERM": "xterm"} | env
    )


def run_on_terminal(**env: str) -> str:
    master, slave = pty.openpty()
    run(slave, **env)
    os.close(slave)
    text = b""
    while True:
        try:
            text += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    return text.decode()


def test_logs_are_logfmt_without_a_terminal() -> None:
    read, write = os.pipe()
    run(write)
    os.close(write)
    with os.fdopen(read) as lines:
        hello, library, failed, long = lines.read().splitlines()
    assert hello.startswith("timestamp=")
    assert hello.endswith('level=info event=hello proxy=a~b sources="x, y z" text="one two [31m"')
    assert library.endswith('level=warning event="from a library"')
    assert "event=failed" in failed
    assert "RuntimeError: a bug" in failed
    assert "PRIVATE KEY" not in failed.replace('secret = \\"PRIVATE KEY\\"', "")
    assert f" text={'x' * 1000}... " in long
    assert f' names="{"y" * 600}, {"y" * 398}..." ' in long
    assert f'stack="line 1\\nline 2 {"z" * 2000}"' in long


def test_logs_are_columns_on_a_terminal() -> None:
    shown = run_on_terminal()
    assert "hello" in shown
    assert "from a library" in shown
    assert "RuntimeError: a bug" in shown
    assert "\x1b[31m'" not in shown
    assert "PRIVATE KEY" not in shown.replace('secret = "PRIVATE KEY"', "")
    assert "too much" not in shown
    assert f"line 1\r\nline 2 {'z' * 2000}" in shown


def test_no_color_disables_the_colors_of_logs() -> None:
    assert "\x1b[" in run_on_terminal()
    assert "\x1b[" not in run_on_terminal(NO_COLOR="1")
