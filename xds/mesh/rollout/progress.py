"""How far changes of mode are, service by service, in values and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import CLUSTER_DOMAIN, Mode, PortKey
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.desired import wanted_of
from xds.mesh.rollout.machine import THE_API, Rollout
from xds.mesh.rollout.transition import Crossing, Stage

_MOST_NAMED = 3
"""Endpoints, or clients, that one line names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An endpoint that is on its way, or went on without somebody."""

    pod: str
    port: int
    wanted: Mode
    stage: Stage
    since: float
    laggards: tuple[str, ...] = ()
    """Clients, as POD.NAMESPACE, or other replicas of the control plane."""
    rejection: str = ""
    awaits_lock: bool = False
    """Whether plaintext is still accepted though policy forbids it."""
    passed_over: bool = False
    """Whether it is not waited for any longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProgress:
    """How far the endpoints of one service are."""

    namespace: str
    service: str
    endpoints: int
    """Ports of pods with a sidecar;"""
    mtls: int
    """those that all clients are known to send mutual TLS to, unless a DestinationRule says otherwise;"""
    plaintext: int
    """and those that they are known to send plaintext to."""
    to_plaintext: bool
    """Whether plaintext is where they are going."""
    waiting: tuple[Waiting, ...]

    def words(self, now: float) -> str:
        """Say it in one line: `httpbin.full: 3/5 endpoints mTLS, httpbin-2 waiting for its listener (12 s)`."""
        there, mode = (self.plaintext, "plaintext") if self.to_plaintext else (self.mtls, "mTLS")
        said = [f"{self.service}.{self.namespace}: {there}/{self.endpoints} endpoints {mode}"]
        ports = Counter(pod for pod, _ in {(each.pod, each.port) for each in self.waiting})
        # Those first that most want to be known of.
        waiting = sorted(
            self.waiting, key=lambda each: (not (each.passed_over or each.rejection), each.since)
        )
        said += _some(
            [
                _endpoint_words(each, f"{each.pod}:{each.port}" if ports[each.pod] > 1 else each.pod, now)
                for each in waiting
            ],
            "endpoints",
        )
        return ", ".join(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleProgress:
    """How far a DestinationRule is that was changed, added or deleted."""

    namespace: str
    name: str
    host: str
    deleted: bool
    held: bool
    """Whether its clients still do what they did before, because a server would refuse what they would send."""
    since: float
    laggards: tuple[str, ...] = ()
    """The clients that are waited for, as POD.NAMESPACE."""
    rejection: str = ""
    passed_over: bool = False
    """Whether they are not waited for any longer."""

    def words(self, now: float) -> str:
        """Say it in one line: `DestinationRule/full/x held back until its servers take it (3 s)`."""
        what = f"{'deletion of ' if self.deleted else ''}DestinationRule/{self.namespace}/{self.name}"
        if self.held:
            waits = "held back until its servers take it"
        else:
            who = " and ".join(_some(self.laggards, "clients")) or "its clients"
            waits = _waits(who, " to take it", passed=self.passed_over, rejection=self.rejection)
        return f"{what} {waits} ({_lasted(now - self.since)})"


def progress(mesh: Mesh, rollout: Rollout, namespace: str = "") -> Iterator[ServiceProgress]:
    """Yield the services (of a namespace) of which anything is on its way, or went on without somebody, in order."""
    for service, found in sorted(_by_service(rollout).items()):
        if namespace in {"", service[0]}:
            yield _of_service(mesh, *service, sorted(found, key=lambda each: (each.key, not each.passed)))


def how_many(rollout: Rollout) -> int:
    """Return of how many services there is progress."""
    return len(_by_service(rollout))


def rules(rollout: Rollout) -> list[RuleProgress]:
    """Return the DestinationRules that are not in force everywhere: first those that went on without somebody; by name."""
    return [
        RuleProgress(
            namespace=ref.namespace,
            name=ref.name,
            host=rule.host,
            deleted=change.new is None,
            held=change.at is None,
            since=change.since,
            laggards=change.laggards,
            rejection=change.rejection,
            passed_over=passed,
        )
        for changes, passed in ((rollout.late_rules, True), (rollout.rules, False))
        for ref, change in sorted(changes.items())
        if (rule := change.new or change.old)
    ]


class _Found(NamedTuple):
    key: PortKey
    passed: bool
    crossing: Crossing


def _by_service(rollout: Rollout) -> dict[tuple[str, str], list[_Found]]:
    services: dict[tuple[str, str], list[_Found]] = {}
    for crossings, passed in ((rollout.late, True), (rollout.crossings, False)):
        for key, crossing in crossings.items():
            for service in {_service(host) for host, _ in crossing.hosts}:
                services.setdefault(service, []).append(_Found(key, passed, crossing))
    return services


def _service(host: str) -> tuple[str, str]:
    name, namespace, *_ = host.removesuffix(f".svc.{CLUSTER_DOMAIN}").split(".")
    return namespace, name


def _of_service(mesh: Mesh, namespace: str, name: str, found: list[_Found]) -> ServiceProgress:
    service = mesh.service(namespace, name)
    wants = wanted_of(mesh, service) if service else ()
    sends: dict[PortKey, Send | None] = {key: want.will for key, want in wants}
    for key, passed, crossing in found:
        if key in sends and not passed:
            settled = crossing.may_tell == {crossing.tells}
            sends[key] = crossing.tells if settled else None
    waiting = tuple(
        Waiting(
            pod=key[0].name,
            port=key[1],
            wanted=crossing.wanted,
            stage=crossing.stage,
            since=crossing.since,
            laggards=crossing.laggards,
            rejection=crossing.rejection,
            # Once others were passed over, how far the server is says the crossing that goes on.
            awaits_lock=crossing.awaits_lock and not (passed and crossing.stage is not Stage.LISTENER),
            passed_over=passed,
        )
        for key, passed, crossing in found
        if crossing.stage
    )
    return ServiceProgress(
        namespace=namespace,
        service=name,
        endpoints=len(sends),
        mtls=sum(send is Send.MTLS for send in sends.values()),
        plaintext=sum(send is Send.PLAINTEXT for send in sends.values()),
        to_plaintext=all(each.crossing.will is Send.PLAINTEXT for each in found),
        waiting=waiting,
    )


def _endpoint_words(waiting: Waiting, name: str, now: float) -> str:
    passed, rejection = waiting.passed_over, waiting.rejection
    if waiting.stage is not Stage.LISTENER:
        said = f"{name} {_waits(_awaited(waiting), passed=passed, rejection=rejection)}"
    elif rejection:
        said = f"{name} stopped, it rejected its listener: {rejection}"
    elif passed:
        said = f"{name} passed over, its listener was not in force in time"
    else:
        said = f"{name} waiting for its listener"
    open_still = "; plaintext is still accepted there" if waiting.awaits_lock else ""
    return f"{said} ({_lasted(now - waiting.since)}{open_still})"


def _waits(who: str, to_do: str = "", *, passed: bool, rejection: str) -> str:
    said = f"did not wait for {who} any longer" if passed else f"waiting for {who}{to_do}"
    return f"{said}, rejected: {rejection}" if rejection else said


def _awaited(waiting: Waiting) -> str:
    if waiting.stage is Stage.CLIENTS:
        return " and ".join(_some(waiting.laggards, "clients")) or "clients"
    replica = "" if waiting.laggards == (THE_API,) else "replica "
    return replica + " and ".join(_some(waiting.laggards, "replicas"))


def _lasted(seconds: float) -> str:
    whole = max(0, round(seconds))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * length:
            return f"{whole // length} {unit}"
    return f"{whole} s"


def _some(said: Iterable[str], what: str) -> Iterator[str]:
    every = list(said)
    yield from every[:_MOST_NAMED]
    if more := every[_MOST_NAMED:]:
        yield f"{len(more)} more {what}"
