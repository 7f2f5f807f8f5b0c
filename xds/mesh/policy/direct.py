"""Traffic in plaintext from clients that are not pods of the mesh, as far as objects prove it.

The kubelet probes pods, Prometheus scrapes them, the API server calls webhooks, and clients outside the
cluster call published Services. A sidecar refuses this traffic on ports with mode STRICT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from xds.mesh.model.memory import ServiceKey
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import (
    Call,
    CallerFact,
    Mode,
    OutsideTraffic,
    Pod,
    Ref,
    Service,
    ServicePort,
    selects,
)
from xds.mesh.model.scraping import SCRAPE, scraped_ports
from xds.mesh.policy.access import permission, port_rules
from xds.mesh.policy.authorization import Access
from xds.mesh.policy.hops import Clients, Grouping
from xds.mesh.policy.mtls import enforced_mode
from xds.mesh.policy.reach import Failure, refusal_by
from xds.mesh.policy.steps import Steps, finish

METRICS_PORT_NAMES = frozenset(
    {"metrics", "http-metrics", "https-metrics", "tcp-metrics", "prometheus", "http-prometheus", "http-prom"}
)
"""Usual names of container ports that serve metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Direct traffic to pods that sidecars refuse after the change, and did not before."""

    traffic: OutsideTraffic
    """The traffic that sidecars refuse."""
    clients: tuple[Clients, ...]
    """The pods, by service account."""
    port: int
    """Port of the pods."""
    decided_by: Ref
    """Object that sets STRICT, or AuthorizationPolicy that denies access."""
    source: Ref | None = None
    """Object that proves the traffic; None if the pods do."""
    breaks: bool
    """Whether the traffic exists for certain, and not only probably."""

    @property
    def failure(self) -> Failure:
        """Why sidecars refuse it."""
        return refusal_by(self.decided_by)


class RefusalKey(NamedTuple):
    """What a refusal of one pod's traffic has in common with those of others."""

    traffic: OutsideTraffic
    port: int
    decided_by: Ref
    source: Ref | None
    is_certain: bool


def refused_traffic(mesh: Mesh, pod: Pod, calls: Calls) -> Iterator[RefusalKey]:
    """Yield the direct traffic to a pod that its sidecar refuses."""
    for port, traffic, source, is_certain in direct_traffic(mesh, pod, calls):
        if refused := _refused_by(mesh, pod, port):
            decided_by, is_refused = refused
            yield RefusalKey(traffic, port, decided_by, source, is_certain and is_refused)


def _refused_by(mesh: Mesh, pod: Pod, port: int) -> tuple[Ref, bool] | None:
    """Return the object that makes a pod's sidecar refuse plaintext at a port, and whether it refuses all."""
    mode = mode_at(mesh, pod, port)
    if mode and mode[0] is Mode.STRICT:
        return mode[1], True
    rules = port_rules(mesh, pod, port) if mode else None
    found = permission(mesh.config, rules, "") if rules else None
    if found is None or found.access is Access.ALLOWED:
        return None
    return found.policies[0], found.access is Access.DENIED


def refusals(mesh: Mesh, pods: Iterable[Pod]) -> list[Refusal]:
    """Return the direct traffic to pods that exists for certain, and that their sidecars refuse."""
    return _grouped(_refused(mesh, pods))


def refusals_without_service(
    mesh: Mesh, pods: Iterable[Pod], ports: Collection[tuple[Ref, int]] | None = None
) -> list[Refusal]:
    """Return the `refusals` of clients that `outside_clients` lacks, because they call no Service.

    Args:
        mesh: the facts.
        pods: the pods.
        ports: the only ports to consider, each with its pod; None for all.
    """
    return _grouped(
        (pod, key)
        for pod, key in _refused(mesh, pods)
        if (ports is None or (pod.ref, key.port) in ports) and not _calls_service(mesh, pod, key)
    )


def _refused(mesh: Mesh, pods: Iterable[Pod]) -> Iterator[tuple[Pod, RefusalKey]]:
    calls = finish(call_steps(mesh))
    return ((pod, key) for pod in pods for key in refused_traffic(mesh, pod, calls) if key.is_certain)


def _grouped(refused: Iterable[tuple[Pod, RefusalKey]]) -> list[Refusal]:
    found: dict[RefusalKey, list[Pod]] = {}
    for pod, key in refused:
        found.setdefault(key, []).append(pod)
    return finish(group_refusals(found))


def _calls_service(mesh: Mesh, pod: Pod, key: RefusalKey) -> bool:
    """Whether `outside_clients` contains refused traffic."""
    outside = outside_clients(mesh)
    return any(
        (client.traffic, client.source) == (key.traffic, key.source)
        for service, port, target in mesh.exposures(pod)
        if target == key.port
        for client in outside.get((service.key, port.port), ())
    )


def group_refusals(found: Mapping[RefusalKey, Sequence[Pod]]) -> Steps[list[Refusal]]:
    """Return refusals of single pods, grouped."""
    grouping = Grouping(found)
    grouped = []
    for key in sorted(found, key=_rank):
        yield
        refusal = Refusal(
            traffic=key.traffic,
            clients=grouping.merge([key]),
            port=key.port,
            decided_by=key.decided_by,
            source=key.source,
            breaks=key.is_certain,
        )
        grouped.append(refusal)
    return grouped


def _rank(key: RefusalKey) -> tuple[object, ...]:
    return (
        list(OutsideTraffic).index(key.traffic),
        key.port,
        natural_key(*key.decided_by),
        natural_key(*key.source or ()),
    )


def mode_at(mesh: Mesh, pod: Pod, port: int) -> tuple[Mode, Ref] | None:
    """Return the mode that a pod's sidecar enforces at a port, and the object that decided it."""
    decision = enforced_mode(mesh, Endpoint(address=pod.address, port=port, pod=pod))
    return (decision.mode, decision.decided_by) if decision else None


class DirectTraffic(NamedTuple):
    """Traffic to a port of a pod from a client that is not a pod of the mesh."""

    port: int
    """Port of the pod."""
    traffic: OutsideTraffic
    """The traffic."""
    source: Ref | None = None
    """Object that proves it; None if the pod does."""
    is_certain: bool = True
    """Whether it exists for certain."""


Calls: TypeAlias = Mapping[Ref, Sequence[DirectTraffic]]
"""The traffic that Services and `CallerFact` objects prove, by pod."""


def direct_traffic(mesh: Mesh, pod: Pod, calls: Calls) -> list[DirectTraffic]:
    """Return the traffic to a pod from clients that are not pods of the mesh.

    Traffic that is only probable is left out for ports with certain traffic.

    Args:
        mesh: the facts.
        pod: the pod.
        calls: the result of `call_steps`.
    """
    found = [DirectTraffic(port, OutsideTraffic.KUBELET_PROBE) for port in pod.probe_ports]
    declared = [port.port for port in pod.ports]
    scraped = scraped_ports(pod.meta.annotations, declared)
    found += (DirectTraffic(port, OutsideTraffic.PROMETHEUS_SCRAPE) for port in scraped)
    found += (DirectTraffic(port.port, OutsideTraffic.OUTSIDE_CLIENT) for port in pod.ports if port.published)
    found += calls.get(pod.ref, ())
    certain = {each.port for each in found if each.is_certain}
    found = [each for each in found if each.is_certain or each.port not in certain]
    known = {each.port for each in found}
    declared_by_services = _declared_by_services(mesh, pod)
    for port in pod.ports:
        if port.port not in known and port.name in METRICS_PORT_NAMES:
            found.append(DirectTraffic(port.port, OutsideTraffic.METRICS_PORT, is_certain=False))
        elif port.port not in known | declared_by_services:
            found.append(DirectTraffic(port.port, OutsideTraffic.POD_ADDRESS, is_certain=False))
    return found


def _declared_by_services(mesh: Mesh, pod: Pod) -> set[int]:
    """Return a pod's ports that Services declare: only headless ones if peers may use the pod's address."""
    selecting = mesh.in_namespace(pod.namespace).selecting(pod.meta.labels)
    is_peer = pod.is_stateful or any(service.headless for service in selecting)
    exposures = mesh.exposures(pod)
    return {exposure.target for exposure in exposures if exposure.service.headless or not is_peer}


def call_steps(mesh: Mesh) -> Steps[Calls]:
    """Return the traffic that Services and `CallerFact` objects prove, in steps."""
    found: dict[Ref, list[DirectTraffic]] | None = mesh.lasting.get(call_steps)
    if found is None:
        distinct: dict[tuple[Ref, DirectTraffic], None] = {}
        for service in mesh.services():
            yield
            distinct.update(dict.fromkeys(_service_traffic(mesh, service)))
        services = _ServicesByLabel(mesh)
        for caller, call, namespaces in _calls(mesh):
            for namespace in namespaces:
                yield
                for pod, port in _called(mesh, services, call, namespace):
                    is_certain = caller.is_certain(call, pod.namespace)
                    direct = DirectTraffic(port, caller.traffic_of(call), caller.ref, is_certain)
                    distinct[pod.ref, direct] = None
        found = {}
        for ref, traffic in distinct:
            found.setdefault(ref, []).append(traffic)
        mesh.lasting[call_steps] = found
    return found


class OutsideClient(NamedTuple):
    """A client outside the mesh that calls a Service."""

    traffic: OutsideTraffic
    """The traffic."""
    source: Ref
    """Object that proves it."""
    is_certain: bool
    """Whether it exists for certain."""


def outside_clients(mesh: Mesh) -> Mapping[tuple[ServiceKey, int], Collection[OutsideClient]]:
    """Return the clients outside the mesh that objects prove, by the Service and port that they call."""
    found: dict[tuple[ServiceKey, int], dict[OutsideClient, None]] | None = mesh.lasting.get(outside_clients)
    if found is not None:
        return found
    found = {}
    services = _ServicesByLabel(mesh)
    for service in mesh.services():
        scraped = [
            port
            for port in (service.ports if SCRAPE in service.meta.annotations else ())
            if any(target in _scraped(service, target) for _, target in _endpoints(mesh, service, (port,)))
        ]
        for traffic, ports in (
            (OutsideTraffic.OUTSIDE_CLIENT, service.ports if service.published else ()),
            (OutsideTraffic.PROMETHEUS_SCRAPE, scraped),
        ):
            _add_client(found, service, ports, OutsideClient(traffic, service.ref, is_certain=True))
    for caller, call, namespaces in _calls(mesh):
        for namespace in () if call.selects_pods else namespaces:
            client = OutsideClient(caller.traffic_of(call), caller.ref, caller.is_certain(call, namespace))
            for service, ports in _called_services(mesh, services, call, namespace):
                called = [port for port in ports if _leads_to(mesh, service, port, call.target)]
                _add_client(found, service, called, client)
    mesh.lasting[outside_clients] = found
    return found


def _leads_to(mesh: Mesh, service: Service, port: ServicePort, target: int | str | None) -> bool:
    """Whether a service port forwards to a container port; it does if the container port is None."""
    endpoints = _endpoints(mesh, service, (port,))
    return target is None or any(reached in _ports_named(pod, target) for pod, reached in endpoints)


def _add_client(
    found: dict[tuple[ServiceKey, int], dict[OutsideClient, None]],
    service: Service,
    ports: Iterable[ServicePort],
    client: OutsideClient,
) -> None:
    for port in ports:
        found.setdefault((service.key, port.port), {})[client] = None


def calls_to_unknown_pods(
    mesh: Mesh, namespaces: Collection[str] | None
) -> Iterator[tuple[CallerFact, Ref | None]]:
    """Yield objects that prove calls to a Service of which no pod is known, with the Service.

    The Service is None for a monitor with an endpoint that selects no port of a known pod.

    Args:
        mesh: the facts.
        namespaces: namespaces of the Services or pods; None for all.
    """
    services = _ServicesByLabel(mesh)
    found: set[tuple[Ref, Ref | None]] = set()
    for caller, call, concerned in _calls(mesh):
        called = Ref("Service", concerned[0], call.service) if call.service else None
        if (caller.ref, called) in found or not (namespaces is None or set(concerned) & set(namespaces)):
            continue
        any_port = replace(call, port=None) if called else call
        if not any(True for namespace in concerned for _ in _called(mesh, services, any_port, namespace)):
            found.add((caller.ref, called))
            yield caller, called


def _calls(mesh: Mesh) -> Iterator[tuple[CallerFact, Call, Sequence[str]]]:
    """Yield the calls of all `CallerFact` objects, with the namespaces that they concern."""
    every_namespace = [*mesh.namespaces()]
    for caller in mesh.callers():
        for call in (_without_alias(mesh, call) for call in caller.calls):
            yield caller, call, call.namespaces or every_namespace


def _without_alias(mesh: Mesh, call: Call) -> Call:
    """Return a call to an ExternalName Service as a call to the Service that it stands for."""
    alias = mesh.get(Ref("Service", call.namespaces[0], call.service)) if call.service else None
    if not isinstance(alias, CallerFact):
        return call
    # The name of a port is that of the alias, and its target may have another one.
    return replace(alias.calls[0], port=call.port if isinstance(call.port, int) else None)


def _service_traffic(mesh: Mesh, service: Service) -> Iterator[tuple[Ref, DirectTraffic]]:
    """Yield the traffic that a Service's type and annotations prove."""
    is_scraped = SCRAPE in service.meta.annotations
    if not (service.published or is_scraped):
        return
    for pod, port in _endpoints(mesh, service, service.ports):
        if service.published:
            yield pod.ref, DirectTraffic(port, OutsideTraffic.OUTSIDE_CLIENT, service.ref)
        for scraped in _scraped(service, port):
            yield pod.ref, DirectTraffic(scraped, OutsideTraffic.PROMETHEUS_SCRAPE, service.ref)


def _scraped(service: Service, target: int) -> list[int]:
    """Return the ports that a Service's annotations make Prometheus scrape at an endpoint."""
    return scraped_ports(service.meta.annotations, (target,))


class _ServicesByLabel:
    """Index of a mesh's Services by their labels."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._services: dict[str, dict[tuple[str, str], list[Service]]] = {}

    def matching(self, namespace: str, call: Call) -> Iterable[Service]:
        """Return the Services of a namespace that a call's labels may select."""
        all_services = self._mesh.in_namespace(namespace).services.values()
        if namespace not in self._services:
            index = self._services[namespace] = {}
            for service in all_services:
                for pair in service.meta.labels.items():
                    index.setdefault(pair, []).append(service)
        lists = [self._services[namespace].get(pair, []) for pair in _pairs(call).items()]
        return min(lists, key=len, default=list(all_services))


def _pairs(call: Call) -> dict[str, str]:
    """Return the labels that a call requires to have one value."""
    return {
        item.key: item.values[0] for item in call.selector if item.operator == "In" and len(item.values) == 1
    }


def _called(mesh: Mesh, services: _ServicesByLabel, call: Call, namespace: str) -> Iterator[tuple[Pod, int]]:
    """Yield the pods of a namespace, and their ports, to which a call leads."""
    facts = mesh.in_namespace(namespace)
    if call.selects_pods:
        pairs = _pairs(call)
        for pod in facts.selected(pairs) if pairs else facts.pods.values():
            if selects(call.selector, pod.meta.labels):
                yield from ((pod, port) for port in _ports_named(pod, call.target or call.port))
        return
    for service, ports in _called_services(mesh, services, call, namespace):
        for pod, port in _endpoints(mesh, service, ports):
            targets = _ports_named(pod, call.target) if call.target else (port,)
            yield from ((pod, target) for target in targets)


def _called_services(
    mesh: Mesh, services: _ServicesByLabel, call: Call, namespace: str
) -> Iterator[tuple[Service, list[ServicePort]]]:
    """Yield the Services of a namespace, and their ports, to which a call leads."""
    named = mesh.service(namespace, call.service)
    candidates = (named,) if named else () if call.service else services.matching(namespace, call)
    for service in candidates:
        if call.service or selects(call.selector, service.meta.labels):
            yield service, [port for port in service.ports if call.port in (None, port.port, port.name)]


def _ports_named(pod: Pod, port: int | str | None) -> list[int]:
    """Return the ports of a pod with a number or name, or all."""
    if isinstance(port, int):
        return [port]
    return [each.port for each in pod.ports if port in (None, each.name)]


def _endpoints(mesh: Mesh, service: Service, ports: Iterable[ServicePort]) -> Iterator[tuple[Pod, int]]:
    for port in ports:
        for endpoint in mesh.endpoints(service, port):
            if endpoint.pod:
                yield endpoint.pod, endpoint.port
