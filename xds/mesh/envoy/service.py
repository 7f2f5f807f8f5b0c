"""Build the resources for one service in the sidecars of its clients."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from xds.mesh.envoy import clusters, endpoints, names, outbound, routes
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import Interception, Ref, Service, ServicePort
from xds.mesh.model.traffic import NO_LIMITS, LoadBalancing, TcpLimits, TrafficPolicy
from xds.mesh.policy.destination import ClientRule
from xds.mesh.policy.mtls import sends_mtls
from xds.snapshot import Resource

_ENDPOINTS_PER_YIELD = 64
"""Number of endpoints after which the build yields to the event loop: about 5 ms of work."""


class Outbound(NamedTuple):
    """Resources for one service in its clients' sidecars."""

    clusters: list[Resource]
    """Clusters of its ports, subsets and, if headless, endpoints."""
    endpoints: list[Resource]
    """Endpoints of these clusters."""
    destinations: list[Resource]
    """Listeners for the addresses of the service and its endpoints, for intercepted traffic."""
    hosts: list[routes.Host]
    """Virtual hosts for its names and addresses."""


def sources_of(mesh: Mesh, *refs: Ref) -> tuple[str, ...]:
    """Return names of objects with the places where they were read, to explain rejections."""
    sources = []
    for ref in dict.fromkeys(refs):
        fact = mesh.get(ref)
        sources.append(f"{ref} ({fact.meta.origin})" if fact and fact.meta.origin else str(ref))
    return tuple(sources)


def own_ports(mesh: Mesh) -> frozenset[int]:
    """Return the ports that an intercepting sidecar binds on every address, so no other listener can."""
    return mesh.config.own_ports(Interception.REDIRECT)


def build(
    mesh: Mesh, service: Service, rule: ClientRule | None, *, own: bool
) -> Generator[None, None, Outbound]:
    """Build the resources for all clients with the same rule; `own`: clients in the service's namespace."""
    sources = sources_of(mesh, *(rule.refs if rule else ()), service.ref)
    service = replace(service, addresses=tuple(a for a in service.addresses if mesh.may_answer(service, a)))
    result = Outbound([], [], [], [])
    for port in service.ports:
        subsets = ("", *(subset.name for subset in rule.subsets)) if rule else ("",)
        for subset in dict.fromkeys(subsets):
            policy = rule.for_port(port.port, subset) if rule else TrafficPolicy()
            part = _ServicePort(mesh, service, port, rule, subset, policy, sources)
            yield from part.add_balanced(result)
            if not subset:
                yield from part.add_addressed(result, own=own)
    return result


@dataclass(frozen=True, slots=True)
class _ServicePort:
    """One service port, or a subset of it, for clients with the same rule."""

    mesh: Mesh
    service: Service
    port: ServicePort
    rule: ClientRule | None
    subset: str
    policy: TrafficPolicy
    sources: tuple[str, ...]

    @property
    def limits(self) -> TcpLimits:
        pool = self.policy.connection_pool
        return pool.tcp_limits if pool else NO_LIMITS

    def cluster(self, name: str) -> Resource:
        spec = clusters.Outbound(
            name=name,
            sni=names.sni(self.service.host, self.port.port, self.subset),
            protocol=self.port.protocol,
            policy=self.policy,
            identities=self.mesh.identities(self.service),
        )
        return self._cached(name, spec, lambda: clusters.outbound(self.mesh.config, spec, self.sources))

    def assignment(self, name: str, targets: list[endpoints.Target]) -> Resource:
        return self._cached(name, targets, lambda: endpoints.assignment(name, targets, self.sources))

    def _cached(self, name: str, spec: object, build: Callable[[], Resource]) -> Resource:
        """Return the resource for a spec, built for other clients or before the last change if possible."""
        key = ("cached", name)
        cache: list[tuple[object, Resource]] = self.mesh.memo(self.service).setdefault(key, [])
        resource = next((resource for known, resource in cache if known == spec), None)
        if resource is None:
            previous = self.mesh.previous_memo(self.service).get(key, ())
            resource = next((resource for known, resource in previous if known == spec), None) or build()
            cache.append((spec, resource))
        return resource if resource.sources == self.sources else replace(resource, sources=self.sources)

    def target(self, endpoint: Endpoint) -> endpoints.Target:
        mtls = sends_mtls(self.mesh, self.rule, self.port, endpoint, self.subset)
        return endpoints.target(endpoint, mtls=mtls)

    def add_balanced(self, result: Outbound) -> Iterator[None]:
        """Add the cluster that balances over all endpoints."""
        name = names.outbound(self.service.host, self.port.port, self.subset)
        chosen = self.rule.subset(self.subset) if self.rule else None
        labels = chosen.labels if chosen else {}
        outlier = self.policy.outlier_detection
        only_ready = bool(outlier and outlier.min_health_percent)
        targets = []
        for number, endpoint in enumerate(self.mesh.endpoints(self.service, self.port), 1):
            pod_labels = endpoint.pod.meta.labels if endpoint.pod else {}
            if covers(labels, pod_labels) and (endpoint.ready or not only_ready):
                targets.append(self.target(endpoint))
            if number % _ENDPOINTS_PER_YIELD == 0:
                yield
        result.clusters.append(self.cluster(name))
        result.endpoints.append(self.assignment(name, targets))
        yield

    def add_addressed(self, result: Outbound, *, own: bool) -> Iterator[None]:
        """Add hosts and listeners for the service's names and addresses and, if needed, for each endpoint."""
        service, port = self.service, self.port
        name = names.outbound(service.host, port.port)
        domains = routes.service_names(service, own=own)
        result.hosts.append(routes.Host(domains, port.port, name, port.protocol, limits=self.limits))
        if not port.protocol.is_http or port.port in own_ports(self.mesh):
            for address in service.addresses:
                self.add_destination(result, address, port.port, name)
        if service.headless or self.policy.load_balancer is LoadBalancing.PASSTHROUGH:
            named = routes.with_ports(domains, port.port, bare=True)
            for endpoint in self.mesh.endpoints(service, port):
                self.add_endpoint(result, endpoint, (named, name), own=own)
                yield
            for entry in self.mesh.withheld(service, port):
                # Without a listener for this address, connections would pass through in plaintext.
                if self.mesh.may_answer(service, entry.address):
                    for number in dict.fromkeys((port.port, entry.port)):
                        self.add_destination(result, entry.address, number, names.BLACK_HOLE, (named, name))

    def add_endpoint(
        self, result: Outbound, endpoint: Endpoint, named: tuple[tuple[str, ...], str], *, own: bool
    ) -> None:
        """Add the cluster of one endpoint, with hosts and listeners for its name and its own address."""
        by_name = routes.pod_names(endpoint.hostname, self.service, own=own) if endpoint.hostname else ()
        by_address = (endpoint.address,) if self.mesh.may_answer(self.service, endpoint.address) else ()
        domains = (*by_name, *by_address)
        if not domains:
            return
        name = names.outbound(self.service.host, self.port.port, endpoint.address)
        # Clients that name a pod reach it even if it is not ready.
        alone = self.target(endpoint)._replace(ready=True)
        result.clusters.append(self.cluster(name))
        result.endpoints.append(self.assignment(name, [alone]))
        for number in dict.fromkeys((self.port.port, endpoint.port)):
            result.hosts.append(routes.Host(domains, number, name, self.port.protocol, addressed=True))
            if by_address:
                self.add_destination(result, endpoint.address, number, name, named)

    def add_destination(
        self,
        result: Outbound,
        address: str,
        number: int,
        cluster: str,
        named: tuple[tuple[str, ...], str] = ((), ""),
    ) -> None:
        spec = outbound.Destination(address, number, self.port.protocol, cluster, self.limits, named)
        listener = self._cached(
            f"{address}_{number}",
            spec,
            lambda: outbound.destination(self.mesh.config, spec, self.sources),
        )
        result.destinations.append(listener)
