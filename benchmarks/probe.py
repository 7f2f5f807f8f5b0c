"""Measurements inside a server process, reported on request."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from asyncio import events
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from control import read_command, respond

from xds.codec import encode_counts


class Probe:
    """Measures a process: CPU time, memory, and how long its event loop is blocked."""

    def __init__(self) -> None:
        self.commands: dict[str, Callable[[], object]] = {
            "sample": self.sample,
            "is_idle": lambda: {"idle": self._is_idle()},
        }
        self.changed = 0.0
        """Time of the last change at the server, on the system's monotonic clock."""
        self._is_idle: Callable[[], bool] = lambda: True
        self._block = 0.0
        self._culprit = ""
        self._collecting = self._collection_start = 0.0

    def attach(self, is_idle: Callable[[], bool]) -> None:
        """Start measuring. Must be called on the event loop.

        Args:
            is_idle: returns whether the server has no pending work.
        """
        self._is_idle = is_idle
        self._time_callbacks()
        gc.callbacks.append(self._time_collections)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), read_command, self._handle)

    def sample(self) -> dict[str, Any]:
        """Return the measurements since the last call, and reset the maxima."""
        sample = {
            "changed": self.changed,
            "cpu": time.process_time(),
            "rss": memory("VmRSS"),
            "peak": memory("VmHWM"),
            "block": self._block,
            "culprit": self._culprit,
            "collecting": self._collecting,
            "encoded": {name.rpartition(".")[2]: count for name, count in encode_counts.items()},
        }
        self._block = self._collecting = 0.0
        reset_peak()
        return sample

    def _handle(self, command: dict[str, Any]) -> None:
        result = self.commands[command["do"]]()
        respond(result if isinstance(result, dict) else {})

    def _time_collections(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collection_start = time.perf_counter()
        else:
            self._collecting = max(self._collecting, time.perf_counter() - self._collection_start)

    def _time_callbacks(self) -> None:
        """Measure all callbacks, with garbage collections in them.

        Reading this clock is much faster than reading the CPU time of the thread, but on a busy machine it
        includes the time of other processes.
        """
        run, clock = events.Handle._run, time.perf_counter

        def timed(handle: events.Handle) -> None:
            start = clock()
            run(handle)
            duration = clock() - start
            if duration > self._block and getattr(handle, "_callback", None) is not read_command:
                self._block = duration
                self._culprit = _name(handle)

        events.Handle._run = timed  # type: ignore[method-assign]


def memory(field: str, process: int | str = "self") -> float:
    """Return a value of /proc/PROCESS/status, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def reset_peak(process: int | str = "self") -> None:
    """Reset a process's peak of memory. Without the right to do so, it remains that of the whole run."""
    with suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5")


def _name(handle: events.Handle) -> str:
    """Return the name of a callback, or of the coroutine of a task."""
    callback: Any = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        callback = owner.get_coro()
    return getattr(callback, "__qualname__", None) or repr(callback)
