"""Build a sidecar's snapshot of encoded resources from facts and policy decisions.

A service's outbound resources are built once for all clients that share a DestinationRule. They are cached
until a change affects the service. Sidecars with equal resources share the same Python objects.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from xds.mesh.envoy import clusters, inbound, names, outbound, routes
from xds.mesh.envoy.bootstrap import loopback_address
from xds.mesh.envoy.features import ALL_FEATURES, Features, served_config
from xds.mesh.envoy.service import ServiceResources, build, sources_of
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
from xds.mesh.policy.destination import served_client_rule
from xds.mesh.policy.listeners import sidecar_ports
from xds.mesh.policy.mtls import ports_with_own_mode, served_mode
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, Resource, ResourceSet, Snapshot


def translate(
    mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...] = (), features: Features = ALL_FEATURES
) -> Snapshot:
    """Build a pod's snapshot without yielding to the event loop."""
    translation = steps(mesh, pod, secrets, features)
    while True:
        try:
            next(translation)
        except StopIteration as done:
            snapshot: Snapshot = done.value
            return snapshot


def steps(
    mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...], features: Features
) -> Generator[None, None, Snapshot]:
    """Build a pod's snapshot. Yields after each service to let the event loop run other tasks.

    Args:
        mesh: the mesh.
        pod: the pod.
        secrets: the secrets of its sidecar.
        features: the features of its Envoy.
    """
    config = served_config(mesh.config, features)
    rules = mesh.served_rules(pod.namespace)
    selecting = tuple(r.ref for r in rules if r.selector is not None and covers(r.selector, pod.meta.labels))
    # Pods with the same key have the same outbound resources.
    key = ("clients", pod.namespace, selecting, pod.interception, features)
    if key not in mesh.scratch:
        mesh.scratch[key] = yield from _build_outbound(mesh, pod, features)
    shared: _OutboundResources = mesh.scratch[key]
    decisions = _decide_inbound_ports(mesh, pod)
    sources = sources_of(mesh, *(decision.decided_by for decision in decisions), pod.ref)
    ports = tuple(decision.port for decision in decisions)
    if pod.interception is Interception.REDIRECT:
        listeners = [inbound.redirect_listener(config, ports, sources)]
    else:
        # Without an address, the pod's ports cannot be bound yet.
        bound_ports = ports if pod.address else ()
        listeners = [inbound.port_listener(config, pod.address, port, sources) for port in bound_ports]
        listeners.append(outbound.http_proxy_listener(config, loopback_address(pod)))
    inbound_clusters = tuple(_inbound_clusters(mesh, pod, ports, sources))
    return Snapshot(
        {
            CLUSTER: _extended(shared.clusters, inbound_clusters),
            ENDPOINT: shared.endpoints,
            LISTENER: _extended(shared.listeners, tuple(listeners)),
            ROUTE: shared.routes,
            SECRET: ResourceSet(secrets),
        },
        generation=mesh.served.generation,
    )


class _OutboundResources(NamedTuple):
    """Outbound resources and fixed clusters, shared by all sidecars that the same rules apply to."""

    clusters: ResourceSet
    endpoints: ResourceSet
    listeners: ResourceSet
    routes: ResourceSet


def _build_outbound(mesh: Mesh, pod: Pod, features: Features) -> Generator[None, None, _OutboundResources]:
    """Build the pod's outbound resources, which other sidecars can share."""
    config = served_config(mesh.config, features)
    services: list[ServiceResources] = []
    age_keys: list[tuple[bool, float, str, str]] = []
    for service in mesh.services():
        age_keys.append(service.meta.age_key)
        rule = served_client_rule(mesh, pod.namespace, pod.meta.labels, service)
        same_namespace = pod.namespace == service.namespace
        key = ("outbound", rule.refs if rule else (), same_namespace, features)
        memo = mesh.memo(service)
        if key not in memo:
            try:
                memo[key] = yield from build(mesh, service, rule, features, same_namespace=same_namespace)
            except Exception as error:  # noqa: BLE001 - one service must not affect others
                mesh.failures[service.ref] = error
                memo[key] = mesh.previous_memo(service).get(key, ServiceResources([], [], [], []))
        services.append(memo[key])
        yield
    intercepted = pod.interception is Interception.REDIRECT
    cds = [*clusters.fixed(config, intercepted=intercepted), *(r for s in services for r in s.clusters)]
    by_age = [service for _, service in sorted(zip(age_keys, services, strict=True), key=itemgetter(0))]
    hosts = (
        *(host for service in services for host in service.hosts if not host.is_endpoint),
        *(host for service in by_age for host in service.hosts if host.is_endpoint),
    )
    lds: list[Resource] = []
    rds: list[Resource] = []
    if intercepted:
        lds.append(outbound.redirect_listener(config))
        # If several Services' EndpointSlices contain the same external address, the listener of the oldest
        # Service is used.
        lds += {r.name: r for service in reversed(by_age) for r in reversed(service.listeners)}.values()
        http_hosts = [host for host in hosts if host.protocol.is_http and not host.is_endpoint]
        for port in sorted({host.port for host in http_hosts} - sidecar_ports(mesh)):
            port_hosts = tuple(host for host in http_hosts if host.port == port)
            lds.append(outbound.http_listener(port))
            rds.append(routes.route_configuration(str(port), port_hosts, allow_any=config.allow_any_outbound))
            yield
    else:
        rds.append(routes.route_configuration(names.HTTP_PROXY, hosts, allow_any=False, proxied=True))
    eds = [resource for service in services for resource in service.endpoints]
    sets = []
    for resources in (cds, eds, lds, rds):
        yield
        sets.append(_resource_set(tuple(resources)))
    return _OutboundResources(*sets)


def warm() -> None:
    """Run a small translation. Without it, the first real one would block the event loop for 0.3 s."""
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
def _resource_set(resources: tuple[Resource, ...]) -> ResourceSet:
    return ResourceSet(resources)


@lru_cache(maxsize=16384)
def _extended(base: ResourceSet, added: tuple[Resource, ...]) -> ResourceSet:
    return ResourceSet(added, base=base)


class _PortDecision(NamedTuple):
    port: inbound.Port
    decided_by: Ref


def _decide_inbound_ports(mesh: Mesh, pod: Pod) -> tuple[_PortDecision, ...]:
    """Return the ports that the pod's inbound listeners serve, with the object that decided each mode.

    They are the target ports of the pod's services. With interception, they also include ports with a
    port-level mode, and port 0 for all other ports.
    """
    excluded_ports = mesh.config.own_ports(pod.interception)
    ports: dict[int, tuple[Protocol, str]] = {}
    for exposure in mesh.exposures(pod):
        if exposure.target not in excluded_ports:
            ports.setdefault(exposure.target, (exposure.port.protocol, names.inbound(exposure.target)))
    if pod.interception is Interception.REDIRECT:
        for number in (*ports_with_own_mode(mesh, pod), 0):
            if number not in excluded_ports:
                ports.setdefault(number, (Protocol.AUTO, names.INBOUND_PASSTHROUGH))
    decisions = []
    for number in sorted(ports):
        protocol, cluster = ports[number]
        mode, decided_by, _ = served_mode(mesh, pod, number)
        decisions.append(_PortDecision(inbound.Port(number, protocol, mode, cluster), decided_by))
    return tuple(decisions)


def _inbound_clusters(
    mesh: Mesh, pod: Pod, ports: tuple[inbound.Port, ...], sources: tuple[str, ...]
) -> Iterator[Resource]:
    if pod.interception is Interception.REDIRECT:
        app_address = "" if mesh.config.passthrough_inbound else "127.0.0.1"
    else:
        app_address = pod.app_address
    for port in ports:
        if port.cluster != names.INBOUND_PASSTHROUGH:
            yield clusters.inbound(mesh.config, port.number, port.protocol, app_address, sources)
