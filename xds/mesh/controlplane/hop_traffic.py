"""Observed traffic of predicted connections, by client service account and service port."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from xds.mesh.model.objects import Pod, Service, ServicePort
from xds.mesh.observe.edges import Client, Edge, EdgeKey, Target, TrafficMode
from xds.mesh.policy.hops import Clients
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1.traffic_pb2 import TrafficEdge


class _ModeTraffic(NamedTuple):
    """Traffic in one mode."""

    rate: float
    """Requests per minute."""
    last_seen: float
    """Unix time of the last report, in seconds."""


_ByMode: TypeAlias = dict[TrafficMode, _ModeTraffic]


class HopTraffic:
    """The traffic at one time, indexed for the hops of one response.

    Args:
        edges: all observed edges.
        now: Unix time, in seconds.
    """

    def __init__(self, edges: Iterable[tuple[EdgeKey, Edge]], now: float) -> None:
        self._now = now
        self._edges: dict[Target, list[tuple[EdgeKey, Edge]]] = {}
        for key, edge in edges:
            self._edges.setdefault(key.target, []).append((key, edge))
        self._by_target: dict[Target, dict[Client, _ByMode]] = {}

    def of_clients(
        self, clients: Iterable[Clients], service: Service, port: ServicePort
    ) -> pb.ObservedTraffic:
        """Return the traffic from the service accounts of clients to a service port."""
        by_client = self._to(service, port)
        accounts = {item.namespace: item.accounts for item in clients} if by_client else {}
        return _message(
            by_mode
            for client, by_mode in by_client.items()
            if client.name in accounts.get(client.namespace, ())
        )

    def of_pod(self, pod: Pod, service: Service, port: ServicePort) -> pb.ObservedTraffic:
        """Return the traffic from the service account of a pod to a service port."""
        by_mode = self._to(service, port).get(Client(pod.namespace, pod.service_account))
        return _message([by_mode] if by_mode else [])

    def _to(self, service: Service, port: ServicePort) -> dict[Client, _ByMode]:
        """Return the traffic to a service port. Rates take long to compute, so each is computed once."""
        target = Target(service.namespace, service.name, port.port)
        if target not in self._by_target:
            by_client = self._by_target[target] = {}
            for key, edge in self._edges.get(target, ()):
                seen = _ModeTraffic(edge.rate(self._now), edge.last_seen)
                by_client.setdefault(key.client, {})[key.mode] = seen
        return self._by_target[target]


def _message(found: Iterable[_ByMode]) -> pb.ObservedTraffic:
    """Return the sum of traffic, in the order of the modes."""
    seen = list(found)
    message = pb.ObservedTraffic()
    for mode in TrafficMode:
        if in_mode := [by_mode[mode] for by_mode in seen if mode in by_mode]:
            added = message.modes.add(
                mode=TrafficEdge.Mode.Value(mode.name), requests_per_minute=sum(each.rate for each in in_mode)
            )
            added.last_seen.FromMilliseconds(round(max(each.last_seen for each in in_mode) * 1000))
    return message
