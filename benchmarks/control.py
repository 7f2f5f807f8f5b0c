"""Benchmark processes: one JSON object per line on stdin and on stdout. The CPU time of a process."""

from __future__ import annotations

import json
import os
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
    """Raise the limit of open files of this process and its children, or exit with instructions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard not in (resource.RLIM_INFINITY, *range(needed, hard + 1)):
        raise SystemExit(
            f"a process needs {needed} open files, but the hard limit is {hard}: "
            f"raise the limit (as root: ulimit -Hn {needed}), or reduce --streams"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def respond(value: dict[str, Any]) -> None:
    """Send a JSON object to the parent process."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def read_command(handle: Callable[[dict[str, Any]], None]) -> None:
    """Read one command from stdin, and handle it. Exit at the end of input."""
    line = sys.stdin.readline()
    if not line:
        raise SystemExit
    handle(json.loads(line))


class Process:
    """A benchmark process. Its stderr goes to a file, which is printed if the process fails."""

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
                bufsize=0,  # select cannot see buffered input.
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, command: str, timeout: float = 120, **arguments: Any) -> dict[str, Any]:
        """Send a command, and return the response."""
        assert self._process.stdin
        unsent = memoryview(json.dumps({"do": command, **arguments}).encode() + b"\n")
        try:
            while unsent:
                unsent = unsent[self._process.stdin.write(unsent) :]
        except BrokenPipeError:
            self._fail("exited")
        return self.receive(timeout)

    def receive(self, timeout: float = 120) -> dict[str, Any]:
        """Return the next JSON object from the process."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self._fail(f"did not respond within {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._fail("exited")
        message: dict[str, Any] = json.loads(line)
        return message

    def stop(self) -> None:
        """Terminate the process and wait for it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def _fail(self, reason: str) -> None:
        raise SystemExit(f"{self._name} {reason}:\n{self._log.read_text(errors='replace')[-3000:]}")
