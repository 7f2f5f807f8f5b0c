"""The progress of rollouts by service and DestinationRule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import service_key
from xds.mesh.model.objects import DestinationRule, Mode, PortKey, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.desired import desired_ports
from xds.mesh.rollout.observation import Observed
from xds.mesh.rollout.plan import Phase, RuleTransition, Transition
from xds.mesh.rollout.planner import start_transition
from xds.mesh.rollout.rollout import PortState, Rollout
from xds.mesh.rollout.waits import Wait, WaitingFor, port_wait, rule_wait

API_SERVER = "the API server"
"""The `lagging` name of a transition whose plan the API server has not stored yet."""


class Rollouts(Protocol):
    """The state that progress is computed from. `RolloutDriver` has it."""

    rollout: Rollout
    """The desired and the served state, and the current plan."""
    observed: Observed
    """The reports that were last collected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingEndpoint:
    """An endpoint in transition, or one whose transition continued without a lagging proxy or replica."""

    key: PortKey
    """The port of the pod."""
    phase: Phase
    """The phase of its transition."""
    desired_mode: Mode
    """The mode that policies ask for."""
    waiting_for: WaitingFor
    """What blocks, or blocked, the next phase."""
    since: float
    """When the wait began, in seconds of the event loop's clock."""
    lagging: tuple[str, ...] = ()
    """The lagging clients, as POD.NAMESPACE, or the lagging replicas of the control plane."""
    rejection: str = ""
    """The error of a sidecar that rejected its configuration."""
    accepts_plaintext: bool = False
    """Whether the server still accepts plaintext although policies forbid it."""
    skipped: bool = False
    """Whether the transition continued without the lagging proxies or replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProgress:
    """The progress of the endpoints of one service."""

    namespace: str
    """The namespace of the service."""
    service: str
    """The name of the service."""
    endpoints: int
    """The number of endpoints of pods with a sidecar."""
    mtls: int
    """The number of endpoints to which all clients without a DestinationRule send mutual TLS."""
    plaintext: int
    """The number of endpoints to which all clients without a DestinationRule send plaintext."""
    to_plaintext: bool
    """Whether clients will send plaintext to all endpoints in `waiting`."""
    waiting: tuple[WaitingEndpoint, ...]
    """The endpoints in transition, and those that skipped a proxy or replica that still lags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleProgress:
    """The progress of a DestinationRule that was added, changed or deleted."""

    namespace: str
    """The namespace of the rule."""
    name: str
    """The name of the rule."""
    host: str
    """The host of the rule, as written."""
    versions: tuple[DestinationRule, ...]
    """The versions of the rule that clients may follow, now or later."""
    deleted: bool
    """Whether the rule was deleted."""
    held: bool
    """Whether clients are served the old version, because a server may refuse traffic of the new one."""
    since: float
    """When the wait began, in seconds of the event loop's clock."""
    lagging: tuple[str, ...] = ()
    """The clients that have not ACKed, as POD.NAMESPACE."""
    rejection: str = ""
    """The error of one of these clients that rejected the change."""
    skipped: bool = False
    """Whether the rollout continued without these clients."""

    @property
    def ref(self) -> Ref:
        """Name of the rule."""
        return Ref("DestinationRule", self.namespace, self.name)


def service_progress(mesh: Mesh, rollouts: Rollouts, namespace: str = "") -> Iterator[ServiceProgress]:
    """Yield the progress of each service (of a namespace) with a transition or a skip, in order of names."""
    for service, endpoints in sorted(_endpoints_by_service(mesh, rollouts.rollout).items()):
        if namespace in {"", service[0]}:
            endpoints.sort(key=lambda endpoint: (endpoint.key, endpoint.skipped is None))
            yield _progress_of(mesh, *service, endpoints, rollouts)


def count_services(mesh: Mesh, rollouts: Rollouts) -> int:
    """Return the number of services that `service_progress` yields."""
    return len(_endpoints_by_service(mesh, rollouts.rollout))


def rule_progress(rollouts: Rollouts) -> list[RuleProgress]:
    """Return the progress of DestinationRules: first those with a skip, then those in transition."""
    rollout, found = rollouts.rollout, []
    for ref, (transition, wait) in sorted(rollout.skipped.rules.items()):
        found.append(_rule_progress(ref, transition, wait, is_skipped=True))
    for ref, transition in sorted(rollout.rules.items()):
        found.append(
            _rule_progress(ref, transition, rule_wait(transition, rollouts.observed), is_skipped=False)
        )
    return found


def _rule_progress(ref: Ref, transition: RuleTransition, wait: Wait, *, is_skipped: bool) -> RuleProgress:
    """Return the progress of a rule. A pending rule waits for servers, a served one for clients."""
    rule, is_held = transition.desired or transition.served, transition.is_pending and not is_skipped
    return RuleProgress(
        namespace=ref.namespace,
        name=ref.name,
        host=rule.host if rule else "",
        versions=tuple(transition.versions),
        deleted=transition.desired is None,
        held=is_held,
        since=transition.pending_since if is_held else wait.since,
        lagging=() if is_held else wait.lagging,
        rejection=wait.rejection,
        skipped=is_skipped,
    )


def port_waits(rollouts: Rollouts) -> Iterator[tuple[PortKey, Transition, Wait]]:
    """Yield the ports in transition, with what each waits for."""
    for key, transition in sorted(rollouts.rollout.plan.ports.items()):
        yield key, transition, _wait(key, transition, rollouts)


def ports_in_transition(rollout: Rollout) -> set[PortKey]:
    """Return the known ports that are in transition, or wait for room in the plan."""
    return (rollout.plan.ports.keys() | rollout.pending) & rollout.ports.keys()


def port_progress(mesh: Mesh, rollouts: Rollouts, keys: Iterable[PortKey]) -> Iterator[WaitingEndpoint]:
    """Yield the progress of ports in transition."""
    rollout = rollouts.rollout
    for key in keys:
        if port := rollout.ports.get(key):
            transition = rollout.plan.ports.get(key) or start_transition(mesh, key, port, port.changed_at)
            yield _waiting_endpoint(_Unfinished(key, transition, None), port, rollouts)


def accepts_plaintext(rollout: Rollout, key: PortKey, transition: Transition) -> bool:
    """Return whether a server may still accept plaintext although policies forbid it."""
    port = rollout.ports.get(key)
    return (
        port is not None
        and port.desired.mode is Mode.STRICT
        and transition.listener.possible != (Mode.STRICT,)
    )


def _wait(key: PortKey, transition: Transition, rollouts: Rollouts) -> Wait:
    """Return what a port in transition waits for: for the API server, if no proxy or rule delays it."""
    rollout = rollouts.rollout
    affecting = any(rule.affects(transition.hosts) for rule in tuple(rollout.rules.values()))
    if not transition.is_settled or affecting:
        return port_wait(key, transition, rollouts.observed)
    return Wait(WaitingFor.REPLICAS, 0, transition.started_at, lagging=(API_SERVER,))


class _Unfinished(NamedTuple):
    """An endpoint in transition; or a skipped transition, with what it waited for."""

    key: PortKey
    transition: Transition
    skipped: Wait | None


def _endpoints_by_service(mesh: Mesh, rollout: Rollout) -> dict[tuple[str, str], list[_Unfinished]]:
    """Return the endpoints to report, by namespace and name of their services."""
    endpoints = [
        _Unfinished(key, transition, wait) for key, (transition, wait) in tuple(rollout.skipped.ports.items())
    ]
    endpoints += (_Unfinished(key, transition, None) for key, transition in tuple(rollout.plan.ports.items()))
    # Ports that the plan does not contain yet.
    endpoints += (
        _Unfinished(key, start_transition(mesh, key, port, port.changed_at), None)
        for key in rollout.pending - rollout.plan.ports.keys()
        if (port := rollout.ports.get(key))
    )
    services: dict[tuple[str, str], list[_Unfinished]] = {}
    for endpoint in endpoints:
        for service in {service_key(host) for host, _ in endpoint.transition.hosts}:
            services.setdefault(service, []).append(endpoint)
    return services


def _progress_of(
    mesh: Mesh, namespace: str, name: str, endpoints: list[_Unfinished], rollouts: Rollouts
) -> ServiceProgress:
    service, rollout = mesh.service(namespace, name), rollouts.rollout
    ports = desired_ports(mesh, service) if service else ()
    sends: dict[PortKey, Send | None] = {key: desired.send for key, desired in ports}
    waiting, desired_sends = [], set()
    for endpoint in endpoints:
        key, transition, skipped = endpoint
        port = rollout.ports.get(key)
        if port is None:
            continue
        desired_sends.add(port.desired.send)
        if key in sends and not skipped:
            sends[key] = transition.clients.current if transition.clients.is_settled else None
        waiting.append(_waiting_endpoint(endpoint, port, rollouts))
    return ServiceProgress(
        namespace=namespace,
        service=name,
        endpoints=len(sends),
        mtls=sum(send is Send.MTLS for send in sends.values()),
        plaintext=sum(send is Send.PLAINTEXT for send in sends.values()),
        to_plaintext=desired_sends == {Send.PLAINTEXT},
        waiting=tuple(waiting),
    )


def _waiting_endpoint(endpoint: _Unfinished, port: PortState, rollouts: Rollouts) -> WaitingEndpoint:
    key, transition, skipped = endpoint
    wait = skipped or _wait(key, transition, rollouts)
    # If clients were skipped, `transition` is out of date: the transition that continued tells what the
    # server accepts.
    counts = skipped is None or skipped.is_for_listener
    return WaitingEndpoint(
        key=key,
        phase=transition.phase,
        desired_mode=port.desired.mode,
        waiting_for=wait.waiting_for,
        since=wait.since,
        lagging=wait.lagging,
        rejection=wait.rejection,
        accepts_plaintext=counts and accepts_plaintext(rollouts.rollout, key, transition),
        skipped=skipped is not None,
    )
