"""The results of all connections of a mesh, one by one, to compare with grouped and with real results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod, Ref, Service, ServicePort
from xds.mesh.policy.hops import hops
from xds.mesh.policy.prediction import Prediction
from xds.mesh.policy.reach import RANKS, Outcome, Result, outcome

Call: TypeAlias = tuple[Ref, Ref, int]
"""Client pod, Service and port."""
At: TypeAlias = tuple[str, int] | None
"""Address and port of an endpoint; None if the service port has no ready endpoint."""
Results: TypeAlias = Mapping[Call, Mapping[At, Result]]
"""The results of calls, by endpoint."""


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


def results(mesh: Mesh) -> Results:
    """Return the results that `xds reach` predicts."""
    found: defaultdict[Call, dict[At, Result]] = defaultdict(dict)
    for o in (o for hop in hops(mesh) for o in hop.outcomes()):
        at = (o.endpoint.address, o.endpoint.port) if o.endpoint else None
        found[o.client.ref, o.service.ref, o.port.port][at] = o.result
    return found


def conditional(mesh: Mesh) -> set[Call]:
    """Return the calls whose result depends on the request, as AuthorizationPolicies allow only some."""
    return {(o.client.ref, o.service.ref, o.port.port) for o in predict(mesh) if o.conditions}


def results_after(prediction: Prediction, before: Results, after: Results) -> Results:
    """Return the results before a change, with the changes that are predicted.

    Leaves out calls that are possible only before or only after the change. `after` says which are possible,
    and the endpoints that they have then. Its results are not used.
    """
    changes = {
        ((client.ref, change.service.ref, change.port.port), endpoint and (endpoint.address, endpoint.port)):
            (change.before.result, change.after.result)
        for change in prediction.hops
        for clients in change.clients
        for client in clients.pods
        for endpoint in change.endpoints or (None,)
    }  # fmt: skip
    found: dict[Call, dict[At, Result]] = {}
    for call in before.keys() & after.keys():
        best = max(before[call].values(), key=lambda result: RANKS[result])
        found[call] = {}
        for at in after[call]:
            result = before[call].get(at, best)
            expected, found[call][at] = changes.get((call, at), (result, result))
            assert expected == result, (call, at)
    return found
