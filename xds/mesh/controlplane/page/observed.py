"""Observed traffic of workloads, for the map and the migration view.

Sidecars report for service accounts. Workloads that share an account therefore share its traffic.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from xds.mesh.controlplane.page.graph import OUTSIDE_KEY
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.workload import WorkloadKey, workload_key
from xds.mesh.observe.edges import (
    UNENCRYPTED,
    Client,
    Denial,
    Edge,
    EdgeKey,
    Edges,
    Target,
    TrafficMode,
    address_words,
)

TargetKey: TypeAlias = tuple[str, str]
"""Namespace and name of a `Target`: a service, or a pod for ports without a service."""
MAX_CLIENTS = 3
"""Maximum number of clients that a row of the migration view names."""


class Flow(NamedTuple):
    """An observed edge."""

    client: Client
    target: Target
    mode: TrafficMode
    denial: Denial | None
    """Why its requests are denied. They are no traffic."""
    edge: Edge


class ObservedTraffic:
    """The traffic that was observed until now.

    Args:
        traffic: all edges, of requests and of denied ones.
        mesh: has the pods of the workloads.
    """

    def __init__(self, traffic: Iterable[Edges], mesh: Mesh) -> None:
        self._now = time.time()
        self._accounts: dict[WorkloadKey, set[Client]] = {}
        self.from_outside: set[TargetKey] = set()
        """What clients called that are no pods of the mesh."""
        self._by_target: dict[TargetKey, list[Flow]] = {}
        for pod in mesh.pods():
            self._accounts.setdefault(workload_key(pod), set()).add(
                Client(pod.namespace, pod.service_account)
            )
        for key, edge in chain.from_iterable(map(self._current, traffic)):
            seen = Flow(*key, edge)
            target = key.target.namespace, key.target.name
            self._by_target.setdefault(target, []).append(seen)
            if not key.client.namespace:
                self._accounts.setdefault(OUTSIDE_KEY, set()).add(key.client)
                self.from_outside.add(target)

    def _current(self, edges: Edges) -> Iterator[tuple[EdgeKey, Edge]]:
        edges.expire(self._now)
        return edges.edges()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._by_target)

    def between_nodes(
        self, clients: Mapping[WorkloadKey, str], services: Mapping[TargetKey, str]
    ) -> Mapping[tuple[str, str], Sequence[Flow]]:
        """Return the traffic between the nodes of a map, by their IDs.

        Args:
            clients: the ID of each workload's node.
            services: the ID of each service's node.
        """
        nodes: dict[Client, set[str]] = {}
        for workload in clients:
            for account in self._accounts.get(workload, ()):
                nodes.setdefault(account, set()).add(clients[workload])
        found: dict[tuple[str, str], list[Flow]] = {}
        for target in self._by_target.keys() & services:
            for seen in self._by_target[target]:
                for node in nodes.get(seen.client, ()):
                    found.setdefault((node, services[target]), []).append(seen)
        return found

    def has_failed(self, found: Iterable[Flow]) -> bool:
        """Whether requests of the last RATE_MINUTES have failed."""
        return any(seen.edge.has_failed(self._now) for seen in found)

    def value(self, found: Sequence[Flow]) -> dict[str, Any]:
        """Return traffic as JSON values: the rate of each mode, failures, denials, and its age."""
        rates: dict[str, float] = {}
        denied = {False: 0, True: 0}
        for seen in found:
            if seen.denial:
                denied[seen.denial.dry_run] += sum(seen.edge.minutes(self._now))
                continue
            rates[seen.mode] = round(rates.get(seen.mode, 0.0) + seen.edge.rate(self._now), 2)
        last_seen = max(seen.edge.last_seen for seen in found)
        return {
            "requestsPerMinute": rates,
            "failedPerHour": sum(seen.edge.failed_in_hour(self._now) for seen in found),
            "isFailing": self.has_failed(found),
            "deniedPerHour": denied[False],
            "wouldBeDeniedPerHour": denied[True],
            "secondsAgo": max(0, round(self._now - last_seen)),
        }

    def plaintext_to(self, targets: Iterable[TargetKey]) -> list[dict[str, Any]]:
        """Return the traffic without encryption to targets, and who sent it: accepted, and then refused."""
        by_mode: dict[TrafficMode, list[Flow]] = {}
        for seen in (seen for target in targets for seen in self._by_target.get(target, ())):
            if not seen.denial:
                by_mode.setdefault(seen.mode, []).append(seen)
        return [
            {"mode": str(mode), **self._plaintext(by_mode[mode])} for mode in UNENCRYPTED if mode in by_mode
        ]

    def _plaintext(self, found: list[Flow]) -> dict[str, Any]:
        found.sort(key=lambda seen: -seen.edge.last_seen)
        clients = list(dict.fromkeys(seen.client for seen in found))
        return {
            **self.value(found),
            "clients": [_client(client) for client in clients[:MAX_CLIENTS]],
            "moreClients": len(clients[MAX_CLIENTS:]),
        }


def _client(client: Client) -> dict[str, str]:
    if client.namespace:
        return {"name": f"{client.namespace}/{client.name}", "note": ""}
    return {"name": client.name, "note": address_words(client.name)}
