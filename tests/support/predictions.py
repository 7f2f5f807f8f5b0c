"""The results of all connections of a mesh, one by one: the oracle of the grouped results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod, Service, ServicePort
from xds.mesh.policy.reach import Outcome, outcome


def predict(
    mesh: Mesh,
    clients: Iterable[Pod] | None = None,
    targets: Iterable[tuple[Service, ServicePort]] | None = None,
) -> Iterator[Outcome]:
    """Yield one outcome for each client, service port and ready endpoint.

    A service port without a ready endpoint has one outcome for each client.

    Args:
        mesh: the facts.
        clients: client pods; default: all pods that have not ended.
        targets: service ports that the clients call; default: all.
    """
    called = tuple(targets or ((service, port) for service in mesh.services() for port in service.ports))
    for client in clients if clients is not None else (pod for pod in mesh.pods() if not pod.ended):
        for service, port in called:
            ready = [endpoint for endpoint in mesh.endpoints(service, port) if endpoint.ready]
            for endpoint in ready or (None,):
                yield outcome(mesh, client, service, port, endpoint)
