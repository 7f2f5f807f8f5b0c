"""What one service adds to the sidecars of its clients."""

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

_AT_ONCE = 64
"""Endpoints after which the event loop gets its turn: about 5 ms of work."""


class Outbound(NamedTuple):
    """What one service adds to its clients' sidecars."""

    clusters: list[Resource]
    endpoints: list[Resource]
    destinations: list[Resource]
    """Listeners for its own and its endpoints' addresses, for where traffic is intercepted."""
    hosts: list[routes.Host]


def sources_of(mesh: Mesh, *refs: Ref) -> tuple[str, ...]:
    """Name objects for whoever has to explain a rejection, with where they were read."""
    found = []
    for ref in dict.fromkeys(refs):
        fact = mesh.get(ref)
        found.append(f"{ref} ({fact.meta.origin})" if fact and fact.meta.origin else str(ref))
    return tuple(found)


def own_ports(mesh: Mesh) -> frozenset[int]:
    """Return the ports at which an intercepting sidecar listens on every address: no other listener can have them so."""
    return mesh.config.own_ports(Interception.REDIRECT)


def build(
    mesh: Mesh, service: Service, rule: ClientRule | None, *, own: bool
) -> Generator[None, None, Outbound]:
    """Build what all clients get that the same rule is for; `own`: those of the service's namespace."""
    sources = sources_of(mesh, *(rule.refs if rule else ()), service.ref)
    service = replace(service, addresses=tuple(a for a in service.addresses if mesh.may_answer(service, a)))
    found = Outbound([], [], [], [])
    for port in service.ports:
        subsets = ("", *(subset.name for subset in rule.subsets)) if rule else ("",)
        for subset in dict.fromkeys(subsets):
            policy = rule.for_port(port.port, subset) if rule else TrafficPolicy()
            part = _ServicePort(mesh, service, port, rule, subset, policy, sources)
            yield from part.balanced(found)
            if not subset:
                yield from part.addressed(found, own=own)
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
        return self._kept(name, spec, lambda: clusters.outbound(self.mesh.config, spec, self.sources))

    def assignment(self, name: str, targets: list[endpoints.Target]) -> Resource:
        return self._kept(name, targets, lambda: endpoints.assignment(name, targets, self.sources))

    def _kept(self, name: str, made_of: object, make: Callable[[], Resource]) -> Resource:
        """Make what was not made of the same for other clients, or before the last change."""
        key = ("kept", name)
        kept: list[tuple[object, Resource]] = self.mesh.memo(self.service).setdefault(key, [])
        found = next((resource for known, resource in kept if known == made_of), None)
        if found is None:
            before = self.mesh.previous_memo(self.service).get(key, ())
            found = next((resource for known, resource in before if known == made_of), None) or make()
            kept.append((made_of, found))
        return found if found.sources == self.sources else replace(found, sources=self.sources)

    def target(self, endpoint: Endpoint) -> endpoints.Target:
        mtls = sends_mtls(self.mesh, self.rule, self.port, endpoint, self.subset)
        return endpoints.target(endpoint, mtls=mtls)

    def balanced(self, found: Outbound) -> Iterator[None]:
        """Add the cluster that leads to all of the endpoints."""
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
            if number % _AT_ONCE == 0:
                yield
        found.clusters.append(self.cluster(name))
        found.endpoints.append(self.assignment(name, targets))
        yield

    def addressed(self, found: Outbound, *, own: bool) -> Iterator[None]:
        """Add what answers to the service's names and addresses and, where it is asked for, to each endpoint's own."""
        service, port = self.service, self.port
        name = names.outbound(service.host, port.port)
        domains = routes.service_names(service, own=own)
        found.hosts.append(routes.Host(domains, port.port, name, port.protocol, limits=self.limits))
        if not port.protocol.is_http or port.port in own_ports(self.mesh):
            for address in service.addresses:
                self.destination(found, address, port.port, name)
        if service.headless or self.policy.load_balancer is LoadBalancing.PASSTHROUGH:
            named = routes.with_ports(domains, port.port, bare=True)
            for endpoint in self.mesh.endpoints(service, port):
                self.endpoint(found, endpoint, (named, name), own=own)
                yield
            for entry in self.mesh.withheld(service, port):
                # Without a listener of its own, a connection would be passed through in plaintext.
                if self.mesh.may_answer(service, entry.address):
                    for number in dict.fromkeys((port.port, entry.port)):
                        self.destination(found, entry.address, number, names.BLACK_HOLE, (named, name))

    def endpoint(
        self, found: Outbound, endpoint: Endpoint, named: tuple[tuple[str, ...], str], *, own: bool
    ) -> None:
        """Add the cluster of one endpoint, and what leads to it: its address, unless it is another's, and its name if it has one."""
        by_name = routes.pod_names(endpoint.hostname, self.service, own=own) if endpoint.hostname else ()
        by_address = (endpoint.address,) if self.mesh.may_answer(self.service, endpoint.address) else ()
        domains = (*by_name, *by_address)
        if not domains:
            return
        name = names.outbound(self.service.host, self.port.port, endpoint.address)
        # Whoever names a pod means it, ready or not.
        alone = self.target(endpoint)._replace(ready=True)
        found.clusters.append(self.cluster(name))
        found.endpoints.append(self.assignment(name, [alone]))
        for number in dict.fromkeys((self.port.port, endpoint.port)):
            found.hosts.append(routes.Host(domains, number, name, self.port.protocol, addressed=True))
            if by_address:
                self.destination(found, endpoint.address, number, name, named)

    def destination(
        self,
        found: Outbound,
        address: str,
        number: int,
        cluster: str,
        named: tuple[tuple[str, ...], str] = ((), ""),
    ) -> None:
        wanted = outbound.Destination(address, number, self.port.protocol, cluster, self.limits, named)
        listener = self._kept(
            f"{address}_{number}",
            wanted,
            lambda: outbound.destination(self.mesh.config, wanted, self.sources),
        )
        found.destinations.append(listener)
