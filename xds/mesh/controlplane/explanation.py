"""Explanations of connections as messages: the same for manifests and for a running control plane."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import Mode, Pod, Ref, Service
from xds.mesh.policy.access_explanation import AccessExplanation
from xds.mesh.policy.authorization import Request
from xds.mesh.policy.direct import Refusal, refusals
from xds.mesh.policy.explain import (
    ACCEPTS,
    SENDS,
    Configured,
    Explained,
    Explanation,
    Side,
    decider,
)
from xds.mesh.policy.hop_text import workload_names
from xds.mesh.policy.hops import Clients
from xds.mesh.policy.mtls import Send
from xds.mesh.policy.prediction import HopChange
from xds.mesh.policy.reach import Answer
from xds.mesh.policy.remedy import change_remedy, refusal_remedy
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1 import rollouts_pb2

MAX_UNSYNCED = 10
"""Maximum number of servers' sidecars that the differences of a group name."""
MAX_SERVERS = 100
"""Maximum number of servers whose refused traffic, and state of the sidecar, a group contains."""

MODES = {
    Mode.DISABLE: rollouts_pb2.DISABLE,
    Mode.PERMISSIVE: rollouts_pb2.PERMISSIVE,
    Mode.STRICT: rollouts_pb2.STRICT,
}
_SENDS = {
    Send.MTLS: pb.Configured.MTLS,
    Send.PLAINTEXT: pb.Configured.PLAINTEXT,
    Send.TLS: pb.Configured.TLS,
}


_RESULTS = {True: "matched", False: "not-matched", None: "depends"}


def http_request(request: pb.ExplainRequest) -> Request | None:
    """Return the HTTP request of a call; None if it contains none."""
    if not request.HasField("http"):
        return None
    http = request.http
    return Request(
        port=0,
        method=http.method or None,
        path=http.path or None,
        host=http.host or None,
        headers=dict(http.headers),
    )


def explanation_message(
    mesh: Mesh, client: Pod, service: Service, groups: Sequence[Explained]
) -> pb.Explanation:
    """Return what policies require of a client's connections to a service."""
    return pb.Explanation(
        client=f"{client.name}.{client.namespace}",
        service=f"{service.name}.{service.namespace}",
        groups=[_group(mesh, group) for group in groups],
    )


def configured(state: Configured) -> pb.Configured:
    """Return what a client sends and a server accepts."""
    return pb.Configured(send=_SENDS[state.send], mode=MODES[state.mode] if state.mode else None)


def differences(
    explanation: Explanation, client: pb.ProxyState | None, servers: Collection[pb.ProxyState]
) -> Iterator[str]:
    """Yield the differences between what policies require and what is in use, in words.

    Args:
        explanation: the desired and the served state.
        client: the client's sidecar; None if it has none.
        servers: the servers' sidecars. If MAX_SERVERS are not synced, there may be more.
    """
    desired, served = explanation.desired, explanation.served
    if desired and served and desired.send is not served.send:
        yield f"the client is still configured to send {SENDS[served.send]}, not {SENDS[desired.send]}"
    if desired and served and desired.mode and served.mode and desired.mode is not served.mode:
        yield f"the server is still configured to accept {ACCEPTS[served.mode]}, not {ACCEPTS[desired.mode]}"
    if client and _lags(client):
        yield f"the client's sidecar {client.pod}: {client.status}"
    unsynced = [server for server in servers if _lags(server)]
    for server in unsynced[:MAX_UNSYNCED]:
        yield f"the server's sidecar {server.pod}: {server.status}"
    if more := len(unsynced[MAX_UNSYNCED:]):
        at_least = "at least " if len(unsynced) >= MAX_SERVERS else ""
        yield f"{at_least}{more} more servers' sidecars are not synced"


def _lags(proxy: pb.ProxyState) -> bool:
    return not (proxy.synced or proxy.may_be_on_other_replica)


def _group(mesh: Mesh, group: Explained) -> pb.EndpointGroup:
    explanation = group.explanation
    pods = {endpoint.pod.ref: endpoint.pod for endpoint in group.endpoints if endpoint.pod}.values()
    return pb.EndpointGroup(
        port=explanation.port.port,
        endpoints=[endpoint_message(endpoint) for endpoint in group.endpoints],
        outcome=explanation.result,
        reason=explanation.reason,
        summary=explanation.summary,
        client=side_message(mesh, explanation.client) if explanation.client else None,
        server=side_message(mesh, explanation.server) if explanation.server else None,
        desired=configured(explanation.desired) if explanation.desired else None,
        identities=explanation.identities,
        refused=map(refused_message, refusals(mesh, islice(pods, MAX_SERVERS))),
        access=_access(mesh, explanation.access) if explanation.access else None,
    )


def _access(mesh: Mesh, access: AccessExplanation) -> pb.AccessExplanation:
    nearest = access.nearest
    return pb.AccessExplanation(
        access=access.access,
        policies=[
            pb.PolicyMatch(
                policy=object_message(mesh, *decider(mesh, policy.ref, 0)),
                action=policy.action,
                result=_RESULTS[policy.matches],
                enforced=policy.enforced,
            )
            for policy in access.policies
        ],
        nearest=pb.NearestRule(
            policy=str(nearest.policy),
            rule=nearest.rule,
            fields=[
                pb.FieldMatch(
                    field=field.field,
                    expected=field.expected,
                    result=_RESULTS[field.matches],
                    actual=field.actual,
                )
                for field in nearest.fields
            ],
        )
        if nearest
        else None,
    )


def endpoint_message(endpoint: Endpoint) -> pb.EndpointName:
    """Return the names of an endpoint."""
    pod = endpoint.pod
    # A workload in manifests stands for its pods, whose addresses are unknown.
    address = "" if pod and pod.is_template else endpoint.address
    return pb.EndpointName(
        pod=f"{pod.name}.{pod.namespace}" if pod else "", address=address, port=endpoint.port
    )


def side_message(mesh: Mesh, side: Side) -> pb.Side:
    """Return one side of a connection, with the places of its objects."""
    return pb.Side(
        summary=side.summary,
        decided_by=object_message(mesh, *side.decided_by) if side.decided_by else None,
        overridden=[object_message(mesh, *each) for each in side.overridden],
    )


def object_message(mesh: Mesh, ref: Ref, scope: str = "") -> pb.PolicyObject:
    """Return an object, where it was read, and what it applies to in words."""
    fact = mesh.get(ref)
    return pb.PolicyObject(
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        place=fact.meta.place if fact else "",
        scope=scope,
    )


def clients_messages(clients: Iterable[Clients], *, names_workloads: bool = True) -> list[pb.Clients]:
    """Return clients by namespace and service account, and the names of their workloads."""
    return [
        pb.Clients(
            namespace=item.namespace,
            accounts=[
                pb.Account(
                    name=account, pods=len(pods), workloads=workload_names(pods) if names_workloads else ()
                )
                for account, pods in item.accounts.items()
            ],
        )
        for item in clients
    ]


def answer_message(answer: Answer) -> pb.Answer:
    """Return an answer."""
    return pb.Answer(
        outcome=answer.result,
        reason=answer.reason,
        decided_by=map(str, answer.decided_by),
        conditions=answer.conditions,
    )


def hop_change_message(change: HopChange) -> pb.HopChange:
    """Return a changed hop."""
    return pb.HopChange(
        effect=change.effect,
        clients=clients_messages(change.clients),
        service=f"{change.service.name}.{change.service.namespace}",
        port=change.port.port,
        endpoints=len(change.endpoints),
        ready=change.ready,
        before=answer_message(change.before),
        after=answer_message(change.after),
        remedy=change_remedy(change),
    )


def refused_message(refusal: Refusal) -> pb.RefusedTraffic:
    """Return traffic that sidecars refuse, and how to let it pass."""
    return pb.RefusedTraffic(
        traffic=refusal.traffic,
        source=str(refusal.source) if refusal.source else "",
        breaks=refusal.breaks,
        pods=clients_messages(refusal.clients),
        port=refusal.port,
        decided_by=[str(refusal.decided_by)],
        remedy=refusal_remedy(refusal),
    )
