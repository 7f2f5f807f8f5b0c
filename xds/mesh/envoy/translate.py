"""Build a sidecar's snapshot of encoded resources from facts and policy decisions.

Clients of one kind share their outbound resources, and pods with equal ports share their inbound resources.
Both are cached until a change affects them. Sidecars with equal resources share the same Python objects.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from xds.mesh.envoy import clusters, inbound, names, outbound, rbac
from xds.mesh.envoy.bootstrap import loopback_address
from xds.mesh.envoy.features import ALL_FEATURES, Features, served_config
from xds.mesh.envoy.outbound_kinds import OwnResources, build_outbound, kind_of, known_outbound
from xds.mesh.envoy.service import sources_of
from xds.mesh.model.families import LOCALHOST, Family
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    TLS_MODE_LABEL,
    Interception,
    MeshConfig,
    Meta,
    Pod,
    Protocol,
    Ref,
    Service,
    ServicePort,
)
from xds.mesh.policy.authorization import Rules, served_rules_of
from xds.mesh.policy.mtls import ports_with_own_mode, served_mode
from xds.mesh.policy.steps import Steps, finish
from xds.snapshot import SECRET, Resource, ResourceSet, Snapshot


class Guard(NamedTuple):
    """The authorization of a pod."""

    tcp: Rules
    """Rules for connections that are not parsed as HTTP."""
    http: Rules
    """Rules for HTTP requests."""


def translate(
    mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...] = (), features: Features = ALL_FEATURES
) -> Snapshot:
    """Build a pod's snapshot without yielding to the event loop."""
    return finish(steps(mesh, pod, ResourceSet(secrets), features))


def steps(mesh: Mesh, pod: Pod, secrets: ResourceSet, features: Features) -> Steps[Snapshot]:
    """Build a pod's snapshot. Yields after each service to let the event loop run other tasks.

    Args:
        mesh: the mesh.
        pod: the pod.
        secrets: the secrets of its sidecar.
        features: the features of its Envoy.
    """
    kind = kind_of(mesh, pod, features)
    shared = known_outbound(mesh, kind) or (yield from build_outbound(mesh, pod, kind))
    types = shared.with_own(_own_resources(mesh, pod, features))
    return Snapshot({**types, SECRET: secrets}, generation=mesh.served.generation)


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


def _own_resources(mesh: Mesh, pod: Pod, features: Features) -> OwnResources:
    """Return the resources of the pod's own ports."""
    if mesh.get(pod.ref) is not pod:
        return _build_own(mesh, pod, features)
    key = pod.key
    known: tuple[Features, OwnResources] | None = mesh.memory.pods.get(key)
    if known is None or known[0] != features:
        known = mesh.memory.pods[key] = features, _build_own(mesh, pod, features)
    return known[1]


def _build_own(mesh: Mesh, pod: Pod, features: Features) -> OwnResources:
    config = served_config(mesh.config, features)
    ports, deciders = _decide_inbound_ports(mesh, pod)
    tcp, http = (served_rules_of(mesh, pod, http=is_http) for is_http in (False, True))
    # Policies on HTTP requests have the same rules for other connections: pods with them share a listener.
    guard = Guard(tcp.without_policies(), http)
    deciders += guard.http.served
    if pod.interception is Interception.REDIRECT:
        return _intercepted(config, ports, guard, pod.families, sources_of(mesh, *deciders))
    return _not_intercepted(
        config,
        ports,
        guard,
        (pod.address, *pod.more_addresses) if pod.address else (),
        pod.app_address,
        loopback_address(pod),
        sources_of(mesh, *deciders, pod.ref),
    )


@lru_cache(maxsize=8192)
def _intercepted(
    config: MeshConfig,
    ports: tuple[inbound.InboundPort, ...],
    guard: Guard,
    families: tuple[Family, ...],
    sources: tuple[str, ...],
) -> OwnResources:
    """Return what all pods with these ports have, if iptables redirects their connections."""
    localhost = () if config.passthrough_inbound else tuple(LOCALHOST[family] for family in families)
    application = clusters.Application(localhost, families)
    listener = inbound.redirect_listener(config, ports, guard.tcp, families, sources)
    passthrough = clusters.inbound_passthrough(config, families)
    return OwnResources(
        (passthrough, *_clusters(config, ports, application, sources)),
        (listener,),
        rbac.http_rules(config, guard.http, sources),
    )


@lru_cache(maxsize=8192)
def _not_intercepted(  # noqa: PLR0917
    config: MeshConfig,
    ports: tuple[inbound.InboundPort, ...],
    guard: Guard,
    addresses: tuple[str, ...],
    app_address: str,
    loopback: str,
    sources: tuple[str, ...],
) -> OwnResources:
    """Return what a pod has in interception mode NONE. Its listeners are bound to its addresses."""
    # Without an address, the pod's ports cannot be bound yet.
    bound = ports if addresses else ()
    listeners = [inbound.port_listener(config, addresses, port, guard.tcp, sources) for port in bound]
    listeners.append(outbound.http_proxy_listener(config, loopback))
    application = clusters.Application((app_address,))
    has_http = any(port.protocol is not Protocol.TCP for port in bound)
    extensions = rbac.http_rules(config, guard.http, sources) if has_http else ()
    return OwnResources(_clusters(config, ports, application, sources), tuple(listeners), extensions)


def _clusters(
    config: MeshConfig,
    ports: tuple[inbound.InboundPort, ...],
    application: clusters.Application,
    sources: tuple[str, ...],
) -> tuple[Resource, ...]:
    return tuple(
        clusters.inbound(config, port.number, port.protocol, application, sources)
        for port in ports
        if port.cluster != names.INBOUND_PASSTHROUGH
    )


def _decide_inbound_ports(mesh: Mesh, pod: Pod) -> tuple[tuple[inbound.InboundPort, ...], tuple[Ref, ...]]:
    """Return the ports that the pod's inbound listeners serve, and the objects that decided their modes.

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
    decided, deciders = [], []
    for number in sorted(ports):
        protocol, cluster = ports[number]
        mode, decided_by, _ = served_mode(mesh, pod, number)
        decided.append(inbound.InboundPort(number, protocol, mode, cluster))
        deciders.append(decided_by)
    return tuple(decided), tuple(deciders)
