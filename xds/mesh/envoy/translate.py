"""Translate facts and decisions to the configuration of one proxy: a snapshot of encoded resources.

The configuration for a service is built once for all clients that the same DestinationRule applies to, and
cached until a change affects the service. Proxies with equal resources share the same Python objects.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from xds.mesh.envoy import clusters, inbound, names, outbound, routes
from xds.mesh.envoy.bootstrap import own_address
from xds.mesh.envoy.service import Outbound, build, own_ports, sources_of
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import (
    TLS_MODE_LABEL,
    Interception,
    Meta,
    Pod,
    Protocol,
    Ref,
    Service,
    ServicePort,
)
from xds.mesh.policy.destination import client_rule
from xds.mesh.policy.mtls import ports_with_own_mode, served_mode
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, Resource, ResourceSet, Snapshot


def translate(mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...] = ()) -> Snapshot:
    """Build a pod's snapshot without yielding to the event loop."""
    run = steps(mesh, pod, secrets)
    while True:
        try:
            next(run)
        except StopIteration as done:
            snapshot: Snapshot = done.value
            return snapshot


def steps(mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...] = ()) -> Generator[None, None, Snapshot]:
    """Build a pod's snapshot. Yields after each service, so that an event loop can run other tasks."""
    rules = mesh.in_namespace(pod.namespace).rules
    selected = tuple(r.ref for r in rules if r.selector is not None and covers(r.selector, pod.meta.labels))
    kind = ("clients", pod.namespace, selected, pod.interception)
    if kind not in mesh.scratch:
        mesh.scratch[kind] = yield from _clients(mesh, pod)
    common: _Common = mesh.scratch[kind]
    ports = _inbound_ports(mesh, pod)
    sources = sources_of(mesh, *(port.decided_by for port in ports), pod.ref)
    served = tuple(port.served for port in ports)
    if pod.interception is Interception.REDIRECT:
        listeners = [inbound.intercepted(mesh.config, served, sources)]
    else:
        # A pod without an address has nothing to bind yet.
        bound = served if pod.address else ()
        listeners = [inbound.bound(mesh.config, pod.address, port, sources) for port in bound]
        listeners.append(outbound.http_proxy(mesh.config, own_address(pod)))
    own = tuple(_inbound_clusters(mesh, pod, served, sources))
    return Snapshot(
        {
            CLUSTER: _with(common.clusters, own),
            ENDPOINT: common.endpoints,
            LISTENER: _with(common.listeners, tuple(listeners)),
            ROUTE: common.routes,
            SECRET: ResourceSet(secrets),
        },
        generation=mesh.served.generation,
    )


class _Common(NamedTuple):
    """Outbound resources shared by all sidecars that the same rules apply to."""

    clusters: ResourceSet
    """Outbound clusters."""
    endpoints: ResourceSet
    """Their endpoints."""
    listeners: ResourceSet
    """Outbound listeners."""
    routes: ResourceSet
    """Outbound route configurations."""


def _clients(mesh: Mesh, pod: Pod) -> Generator[None, None, _Common]:
    config = mesh.config
    services: list[Outbound] = []
    ages: list[tuple[bool, float, str, str]] = []
    for service in mesh.services():
        ages.append(service.meta.age_key)
        rule = client_rule(mesh, pod.namespace, pod.meta.labels, service)
        own = pod.namespace == service.namespace
        key = ("outbound", rule.refs if rule else (), own)
        memo = mesh.memo(service)
        if key not in memo:
            try:
                memo[key] = yield from build(mesh, service, rule, own=own)
            except Exception as error:  # noqa: BLE001 - one service must not affect others
                mesh.failures[service.ref] = error
                memo[key] = mesh.previous_memo(service).get(key, Outbound([], [], [], []))
        services.append(memo[key])
        yield
    intercepted = pod.interception is Interception.REDIRECT
    cds = [*clusters.fixed(config, intercepted=intercepted), *(r for s in services for r in s.clusters)]
    by_age = [service for _, service in sorted(zip(ages, services, strict=True), key=itemgetter(0))]
    hosts = (
        *(host for service in services for host in service.hosts if not host.addressed),
        *(host for service in by_age for host in service.hosts if host.addressed),
    )
    lds: list[Resource] = []
    rds: list[Resource] = []
    if intercepted:
        lds.append(outbound.entry(config))
        # If several services list an address that no pod or Service owns, the oldest service gets it.
        lds += {r.name: r for service in reversed(by_age) for r in reversed(service.destinations)}.values()
        http = [host for host in hosts if host.protocol.is_http and not host.addressed]
        for number in sorted({host.port for host in http} - own_ports(mesh)):
            here = tuple(host for host in http if host.port == number)
            lds.append(outbound.http_port(number))
            rds.append(routes.route_configuration(str(number), here, allow_any=config.allow_any_outbound))
            yield
    else:
        rds.append(routes.route_configuration(names.HTTP_PROXY, hosts, allow_any=False, proxied=True))
    eds = [resource for service in services for resource in service.endpoints]
    sets = []
    for resources in (cds, eds, lds, rds):
        yield
        sets.append(_shared(tuple(resources)))
    return _Common(*sets)


def warm() -> None:
    """Run a small translation, so that the first real one does not block the event loop for 0.3 s."""
    labels = {"app": "x", TLS_MODE_LABEL: "istio"}
    ports = [ServicePort(port=number, target=number, protocol=p) for number, p in enumerate(Protocol, 1)]
    service = Service(
        meta=Meta(ref=Ref("Service", "x", "x")),
        addresses=("127.0.0.1",),
        ports=tuple(ports),
        selector={"app": "x"},
    )
    for interception in Interception:
        meta = Meta(ref=Ref("Pod", "x", "x"), labels=labels)
        pod = Pod(meta=meta, address="127.0.0.1", interception=interception)
        translate(Mesh((pod, service)), pod)


@lru_cache(maxsize=256)
def _shared(resources: tuple[Resource, ...]) -> ResourceSet:
    return ResourceSet(resources)


@lru_cache(maxsize=16384)
def _with(base: ResourceSet, own: tuple[Resource, ...]) -> ResourceSet:
    return ResourceSet(own, base=base)


class _InboundPort(NamedTuple):
    served: inbound.Port
    decided_by: Ref


def _inbound_ports(mesh: Mesh, pod: Pod) -> tuple[_InboundPort, ...]:
    """Return the ports that the pod's listeners serve.

    These are the ports of its services. With interception, ports with a port-level mode are added, and port
    0, which stands for all others.
    """
    config = mesh.config
    intercepted = pod.interception is Interception.REDIRECT
    taken = config.own_ports(pod.interception)
    ports: dict[int, tuple[Protocol, str]] = {}
    for exposed in mesh.exposures(pod):
        if exposed.target not in taken:
            ports.setdefault(exposed.target, (exposed.port.protocol, names.inbound(exposed.target)))
    if intercepted:
        for number in (*ports_with_own_mode(mesh, pod), 0):
            if number not in taken:
                ports.setdefault(number, (Protocol.AUTO, names.INBOUND_PASSTHROUGH))
    served = []
    for number in sorted(ports):
        protocol, cluster = ports[number]
        mode, decided_by, _ = served_mode(mesh, pod, number)
        served.append(_InboundPort(inbound.Port(number, protocol, mode, cluster), decided_by))
    return tuple(served)


def _inbound_clusters(
    mesh: Mesh, pod: Pod, ports: tuple[inbound.Port, ...], sources: tuple[str, ...]
) -> Iterator[Resource]:
    intercepted = pod.interception is Interception.REDIRECT
    local = "" if mesh.config.passthrough_inbound else "127.0.0.1"
    app_address = local if intercepted else pod.app_address
    for port in ports:
        if port.cluster != names.INBOUND_PASSTHROUGH:
            yield clusters.inbound(mesh.config, port.number, port.protocol, app_address, sources)
