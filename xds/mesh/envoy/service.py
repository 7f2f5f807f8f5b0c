"""Build the resources for one service in its clients' sidecars."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from xds.mesh.envoy import clusters, endpoints, names, outbound, routes
from xds.mesh.envoy.features import Features
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import Ref, Service, ServicePort
from xds.mesh.model.traffic import NO_LIMITS, TcpLimits, TrafficPolicy
from xds.mesh.policy.destination import ClientRule
from xds.mesh.policy.listeners import Listener, has_endpoint_listeners, listeners_of
from xds.mesh.policy.mtls import sends_mtls
from xds.snapshot import Resource

_ENDPOINTS_PER_YIELD = 64
"""Number of endpoints after which the build yields to the event loop: about 5 ms of work."""


class ServiceResources(NamedTuple):
    """Resources for one service in its clients' sidecars."""

    clusters: list[Resource]
    """Clusters of the service's ports and subsets, and of endpoints that clients address individually."""
    endpoints: list[Resource]
    """Load assignments of these clusters."""
    listeners: list[Resource]
    """Listeners for the addresses of the service and its endpoints, for intercepted traffic."""
    hosts: list[routes.Host]
    """Hosts that routes match: the names and addresses of the service and its endpoints."""


def sources_of(mesh: Mesh, *refs: Ref) -> tuple[str, ...]:
    """Return the objects' names and where they were read, to explain rejections."""
    sources = []
    for ref in dict.fromkeys(refs):
        fact = mesh.get(ref)
        sources.append(f"{ref} ({fact.meta.origin})" if fact and fact.meta.origin else str(ref))
    return tuple(sources)


def build(
    mesh: Mesh, service: Service, rule: ClientRule | None, features: Features, *, same_namespace: bool
) -> Generator[None, None, ServiceResources]:
    """Build the resources for all clients with the same rule and the same features of Envoy.

    `same_namespace` is whether the clients are in the service's namespace.
    """
    sources = sources_of(mesh, *(rule.refs if rule else ()), service.ref)
    # Ignore addresses that belong to another service or namespace.
    service = replace(service, addresses=tuple(a for a in service.addresses if mesh.may_answer(service, a)))
    result = ServiceResources([], [], [], [])
    for port in service.ports:
        subsets = ("", *(subset.name for subset in rule.subsets)) if rule else ("",)
        for subset in dict.fromkeys(subsets):
            policy = rule.for_port(port.port, subset) if rule else TrafficPolicy()
            builder = _PortBuilder(mesh, service, port, rule, subset, policy, sources, features)
            yield from builder.add_balanced(result)
            if not subset:
                yield from builder.add_addressed(result, same_namespace=same_namespace)
    return result


@dataclass(frozen=True, slots=True)
class _PortBuilder:
    """Build the resources of one service port, or a subset of it, for clients with the same rule."""

    mesh: Mesh
    service: Service
    port: ServicePort
    rule: ClientRule | None
    subset: str
    policy: TrafficPolicy
    sources: tuple[str, ...]
    features: Features

    @property
    def limits(self) -> TcpLimits:
        pool = self.policy.connection_pool
        return pool.tcp_limits if pool else NO_LIMITS

    def cluster(self, name: str) -> Resource:
        spec = clusters.OutboundSpec(
            name=name,
            sni=names.sni(self.service.host, self.port.port, self.subset),
            protocol=self.port.protocol,
            policy=self.policy,
            identities=self.mesh.identities(self.service),
            features=self.features,
        )
        return self._cached(name, spec, lambda: clusters.outbound(self.mesh.config, spec, self.sources))

    def assignment(self, name: str, targets: list[endpoints.Target]) -> Resource:
        return self._cached(name, targets, lambda: endpoints.assignment(name, targets, self.sources))

    def _cached(self, name: str, spec: object, create: Callable[[], Resource]) -> Resource:
        """Return the resource for a spec.

        Reuse a resource with the same spec that was built for other clients, or before the last change.
        """
        key = ("cached", name)
        cache: list[tuple[object, Resource]] = self.mesh.memo(self.service).setdefault(key, [])
        resource = next((resource for cached_spec, resource in cache if cached_spec == spec), None)
        if resource is None:
            previous = self.mesh.previous_memo(self.service).get(key, ())
            resource = (
                next((resource for old_spec, resource in previous if old_spec == spec), None) or create()
            )
            cache.append((spec, resource))
        return resource if resource.sources == self.sources else replace(resource, sources=self.sources)

    def target(self, endpoint: Endpoint) -> endpoints.Target:
        mtls = sends_mtls(self.mesh, self.rule, self.port, endpoint, self.subset)
        return endpoints.target(endpoint, mtls=mtls)

    def add_balanced(self, result: ServiceResources) -> Iterator[None]:
        """Add the cluster that load-balances between all endpoints."""
        name = names.outbound(self.service.host, self.port.port, self.subset)
        subset = self.rule.subset(self.subset) if self.rule else None
        subset_labels = subset.labels if subset else {}
        outlier = self.policy.outlier_detection
        # A panic threshold would send requests to endpoints that are not ready.
        only_ready = bool(outlier and outlier.min_health_percent)
        targets = []
        for count, endpoint in enumerate(self.mesh.endpoints(self.service, self.port), 1):
            pod_labels = endpoint.pod.meta.labels if endpoint.pod else {}
            if covers(subset_labels, pod_labels) and (endpoint.ready or not only_ready):
                targets.append(self.target(endpoint))
            if count % _ENDPOINTS_PER_YIELD == 0:
                yield
        result.clusters.append(self.cluster(name))
        result.endpoints.append(self.assignment(name, targets))
        yield

    def add_addressed(self, result: ServiceResources, *, same_namespace: bool) -> Iterator[None]:
        """Add hosts and listeners for the service's names and addresses.

        If the service is headless or its load balancing is PASSTHROUGH, also add each endpoint.
        """
        service, port = self.service, self.port
        name = names.outbound(service.host, port.port)
        domains = routes.service_names(service, same_namespace=same_namespace)
        result.hosts.append(routes.Host(domains, port.port, name, port.protocol, limits=self.limits))
        for_endpoints = has_endpoint_listeners(service, self.policy)
        for endpoint in self.mesh.endpoints(service, port) if for_endpoints else ():
            self.add_endpoint(result, endpoint, same_namespace=same_namespace)
            yield
        service_route = (routes.with_ports(domains, port.port, bare=True), name)
        for listener in listeners_of(self.mesh, service, port, for_endpoints=for_endpoints):
            self.add_listener(result, listener, service_route)
            yield

    def add_endpoint(self, result: ServiceResources, endpoint: Endpoint, *, same_namespace: bool) -> None:
        """Add the cluster of one endpoint, with hosts for its host name and address."""
        host_names: tuple[str, ...] = ()
        if endpoint.hostname:
            host_names = routes.pod_names(endpoint.hostname, self.service, same_namespace=same_namespace)
        addresses = (endpoint.address,) if self.mesh.may_answer(self.service, endpoint.address) else ()
        domains = (*host_names, *addresses)
        if not domains:
            return
        name = names.outbound(self.service.host, self.port.port, endpoint.address)
        # Requests to a specific pod reach it even if it is not ready.
        target = self.target(endpoint)._replace(ready=True)
        result.clusters.append(self.cluster(name))
        result.endpoints.append(self.assignment(name, [target]))
        for number in dict.fromkeys((self.port.port, endpoint.port)):
            result.hosts.append(routes.Host(domains, number, name, self.port.protocol, is_endpoint=True))

    def add_listener(
        self, result: ServiceResources, listener: Listener, service_route: tuple[tuple[str, ...], str]
    ) -> None:
        address, number, endpoint = listener.address, listener.number, listener.endpoint
        cluster = names.outbound(self.service.host, self.port.port, endpoint.address if endpoint else "")
        if listener.is_closed:
            cluster = names.BLACK_HOLE
        elif endpoint is None:
            service_route = ((), "")  # All connections go to the cluster of the service anyway.
        spec = outbound.Destination(address, number, self.port.protocol, cluster, self.limits, service_route)
        found = self._cached(
            f"{address}_{number}",
            spec,
            lambda: outbound.destination_listener(self.mesh.config, spec, self.sources),
        )
        result.listeners.append(found)
