"""Child processes with a name and a log file. None outlives the demo."""

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
"""Seconds between SIGTERM and SIGKILL."""
POLL_INTERVAL = 0.02


class DemoError(Exception):
    """The demo failed."""

    status = 1
    """Exit status of the command."""


class UnavailableError(DemoError):
    """The demo cannot run on this machine. The message says how to fix that."""

    status = 2


@dataclass(frozen=True, slots=True)
class Running:
    """A started process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


class Processes:
    """Processes that are started by name, monitored during waits, and stopped together."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop(*self._running)

    def start(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Running:
        """Start a command, and append its output to NAME.log."""
        log = self._logs / f"{name.replace(' ', '-')}.log"
        arguments = [sys.executable, "-I", "-S", str(PDEATHSIG_SCRIPT), str(os.getpid()), *command]
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 -- our own command lines
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # Only the demo must receive Ctrl-C. It then stops its processes.
            )
        running = Running(name, process, log)
        self._running.append(running)
        return running

    def stop(self, *running: Running) -> None:
        """Stop processes and their children: send SIGTERM to all, then SIGKILL after STOP_TIMEOUT."""
        processes = [each.process for each in running]
        for process in processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()
        self._running = [each for each in self._running if each not in running]

    def check(self) -> None:
        """Raise DemoError if a process exited, or Interrupted if a termination signal arrived."""
        interrupt.check()
        for each in self._running:
            if (status := each.process.poll()) is not None:
                raise DemoError(f"{each.name} exited with status {status}:\n{each.log_tail()}")

    def wait_for(self, what: str, pending: Callable[[], str], *, timeout: float = 60.0) -> None:
        """Wait until a condition is met. Raises DemoError on timeout.

        Args:
            what: what to wait for, for the error message.
            pending: returns what is missing; empty if nothing is.
            timeout: the timeout in seconds.
        """
        deadline = time.monotonic() + timeout
        while missing := pending():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"timed out after {timeout:.0f} s waiting for {what}: {missing}")
            time.sleep(POLL_INTERVAL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:  # The process is not reaped yet, so its process group ID cannot be reused.
        os.killpg(process.pid, number)
