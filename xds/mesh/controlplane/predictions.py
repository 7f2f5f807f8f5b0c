"""Predicted results of connections as messages: the same for manifests and for a running control plane."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain, groupby, islice

from xds.mesh.controlplane.explanation import (
    clients_messages,
    endpoint_message,
    hop_change_message,
    refused_message,
    side_message,
)
from xds.mesh.controlplane.hop_traffic import HopTraffic
from xds.mesh.controlplane.replayed import replay_message
from xds.mesh.controlplane.traffic_comparison import (
    ObservedPeriod,
    observation_message,
    plaintext_port_message,
    timestamp,
)
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import (
    UnknownNameError,
    host_port,
    join_names,
    pod_matching,
    ports_named,
    unknown_name,
)
from xds.mesh.model.objects import POLICY_KINDS, Change, Pod, Problem
from xds.mesh.observe import strict
from xds.mesh.observe.record import Record
from xds.mesh.policy.describe import OTHER_PORTS, PortDescription, describe
from xds.mesh.policy.direct import (
    OutsideClient,
    Refusal,
    calls_to_unknown_pods,
    outside_clients,
    refusals,
    refusals_without_service,
)
from xds.mesh.policy.hop_text import format_target
from xds.mesh.policy.hops import Clients, Hop, Target, all_targets, clients_of, hops
from xds.mesh.policy.ineffective import why_ineffective
from xds.mesh.policy.prediction import HopChange, Scope, predict_change, scope_of, unready_services
from xds.mesh.policy.prediction_text import format_outside_client, summary
from xds.mesh.policy.reach import OUTSIDE, Outcome, Result
from xds.mesh.sources.files import Folder
from xds.mesh.sources.proposal import Objects, find_deleted, read_change
from xds.mesh.v1 import policies_pb2 as pb

MAX_RESULTS = 5000
"""Maximum number of results of a response. gRPC clients limit the size of a response to 4 MiB by default."""
MAX_UNKNOWN = 10
"""Maximum number of clients outside the mesh that a response names because their servers are not known."""
MAX_CHANGES = 20
"""Maximum number of changed hops of a response. Each names its clients, which can be thousands."""


def reach(
    mesh: Mesh,
    request: pb.ReachRequest,
    observed: HopTraffic | None = None,
    *,
    not_considered: Iterable[str] = (),
) -> Iterator[pb.ReachResponse]:
    """Yield the results of connections, one or more responses for each service port, and a last response.

    Raises UnknownNameError if no client or service has the requested name.

    Args:
        mesh: the facts.
        request: the connections.
        observed: the traffic to add to the results, if traffic is observed.
        not_considered: what the mesh does not contain, and could change an answer.
    """
    clients = list(_clients(mesh, request.client))
    targets = [
        target for target in _targets(mesh, request.service) if request.namespace in ("", target[0].namespace)
    ]
    found = hops(mesh, clients, targets) if clients else ()
    outside_by_port = {} if request.client else outside_clients(mesh)
    # Many hops have the same clients.
    messages = lru_cache(maxsize=1024)(partial(clients_messages, names_workloads=False))
    by_target = groupby(found, key=lambda hop: (hop.service.namespace, hop.service.name, hop.port.port))
    for checked, (_, group) in enumerate(by_target, 1):
        hops_of_target = list(group)
        service, port = hops_of_target[0].service, hops_of_target[0].port
        callers = outside_by_port.get((service.key, port.port), ())
        outside = [*_outside(mesh, callers, (service, port))]
        for response in _responses(hops_of_target, outside, request, messages, observed):
            response.checked, response.total, response.client_pods = checked, len(targets), len(clients)
            yield response
    total = len(targets)
    for response in _refused_at_pods(mesh, request, targets, observed) if clients and targets else ():
        response.checked, response.total, response.client_pods = total, total, len(clients)
        yield response
    yield pb.ReachResponse(
        checked=total, total=total, client_pods=len(clients), last=True, not_considered=not_considered
    )


def _refused_at_pods(
    mesh: Mesh, request: pb.ReachRequest, targets: Sequence[Target], observed: HopTraffic | None
) -> Iterator[pb.ReachResponse]:
    """Yield refused traffic of clients outside the mesh that call no Service, by namespace of the pods."""
    if request.client:
        return
    endpoints = (endpoint for target in targets for endpoint in mesh.endpoints(*target))
    ports = {(endpoint.pod.ref, endpoint.port) for endpoint in endpoints if endpoint.pod}
    for namespace in [request.namespace] if request.namespace else mesh.namespaces():
        pods = [pod for pod in mesh.in_namespace(namespace).pods.values() if not pod.ended]
        refused = refusals_without_service(mesh, pods, ports if request.service else None)
        chosen = refused if request.outcome in ("", Result.FAILS) else ()
        yield pb.ReachResponse(hops=[_refused_hop(each, observed) for each in chosen], fails=bool(refused))


def _refused_hop(refusal: Refusal, observed: HopTraffic | None) -> pb.Hop:
    pods = sum(1 for clients in refusal.clients for _ in clients.pods)
    return pb.Hop(
        outside=format_outside_client(refusal.traffic, refusal.source),
        pods=clients_messages(refusal.clients),
        port=refusal.port,
        endpoints=pods,
        ready=pods,
        outcome=Result.FAILS,
        reason=refusal.failure,
        decided_by=[str(refusal.decided_by)],
        observed=pb.ObservedTraffic() if observed else None,
    )


def _outside(
    mesh: Mesh, clients: Iterable[OutsideClient], target: Target
) -> Iterator[tuple[OutsideClient, Hop]]:
    """Yield the hops of each client outside the mesh that calls a service port."""
    if clients:
        found = list(hops(mesh, [OUTSIDE], [target]))
        yield from ((client, hop) for client in clients for hop in found)


def _responses(
    found: Sequence[Hop],
    outside: Sequence[tuple[OutsideClient, Hop]],
    request: pb.ReachRequest,
    messages: Callable[[tuple[Clients, ...]], list[pb.Clients]],
    observed: HopTraffic | None,
) -> Iterator[pb.ReachResponse]:
    """Yield the results for one service port."""
    fails = any(hop.answer.result is Result.FAILS for hop in found)
    fails |= any(client.is_certain and hop.answer.result is Result.FAILS for client, hop in outside)
    outside = [(client, hop) for client, hop in outside if request.outcome in ("", hop.answer.result)]
    chosen = [hop for hop in found if request.outcome in ("", hop.answer.result)]
    if not request.expand:
        groups = [
            _hop(hop, messages(hop.clients), observed, endpoint_names=request.endpoint_names)
            for hop in chosen
        ]
        for client, hop in outside:
            group = _hop(hop, (), observed, endpoint_names=request.endpoint_names)
            group.outside = format_outside_client(client.traffic, client.source)
            groups.append(group)
        yield pb.ReachResponse(hops=groups, fails=fails)
        return
    results = (_result(outcome, observed) for hop in chosen for outcome in hop.outcomes())
    from_outside = (
        _result(outcome, observed, format_outside_client(client.traffic, client.source))
        for client, hop in outside
        for outcome in hop.outcomes()
    )
    every_result = chain(results, from_outside)
    while batch := list(islice(every_result, MAX_RESULTS)):
        yield pb.ReachResponse(results=batch, fails=fails)
    if not (chosen or outside):
        yield pb.ReachResponse(fails=fails)


def _clients(mesh: Mesh, text: str) -> Iterator[Pod]:
    """Yield the client pods that POD.NAMESPACE or NAMESPACE/ACCOUNT selects; empty text selects all."""
    if not text:
        yield from clients_of(mesh)
        return
    accounts: dict[str, list[Pod]] = {}
    for pod in clients_of(mesh) if "/" in text else ():
        accounts.setdefault(f"{pod.namespace}/{pod.service_account}", []).append(pod)
    if text in accounts:
        yield from accounts[text]
    elif any(account.startswith(f"{text.partition('/')[0]}/") for account in accounts):
        raise UnknownNameError(unknown_name("service account", text, list(accounts), "NAMESPACE/ACCOUNT"))
    else:
        yield pod_matching(mesh, text)


def _targets(mesh: Mesh, text: str) -> Iterator[Target]:
    """Yield the ports that SERVICE.NAMESPACE[:PORT] selects, by number or name; empty text selects all."""
    if not text:
        yield from all_targets(mesh)
        return
    service, ports = ports_named(mesh, text)
    yield from ((service, port) for port in ports)


def _hop(
    hop: Hop, clients: Iterable[pb.Clients], observed: HopTraffic | None, *, endpoint_names: bool
) -> pb.Hop:
    return pb.Hop(
        clients=clients,
        service=f"{hop.service.name}.{hop.service.namespace}",
        port=hop.port.port,
        endpoints=len(hop.endpoints),
        ready=hop.ready,
        outcome=hop.answer.result,
        reason=hop.answer.reason,
        decided_by=map(str, hop.answer.decided_by),
        conditions=hop.answer.conditions,
        endpoint_names=map(endpoint_message, hop.endpoints) if endpoint_names else (),
        observed=observed.of_clients(hop.clients, hop.service, hop.port) if observed else None,
    )


def _result(outcome: Outcome, observed: HopTraffic | None, outside: str = "") -> pb.ConnectionResult:
    """Return one result; `outside` is the name of a client outside the mesh."""
    endpoint = endpoint_message(outcome.endpoint) if outcome.endpoint else None
    return pb.ConnectionResult(
        client=outside or f"{outcome.client.name}.{outcome.client.namespace}",
        service=f"{outcome.service.name}.{outcome.service.namespace}",
        port=outcome.port.port,
        endpoint=endpoint.pod if endpoint else "",
        address=host_port(endpoint.address or "?", endpoint.port) if endpoint else "",
        outcome=outcome.result,
        reason=outcome.reason,
        decided_by=map(str, outcome.decided_by),
        conditions=outcome.conditions,
        observed=observed.of_pod(outcome.client, outcome.service, outcome.port) if observed else None,
    )


# --- plans ----------------------------------------------------------------------------------------


def plan(
    before: Mesh,
    manifests: Folder | None,
    deletions: Iterable[str],
    observed: ObservedPeriod | None = None,
    *,
    record: Record | None = None,
    base: Folder | None = None,
    not_considered: Sequence[str] = (),
) -> Iterator[pb.PlanResponse]:
    """Yield the effects of a change. Together, the responses are the plan that `xds plan` prints.

    Raises UnknownNameError if an object to delete does not exist, and OSError if a folder cannot be read.

    Args:
        before: the mesh without the change.
        manifests: the objects to apply; it must be loaded for the first time, and read workloads.
        deletions: the objects to delete, as KIND/NAMESPACE/NAME or KIND/NAME.
        observed: the traffic to compare the change with, if any.
        record: the recorded traffic to replay, if any.
        base: the manifests that contain this mesh, if any.
        not_considered: what the mesh does not contain, and could change an answer.
    """
    if not any(clients_of(before)) or not all_targets(before):
        yield pb.PlanResponse(nothing_to_compare=True, not_considered=not_considered)
        return
    removed = [find_deleted(before, text) for text in deletions]
    change, problems, ignored = (
        read_change(manifests, before, base, removed) if manifests else Objects(Change())
    )
    ignored = tuple(dict.fromkeys((*not_considered, *ignored)))
    yield pb.PlanResponse(problems=map(_problem, problems), invalid=change is None, not_considered=ignored)
    if change is None:
        return
    change = replace(change, removed=(*change.removed, *removed))
    after = before.apply(change)
    scope, applied = scope_of(change, before, after), {fact.ref for fact in change.applied}
    prediction = predict_change(before, after, scope)
    without_effect = why_ineffective(after, applied)
    unready = [f"{each.namespace}/{each.name}" for each in unready_services(after, scope)]
    if unready:
        names = join_names(unready, MAX_UNKNOWN)
        phrase = f"connections to Services without a ready pod ({len(unready)}): {names}"
        yield pb.PlanResponse(not_considered=[phrase])
    yield pb.PlanResponse(problems=map(_problem, _unknown_servers(after, scope)))
    yield pb.PlanResponse(
        breaks=prediction.breaks,
        summary=summary(prediction, is_complete=not (ignored or unready)),
        refused=map(refused_message, prediction.refusals),
        without_effect=map(_problem, without_effect),
        unproven_clients=observed is None
        and record is None
        and any(ref.kind in POLICY_KINDS for ref in (*applied, *change.removed)),
    )
    times = strict.times_by_target(observed.seen) if observed else {}
    hops = (_change(hop, strict.last_seen(hop, times, after)) for hop in prediction.hops)
    while batch := list(islice(hops, MAX_CHANGES)):
        yield pb.PlanResponse(hops=batch)
    if record:
        yield pb.PlanResponse(replay=replay_message(record, before, after, prediction, ignored))
    if observed:
        found = strict.find_contradictions(before, after, scope, observed.seen)
        ports = strict.policy_ports(before, after, applied)
        yield pb.PlanResponse(
            observation=observation_message(observed, found, prediction, strict_ports=ports.strict),
            plaintext_ports=[plaintext_port_message(port, clients_messages) for port in ports.plaintext],
        )


def _unknown_servers(mesh: Mesh, scope: Scope | None) -> Iterator[Problem]:
    """Yield a notice for the first clients outside the mesh whose servers are not known."""
    found = calls_to_unknown_pods(mesh, scope.namespaces if scope else None)
    for caller, service in islice(found, MAX_UNKNOWN):
        what = f"{caller.ref} calls {service}, of which no pod is known, so the call is not considered"
        if service is None:
            selects = f"an endpoint of {caller.ref} selects no port of a known pod"
            what = f"{selects}, so its scrapes are not considered"
        yield Problem(where=caller.meta.origin or str(caller.ref), what=what, notice=True)


def _problem(problem: Problem) -> pb.ManifestProblem:
    return pb.ManifestProblem(
        where=problem.where, what=problem.what, hint=problem.hint, notice=problem.notice
    )


def _change(change: HopChange, last_seen: float | None) -> pb.HopChange:
    message = hop_change_message(change)
    if last_seen:
        message.last_seen.CopyFrom(timestamp(last_seen))
    return message


# --- pods -----------------------------------------------------------------------------------------


def pod_description(mesh: Mesh, pod: Pod) -> pb.PodDescription:
    """Return a pod as a server, as policies require it."""
    return pb.PodDescription(
        pod=f"{pod.name}.{pod.namespace}",
        sidecar=pod.has_sidecar,
        identity=pod.identity(mesh.config.trust_domain),
        ports=[_port(mesh, port) for port in describe(mesh, pod)],
        refused=map(refused_message, refusals(mesh, [pod])),
    )


def _port(mesh: Mesh, port: PortDescription) -> pb.PodPort:
    return pb.PodPort(
        port=None if port.port == OTHER_PORTS else port.port,
        service_ports=[format_target(exposure.service, exposure.port) for exposure in port.exposures],
        accepts=side_message(mesh, port.server),
        refused_clients=[
            pb.RefusedClients(clients=clients_messages(item.clients), why=item.why) for item in port.refused
        ],
    )
