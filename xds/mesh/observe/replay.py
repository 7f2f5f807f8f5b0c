"""Replay recorded traffic through a change: which flows worked before it, and are denied or fail after it."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from xds.mesh.model.authorization import Attribute
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import Pod, Service, ServicePort
from xds.mesh.model.workload import owner_name
from xds.mesh.observe.edges import UNENCRYPTED, Client, Target, TrafficMode
from xds.mesh.observe.record import Flow
from xds.mesh.observe.strict import observed_targets
from xds.mesh.observe.workloads import pod_of_target, target_of, workload
from xds.mesh.policy.authorization import Request, conditions_of, network
from xds.mesh.policy.hops import Answers, Clients, SenderKey, answers, clients_of, sender_key
from xds.mesh.policy.mtls import Reason, enforced_mode
from xds.mesh.policy.prediction import (
    Effect,
    HopChange,
    Senders,
    answer_before,
    answers_after,
    classify,
    effect_of,
    pairs_of,
)
from xds.mesh.policy.reach import OUTSIDE, Answer, Failure, Result, answer_to_plaintext, connection
from xds.mesh.policy.steps import finish

_BREAKING = (Effect.BREAKS, Effect.MAY_BREAK)
_RESULTS = {
    TrafficMode.MTLS: Result.MTLS,
    TrafficMode.PLAINTEXT: Result.PLAINTEXT,
    TrafficMode.REFUSED: Result.PLAINTEXT,
}
"""Result of a connection that explains traffic in a mode."""
_ABSENT = (Failure.NO_ENDPOINT, Failure.POD_UNKNOWN)


class FlowChange(NamedTuple):
    """Flows to one target whose answer changes in the same way."""

    effect: Effect
    """BREAKS or MAY_BREAK."""
    before: Answer
    """Answer before the change."""
    after: Answer
    """Answer after the change."""
    flows: tuple[Flow, ...]
    """The flows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a change means for recorded flows."""

    changes: tuple[FlowChange, ...]
    """Flows that worked before the change and fail or may fail after it, worst effect first."""
    unknown: tuple[tuple[str, tuple[Flow, ...]], ...]
    """Flows to one target of which the result is not known, and why."""
    failing: int
    """Number of flows that fail before the change already."""
    flows: int
    """Number of flows."""

    def count(self, effect: Effect) -> int:
        """Return the number of flows with an effect."""
        return sum(len(change.flows) for change in self.changes if change.effect is effect)

    @property
    def unknown_flows(self) -> int:
        """Number of flows of which the result is not known."""
        return sum(len(flows) for _, flows in self.unknown)


class _Pair(NamedTuple):
    """Answers before and after a change, for one class of clients and endpoints."""

    before: Answer
    after: Answer
    has_sidecar: bool
    """Whether a sidecar is in front of the endpoint before the change, and reports what it receives."""


class _Verdict(NamedTuple):
    """What a change means for a flow."""

    effect: Effect | None = None
    pair: _Pair | None = None
    """The answers, if it has an effect."""
    unknown: str = ""
    """Why the result is not known."""
    fails: bool = False
    """Whether it fails before the change already."""


def replay(before: Mesh, after: Mesh, flows: Iterable[Flow]) -> Replay:
    """Return which flows worked before a change, and fail or may fail after it.

    A flow stands for the connections of all pods of its client to all endpoints of its target that explain
    its mode; the worst effect counts. Plaintext that no prediction explains did not pass a client's sidecar,
    so servers see a client without an identity.

    Args:
        before: the mesh without the change.
        after: the mesh with the change.
        flows: the flows, ordered by target.
    """
    replayer = _Replayer(before, after)
    changes: list[FlowChange] = []
    unknown: list[tuple[str, tuple[Flow, ...]]] = []
    failing = count = 0
    for target, group in groupby(flows, key=lambda flow: flow.target):
        by_verdict: dict[_Verdict, list[Flow]] = {}
        for flow, verdict in replayer.verdicts(target, group):
            count += 1
            failing += verdict.fails
            if verdict.pair or verdict.unknown:
                by_verdict.setdefault(verdict, []).append(flow)
        for verdict, found in by_verdict.items():
            if verdict.effect and verdict.pair:
                changes.append(FlowChange(verdict.effect, *verdict.pair[:2], tuple(found)))
            else:
                unknown.append((verdict.unknown, tuple(found)))
    changes.sort(key=lambda change: _BREAKING.index(change.effect))
    return Replay(changes=tuple(changes), unknown=tuple(unknown), failing=failing, flows=count)


class _Replayer:
    """Decides once for all flows to a target that cannot differ."""

    def __init__(self, before: Mesh, after: Mesh) -> None:
        self._before, self._after = before, after
        self._classes = finish(classify(before, after, [OUTSIDE, *clients_of(before)]))
        classes: dict[Client, dict[Senders, None]] = {}
        for senders, pods in self._classes.pods.items():
            for pod in pods:
                # A change can give a pod another service account.
                old_pod = before.pod(pod.namespace, pod.name) or OUTSIDE
                classes.setdefault(workload(old_pod), {})[senders] = None
        self._senders = {client: tuple(found) for client, found in classes.items()}
        self._outside = sender_key(before, OUTSIDE), sender_key(after, OUTSIDE)
        self._addresses = AddressClasses((before, after))

    def verdicts(self, target: Target, flows: Iterable[Flow]) -> Iterator[tuple[Flow, _Verdict]]:
        """Yield the verdicts on the flows to a target."""
        called = self._called(target)
        known: dict[object, _Verdict] = {}
        for flow in flows:
            client = flow.client
            senders = self._senders.get(client, ()) if client.namespace else ()
            request = None if client.namespace else self._addresses.request(client.name)
            key = senders, request, flow.mode, flow.by_server, bool(client.namespace)
            if key not in known:
                known[key] = self._verdict(called, flow, senders, request)
            yield flow, known[key]

    def _verdict(
        self, called: _Port | _PodPort | str, flow: Flow, senders: Sequence[Senders], request: Request | None
    ) -> _Verdict:
        if isinstance(called, str):
            return _Verdict(unknown=called)
        if flow.client.namespace and not senders:
            return _Verdict(unknown="the client has no pod before or after the change")
        if isinstance(called, _PodPort) and flow.mode not in UNENCRYPTED:
            return _Verdict(unknown="encrypted traffic to a port without a Service is not predicted")
        result = _RESULTS.get(flow.mode)
        pairs = [pair for key in senders for pair in called.pairs(key)]
        explaining = [
            pair
            for pair in pairs
            if (result is None or pair.before.result is result) and (pair.has_sidecar or not flow.by_server)
        ]
        if not explaining and flow.mode in UNENCRYPTED:
            explaining = called.outside(self._outside, request)
        found = explaining or pairs
        verdict, was_accepted = _worst(found), flow.mode is TrafficMode.PLAINTEXT and flow.by_server
        if was_accepted and not verdict.effect and any(map(_is_refused, found)):
            return _Verdict(unknown="it was accepted when it was recorded, and is refused without the change")
        return verdict

    def _called(self, target: Target) -> _Port | _PodPort | str:
        """Return a target, or why its answers are not known."""
        if name := pod_of_target(target):
            owner = owner_name(name)
            facts = self._before.in_namespace(target.namespace).pods.values()
            pods = [pod for pod in facts if owner_name(pod.name) == owner and not pod.ended]
            after = [self._after.pod(pod.namespace, pod.name) for pod in pods]
            both = [
                (old, new) for old, new in zip(pods, after, strict=True) if new is not None and not new.ended
            ]
            if not both:
                return "the server has no pod before or after the change"
            return _PodPort(self._before, self._after, target.port, both)
        service = self._before.service(target.namespace, target.name)
        port = _port(service, target.port)
        if service is None or port is None:
            return "the service does not exist" if service is None else "the service does not have the port"
        old = answers(self._before, self._classes.old, service, port)
        new = finish(answers_after(self._after, self._classes.new, service, port))
        return _Port(self._before, self._after, service, port, old, new)


def _port(service: Service | None, number: int) -> ServicePort | None:
    return next((port for port in service.ports if port.port == number), None) if service else None


def _is_refused(pair: _Pair) -> bool:
    """Whether a server refuses a connection before and after. Denied requests were accepted connections."""
    is_refused = pair.before.result is Result.FAILS and pair.before.reason is not Failure.ACCESS_DENIED
    return is_refused and pair.after.result is Result.FAILS


def _worst(pairs: Collection[_Pair]) -> _Verdict:
    """Return the worst verdict of the connections that a flow stands for."""
    if not pairs:
        return _Verdict(unknown="the client cannot have sent it")
    by_effect = {effect_of(pair.before, pair.after): pair for pair in pairs}
    for effect in _BREAKING:
        if effect in by_effect:
            return _Verdict(effect, by_effect[effect])
    if any(pair.before.reason in _ABSENT for pair in pairs):
        return _Verdict(unknown="the service has no ready endpoint")
    return _Verdict(fails=all(pair.before.result is Result.FAILS for pair in pairs))


class _Port:
    """A service port."""

    def __init__(  # noqa: PLR0917
        self, before: Mesh, after: Mesh, service: Service, port: ServicePort, old: Answers, new: Answers
    ) -> None:
        self._before, self._after, self._service, self._port = before, after, service, port
        self._old, self._new = old, new
        sidecars = [any(enforced_mode(before, each) for each in endpoints) for endpoints in old.endpoints]
        self._classes = [
            (index, any(sidecars) if index[0] is None else sidecars[index[0]]) for index in pairs_of(old, new)
        ]

    def pairs(self, senders: Senders) -> list[_Pair]:
        """Return the answers to a class of clients."""
        return self._paired(self._old.by_sender[senders[0]], self._new.by_sender[senders[1]])

    def outside(self, senders: tuple[SenderKey, SenderKey], request: Request | None) -> list[_Pair]:
        """Return the answers to a client outside the mesh."""
        if request is None:
            return self.pairs(senders)
        old = self._to_outside(self._before, self._old, senders[0], request)
        return self._paired(old, self._to_outside(self._after, self._new, senders[1], request))

    def _to_outside(self, mesh: Mesh, found: Answers, key: SenderKey, request: Request) -> list[Answer]:
        service = mesh.service(self._service.namespace, self._service.name)
        port = _port(service, self._port.port)
        return [
            connection(mesh, OUTSIDE, service, port, endpoints[0], request).answer
            if endpoints and service and port
            else answer
            for endpoints, answer in zip(found.endpoints, found.by_sender[key], strict=True)
        ]

    def _paired(self, old: Sequence[Answer], new: Sequence[Answer]) -> list[_Pair]:
        return [
            _Pair(answer_before(old, index), new[new_index], has_sidecar)
            for (index, new_index), has_sidecar in self._classes
        ]


@dataclass(frozen=True, slots=True)
class _PodPort:
    """A port of a workload's pods that belongs to no Service: clients connect to the pods' addresses."""

    before: Mesh
    after: Mesh
    port: int
    pods: Sequence[tuple[Pod, Pod]]
    """The pods before and after the change."""

    def pairs(self, _: Senders) -> list[_Pair]:
        """Return nothing: no sidecar of a client knows the port."""
        return []

    def outside(self, _: object, request: Request | None) -> list[_Pair]:
        """Return the answers to a client without an identity."""
        return [
            _Pair(self._answer(self.before, old, request), self._answer(self.after, new, request), True)
            for old, new in self.pods
        ]

    def _answer(self, mesh: Mesh, pod: Pod, request: Request | None) -> Answer:
        endpoint = Endpoint(address=pod.address, port=self.port, pod=pod)
        return answer_to_plaintext(mesh, endpoint, request)


class AddressClasses:
    """Classes of client addresses that AuthorizationPolicies cannot distinguish."""

    def __init__(self, meshes: Iterable[Mesh]) -> None:
        self._blocks = {
            network(pattern)
            for mesh in meshes
            for namespace in mesh.namespaces()
            for policy in mesh.in_namespace(namespace).authorization_policies
            for rule in policy.rules
            for condition in conditions_of(rule)
            if condition.attribute is Attribute.SOURCE_IP
            for pattern in (*condition.values, *condition.excluded)
        }
        self._known: dict[frozenset[object], Request] = {}

    def request(self, address: str) -> Request | None:
        """Return what is known of an address's requests: the same for all of a class. None: nothing."""
        if not self._blocks:
            return None
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return None
        actual = getattr(parsed, "ipv4_mapped", None) or parsed
        blocks = frozenset(block for block in self._blocks if actual in block)
        return self._known.setdefault(blocks, Request(port=0, source_ip=address))


# --- what the record does not say --------------------------------------------------------------------------


def is_outside(hop: HopChange) -> bool:
    """Whether the clients of a changed hop are those outside the mesh."""
    return next(hop.clients[0].pods) is OUTSIDE


def unobserved(before: Mesh, hops: Iterable[HopChange]) -> list[HopChange]:
    """Return the changes that break connections that no record contains.

    No sidecar reports connections between clients and endpoints without one. Servers report the connections
    of such clients to a Service as those to the oldest Service of the port.

    Args:
        before: the mesh without the change.
        hops: the changed hops, of pods and of clients outside the mesh.
    """
    return [
        hop
        for hop in hops
        if hop.effect in _BREAKING
        and hop.before.reason is Reason.CLIENT_WITHOUT_SIDECAR
        and (_had_endpoint_without_sidecar(before, hop) or _is_deleted_alias(before, hop))
    ]


def _had_endpoint_without_sidecar(before: Mesh, hop: HopChange) -> bool:
    old = {(each.address, each.port): each for each in before.endpoints(hop.service, hop.port)}
    same = [old.get((each.address, each.port)) for each in hop.endpoints]
    changed = [each for each in same if each] or old.values()
    return any(enforced_mode(before, each) is None for each in changed)


def _is_deleted_alias(before: Mesh, hop: HopChange) -> bool:
    """Whether a change deletes a Service whose connections servers report as those to another one."""
    service = Target(hop.service.namespace, hop.service.name, hop.port.port)
    return hop.after.reason is Failure.SERVICE_DELETED and any(
        target_of(before, each.pod, each.port) != service
        for each in before.endpoints(hop.service, hop.port)
        if each.pod
    )


def unused(after: Mesh, hops: Iterable[HopChange], flows: Iterable[Flow]) -> Iterator[HopChange]:
    """Yield the connections that a change makes possible and that are not recorded, with their clients alone.

    Those of clients outside the mesh have no clients.

    Args:
        after: the mesh with the change.
        hops: the changed hops, of pods and of clients outside the mesh.
        flows: the recorded flows.
    """
    recorded: dict[Target, set[Client]] = {}
    for flow in flows:
        recorded.setdefault(flow.target, set()).add(flow.client)
    for hop in hops:
        if hop.effect is Effect.REPAIRED:
            used = set[Client]().union(*(recorded.get(each, ()) for each in observed_targets(hop, after)))
            clients = () if is_outside(hop) else tuple(_without(hop.clients, used))
            if clients or (is_outside(hop) and all(client.namespace for client in used)):
                yield replace(hop, clients=clients)


def _without(clients: Iterable[Clients], used: Collection[Client]) -> Iterator[Clients]:
    for item in clients:
        accounts: Mapping[str, tuple[Pod, ...]] = {
            name: pods for name, pods in item.accounts.items() if Client(item.namespace, name) not in used
        }
        if accounts:
            yield Clients(namespace=item.namespace, accounts=accounts)
