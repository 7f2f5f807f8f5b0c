"""The configuration of one proxy: facts and decisions in, a snapshot of encoded resources out.

What sidecars need of a service is worked out once for all clients that the same DestinationRule is for, and kept until a change
touches the service. What is equal is shared between proxies as the same objects.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

from xds.envoy import clusters, endpoints, inbound, names, outbound, routes
from xds.envoy.bootstrap import own_address
from xds.mesh import Endpoint, Mesh, covers
from xds.model import Interception, LoadBalancing, Pod, Protocol, Ref, Service, ServicePort, TrafficPolicy
from xds.policy.destination import ClientRule, client_rule
from xds.policy.mtls import Send, decide_for, in_force, ports_with_own_mode
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, Resource, ResourceSet, Snapshot


class _Outbound(NamedTuple):
    """What one service adds to its clients' sidecars."""

    clusters: list[Resource]
    endpoints: list[Resource]
    destinations: list[Resource]
    """Listeners for its own and its endpoints' addresses, for where traffic is intercepted."""
    hosts: list[routes.Host]


def translate(mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...] = ()) -> Snapshot:
    """Build a pod's snapshot in one go."""
    run = steps(mesh, pod, secrets)
    while True:
        try:
            next(run)
        except StopIteration as done:
            snapshot: Snapshot = done.value
            return snapshot


def steps(mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...] = ()) -> Generator[None, None, Snapshot]:
    """Build a pod's snapshot, yielding after each service and route table so that an event loop can breathe."""
    rules = mesh.in_namespace(pod.namespace).rules
    selected = tuple(r.ref for r in rules if r.selector is not None and covers(r.selector, pod.meta.labels))
    kind = ("clients", pod.namespace, selected, pod.interception)
    if kind not in mesh.scratch:
        mesh.scratch[kind] = yield from _clients(mesh, pod)
    common: _Common = mesh.scratch[kind]
    ports = _inbound_ports(mesh, pod)
    sources = _sources(mesh, *(port.because for port in ports), pod.ref)
    served = tuple(port.served for port in ports)
    if pod.interception is Interception.REDIRECT:
        listeners = [inbound.intercepted(mesh.config, served, sources)]
    else:
        listeners = [inbound.bound(mesh.config, pod.address, port, sources) for port in served]
        listeners.append(outbound.http_proxy(mesh.config, own_address(pod)))
    own = tuple(_inbound_clusters(mesh, pod, served, sources))
    return Snapshot(
        {
            CLUSTER: _with(common.clusters, own),
            ENDPOINT: common.endpoints,
            LISTENER: _with(common.listeners, tuple(listeners)),
            ROUTE: common.routes,
            SECRET: ResourceSet(secrets),
        }
    )


class _Common(NamedTuple):
    """What all sidecars have that the same rules are for; each adds its own inbound side."""

    clusters: ResourceSet
    endpoints: ResourceSet
    listeners: ResourceSet
    routes: ResourceSet


def _clients(mesh: Mesh, pod: Pod) -> Generator[None, None, _Common]:
    config = mesh.config
    services: list[_Outbound] = []
    for service in mesh.services():
        rule = client_rule(mesh, pod.namespace, pod.meta.labels, service)
        own = pod.namespace == service.namespace
        key = ("outbound", rule.refs if rule else (), own)
        services.append(mesh.memo(service, key, partial(_service, mesh, service, rule, own=own)))
        yield
    intercepted = pod.interception is Interception.REDIRECT
    cds = [*clusters.fixed(config, intercepted=intercepted), *(r for s in services for r in s.clusters)]
    hosts = tuple(host for found in services for host in found.hosts)
    lds: list[Resource] = []
    rds: list[Resource] = []
    if intercepted:
        lds.append(outbound.entry(config))
        # Of two that claim an address, the first has it.
        lds += {r.name: r for found in reversed(services) for r in reversed(found.destinations)}.values()
        http = [host for host in hosts if host.protocol.is_http and not host.addressed]
        for number in sorted({host.port for host in http} - _own_ports(mesh)):
            here = tuple(host for host in http if host.port == number)
            lds.append(outbound.http_port(number))
            rds.append(routes.route_configuration(str(number), here, allow_any=config.allow_any_outbound))
            yield
    else:
        rds.append(routes.route_configuration(names.HTTP_PROXY, hosts, allow_any=False, proxied=True))
    eds = tuple(resource for found in services for resource in found.endpoints)
    return _Common(_shared(tuple(cds)), _shared(eds), _shared(tuple(lds)), _shared(tuple(rds)))


@lru_cache(maxsize=256)
def _shared(resources: tuple[Resource, ...]) -> ResourceSet:
    return ResourceSet(resources)


@lru_cache(maxsize=16384)
def _with(base: ResourceSet, own: tuple[Resource, ...]) -> ResourceSet:
    return ResourceSet(own, base=base)


def _sources(mesh: Mesh, *refs: Ref) -> tuple[str, ...]:
    """Name objects for whoever has to explain a rejection, with where they were read."""
    found = []
    for ref in dict.fromkeys(refs):
        fact = mesh.get(ref)
        found.append(f"{ref} ({fact.meta.origin})" if fact and fact.meta.origin else str(ref))
    return tuple(found)


def _own_ports(mesh: Mesh) -> set[int]:
    """Ports that an intercepting sidecar listens on: no other listener can have them."""
    return {mesh.config.proxy_listen_port, mesh.config.proxy_inbound_listen_port, names.HEALTH_PORT}


# --- outbound ---------------------------------------------------------------------------------------------------------


def _service(mesh: Mesh, service: Service, rule: ClientRule | None, *, own: bool) -> _Outbound:
    """Build what all clients get that the same rule is for; `own`: those of the service's namespace."""
    sources = _sources(mesh, *(rule.refs if rule else ()), service.ref)
    found = _Outbound([], [], [], [])
    for port in service.ports:
        subsets = ("", *(subset.name for subset in rule.subsets)) if rule else ("",)
        for subset in dict.fromkeys(subsets):
            policy = rule.for_port(port.port, subset) if rule else TrafficPolicy()
            build = _ServicePort(mesh, service, port, rule, subset, policy, sources)
            build.balanced(found)
            if not subset:
                build.addressed(found, own=own)
    return found


@dataclass(frozen=True, slots=True)
class _ServicePort:
    """One service port (or subset of it) as those clients see it."""

    mesh: Mesh
    service: Service
    port: ServicePort
    rule: ClientRule | None
    subset: str
    policy: TrafficPolicy
    sources: tuple[str, ...]

    def cluster(self, name: str) -> Resource:
        spec = clusters.Outbound(
            name=name,
            sni=names.sni(self.service.host, self.port.port, self.subset),
            protocol=self.port.protocol,
            policy=self.policy,
            identities=self.mesh.identities(self.service),
        )
        return clusters.outbound(self.mesh.config, spec, self.sources)

    def target(self, endpoint: Endpoint) -> endpoints.Target:
        sent = decide_for(self.mesh, self.rule, self.port, endpoint, self.subset).mode
        return endpoints.target(endpoint, mtls=sent is Send.MTLS)

    def balanced(self, found: _Outbound) -> None:
        """Add the cluster that leads to all of the endpoints."""
        name = names.outbound(self.service.host, self.port.port, self.subset)
        chosen = self.rule.subset(self.subset) if self.rule else None
        labels = chosen.labels if chosen else {}
        outlier = self.policy.outlier_detection
        only_ready = bool(outlier and outlier.min_health_percent)
        targets = [
            self.target(endpoint)
            for endpoint in self.mesh.endpoints(self.service, self.port)
            if covers(labels, endpoint.pod.meta.labels if endpoint.pod else {})
            and (endpoint.ready or not only_ready)
        ]
        found.clusters.append(self.cluster(name))
        found.endpoints.append(endpoints.assignment(name, targets, self.sources))

    def addressed(self, found: _Outbound, *, own: bool) -> None:
        """Add what answers to the service's names and addresses and, where it is asked for, to each endpoint's own."""
        service, port = self.service, self.port
        name = names.outbound(service.host, port.port)
        domains = routes.service_names(service, own=own)
        found.hosts.append(routes.Host(domains, port.port, name, port.protocol))
        if not port.protocol.is_http:
            for address in service.addresses:
                self.destination(found, address, port.port, name)
        if service.headless or self.policy.load_balancer is LoadBalancing.PASSTHROUGH:
            named = tuple(domain for host in domains for domain in (host, f"{host}:{port.port}"))
            for endpoint in self.mesh.endpoints(service, port):
                self.endpoint(found, endpoint, (named, name), own=own)

    def endpoint(
        self, found: _Outbound, endpoint: Endpoint, named: tuple[tuple[str, ...], str], *, own: bool
    ) -> None:
        """Add the cluster of one endpoint, and what leads to it: its address, and its name if it has one."""
        name = names.outbound(self.service.host, self.port.port, endpoint.address)
        # Whoever names a pod means it, ready or not.
        alone = self.target(endpoint)._replace(ready=True)
        found.clusters.append(self.cluster(name))
        found.endpoints.append(endpoints.assignment(name, [alone], self.sources))
        pod = endpoint.pod
        known = bool(pod and pod.hostname and pod.subdomain == self.service.name)
        by_name = routes.pod_names(pod.hostname, self.service, own=own) if pod and known else ()
        for number in dict.fromkeys((self.port.port, endpoint.port)):
            found.hosts.append(
                routes.Host((*by_name, endpoint.address), number, name, self.port.protocol, addressed=True)
            )
            self.destination(found, endpoint.address, number, name, named)

    def destination(
        self,
        found: _Outbound,
        address: str,
        number: int,
        cluster: str,
        named: tuple[tuple[str, ...], str] = ((), ""),
    ) -> None:
        if number in _own_ports(self.mesh):
            return
        pool = self.policy.connection_pool
        wanted = outbound.Destination(
            address, number, self.port.protocol, cluster, pool.tcp_idle_timeout if pool else None, named
        )
        found.destinations.append(outbound.destination(self.mesh.config, wanted, self.sources))


# --- inbound ----------------------------------------------------------------------------------------------------------


class _Served(NamedTuple):
    served: inbound.Port
    because: Ref


def _inbound_ports(mesh: Mesh, pod: Pod) -> tuple[_Served, ...]:
    """Return what the pod's listeners serve: the ports of its services and, where all is intercepted, every other."""
    config = mesh.config
    intercepted = pod.interception is Interception.REDIRECT
    taken = _own_ports(mesh) if intercepted else {names.ADMIN_PORT, config.proxy_http_port, names.HEALTH_PORT}
    ports: dict[int, tuple[Protocol, str]] = {}
    for exposed in mesh.exposures(pod):
        if exposed.target not in taken:
            ports.setdefault(exposed.target, (exposed.port.protocol, names.inbound(exposed.target)))
    if intercepted:
        for number in (*ports_with_own_mode(mesh, pod), 0):
            if number not in taken:
                ports.setdefault(number, (Protocol.AUTO, names.INBOUND_PASSTHROUGH))
    found = []
    for number in sorted(ports):
        protocol, cluster = ports[number]
        mode, because, _ = in_force(mesh, pod, number)
        found.append(_Served(inbound.Port(number, protocol, mode, cluster), because))
    return tuple(found)


def _inbound_clusters(
    mesh: Mesh, pod: Pod, ports: tuple[inbound.Port, ...], sources: tuple[str, ...]
) -> Iterator[Resource]:
    intercepted = pod.interception is Interception.REDIRECT
    local = "" if mesh.config.passthrough_inbound else "127.0.0.1"
    app_address = local if intercepted else pod.app_address
    for port in ports:
        if port.cluster != names.INBOUND_PASSTHROUGH:
            yield clusters.inbound(mesh.config, port.number, port.protocol, app_address, sources)
