"""A round: a server, the sidecars that are connected to it, and what a change of it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from control import Process
from replicas import Replicas
from sources import Size, Source

from xds.snapshot import LISTENER, SECRET, TYPE_PREFIX

_POLL = 0.02
"""Interval of queries to the clients, in seconds."""
_TIMEOUT = 300.0
"""Timeout for a change to reach all clients, in seconds."""


@dataclass(slots=True, kw_only=True)
class Measurement:
    """Result of a scenario in one round."""

    seconds: float
    """Seconds from the change until the last client has received the last byte."""
    detect: float = 0.0
    """Part of `seconds` until the server has read the change."""
    grpc: float = 0.0
    """Seconds that bare grpc.aio needs for the same bytes in as many messages; 0 if not measured."""
    raw: float = 0.0
    """Seconds that plain sockets need for the same bytes; 0 if not measured."""
    cpu: float
    """CPU seconds of the server process."""
    megabytes: float = 0.0
    """Data that all clients received, in MB."""
    resident: float
    """Memory of the server process afterwards, in MiB."""
    peak: float
    """Maximum of that memory during the scenario, in MiB."""
    block: float
    """Longest time that one callback has blocked the event loop, in seconds."""
    culprit: str
    """Name of that callback."""
    collecting: float
    """Longest garbage collection, in seconds. It is part of a callback."""
    encoded: dict[str, int]
    """Number of encoded resources, by type."""
    more: dict[str, float] = field(default_factory=dict)
    """Further values of the scenario, by description."""

    @property
    def ratio(self) -> float:
        """Time after `detect` as a multiple of the time of bare grpc.aio; 0 if that was not measured."""
        return (self.seconds - self.detect) / self.grpc if self.grpc else 0.0


class Churn(NamedTuple):
    """Parameters of the scenario `churn`."""

    rate: float
    """Changes a second."""
    seconds: float
    """Duration in seconds."""


class Floor:
    """A floor and its clients, which have a process of their own."""

    def __init__(self, kind: str, folder: Path, stack: ExitStack) -> None:
        self.server = stack.enter_context(Process(f"{kind}_floor.py", log=folder / f"{kind}.log"))
        self.port: int = self.server.receive()["port"]
        self.fleet = _start_fleet(kind, folder, stack)


class Bench:
    """The processes of the clients and of the floors, for all rounds."""

    def __init__(self, size: Size, churn: Churn, quiet: float, folder: Path, stack: ExitStack) -> None:
        self.size = size
        self.churn = churn
        self.folder = folder
        self._quiet = quiet
        self.fleet = _start_fleet("xds", folder, stack)
        self._floors = {kind: Floor(kind, folder, stack) for kind in ("grpc", "raw")}

    def wait(
        self,
        done: Callable[[dict[str, Any]], bool],
        *,
        fleet: Process | None = None,
        quiet: float | None = None,
    ) -> dict[str, Any]:
        """Wait until the clients are done and received nothing for `quiet` seconds. Return their state.

        Args:
            done: returns whether all clients have what they wait for.
            fleet: the clients; by default, the sidecars.
            quiet: the seconds; by default, those of the benchmark.
        """
        quiet = self._quiet if quiet is None else quiet
        end = time.monotonic() + _TIMEOUT
        while True:
            state = (fleet or self.fleet).call("state")
            if state["failures"]:
                raise SystemExit(f"clients failed: {state['failures']}")
            if done(state) and time.monotonic() >= state["last"] + quiet:
                return state
            if time.monotonic() > end:
                raise SystemExit(f"the clients did not receive everything within {_TIMEOUT:.0f} s: {state}")
            time.sleep(_POLL)

    def all_done(self, state: dict[str, Any]) -> bool:
        """Return whether each stream has received something since the last reset of the fleet."""
        return bool(state["done"] == self.size.streams)

    def all_complete(self, state: dict[str, Any]) -> bool:
        """Return whether as many clients as there are streams have received everything."""
        return bool(state["complete"] == self.size.streams)

    def floors_of_connect(self, state: dict[str, Any], at_once: int) -> dict[str, float]:
        """Connect as many clients to each floor, which sends each as many bytes. Return the durations."""
        count, share = self.size.streams, self._share(state)
        durations: dict[str, float] = {}
        for kind, floor in self._floors.items():
            floor.server.call("send_on_connect", **share)
            clients = {"kind": kind, "port": floor.port, "count": count, "size": share["size"]}
            start = floor.fleet.call("connect_floor", **clients, at_once=at_once)["start"]
            durations[kind] = self.wait(self.all_complete, fleet=floor.fleet, quiet=0)["last"] - start
        return durations

    def floors_of_push(self, state: dict[str, Any]) -> dict[str, float]:
        """Have each floor send as many bytes to each of its clients. Return the durations."""
        share = self._share(state)
        durations = {}
        for kind, floor in self._floors.items():
            floor.fleet.call("expect", size=share["size"])
            start = floor.server.call("push", **share)["changed"]
            durations[kind] = self.wait(self.all_done, fleet=floor.fleet, quiet=0)["last"] - start
        return durations

    def _share(self, state: dict[str, Any]) -> dict[str, int]:
        """Return the mean size and number of messages of a client."""
        count = self.size.streams
        return {"size": max(1, state["bytes"] // count), "messages": max(1, state["messages"] // count)}


def _start_fleet(kind: str, folder: Path, stack: ExitStack) -> Process:
    fleet = stack.enter_context(Process("fleet.py", log=folder / f"{kind}_fleet.log"))
    fleet.receive()
    return fleet


class Round:
    """A server, and the sidecars that are connected to it."""

    def __init__(self, bench: Bench, source: Source, stack: ExitStack) -> None:
        self.bench = bench
        self.source = source
        self.pods = source.mesh.pods(bench.size.streams)
        """The pods whose sidecars are connected."""
        self.mode = "PERMISSIVE"
        """Mode of the mesh."""
        source.set_mode(self.mode)
        logs = [bench.folder / f"server-{number}.log" for number in range(bench.size.replicas)]
        self._server = stack.enter_context(Replicas([source.start(log) for log in logs]))
        stack.callback(bench.fleet.call, "close")

    def start(self) -> Measurement:
        """Wait until the server is ready."""
        server = self._server
        first = server.receive()
        ready = first if "ready" in first else server.receive()
        self._ports = ready["ports"]
        more = {"s until the objects were read": first["read"] - server.started} if "read" in first else {}
        started = ready.get("started", server.started)  # istiod is a child of its process.
        return self._measurement({"cpu": 0, "encoded": {}}, ready, ready["ready"] - started, more=more)

    def connect(self, pods: list[tuple[int, int]], *, at_once: int, resumes: bool = False) -> float:
        """Let sidecars connect. Return when they started."""
        command = {
            "ports": self._ports[1 if self.bench.size.tls else 0],
            "nodes": [str(self.source.mesh.node(*pod)) for pod in pods],
            # A sidecar that resumes does not wait for the types whose versions it has.
            "types": (LISTENER, SECRET) if resumes else self.source.types,
            "at_once": at_once,
            "resumes": resumes,
            **self.source.credentials(pods),
        }
        return float(self.bench.fleet.call("connect", **command)["start"])

    def measure(
        self,
        change: Callable[[], float],
        *,
        done: Callable[[dict[str, Any]], bool] | None = None,
        floors: Callable[[dict[str, Any]], dict[str, float]] | None = None,
    ) -> Measurement:
        """Measure from a change until the clients have it.

        Args:
            change: makes the change, and returns when it was made.
            done: returns whether all clients have it; by default, when all streams have a response.
            floors: measures the floors.
        """
        before = self._sample()
        self.bench.fleet.call("reset")
        started = time.monotonic()
        made = change()
        state = self.settle(done)
        after = self._sample()
        detect = max(0.0, after["changed"] - made) if after["changed"] > started else 0.0
        measured_floors = floors(state) if floors else {}
        return self._measurement(
            before,
            after,
            state["last"] - made,
            detect=detect,
            more={f"connections opened again: {why}": count for why, count in state["refused"].items()},
            megabytes=state["bytes"] / 1e6,
            **measured_floors,
        )

    def settle(self, done: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        """Wait for the clients, and until the server has no pending work. Return the state of the fleet."""
        while True:
            state = self.bench.wait(done or self.bench.all_done)
            if self._server.call("is_idle")["idle"]:
                return state

    def _sample(self) -> dict[str, Any]:
        return self._server.call("sample")

    def _measurement(
        self, before: dict[str, Any], after: dict[str, Any], seconds: float, **more: Any
    ) -> Measurement:
        resource_types = {name.removeprefix(TYPE_PREFIX).rpartition(".")[2] for name in self.source.types}
        counts = {
            name: after["encoded"].get(name, 0) - before["encoded"].get(name, 0) for name in resource_types
        }
        return Measurement(
            seconds=seconds,
            cpu=after["cpu"] - before["cpu"],
            resident=after["rss"],
            peak=after["peak"],
            block=after["block"],
            culprit=after["culprit"],
            collecting=after["collecting"],
            encoded={name: count for name, count in sorted(counts.items()) if count},
            **more,
        )
