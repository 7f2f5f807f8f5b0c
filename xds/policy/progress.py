"""How far changes of mode are, service by service, in values and in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xds.mesh import Mesh
from xds.model import CLUSTER_DOMAIN, Mode, PortKey
from xds.policy.mtls import Send, at_endpoint
from xds.policy.rollout import Crossing, Rollout, Stage

_MOST_NAMED = 3
"""Endpoints, or clients, that one line names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An endpoint that is on its way, or went on without somebody."""

    pod: str
    port: int
    wanted: Mode
    stage: Stage | None
    since: float
    laggards: tuple[str, ...] = ()
    """Clients, as POD.NAMESPACE."""
    rejection: str = ""
    awaits_lock: bool = False
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
        said += _some([_endpoint_words(each, now) for each in self.waiting], "endpoints")
        return ", ".join(said)


def progress(mesh: Mesh, rollout: Rollout) -> list[ServiceProgress]:
    """Return the services of which anything is on its way, or went on without somebody, by namespace and name."""
    services: dict[tuple[str, str], dict[PortKey, tuple[Crossing, bool]]] = {}
    for crossings, passed in ((rollout.late, True), (rollout.crossings, False)):
        for key, crossing in crossings.items():
            for host, _ in crossing.hosts:
                name, namespace, *_ = host.removesuffix(f".svc.{CLUSTER_DOMAIN}").split(".")
                services.setdefault((namespace, name), {})[key] = (crossing, passed)
    return [_of_service(mesh, *service, found) for service, found in sorted(services.items())]


def _of_service(
    mesh: Mesh, namespace: str, name: str, crossings: dict[PortKey, tuple[Crossing, bool]]
) -> ServiceProgress:
    sends: dict[PortKey, Send | None] = {}
    service = mesh.service(namespace, name)
    for port in service.ports if service else ():
        for endpoint in mesh.endpoints(service, port) if service else ():
            server = at_endpoint(mesh, endpoint)
            if server and endpoint.pod:
                mtls = mesh.config.enable_auto_mtls and server.mode is not Mode.DISABLE
                sends[endpoint.pod.ref, endpoint.port] = Send.MTLS if mtls else Send.PLAINTEXT
    for key, (crossing, passed) in crossings.items():
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
            awaits_lock=crossing.awaits_lock and not passed,
            passed_over=passed,
        )
        for key, (crossing, passed) in sorted(crossings.items())
        if crossing.stage
    )
    return ServiceProgress(
        namespace=namespace,
        service=name,
        endpoints=len(sends),
        mtls=sum(send is Send.MTLS for send in sends.values()),
        plaintext=sum(send is Send.PLAINTEXT for send in sends.values()),
        to_plaintext=all(crossing.will is Send.PLAINTEXT for crossing, _ in crossings.values()),
        waiting=waiting,
    )


def _endpoint_words(waiting: Waiting, now: float) -> str:
    seconds = f"{max(0, round(now - waiting.since))} s"
    who = " and ".join(_some(waiting.laggards, "clients")) or "clients"
    open_still = "; plaintext is still accepted there" if waiting.awaits_lock else ""
    if waiting.stage is Stage.LISTENER:
        if waiting.rejection:
            return f"{waiting.pod} stopped, it rejected its listener: {waiting.rejection} ({seconds}{open_still})"
        if waiting.passed_over:
            return f"{waiting.pod} passed over, its listener was not in force in time ({seconds})"
        return f"{waiting.pod} waiting for its listener ({seconds}{open_still})"
    if waiting.passed_over:
        return f"{waiting.pod} did not wait for {who} any longer ({seconds})"
    rejected = f", rejected: {waiting.rejection}" if waiting.rejection else ""
    return f"{waiting.pod} waiting for {who}{rejected} ({seconds}{open_still})"


def _some(said: Iterable[str], what: str) -> Iterator[str]:
    every = list(said)
    yield from every[:_MOST_NAMED]
    if more := every[_MOST_NAMED:]:
        yield f"{len(more)} more {what}"
