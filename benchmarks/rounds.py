"""The measurements.

Each measures the time from a change at the server to the last client, and the time for the same bytes on
plain
sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control import Process
from manifests import Manifests

from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, TYPE_PREFIX

_POLL = 0.02
"""Interval of queries to the clients, in seconds."""
_WITHIN = 120.0
"""Timeout for a change to reach all clients, in seconds."""
_TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of the benchmark."""

    streams: int
    services: int
    endpoints: int
    namespaces: int
    rounds: int
    starts: int
    """Number of server starts."""
    quiet: float
    """Seconds without data after which a change counts as received by all clients."""


@dataclass(slots=True, kw_only=True)
class Measured:
    """Result of one change or one start."""

    seconds: float
    """Seconds from the change at the server until the last client has the last byte."""
    floor: float
    """The same for plain sockets."""
    megabytes: float
    """Data that all clients received, in MB."""
    cpu: float
    """CPU seconds of the server process."""
    block: float
    """Longest callback of the event loop, in CPU seconds."""
    culprit: str
    """Name of that callback."""
    late: float
    """Maximum lag of a timer, in seconds."""
    collecting: float
    """Longest garbage collection in CPU seconds, which is part of a callback."""
    encoded: dict[str, int]
    """Number of encoded resources, by type."""
    contents: dict[str, int]
    """Number of changed resources, by type."""
    more: dict[str, float] = field(default_factory=dict)
    """Further values of a scenario."""

    @property
    def ratio(self) -> float:
        """Time as a multiple of the floor."""
        return self.seconds / self.floor


class Bench:
    """The client and floor processes, for all rounds."""

    def __init__(self, size: Size, folder: Path, stack: ExitStack, say: Callable[[str], None]) -> None:
        self.size = size
        self.folder = folder
        self.say = say
        self.fleet = stack.enter_context(Process("fleet.py", log=folder / "fleet.log"))
        self.floor = stack.enter_context(Process("floor.py", log=folder / "floor.log"))
        self.fleet.hear()
        self._floor_port = self.floor.hear()["port"]

    def connect(self, port: int, nodes: list[str], types: tuple[str, ...]) -> tuple[float, dict[str, Any]]:
        """Connect all streams. Return the start time, and their state when they have all resources."""
        began = self.fleet.ask("connect", port=port, nodes=nodes, types=types)["began"]
        return began, self._settled(lambda seen: bool(seen["complete"] == len(nodes)))

    def changed(self) -> dict[str, Any]:
        """Wait until a change has reached every stream. Return what the streams received."""
        return self._settled(lambda seen: bool(seen["reached"] == self.size.streams))

    def floor_of_start(self, size: int) -> float:
        """Connect plain sockets that receive `size` bytes each. Return the seconds it took."""
        self.floor.ask("greet", size=size)
        began = self.fleet.ask("plain", port=self._floor_port, count=self.size.streams, size=size)["began"]
        return float(self._reached()["last"] - began)

    def floor_of_push(self, size: int) -> float:
        """Send `size` bytes to each plain socket. Return the seconds it took."""
        self.fleet.ask("expect", size=size)
        began = self.floor.ask("push", size=size)["changed"]
        return float(self._reached()["last"] - began)

    def _reached(self) -> dict[str, Any]:
        return self._until(lambda seen: bool(seen["reached"] == self.size.streams), "plain sockets")

    def _settled(self, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        return self._until(
            lambda seen: done(seen) and time.monotonic() >= seen["last"] + self.size.quiet, "streams"
        )

    def _until(self, done: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        end = time.monotonic() + _WITHIN
        while True:
            seen = self.fleet.ask("seen")
            if seen["failures"]:
                raise SystemExit(f"{what} ended: {seen['failures']}")
            if done(seen):
                return seen
            if time.monotonic() > end:
                raise SystemExit(f"{what} did not receive everything within {_WITHIN:.0f} s: {seen}")
            time.sleep(_POLL)


def settle(server: Process, wait: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Wait for the clients, and until the server has no pending work."""
    seen = wait()
    while not (sample := server.ask("sample"))["idle"]:
        seen = wait()
    return seen, sample


def measured(
    before: dict[str, Any], after: dict[str, Any], *, seconds: float, floor: float, size: int, **more: float
) -> Measured:
    """Build a result from two samples of the server."""
    known = {name.removeprefix(TYPE_PREFIX) for name in _TYPES}
    encoded = {
        name.rpartition(".")[2]: count - before["encoded"].get(name, 0)
        for name, count in after["encoded"].items()
        if name in known and count > before["encoded"].get(name, 0)
    }
    return Measured(
        seconds=seconds,
        floor=floor,
        megabytes=size / 1e6,
        cpu=after["cpu"] - before["cpu"],
        block=after["block"],
        culprit=after["culprit"],
        late=after["late"],
        collecting=after["collecting"],
        encoded=encoded,
        contents={name.rpartition(".")[2]: count for name, count in after["contents"].items()},
        more=more,
    )


def library(bench: Bench, results: dict[str, list[Measured]]) -> None:
    """Measure the library alone: prebuilt resources, and one snapshot for all clients."""
    size = bench.size
    args = (str(size.services), str(size.endpoints))
    with Process("library.py", *args, log=bench.folder / "library.log") as server:
        port = server.hear()["port"]
        before = server.ask("sample")
        nodes = [f"client-{number}" for number in range(size.streams)]
        began, seen = bench.connect(port, nodes, (CLUSTER, ENDPOINT))
        after = server.ask("sample")
        floor = bench.floor_of_start(seen["bytes"] // size.streams)
        results.setdefault("library: connect", []).append(
            measured(
                before,
                after,
                seconds=seen["last"] - began,
                floor=floor,
                size=seen["bytes"],
                kib_per_stream=(after["rss"] - before["rss"]) / size.streams / 1024,
            )
        )
        for number in range(size.rounds):
            bench.say(f"library: round {number + 1} of {size.rounds}")
            for what in ("one", "all"):
                before = server.ask("sample")
                bench.fleet.ask("mark")
                server.ask(what)
                seen, after = settle(server, bench.changed)
                floor = bench.floor_of_push(seen["bytes"] // size.streams)
                results.setdefault(f"library: {what} of {size.services:,} changes", []).append(
                    measured(
                        before,
                        after,
                        seconds=seen["last"] - after["changed"],
                        floor=floor,
                        size=seen["bytes"],
                    )
                )
        bench.fleet.ask("close")


def mesh(bench: Bench, kinds: int, results: dict[str, list[Measured]]) -> None:
    """Measure `xds serve` with a directory, and sidecars in `kinds` namespaces."""
    size = bench.size
    title = f"mesh, {kinds} kind{'s' if kinds > 1 else ''}"
    folder = Manifests(
        root=bench.folder / f"mesh-{kinds}",
        services=size.services,
        endpoints=size.endpoints,
        namespaces=size.namespaces,
    )
    folder.write()
    folder.set_mode("PERMISSIVE")
    nodes = folder.nodes(size.streams, kinds)
    args = (
        "serve",
        "--manifests",
        str(folder.root),
        "--xds-address",
        "127.0.0.1:0",
        "--admin-address",
        "127.0.0.1:0",
        # Measure the distribution of changes, not the waiting of a gradual rollout.
        "--rollout",
        "immediate",
    )
    for number in range(size.starts):
        bench.say(f"{title}: start {number + 1} of {size.starts}")
        with Process("serve.py", *args, log=bench.folder / f"serve-{kinds}.log") as server:
            _start(bench, server, nodes, title, results)
            if number == size.starts - 1:
                _changes(bench, server, folder, title, results)
            bench.fleet.ask("close")


def _start(
    bench: Bench, server: Process, nodes: list[str], title: str, results: dict[str, list[Measured]]
) -> None:
    read = server.hear()["read"]
    heard = server.hear()
    before = server.ask("sample")
    began, seen = bench.connect(heard["port"], nodes, _TYPES)
    after = server.ask("sample")
    floor = bench.floor_of_start(seen["bytes"] // len(nodes))
    results.setdefault(f"{title}: cold start", []).append(
        measured(
            before,
            after,
            seconds=seen["last"] - began,
            floor=floor,
            size=seen["bytes"],
            read=read - server.started,
            listening=heard["listening"] - read,
            everything=seen["last"] - server.started,
            kib_per_stream=(after["rss"] - before["rss"]) / len(nodes) / 1024,
            mib=after["rss"] / 2**20,
        )
    )


def _changes(
    bench: Bench, server: Process, folder: Manifests, title: str, results: dict[str, list[Measured]]
) -> None:
    size = bench.size
    for number in range(size.rounds):
        bench.say(f"{title}: round {number + 1} of {size.rounds}")
        changes: dict[str, Callable[[], None]] = {
            "one endpoint": lambda: folder.move_endpoint(number % 2 == 0),  # noqa: B023 - called below
            "PERMISSIVE to STRICT": lambda: folder.set_mode("STRICT"),
            "STRICT to DISABLE": lambda: folder.set_mode("DISABLE"),
            "DISABLE to PERMISSIVE": lambda: folder.set_mode("PERMISSIVE"),
        }
        for name, change in changes.items():
            before = server.ask("sample")
            bench.fleet.ask("mark")
            written = time.monotonic()
            change()
            seen, after = settle(server, bench.changed)
            floor = bench.floor_of_push(seen["bytes"] // size.streams)
            results.setdefault(f"{title}: {name}", []).append(
                measured(
                    before,
                    after,
                    seconds=seen["last"] - after["changed"],
                    floor=floor,
                    size=seen["bytes"],
                    noticed=after["changed"] - written,
                )
            )
