"""Several servers that share the sidecars, measured as one."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any, Self

from control import Process


class Replicas:
    """The processes of the replicas of a control plane. CPU times and memory are sums, times are maxima."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._stack = ExitStack()
        self.started = min(process.started for process in processes)
        """Time when the first was started, on the system's monotonic clock."""

    def __enter__(self) -> Self:
        for process in self._processes:
            self._stack.enter_context(process)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def receive(self) -> dict[str, Any]:
        """Return the next message of all processes as one."""
        return _merge([process.receive() for process in self._processes])

    def call(self, command: str) -> dict[str, Any]:
        """Send a command to all processes, and return their responses as one."""
        return _merge([process.call(command) for process in self._processes])


def _merge(messages: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in messages[0]:
        values = [message[key] for message in messages]
        match key:
            case "cpu" | "rss" | "peak":
                merged[key] = sum(values)
            case "encoded":
                merged[key] = dict(sum(map(Counter, values), Counter()))
            case "idle":
                merged[key] = all(values)
            case "ports":
                merged[key] = list(zip(*values, strict=True))
            case "culprit":
                merged[key] = max(zip((message["block"] for message in messages), values, strict=True))[1]
            case _:
                merged[key] = max(values)
    return merged
