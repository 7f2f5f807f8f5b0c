"""The measurements.

Each measures the time from a change at the server until the last client has it, and the floor: the time to
send the same number of bytes over plain sockets.
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
_TIMEOUT = 120.0
"""Timeout for a change to reach all clients, in seconds."""
TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET)


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
    """Seconds without data after which a change counts as complete."""


@dataclass(slots=True, kw_only=True)
class Measurement:
    """Result of one change or one start."""

    seconds: float
    """Seconds from the change at the server until the last client has received the last byte."""
    floor: float
    """Seconds to send the same number of bytes over plain sockets."""
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
    """Longest garbage collection, in CPU seconds. It is part of a callback."""
    encoded: dict[str, int]
    """Number of encoded resources, by type."""
    contents: dict[str, int]
    """Number of changed resources, by type."""
    more: dict[str, float] = field(default_factory=dict)
    """Additional values of one scenario."""

    @property
    def ratio(self) -> float:
        """Time as a multiple of the floor."""
        return self.seconds / self.floor


class Bench:
    """The client and floor processes, for all rounds."""

    def __init__(self, size: Size, folder: Path, stack: ExitStack, log: Callable[[str], None]) -> None:
        self.size = size
        self.folder = folder
        self.log = log
        self.fleet = stack.enter_context(Process("fleet.py", log=folder / "fleet.log"))
        self.floor = stack.enter_context(Process("floor.py", log=folder / "floor.log"))
        self.fleet.receive()
        self._floor_port = self.floor.receive()["port"]

    def connect(self, port: int, nodes: list[str], types: tuple[str, ...]) -> tuple[float, dict[str, Any]]:
        """Connect all streams. Return the start time, and the fleet's state once it has all resources."""
        start = self.fleet.call("connect", port=port, nodes=nodes, types=types)["start"]
        return start, self._wait_for_streams(lambda state: bool(state["complete"] == len(nodes)))

    def wait_for_change(self) -> dict[str, Any]:
        """Wait until a change has reached every stream. Return the fleet's state."""
        return self._wait_for_streams(lambda state: bool(state["reached"] == self.size.streams))

    def floor_of_start(self, size: int) -> float:
        """Connect plain sockets, and send `size` bytes to each. Return the duration in seconds."""
        self.floor.call("send_on_accept", size=size)
        start = self.fleet.call("plain", port=self._floor_port, count=self.size.streams, size=size)["start"]
        return float(self._wait_for_plain_sockets()["last"] - start)

    def floor_of_push(self, size: int) -> float:
        """Send `size` bytes to each plain socket. Return the duration in seconds."""
        self.fleet.call("expect", size=size)
        start = self.floor.call("push", size=size)["changed"]
        return float(self._wait_for_plain_sockets()["last"] - start)

    def _wait_for_plain_sockets(self) -> dict[str, Any]:
        return self._wait(lambda state: bool(state["reached"] == self.size.streams), "plain sockets")

    def _wait_for_streams(self, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        return self._wait(
            lambda state: done(state) and time.monotonic() >= state["last"] + self.size.quiet, "streams"
        )

    def _wait(self, done: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        end = time.monotonic() + _TIMEOUT
        while True:
            state = self.fleet.call("state")
            if state["failures"]:
                raise SystemExit(f"{what} ended: {state['failures']}")
            if done(state):
                return state
            if time.monotonic() > end:
                raise SystemExit(f"{what} did not receive everything within {_TIMEOUT:.0f} s: {state}")
            time.sleep(_POLL)


def settle(server: Process, wait: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Wait for the clients, and until the server has no pending work. Return the state of both."""
    state = wait()
    while not (sample := server.call("sample"))["idle"]:
        state = wait()
    return state, sample


def measurement(
    before: dict[str, Any], after: dict[str, Any], *, seconds: float, floor: float, size: int, **more: float
) -> Measurement:
    """Build a measurement from two samples of the server."""
    resource_types = {name.removeprefix(TYPE_PREFIX) for name in TYPES}
    encoded = {
        name.rpartition(".")[2]: count - before["encoded"].get(name, 0)
        for name, count in after["encoded"].items()
        if name in resource_types and count > before["encoded"].get(name, 0)
    }
    return Measurement(
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


def library(bench: Bench, results: dict[str, list[Measurement]]) -> None:
    """Measure the library alone: prebuilt resources, and one snapshot for all clients."""
    size = bench.size
    args = (str(size.services), str(size.endpoints))
    with Process("library.py", *args, log=bench.folder / "library.log") as server:
        port = server.receive()["port"]
        before = server.call("sample")
        nodes = [f"client-{number}" for number in range(size.streams)]
        start, state = bench.connect(port, nodes, (CLUSTER, ENDPOINT))
        after = server.call("sample")
        floor = bench.floor_of_start(state["bytes"] // size.streams)
        results.setdefault("library: connect", []).append(
            measurement(
                before,
                after,
                seconds=state["last"] - start,
                floor=floor,
                size=state["bytes"],
                kib_per_stream=(after["rss"] - before["rss"]) / size.streams / 1024,
            )
        )
        for number in range(size.rounds):
            bench.log(f"library: round {number + 1} of {size.rounds}")
            for change in ("one", "all"):
                before = server.call("sample")
                bench.fleet.call("reset")
                server.call(change)
                state, after = settle(server, bench.wait_for_change)
                floor = bench.floor_of_push(state["bytes"] // size.streams)
                results.setdefault(f"library: {change} of {size.services:,} changes", []).append(
                    measurement(
                        before,
                        after,
                        seconds=state["last"] - after["changed"],
                        floor=floor,
                        size=state["bytes"],
                    )
                )
        bench.fleet.call("close")


def mesh(bench: Bench, kinds: int, results: dict[str, list[Measurement]]) -> None:
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
        # Measure the distribution of changes without the phases of a gated rollout.
        "--rollout",
        "immediate",
    )
    for number in range(size.starts):
        bench.log(f"{title}: start {number + 1} of {size.starts}")
        with Process("serve.py", *args, log=bench.folder / f"serve-{kinds}.log") as server:
            _start(bench, server, nodes, title, results)
            if number == size.starts - 1:
                _changes(bench, server, folder, title, results)
            bench.fleet.call("close")


def _start(
    bench: Bench, server: Process, nodes: list[str], title: str, results: dict[str, list[Measurement]]
) -> None:
    read = server.receive()["read"]
    listening = server.receive()
    before = server.call("sample")
    start, state = bench.connect(listening["port"], nodes, TYPES)
    after = server.call("sample")
    floor = bench.floor_of_start(state["bytes"] // len(nodes))
    results.setdefault(f"{title}: cold start", []).append(
        measurement(
            before,
            after,
            seconds=state["last"] - start,
            floor=floor,
            size=state["bytes"],
            read=read - server.started,
            listening=listening["listening"] - read,
            everything=state["last"] - server.started,
            kib_per_stream=(after["rss"] - before["rss"]) / len(nodes) / 1024,
            mib=after["rss"] / 2**20,
        )
    )


def _changes(
    bench: Bench, server: Process, folder: Manifests, title: str, results: dict[str, list[Measurement]]
) -> None:
    size = bench.size
    for number in range(size.rounds):
        bench.log(f"{title}: round {number + 1} of {size.rounds}")
        changes: dict[str, Callable[[], None]] = {
            "one endpoint": lambda: folder.move_endpoint(number % 2 == 0),  # noqa: B023 - called below
            "PERMISSIVE to STRICT": lambda: folder.set_mode("STRICT"),
            "STRICT to DISABLE": lambda: folder.set_mode("DISABLE"),
            "DISABLE to PERMISSIVE": lambda: folder.set_mode("PERMISSIVE"),
        }
        for name, change in changes.items():
            before = server.call("sample")
            bench.fleet.call("reset")
            written = time.monotonic()
            change()
            state, after = settle(server, bench.wait_for_change)
            floor = bench.floor_of_push(state["bytes"] // size.streams)
            results.setdefault(f"{title}: {name}", []).append(
                measurement(
                    before,
                    after,
                    seconds=state["last"] - after["changed"],
                    floor=floor,
                    size=state["bytes"],
                    noticed=after["changed"] - written,
                )
            )
