"""What the demo starts: processes with a name and a log, none of which outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from xds.demo import interrupt

PDEATHSIG_SCRIPT = Path(__file__).with_name("pdeathsig.py")
STOP_TIMEOUT = 5.0
"""Seconds that a process has for ending by itself once asked to."""
POLL_INTERVAL = 0.02


class DemoError(Exception):
    """The demo did not go as it should: the text says why."""

    status = 1
    """The exit status of the command."""


class UnavailableError(DemoError):
    """The demo cannot be played here: the text says what to do about it."""

    status = 2


@dataclass(frozen=True, slots=True)
class Running:
    """A process that was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def log_tail(self, lines: int = 15) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Processes:
    """Processes that run at the same time: started by name, watched while waiting, and ended together."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop(*self._running)

    def start(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Running:
        """Start a command; its output is added to NAME.log."""
        log = self._logs / f"{name.replace(' ', '-')}.log"
        tied = [sys.executable, "-I", "-S", str(PDEATHSIG_SCRIPT), str(os.getpid()), *command]
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 -- our own command lines
                tied,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # Ctrl-C is for the demo, which ends the others in order
            )
        running = Running(name, process, log)
        self._running.append(running)
        return running

    def stop(self, *running: Running) -> None:
        """End processes: ask all, then kill what is left, with whatever they started."""
        for each in running:
            _signal(each.process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        for each in running:
            try:
                each.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(each.process, signal.SIGKILL)
                each.process.wait()
        self._running = [each for each in self._running if each not in running]

    def check(self) -> None:
        """Raise if one of them ended, which none does by itself, or if a signal asks for the end of all."""
        interrupt.check()
        for each in self._running:
            if (status := each.process.poll()) is not None:
                raise DemoError(f"{each.name} ended with status {status}:\n{each.log_tail()}")

    def wait_for(self, what: str, pending: Callable[[], str], *, timeout: float = 20.0) -> None:
        """Return once `pending` returns an empty text; otherwise it says what is still missing."""
        deadline = time.monotonic() + timeout
        while missing := pending():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"waited {timeout:.0f} s for {what}: {missing}")
            time.sleep(POLL_INTERVAL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:  # not reaped yet, so neither its id nor its group can be another's
        os.killpg(process.pid, number)
