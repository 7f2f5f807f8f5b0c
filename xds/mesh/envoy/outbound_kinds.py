"""Outbound resources, which all clients of one kind share.

Clients are of one kind if the same DestinationRules and Sidecar apply to them, and if they are in one
namespace, intercept traffic in the same way and have Envoys with the same features. With locality load
balancing, they are also in one locality. A change updates the resources of a kind, and visits only the
services that it may affect. Sets of resources that do not change remain the same objects.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from xds.mesh.envoy import clusters, locality, names, outbound, routes
from xds.mesh.envoy.features import Features, served_config
from xds.mesh.envoy.service import Addresses, Resources, addresses_of, assignments_of, clusters_of
from xds.mesh.model.families import Family
from xds.mesh.model.memory import ServiceKey
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Interception, Pod, Ref, Service
from xds.mesh.policy.destination import ClientRule, served_client_rule, served_rule_key
from xds.mesh.policy.listeners import sidecar_ports
from xds.mesh.policy.visibility import Imports, allows_any_outbound, imports_of, is_exported, is_imported
from xds.snapshot import CLUSTER, EMPTY, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, Resource, ResourceSet

_MAX_LAYERS = 4096
"""Number of layers that a kind keeps. Clients without interception have layers of their own."""


class ClientKind(NamedTuple):
    """A kind of clients."""

    namespace: str
    """Their namespace."""
    rules: tuple[str, tuple[Ref, ...]]
    """Key of their DestinationRules (`served_rule_key`)."""
    interception: Interception
    """How they intercept traffic."""
    features: Features
    """Features of their Envoys."""
    client: locality.ClientLocality
    """Their locality, if settings depend on it."""
    families: tuple[Family, ...]
    """IP versions of their addresses."""
    imports: Imports
    """Services that their Sidecar lets them see."""
    allow_any: bool
    """Whether their connections to unknown addresses are passed through."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnResources:
    """Resources of a pod's own ports, which are added to those of its kind. Compared by identity."""

    clusters: Resources
    """Clusters of the application."""
    listeners: Resources
    """Inbound listeners, and other listeners with addresses of the pod."""
    extensions: Resources = ()
    """Rules of the inbound listeners' authorization filters."""


_Layers: TypeAlias = dict[OwnResources, tuple[ResourceSet, ResourceSet]]


@dataclass(slots=True, eq=False)
class Outbound:
    """Resources that the clients of a kind share."""

    clusters: ResourceSet
    """Clusters of services, and fixed clusters."""
    endpoints: ResourceSet
    """Load assignments."""
    listeners: ResourceSet
    """Outbound listeners."""
    routes: ResourceSet
    """Route configurations."""
    _layers: _Layers = field(default_factory=dict)
    _types: dict[OwnResources, Mapping[str, ResourceSet]] = field(default_factory=dict)

    def updated(
        self, clusters: ResourceSet, endpoints: ResourceSet, listeners: ResourceSet, routes: ResourceSet
    ) -> Outbound:
        """Return the kind with other sets. Keep the layers if their bases stay the same."""
        sets = (clusters, endpoints, listeners, routes)
        if all(new is old for new, old in zip(sets, self._sets(), strict=True)):
            return self
        is_same = clusters is self.clusters and listeners is self.listeners
        return Outbound(*sets, _layers=self._layers if is_same else {})

    def _sets(self) -> tuple[ResourceSet, ...]:
        return self.clusters, self.endpoints, self.listeners, self.routes

    def with_own(self, own: OwnResources) -> Mapping[str, ResourceSet]:
        """Return a client's resources by type, without secrets. Clients with the same ports share them."""
        types = self._types.get(own)
        if types is None:
            layers = self._layers.get(own)
            if layers is None:
                if len(self._layers) >= _MAX_LAYERS:
                    self._layers.clear()
                layers = self._layers[own] = (
                    ResourceSet(own.clusters, base=self.clusters),
                    ResourceSet(own.listeners, base=self.listeners),
                )
            if len(self._types) >= _MAX_LAYERS:
                self._types.clear()
            types = self._types[own] = {
                CLUSTER: layers[0],
                ENDPOINT: self.endpoints,
                LISTENER: layers[1],
                ROUTE: self.routes,
                **({EXTENSION_CONFIG: ResourceSet(own.extensions)} if own.extensions else {}),
            }
        return types


def kind_of(mesh: Mesh, pod: Pod, features: Features) -> ClientKind:
    """Return the kind of a client."""
    rules = served_rule_key(mesh, pod.namespace, pod.meta.labels)
    client = locality.client_of(mesh, pod)
    imports = imports_of(mesh, pod.namespace, pod.meta.labels)
    allow_any = allows_any_outbound(mesh, pod.namespace, pod.meta.labels)
    return ClientKind(
        pod.namespace, rules, pod.interception, features, client, pod.families, imports, allow_any
    )


def known_outbound(mesh: Mesh, kind: ClientKind) -> Outbound | None:
    """Return the resources that clients of a kind share; None if a change may have affected them."""
    carried = mesh.memory.carried(kind)
    return carried.value if carried and not carried.services else None


def build_outbound(mesh: Mesh, pod: Pod, kind: ClientKind) -> Generator[None, None, Outbound]:
    """Build or update the resources that a client shares with others of its kind."""
    carried = mesh.memory.carried(kind)
    known: Outbound | None = carried.value if carried else None
    clients = _KindBuilder(mesh, pod, kind)
    destinations = yield from clients.destinations()
    addresses = yield from clients.addresses()
    sets = (destinations.clusters, destinations.endpoints, addresses.listeners, addresses.routes)
    outbound = known.updated(*sets) if known else Outbound(*sets)
    mesh.memory.carry(kind, outbound)
    return outbound


class _Destinations(NamedTuple):
    """Clusters and load assignments. Clients of several namespaces share them."""

    services: Mapping[ServiceKey, tuple[Resources, Resources]]
    clusters: ResourceSet
    endpoints: ResourceSet


_AgedAddresses: TypeAlias = tuple[tuple[bool, float, str, str], Addresses]
"""The addresses of a service, and its age, which decides between services with the same address."""


class _Addresses(NamedTuple):
    """Listeners and routes."""

    services: Mapping[ServiceKey, _AgedAddresses]
    listeners: ResourceSet
    routes: ResourceSet


@dataclass(frozen=True, slots=True)
class _KindBuilder:
    """Build what the clients of a kind share."""

    mesh: Mesh
    pod: Pod
    kind: ClientKind

    @property
    def is_intercepted(self) -> bool:
        return self.kind.interception is Interception.REDIRECT

    def _visible(self, name: ServiceKey) -> Service | None:
        """Return a service by name; None if clients of the kind cannot use it."""
        service = self.mesh.service(*name)
        if service and is_exported(self.mesh, service, self.kind.namespace):
            return service if is_imported(self.kind.imports, service, self.kind.namespace) else None
        return None

    def _rule(self, service: Service) -> ClientRule | None:
        memo = self.mesh.memory.settings.of(service.key)
        key = ("rule", self.kind.rules)
        if key not in memo:
            memo[key] = served_client_rule(self.mesh, self.pod.namespace, self.pod.meta.labels, service)
        rule: ClientRule | None = memo[key]
        return rule

    def destinations(self) -> Generator[None, None, _Destinations]:
        mesh = self.mesh
        kind = self.kind
        key = ("destinations", kind.rules, kind.interception, kind.features, kind.client, kind.imports)
        carried = mesh.memory.carried(key)
        if carried is None:
            config = served_config(mesh.config, self.kind.features)
            fixed = clusters.fixed(config, intercepted=self.is_intercepted)
            before = _Destinations({}, ResourceSet(fixed), ResourceSet())
            touched: Iterable[ServiceKey] = _all_services(mesh)
        else:
            before, touched = carried.value, sorted(carried.services)
        services = dict(before.services)
        cds, eds = _Update(before.clusters), _Update(before.endpoints)
        for name in touched:
            old_clusters, old_endpoints = services.pop(name, ((), ()))
            new_clusters: Resources = ()
            new_endpoints: Resources = ()
            if service := self._visible(name):
                rule = self._rule(service)
                new_clusters = yield from clusters_of(mesh, service, rule, self.kind.features)
                new_endpoints = yield from assignments_of(mesh, service, rule, kind.client)
                services[name] = new_clusters, new_endpoints
            cds.replace(old_clusters, new_clusters)
            eds.replace(old_endpoints, new_endpoints)
            yield
        destinations = _Destinations(services, cds.result(), eds.result())
        mesh.memory.carry(key, destinations)
        return destinations

    def addresses(self) -> Generator[None, None, _Addresses]:
        mesh = self.mesh
        key = ("addresses", self.kind)
        carried = mesh.memory.carried(key)
        before: _Addresses | None = carried.value if carried else None
        services = dict(before.services) if before else {}
        is_same = before is not None
        for name in carried.settings if carried else _all_services(mesh):
            old, new = services.pop(name, None), None
            if service := self._visible(name):
                is_own = service.namespace == self.kind.namespace
                rule = self._rule(service)
                addresses = yield from addresses_of(mesh, service, rule, same_namespace=is_own)
                new = services[name] = (service.meta.age_key, addresses)
            is_same = is_same and old == new
            yield
        if before and is_same:
            result = before._replace(services=services)
        else:
            result = _Addresses(services, *(yield from self._build_sets(services)))
        mesh.memory.carry(key, result)
        return result

    def _build_sets(
        self, addresses: Mapping[ServiceKey, _AgedAddresses]
    ) -> Generator[None, None, tuple[ResourceSet, ResourceSet]]:
        """Build listeners and routes, which depend on the order of services."""
        mesh, config = self.mesh, self.mesh.config
        visible = [service for service in mesh.services() if service.key in addresses]

        def precedence(service: Service) -> tuple[bool, tuple[object, ...]]:
            # Among ServiceEntries with the same host, that of the clients' namespace wins, then the oldest.
            is_foreign = bool(service.entry_host) and service.namespace != self.kind.namespace
            return is_foreign, service.meta.age_key if is_foreign else ()

        ordered = [addresses[s.key] for s in sorted(visible, key=precedence)]
        services = [item for _, item in ordered]
        by_age = [item for _, item in sorted(ordered, key=itemgetter(0))]
        hosts = (
            *(host for service in services for host in service.hosts if not host.is_endpoint),
            *(host for service in by_age for host in service.hosts if host.is_endpoint),
        )
        if not self.is_intercepted:
            proxy = routes.route_configuration(names.HTTP_PROXY, hosts, allow_any=False, proxied=True)
            return EMPTY, _shared((proxy,))
        lds = [outbound.redirect_listener(config, self.kind.families, allow_any=self.kind.allow_any)]
        # If several Services' EndpointSlices contain the same external address, the listener of the oldest
        # Service is used.
        lds += {r.name: r for service in reversed(by_age) for r in reversed(service.listeners)}.values()
        rds: list[Resource] = []
        by_port: dict[int, list[routes.Host]] = {}
        for host in hosts:
            if host.protocol.is_http and not host.is_endpoint:
                by_port.setdefault(host.port, []).append(host)
        for port in sorted(by_port.keys() - sidecar_ports(mesh)):
            lds.append(outbound.http_listener(port, self.kind.families))
            rds.append(
                routes.route_configuration(str(port), tuple(by_port[port]), allow_any=self.kind.allow_any)
            )
            yield
        return _shared(tuple(lds)), _shared(tuple(rds))


class _Update:
    """An update of a set of resources."""

    def __init__(self, before: ResourceSet) -> None:
        self._before = before
        self._changed: list[Resource] = []
        self._removed: list[str] = []

    def replace(self, old: Resources, new: Resources) -> None:
        """Replace the resources of a service."""
        if old is new:
            return
        known = {resource.name: resource for resource in old}
        for resource in new:
            if known.pop(resource.name, None) is not resource:
                self._changed.append(resource)
        self._removed += known

    def result(self) -> ResourceSet:
        """Return the set after the update; the same object if nothing has changed."""
        if self._changed or self._removed:
            return self._before.updated(self._changed, self._removed)
        return self._before


def _all_services(mesh: Mesh) -> list[ServiceKey]:
    return [service.key for service in mesh.services()]


@lru_cache(maxsize=64)
def _shared(resources: Resources) -> ResourceSet:
    """Return a set of resources. Kinds with the same resources share one object."""
    return ResourceSet(resources)
