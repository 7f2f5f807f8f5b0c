"""How the benchmark's processes are told what to do: a JSON object a line on stdin, and one back on stdout."""

from __future__ import annotations

import json
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

_HERE = Path(__file__).parent


def raise_file_limit(needed: int) -> None:
    """Allow this process and those that it starts so many open files, or end with what to do about it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard not in (resource.RLIM_INFINITY, *range(needed, hard + 1)):
        raise SystemExit(
            f"{needed} open files are needed in one process, and {hard} is the limit here. "
            f"Raise it (as root: ulimit -Hn {needed}), or ask for fewer --streams"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def answer(value: dict[str, Any]) -> None:
    """Say something to who started this process."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def read_commands(do: Callable[[dict[str, Any]], None]) -> None:
    """Do what stdin, which is readable, asks for; end the process when nobody is there any more."""
    line = sys.stdin.readline()
    if not line:
        raise SystemExit
    do(json.loads(line))


class Process:
    """One of the benchmark's processes. Its stderr goes to a file, which is shown if it fails."""

    def __init__(self, script: str, *args: str, log: Path) -> None:
        self._name = script
        self._log = log
        self.started = time.monotonic()
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(_HERE / script), *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,  # What is read ahead is not seen by select.
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, do: str, within: float = 120, **more: Any) -> dict[str, Any]:
        """Tell it to do something, and return the answer."""
        assert self._process.stdin
        rest = memoryview(json.dumps({"do": do, **more}).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
        except BrokenPipeError:
            self._fail("has ended")
        return self.hear(within)

    def hear(self, within: float = 120) -> dict[str, Any]:
        """Return the next thing that it says."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], within)[0]:
            self._fail(f"said nothing for {within:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._fail("has ended")
        said: dict[str, Any] = json.loads(line)
        return said

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def _fail(self, what: str) -> None:
        raise SystemExit(f"{self._name} {what}:\n{self._log.read_text(errors='replace')[-3000:]}")
