"""The predicted results of a mesh: which workloads reach which services, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xds.checkpoint import Checkpoint
from xds.mesh.model.memory import ServiceKey
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Service
from xds.mesh.model.workload import Workload, WorkloadKey, workload_key, workloads_of
from xds.mesh.policy.direct import outside_clients
from xds.mesh.policy.hops import Clients, Hop, clients_of, hops
from xds.mesh.policy.reach import OUTSIDE, Result


class Senders(NamedTuple):
    """Workloads with clients that get the same answers."""

    clients: tuple[Clients, ...]
    """The client pods."""
    examples: Mapping[WorkloadKey, str]
    """One of the clients of each workload, as POD.NAMESPACE."""


OUTSIDE_KEY: WorkloadKey = ("outside the mesh", "clients")
"""Stands for all clients that are no pods of the mesh. No namespace has this name."""
_OUTSIDE_SENDERS = Senders((), {OUTSIDE_KEY: ""})


class Prediction(NamedTuple):
    """The result of the connections from some workloads to some endpoints of a service port."""

    senders: Senders
    service: ServiceKey
    result: Result
    reason: str
    conditions: tuple[str, ...]
    """Conditions of AuthorizationPolicies, in words, if they allow only some requests."""
    endpoints: int
    """Number of endpoints; 0 if the service port has no ready endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The predicted results of a mesh."""

    workloads: Mapping[WorkloadKey, Workload]
    """All workloads with pods that have not ended."""
    services: Mapping[ServiceKey, Service]
    """All services with a TCP port."""
    servers: Mapping[ServiceKey, frozenset[WorkloadKey]]
    """Workloads of each service's ready endpoints."""
    predictions: Sequence[Prediction]
    """The results."""
    outside: Sequence[Prediction]
    """The results of clients outside the mesh, for each service."""
    published: frozenset[ServiceKey]
    """Services that clients outside the mesh certainly call, as objects prove."""


async def predict(mesh: Mesh) -> Graph:
    """Compute the results of a mesh, in slices of a few milliseconds."""
    checkpoint = Checkpoint()
    senders: dict[int, Senders] = {}
    servers: dict[ServiceKey, set[WorkloadKey]] = {}
    services: dict[ServiceKey, Service] = {}
    predictions = []
    for hop in hops(mesh):
        await checkpoint()
        if id(hop.clients) not in senders:
            senders[id(hop.clients)] = Senders(hop.clients, _examples(hop))
        key = hop.service.key
        services[key] = hop.service
        pods = {endpoint.pod.ref: endpoint.pod for endpoint in hop.endpoints if endpoint.pod}
        servers.setdefault(key, set()).update(map(workload_key, pods.values()))
        predictions.append(_prediction(senders[id(hop.clients)], hop))
    outside = []
    for hop in hops(mesh, [OUTSIDE]):
        await checkpoint()
        outside.append(_prediction(_OUTSIDE_SENDERS, hop))
    return Graph(
        workloads=workloads_of(clients_of(mesh)),
        services=services,
        servers={key: frozenset(found) for key, found in servers.items()},
        predictions=predictions,
        outside=outside,
        published=frozenset(
            service
            for (service, _), clients in outside_clients(mesh).items()
            if any(client.is_certain for client in clients)
        ),
    )


def _prediction(senders: Senders, hop: Hop) -> Prediction:
    service, answer = (hop.service.namespace, hop.service.name), hop.answer
    reason = str(answer.reason)
    return Prediction(senders, service, answer.result, reason, answer.conditions, len(hop.endpoints))


def _examples(hop: Hop) -> dict[WorkloadKey, str]:
    examples: dict[WorkloadKey, str] = {}
    for pod in (pod for clients in hop.clients for pod in clients.pods):
        examples.setdefault(workload_key(pod), f"{pod.name}.{pod.namespace}")
    return examples
