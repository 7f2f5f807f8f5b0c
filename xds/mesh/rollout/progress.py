"""The progress of rollouts by service and DestinationRule, as values and as one-line summaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import CLUSTER_DOMAIN, Mode, PortKey
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.desired import desired_ports
from xds.mesh.rollout.machine import API_SERVER, Rollout
from xds.mesh.rollout.transition import Transition, WaitingFor

_MAX_NAMES = 3
"""Maximum number of endpoints, clients or replicas that a summary names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingEndpoint:
    """An endpoint in transition, or whose transition skipped a lagging proxy or replica."""

    pod: str
    """The name of the pod."""
    port: int
    """The port of the pod."""
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
    """Whether the transition skipped the lagging proxies or replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProgress:
    """The progress of the endpoints of one service."""

    namespace: str
    """The namespace of the service."""
    service: str
    """The name of the service."""
    endpoints: int
    """The number of endpoints with a sidecar."""
    mtls: int
    """The number of endpoints to which all clients without a DestinationRule send mutual TLS."""
    plaintext: int
    """The number of endpoints to which all clients without a DestinationRule send plaintext."""
    to_plaintext: bool
    """Whether all transitions of the service lead to plaintext."""
    waiting: tuple[WaitingEndpoint, ...]
    """The endpoints that wait, and those whose transition skipped a lagging proxy or replica."""

    def summary(self, now: float) -> str:
        """Return one line: `httpbin.full: 3/5 endpoints mTLS, httpbin-2 waiting for its listener (12 s)`."""
        count, mode = (self.plaintext, "plaintext") if self.to_plaintext else (self.mtls, "mTLS")
        parts = [f"{self.service}.{self.namespace}: {count}/{self.endpoints} endpoints {mode}"]
        ports = Counter(pod for pod, _ in {(endpoint.pod, endpoint.port) for endpoint in self.waiting})
        # Stalled endpoints first, then the longest wait first.
        waiting = sorted(
            self.waiting,
            key=lambda endpoint: (not (endpoint.skipped or endpoint.rejection), endpoint.since),
        )
        parts += _first_names(
            [
                _endpoint_summary(
                    endpoint,
                    f"{endpoint.pod}:{endpoint.port}" if ports[endpoint.pod] > 1 else endpoint.pod,
                    now,
                )
                for endpoint in waiting
            ],
            "endpoints",
        )
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleProgress:
    """The progress of a DestinationRule that was added, changed or deleted."""

    namespace: str
    """The namespace of the rule."""
    name: str
    """The name of the rule."""
    host: str
    """The host of the rule, as written."""
    deleted: bool
    """Whether the rule was deleted."""
    held: bool
    """Whether the old version is still served, because a server would refuse traffic under the new one."""
    since: float
    """When the wait began, in seconds of the event loop's clock."""
    lagging: tuple[str, ...] = ()
    """The clients that have not ACKed, as POD.NAMESPACE."""
    rejection: str = ""
    """The error of one of these clients that rejected the change."""
    skipped: bool = False
    """Whether the rollout skipped these clients."""

    def summary(self, now: float) -> str:
        """Return one line: `DestinationRule/full/x held until its servers accept it (3 s)`."""
        name = f"{'deletion of ' if self.deleted else ''}DestinationRule/{self.namespace}/{self.name}"
        if self.held:
            status = "held until its servers accept it"
        else:
            clients = " and ".join(_first_names(self.lagging, "clients")) or "its clients"
            status = _wait_summary(clients, is_skipped=self.skipped, rejection=self.rejection)
        return f"{name} {status} ({_duration(now - self.since)})"


def service_progress(mesh: Mesh, rollout: Rollout, namespace: str = "") -> Iterator[ServiceProgress]:
    """Yield the services with an endpoint in transition or a skipped proxy or replica, by namespace and name.

    If `namespace` is empty, yield the services of all namespaces.
    """
    for service, endpoints in sorted(_endpoints_by_service(rollout).items()):
        if namespace in {"", service[0]}:
            yield _progress_of(
                mesh,
                *service,
                sorted(endpoints, key=lambda endpoint: (endpoint.key, not endpoint.is_skipped)),
            )


def count_services(rollout: Rollout) -> int:
    """Return the number of services that `service_progress` yields."""
    return len(_endpoints_by_service(rollout))


def rule_progress(rollout: Rollout) -> list[RuleProgress]:
    """Return the DestinationRules in transition, by name. Those that skipped a client come first."""
    return [
        RuleProgress(
            namespace=ref.namespace,
            name=ref.name,
            host=rule.host,
            deleted=transition.new is None,
            held=transition.generation is None,
            since=transition.since,
            lagging=transition.lagging,
            rejection=transition.rejection,
            skipped=is_skipped,
        )
        for transitions, is_skipped in ((rollout.skipped_rules, True), (rollout.rule_transitions, False))
        for ref, transition in sorted(transitions.items())
        if (rule := transition.new or transition.old)
    ]


class _Endpoint(NamedTuple):
    key: PortKey
    is_skipped: bool
    transition: Transition


def _endpoints_by_service(rollout: Rollout) -> dict[tuple[str, str], list[_Endpoint]]:
    services: dict[tuple[str, str], list[_Endpoint]] = {}
    for transitions, is_skipped in ((rollout.skipped_ports, True), (rollout.transitions, False)):
        for key, transition in transitions.items():
            for service in {_service_name(host) for host, _ in transition.hosts}:
                services.setdefault(service, []).append(_Endpoint(key, is_skipped, transition))
    return services


def _service_name(host: str) -> tuple[str, str]:
    name, namespace, *_ = host.removesuffix(f".svc.{CLUSTER_DOMAIN}").split(".")
    return namespace, name


def _progress_of(mesh: Mesh, namespace: str, name: str, endpoints: list[_Endpoint]) -> ServiceProgress:
    service = mesh.service(namespace, name)
    ports = desired_ports(mesh, service) if service else ()
    sends: dict[PortKey, Send | None] = {key: desired.send for key, desired in ports}
    for key, is_skipped, transition in endpoints:
        if key in sends and not is_skipped:
            is_certain = transition.possible_sends == {transition.served_send}
            sends[key] = transition.served_send if is_certain else None
    waiting = tuple(
        WaitingEndpoint(
            pod=key[0].name,
            port=key[1],
            desired_mode=transition.desired_mode,
            waiting_for=transition.waiting_for,
            since=transition.waiting_since,
            lagging=transition.lagging,
            rejection=transition.rejection,
            # If clients or replicas were skipped, the entry of the transition in progress reports this.
            accepts_plaintext=transition.accepts_plaintext
            and not (is_skipped and transition.waiting_for is not WaitingFor.LISTENER),
            skipped=is_skipped,
        )
        for key, is_skipped, transition in endpoints
        if transition.waiting_for
    )
    return ServiceProgress(
        namespace=namespace,
        service=name,
        endpoints=len(sends),
        mtls=sum(send is Send.MTLS for send in sends.values()),
        plaintext=sum(send is Send.PLAINTEXT for send in sends.values()),
        to_plaintext=all(endpoint.transition.desired_send is Send.PLAINTEXT for endpoint in endpoints),
        waiting=waiting,
    )


def _endpoint_summary(endpoint: WaitingEndpoint, name: str, now: float) -> str:
    if endpoint.waiting_for is not WaitingFor.LISTENER:
        wait = _wait_summary(
            _waiting_for(endpoint), is_skipped=endpoint.skipped, rejection=endpoint.rejection
        )
        status = f"{name} {wait}"
    elif endpoint.rejection:
        status = f"{name} stopped, its sidecar rejected the listener: {endpoint.rejection}"
    elif endpoint.skipped:
        status = f"{name} skipped, its listener was not active in time"
    else:
        status = f"{name} waiting for its listener"
    plaintext = "; still accepts plaintext" if endpoint.accepts_plaintext else ""
    return f"{status} ({_duration(now - endpoint.since)}{plaintext})"


def _wait_summary(names: str, *, is_skipped: bool, rejection: str) -> str:
    status = f"skipped {names}" if is_skipped else f"waiting for {names}"
    return f"{status}, rejected: {rejection}" if rejection else status


def _waiting_for(endpoint: WaitingEndpoint) -> str:
    if endpoint.waiting_for is WaitingFor.CLIENTS:
        return " and ".join(_first_names(endpoint.lagging, "clients")) or "clients"
    replica = "" if endpoint.lagging == (API_SERVER,) else "replica "
    return replica + " and ".join(_first_names(endpoint.lagging, "replicas"))


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * length:
            return f"{whole // length} {unit}"
    return f"{whole} s"


def _first_names(names: Iterable[str], kind: str) -> Iterator[str]:
    """Yield the first names, and how many more there are."""
    all_names = list(names)
    yield from all_names[:_MAX_NAMES]
    if remaining := all_names[_MAX_NAMES:]:
        yield f"{len(remaining)} more {kind}"
