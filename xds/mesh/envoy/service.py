"""Build the resources for one service in its clients' sidecars.

They have three parts. Each is built once for all clients that share it, and built again only after a change
that may affect it: clusters, load assignments (the only part that depends on modes) and addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple, TypeAlias, TypeVar

from xds.mesh.envoy import clusters, endpoints, locality, names, outbound, routes
from xds.mesh.envoy.features import Features
from xds.mesh.model.loadbalancer import LoadBalancer, LocalityLb
from xds.mesh.model.memory import ServiceKey, ServiceMemos
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import Ref, Service, ServicePort
from xds.mesh.model.traffic import NO_LIMITS, TcpLimits, TlsMode, TrafficPolicy
from xds.mesh.policy.destination import ClientRule
from xds.mesh.policy.listeners import Listener, has_endpoint_listeners, listeners_of
from xds.mesh.policy.mtls import sends_mtls_each
from xds.snapshot import Resource

_ENDPOINTS_PER_YIELD = 64
"""Number of endpoints after which the build yields to the event loop."""

T = TypeVar("T")

Resources: TypeAlias = tuple[Resource, ...]


class Addresses(NamedTuple):
    """What clients connect to: names and addresses of a service and its endpoints."""

    listeners: Resources = ()
    """Listeners for the addresses of the service and its endpoints, for intercepted traffic."""
    hosts: tuple[routes.Host, ...] = ()
    """Hosts that routes match: the names and addresses of the service and its endpoints."""


def sources_of(mesh: Mesh, *refs: Ref) -> tuple[str, ...]:
    """Return the objects' names and where they were read, to explain rejections."""
    sources = []
    for ref in dict.fromkeys(refs):
        fact = mesh.get(ref)
        sources.append(f"{ref} ({fact.meta.origin})" if fact and fact.meta.origin else str(ref))
    return tuple(sources)


def clusters_of(
    mesh: Mesh, service: Service, rule: ClientRule | None, features: Features
) -> Generator[None, None, Resources]:
    """Return the clusters of a service for all clients with the same rule and the same features of Envoy.

    They are those of its ports and subsets, and of endpoints that clients address individually.
    """
    builder = _Builder(mesh, service, rule, mesh.memory.settings)
    return builder.memoized(("clusters", features), lambda: builder.clusters(features), ())


def assignments_of(
    mesh: Mesh, service: Service, rule: ClientRule | None, client: locality.ClientLocality
) -> Generator[None, None, Resources]:
    """Return the load assignments of `clusters_of` for clients in the same locality."""
    builder = _Builder(mesh, service, rule, mesh.memory.modes)
    if client != locality.NO_CLIENT and not builder.depends_on_locality():
        client = locality.NO_CLIENT
    return builder.memoized(("assignments", client), lambda: builder.assignments(client), ())


def addresses_of(
    mesh: Mesh, service: Service, rule: ClientRule | None, *, same_namespace: bool
) -> Generator[None, None, Addresses]:
    """Return the addresses of a service for all clients with the same rule.

    `same_namespace` is whether the clients are in the service's namespace.
    """
    builder = _Builder(mesh, service, rule, mesh.memory.settings)
    part = "own addresses" if same_namespace else "addresses"
    return builder.memoized(part, lambda: builder.addresses(same_namespace=same_namespace), Addresses())


@dataclass(slots=True)
class _Builder:
    """Build resources of one service for clients with the same rule."""

    mesh: Mesh
    service: Service
    rule: ClientRule | None
    memos: ServiceMemos

    @property
    def key(self) -> ServiceKey:
        return self.service.namespace, self.service.name

    def memoized(
        self, part: Hashable, build: Callable[[], Generator[None, None, T]], nothing: T
    ) -> Generator[None, None, T]:
        """Return a part of the resources; build it if necessary. If that fails, return the previous one."""
        key, memo = (part, self.rule.refs if self.rule else ()), self.memos.of(self.key)
        if key not in memo:
            try:
                memo[key] = yield from build()
            except Exception as error:  # noqa: BLE001 - one service must not affect others
                self.mesh.failures[self.service.ref] = error
                memo[key] = self.memos.previous(self.key).get(key, nothing)
            yield
        result: T = memo[key]
        return result

    @property
    def sources(self) -> tuple[str, ...]:
        return sources_of(self.mesh, *(self.rule.refs if self.rule else ()), self.service.ref)

    def clusters(self, features: Features) -> Generator[None, None, Resources]:
        sources, identities = self.sources, self.mesh.identities(self.service)
        result = []
        for port in self._ports():
            for group in port.groups():
                spec = clusters.OutboundSpec(
                    name=group.name,
                    sni=names.sni(self.service.host, port.port.port, port.subset),
                    protocol=port.port.protocol,
                    policy=group.policy,
                    identities=identities,
                    features=features,
                    has_locality_weights=bool(group.locality and group.locality.distribute),
                )
                create = partial(clusters.outbound, self.mesh.config, spec)
                result.append(self._cached(group.name, spec, create, sources))
                yield
        return tuple(result)

    def depends_on_locality(self) -> bool:
        """Whether a load assignment depends on the client's locality."""
        return any(locality.setting_of(self.mesh.config, port.policy) for port in self._ports())

    def assignments(self, client: locality.ClientLocality) -> Generator[None, None, Resources]:
        sources = self.sources
        result = []
        for port in self._ports():
            for group in port.groups():
                name, targets = group.name, group.endpoints
                mtls: list[bool] = []
                for start in range(0, len(targets), _ENDPOINTS_PER_YIELD):
                    batch = targets[start : start + _ENDPOINTS_PER_YIELD]
                    mtls += sends_mtls_each(self.mesh, self.rule, port.port, batch, port.subset)
                    if len(targets) > _ENDPOINTS_PER_YIELD:
                        yield
                spec = _Assignment(group, mtls, client if group.locality else locality.NO_CLIENT)
                result.append(self._cached(name, spec, spec.create, sources))
        return tuple(result)

    def addresses(self, *, same_namespace: bool) -> Generator[None, None, Addresses]:
        sources = self.sources
        hosts: list[routes.Host] = []
        listeners = []
        for port in self._ports():
            if port.subset:
                continue
            hosts += port.hosts(same_namespace=same_namespace)
            for spec in port.listeners(same_namespace=same_namespace):
                create = partial(outbound.destination_listener, self.mesh.config, spec)
                listeners.append(self._cached(f"{spec.address}_{spec.port}", spec, create, sources))
                yield
        return Addresses(tuple(listeners), tuple(hosts))

    def _ports(self) -> Iterator[_Port]:
        """Yield the ports of the service, each without and with each subset."""
        mesh, rule = self.mesh, self.rule
        # Ignore addresses that belong to another service or namespace.
        addresses = tuple(a for a in self.service.addresses if mesh.may_answer(self.service, a))
        service = self.service
        if addresses != service.addresses:
            service = replace(service, addresses=addresses)
        subsets = dict.fromkeys(("", *(rule.subset_names(service) if rule else ())))
        for port in service.ports:
            for subset in subsets:
                policy = rule.for_port(port.port, subset) if rule else _NO_POLICY
                if policy.tls and service.entry_host and not policy.tls.subject_alt_names:
                    # The ServiceEntry's subjectAltNames also apply to servers outside the mesh.
                    names_of_servers = (
                        () if policy.tls.mode is TlsMode.ISTIO_MUTUAL else service.service_accounts
                    )
                    policy = replace(policy, tls=replace(policy.tls, subject_alt_names=names_of_servers))
                yield _Port(mesh, service, port, rule, subset, policy)

    def _cached(
        self,
        name: str,
        spec: object,
        create: Callable[[tuple[str, ...]], Resource],
        sources: tuple[str, ...],
    ) -> Resource:
        """Return the resource for a spec.

        Reuse a resource with the same spec that was built for other clients, or before the last change.
        """
        key = ("cached", name)
        cache: list[tuple[object, Resource]] = self.memos.of(self.key).setdefault(key, [])
        resource = next((resource for cached_spec, resource in cache if cached_spec == spec), None)
        if resource is None:
            previous = self.memos.previous(self.key).get(key, ())
            reusable = (resource for old_spec, resource in previous if old_spec == spec)
            resource = next(reusable, None) or create(sources)
            cache.append((spec, resource))
        return resource if resource.sources == sources else replace(resource, sources=sources)


def _by_address(found: Iterable[Endpoint]) -> Iterator[Endpoint]:
    """Yield an endpoint for each address: clients that address a pod individually reach that address."""
    for endpoint in found:
        yield from endpoint.by_address()


_NO_POLICY = TrafficPolicy()


class _Assignment:
    """Specification of a load assignment."""

    def __init__(self, group: _Group, mtls: list[bool], client: locality.ClientLocality) -> None:
        self.group, self.mtls, self.client = group, mtls, client

    @cached_property
    def targets(self) -> list[endpoints.LoadTarget]:
        """The endpoints, as the assignment describes them."""
        found, setting = self.group.endpoints, self.group.locality
        if setting is None:
            return [endpoints.target(e, mtls=mtls) for e, mtls in zip(found, self.mtls, strict=True)]
        places = locality.places(setting, self.client, found)
        return [
            endpoints.target(endpoint, mtls=mtls, place=place)
            for endpoint, mtls, place in zip(found, self.mtls, places, strict=True)
            if place
        ]

    def create(self, sources: tuple[str, ...]) -> Resource:
        """Build the assignment."""
        return endpoints.assignment(self.group.name, self.targets, sources)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Assignment):
            return NotImplemented
        mine, its = self.group, other.group
        if mine.endpoints is its.endpoints and mine.locality == its.locality and self.client == other.client:
            return self.mtls == other.mtls
        return self.targets == other.targets

    __hash__ = None  # type: ignore[assignment]


class _Group(NamedTuple):
    """The endpoints of one cluster."""

    name: str
    """Name of the cluster."""
    endpoints: tuple[Endpoint, ...]
    """Endpoints of the cluster."""
    policy: TrafficPolicy
    """Settings of the cluster."""
    locality: LocalityLb | None = None
    """Locality settings; None if localities have no effect."""


@dataclass(frozen=True, slots=True)
class _Port:
    """A port of a service, or a subset of it, for clients with the same rule."""

    mesh: Mesh
    service: Service
    port: ServicePort
    rule: ClientRule | None
    subset: str
    policy: TrafficPolicy

    @property
    def limits(self) -> TcpLimits:
        pool = self.policy.connection_pool
        return pool.tcp_limits if pool else NO_LIMITS

    @property
    def has_endpoint_listeners(self) -> bool:
        return not self.subset and has_endpoint_listeners(self.service, self.policy)

    def groups(self) -> Iterator[_Group]:
        """Yield the endpoints of each cluster.

        The first cluster load-balances between all endpoints. If the service is headless or its load
        balancing is PASSTHROUGH, each endpoint has a cluster as well.
        """
        found = self.mesh.endpoints(self.service, self.port)
        setting = locality.setting_of(self.mesh.config, self.policy)
        name = names.outbound(self.service.cluster_host, self.port.port, self.subset)
        yield _Group(name, self._balanced(found, setting), self.policy, setting)
        if self.has_endpoint_listeners:
            for endpoint in _by_address(found):
                # Requests to a specific pod reach it even if it is not ready.
                if self._names_and_addresses(endpoint, same_namespace=False):
                    endpoints = (replace(endpoint, ready=True),)
                    yield _Group(self._addressed(endpoint), endpoints, self._single_policy)

    @property
    def _single_policy(self) -> TrafficPolicy:
        """The settings of clusters with one endpoint. They need no hash."""
        balancer = self.policy.load_balancer
        return replace(self.policy, load_balancer=balancer and LoadBalancer(balancer.simple))

    def _balanced(self, found: tuple[Endpoint, ...], setting: LocalityLb | None) -> tuple[Endpoint, ...]:
        """Return the endpoints to balance between."""
        subset = self.rule.subset(self.subset) if self.rule else None
        labels = subset.labels if subset else {}
        outlier = self.policy.outlier_detection
        # A panic threshold would send requests to endpoints that are not ready. Locality load balancing would
        # count them, and send requests to other localities although all endpoints that are ready are healthy.
        only_ready = bool(setting or (outlier and outlier.min_health_percent))
        if not labels and not only_ready:
            return found
        return tuple(
            endpoint
            for endpoint in found
            if covers(labels, endpoint.pod.meta.labels if endpoint.pod else {})
            and (endpoint.ready or not only_ready)
        )

    def _addressed(self, endpoint: Endpoint | None) -> str:
        """Return the name of an endpoint's cluster, or else of the service's."""
        return names.outbound(self.service.cluster_host, self.port.port, endpoint.address if endpoint else "")

    def _names_and_addresses(self, endpoint: Endpoint, *, same_namespace: bool) -> tuple[str, ...]:
        """Return the host names of an endpoint, and its address if the service may answer it."""
        host_names: tuple[str, ...] = ()
        if endpoint.hostname:
            host_names = routes.pod_names(endpoint.hostname, self.service, same_namespace=same_namespace)
        may_answer = self.mesh.may_answer(self.service, endpoint.address)
        return (*host_names, endpoint.address) if may_answer else host_names

    def hosts(self, *, same_namespace: bool) -> Iterator[routes.Host]:
        """Yield the hosts of the service, and of endpoints with a cluster of their own."""
        domains = routes.service_names(self.service, same_namespace=same_namespace)
        protocol, is_entry = self.port.protocol, bool(self.service.entry_host)
        yield routes.Host(
            domains,
            self.port.port,
            self._addressed(None),
            protocol,
            limits=self.limits,
            hash_key=self.policy.hash_key,
            is_entry=is_entry,
        )
        if self.has_endpoint_listeners:
            for endpoint in _by_address(self.mesh.endpoints(self.service, self.port)):
                if own := self._names_and_addresses(endpoint, same_namespace=same_namespace):
                    for number in dict.fromkeys((self.port.port, endpoint.port)):
                        cluster = self._addressed(endpoint)
                        yield routes.Host(own, number, cluster, protocol, is_endpoint=True, is_entry=is_entry)

    def listeners(self, *, same_namespace: bool) -> Iterator[outbound.OutboundAddress]:
        """Yield the listeners for the addresses of the service and its endpoints."""
        domains = routes.service_names(self.service, same_namespace=same_namespace)
        service_route = (routes.with_ports(domains, self.port.port, bare=True), self._addressed(None))
        for listener in listeners_of(
            self.mesh, self.service, self.port, for_endpoints=self.has_endpoint_listeners
        ):
            yield self._listener(listener, service_route)

    def _listener(
        self, listener: Listener, service_route: tuple[tuple[str, ...], str]
    ) -> outbound.OutboundAddress:
        cluster = names.BLACK_HOLE if listener.is_closed else self._addressed(listener.endpoint)
        if listener.endpoint is None and not listener.is_closed:
            service_route = ((), "")  # All connections go to the cluster of the service anyway.
        return outbound.OutboundAddress(
            listener.address,
            listener.number,
            self.port.protocol,
            cluster,
            self.limits,
            self.policy.hash_key,
            service_route,
        )
