"""Measurements inside a server process, reported on request."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import time
from asyncio import events
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from control import read_command, respond

from xds.codec import encode_counts
from xds.snapshot import TYPE_PREFIX, Snapshot

_BEAT = 0.005
"""Interval of the timer that measures the lag of the event loop, in seconds."""
_PAGE = resource.getpagesize()


class Probe:
    """Measures an event loop: its longest callback, and the lag of its timers."""

    def __init__(self) -> None:
        self.commands: dict[str, Callable[[], object]] = {"sample": self.sample}
        self.changed = 0.0
        """Time of the last change at the server, on the system's monotonic clock."""
        self._block = 0.0
        self._culprit = ""
        self._late = 0.0
        self._collecting = self._collection_start = 0.0
        self._contents: set[tuple[str, str, str]] = set()

    def attach(self, snapshots: Callable[[], Iterable[Snapshot]], idle: Callable[[], bool]) -> None:
        """Start measuring. Must be called on the event loop.

        Args:
            snapshots: returns the snapshots of the proxies.
            idle: returns whether the server has no pending work.
        """
        self._snapshots = snapshots
        self._idle = idle
        loop = asyncio.get_running_loop()
        self._time_callbacks()
        gc.callbacks.append(self._time_collections)
        self._due = loop.time() + _BEAT
        loop.call_at(self._due, self._beat)
        loop.add_reader(sys.stdin.fileno(), read_command, self._handle)

    def sample(self) -> dict[str, Any]:
        """Return the measurements since the last call, and reset them."""
        sample = {
            "idle": self._idle(),
            "changed": self.changed,
            "cpu": time.process_time(),
            "rss": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
            "block": self._block,
            "culprit": self._culprit,
            "late": self._late,
            "collecting": self._collecting,
            "encoded": dict(encode_counts),
            "contents": self._new_contents(),
        }
        self._block = self._late = self._collecting = 0.0
        return sample

    def _new_contents(self) -> dict[str, int]:
        """Count the proxies' resources that are new since the last call, by type. Each had to be encoded."""
        sets = {resources for snapshot in self._snapshots() for resources in snapshot.types.values()}
        contents = {(r.type_url, r.name, r.version) for resources in sets for r in resources.values()}
        new, self._contents = contents - self._contents, contents
        return Counter(type_url.removeprefix(TYPE_PREFIX) for type_url, _, _ in new)

    def _handle(self, command: dict[str, Any]) -> None:
        result = self.commands[command["do"]]()
        respond(result if isinstance(result, dict) else {})
        self._due = asyncio.get_running_loop().time() + _BEAT  # Exclude this command from the measurement.

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._late = max(self._late, loop.time() - self._due)
        self._due = loop.time() + _BEAT
        loop.call_at(self._due, self._beat)

    def _time_collections(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collection_start = time.thread_time()
        else:
            self._collecting = max(self._collecting, time.thread_time() - self._collection_start)

    def _time_callbacks(self) -> None:
        """Measure the CPU time of all callbacks. Unlike wall-clock time, it excludes other processes."""
        run = events.Handle._run

        def timed(handle: events.Handle) -> None:
            start = time.thread_time()
            run(handle)
            duration = time.thread_time() - start
            if duration > self._block and getattr(handle, "_callback", None) is not read_command:
                self._block = duration
                self._culprit = _name(handle)

        events.Handle._run = timed  # type: ignore[method-assign]


def _name(handle: events.Handle) -> str:
    """Return the name of a callback, or of the coroutine of a task."""
    callback: Any = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return getattr(owner.get_coro(), "__qualname__", "?")
    return getattr(callback, "__qualname__", repr(callback))
