"""Mesh: all facts at one moment, with the indexes that decisions need.

`apply` returns the next mesh. The two meshes share the indexes of namespaces that the change does not affect,
and the cached results (`memory`) about services and pods that it does not affect. The cost of a change
therefore depends on the size of the change, not on the size of the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, assert_never

from xds.mesh.model.addresses import Addresses, Listings, addresses_of
from xds.mesh.model.defaults import default_objects
from xds.mesh.model.families import Family, family_of
from xds.mesh.model.locality import Locality, locality_of
from xds.mesh.model.memory import Memory, ServiceKey, Touched
from xds.mesh.model.namespace import NOTHING, NamespaceFacts
from xds.mesh.model.objects import (
    TRAFFIC_KINDS,
    AuthenticationPolicy,
    Caller,
    Change,
    DestinationRule,
    EndpointAddress,
    Endpoints,
    Fact,
    MeshConfig,
    Namespace,
    PeerAuthentication,
    Pod,
    PortKey,
    Ref,
    Served,
    Service,
    ServiceAccount,
    ServiceEntry,
    ServicePort,
    UnknownService,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address and port that serve a service port."""

    address: str
    """IP address."""
    port: int
    """Port at the address."""
    more_addresses: tuple[str, ...] = ()
    """Other addresses of the same pod. Clients try them if they cannot connect to `address`."""
    pod: Pod | None = None
    """Workload behind the address; None for an address outside the mesh."""
    ready: bool = True
    """Whether the endpoint receives traffic."""
    hostname: str = ""
    """Host name of the endpoint: HOSTNAME.SERVICE resolves to this endpoint only. Empty if it has none."""
    region: str = ""
    """Region of the endpoint's locality."""
    zone: str = ""
    """Zone of the endpoint's locality."""
    sub_zone: str = ""
    """Sub-zone of the endpoint's locality."""

    @property
    def locality(self) -> Locality:
        """Region, zone and sub-zone."""
        return self.region, self.zone, self.sub_zone

    def by_address(self) -> tuple[Endpoint, ...]:
        """Return an endpoint for each address."""
        if not self.more_addresses:
            return (self,)
        addresses = (self.address, *self.more_addresses)
        return tuple(replace(self, address=address, more_addresses=()) for address in addresses)


class ListedEndpoint(NamedTuple):
    """An address in an EndpointSlice or Endpoints object, for one service port."""

    source: Ref
    """EndpointSlice or Endpoints object that contains the entry."""
    entry: EndpointAddress
    """Entry of the object: an address and its targetRef."""
    port: int
    """Port at the address."""
    pod: Pod | None
    """Workload behind the address; None if no pod has the address, or if the pod is unknown."""

    @property
    def address(self) -> str:
        """IP address of the entry."""
        return self.entry.address

    @property
    def withheld(self) -> bool:
        """Whether the entry names a Pod, but no known pod has its address.

        The Pod may have a sidecar, so what it accepts is unknown.
        """
        return self.entry.pod is not None and self.pod is None


class Exposure(NamedTuple):
    """A service port that forwards to a port of a pod."""

    service: Service
    """Service that selects the pod, or whose EndpointSlices or Endpoints list it."""
    port: ServicePort
    """Port of the Service."""
    target: int
    """Port of the pod."""


class Mesh:
    """All facts at one moment.

    Facts and indexes never change; `apply` returns the next mesh. Only the caches (`memory`, `scratch`,
    `lasting`) and `failures` are written while the mesh is in use.
    """

    def __init__(self, facts: Iterable[Fact] = (), config: MeshConfig | None = None) -> None:
        self.config = config or MeshConfig()
        by_ref = {fact.ref: fact for fact in facts}
        self._without_defaults: Mapping[str, NamespaceFacts] = _by_namespace(by_ref, {})
        self._addresses = Addresses().changed((ref, None, fact) for ref, fact in by_ref.items())
        self.memory = Memory()
        """Cached results, which the next mesh keeps unless the change may affect them."""
        self._listings = Listings().changed({}, self._without_defaults)
        self.scratch: dict[Any, Any] = {}
        """Cached results for the whole mesh. The next mesh starts with an empty cache."""
        self.lasting: dict[Any, Any] = {}
        """Cached results that depend on no policy or rule. The next mesh keeps them if only these change."""
        self.failures: dict[Ref, Exception] = {}
        """Unexpected errors during translation, by the object that caused them."""
        self.touched: frozenset[ServiceKey] | None = None
        """Services that the last change may have affected; None for all."""
        self.served = Served()
        """Differences between the served and the desired state, during rollouts."""
        self._add_defaults()

    def _add_defaults(self) -> None:
        defaults = {
            fact.ref: fact
            for fact in default_objects(self.config)
            if fact.ref not in self.in_namespace(fact.namespace, with_defaults=False).facts
        }
        self._all = _by_namespace(defaults, self._without_defaults)

    def apply(self, change: Change) -> Mesh:
        """Return the mesh after a change. `self` is not modified."""
        facts: dict[Ref, Fact | None] = {fact.ref: fact for fact in change.applied}
        facts.update({ref: None for ref in change.removed if ref not in facts})
        mesh = Mesh(config=change.config or self.config)
        mesh.served = self.served
        mesh._without_defaults = _by_namespace(facts, self._without_defaults)
        mesh._addresses = self._addresses.changed((ref, self.get(ref), fact) for ref, fact in facts.items())
        mesh._listings = self._listings.changed(self._without_defaults, mesh._without_defaults)
        mesh._add_defaults()
        if mesh.config != self.config or not self._without_defaults:
            return mesh  # Everything is affected.
        if all(ref.kind in TRAFFIC_KINDS for ref in facts):
            mesh.lasting = self.lasting
        touched = Touched()
        for ref, new in facts.items():
            # What a removed object leaves to others, such as a host, depends on it in the new mesh.
            for fact in (self.get(ref), new or mesh.get(ref)):
                if fact is not None:
                    self._touch(touched, fact)
                    mesh._touch(touched, fact)
        mesh.touched = frozenset(touched.services)
        deleted = {
            (service.namespace, service.name)
            for ref in facts
            for service in self._services_named(ref)
            if not mesh.service(service.namespace, service.name)
        }
        mesh.memory = self.memory.without(touched, deleted)
        return mesh

    def with_served(self, served: Served) -> Mesh:
        """Return a mesh with the same facts and another served state. `self` is not modified."""
        changed: set[PortKey] = set()
        for old, new in ((self.served.modes, served.modes), (self.served.mtls, served.mtls)):
            changed |= {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        mesh = self.with_own_caches()
        mesh.lasting = self.lasting
        mesh.served = served
        touched = Touched()
        for ref in {ref for ref, _ in changed}:
            if isinstance(pod := self.get(ref), Pod):
                touched.services.update(self.touched_by(pod))
                touched.pods.add((pod.namespace, pod.name))
        for ref in self.served.rules.keys() | served.rules.keys():
            old_rule, new_rule = self.served_rule(ref), mesh.served_rule(ref)
            if old_rule != new_rule:
                for rule in filter(None, (old_rule, new_rule)):
                    self._touch(touched, rule)
        mesh.touched = frozenset(touched.services)
        mesh.memory = self.memory.without(touched)
        return mesh

    def with_own_caches(self) -> Mesh:
        """Return a mesh with the same facts and empty caches, for use in another thread."""
        mesh = Mesh(config=self.config)
        mesh._without_defaults, mesh._all = self._without_defaults, self._all
        mesh._addresses, mesh._listings = self._addresses, self._listings
        return mesh

    def changed_namespaces(self, other: Mesh) -> frozenset[str]:
        """Return the namespaces whose objects differ between two meshes, apart from default objects."""
        old, new = other._without_defaults, self._without_defaults
        return frozenset(name for name in old.keys() | new.keys() if old.get(name) is not new.get(name))

    def has_facts_of(self, other: Mesh) -> bool:
        """Whether two meshes have the same objects and settings. What is served may differ."""
        return self._without_defaults is other._without_defaults and self.config == other.config

    def _touch(self, touched: Touched, fact: Fact) -> None:
        """Add what may depend on a fact, before or after it changes."""
        services = set(self.touched_by(fact))
        touched.services |= services
        match fact:
            case AuthenticationPolicy() | PeerAuthentication() if self._is_mesh_wide(fact):
                touched.all_pods = True
            case AuthenticationPolicy() | PeerAuthentication():
                touched.namespaces.add(fact.namespace)
            case UnknownService():
                touched.namespaces.add(fact.namespace)
                touched.settings |= services
            case Caller():
                pass  # It affects only predictions.
            case _:
                touched.settings |= services
                touched.exposures.update((pod.namespace, pod.name) for pod in self._exposed_by(fact))

    def _is_mesh_wide(self, fact: Fact) -> bool:
        """Whether a policy may apply to pods of every namespace."""
        return not fact.namespace or (
            isinstance(fact, PeerAuthentication) and fact.namespace == self.config.root_namespace
        )

    def _exposed_by(self, fact: Fact) -> Iterator[Pod]:
        """Yield the pods whose `exposures` may depend on a fact."""
        match fact:
            case Pod():
                yield fact
                # An entry with the address of several pods, or the name of another pod, exposes one of them.
                addresses = {*addresses_of(fact)}
                for namespace, name in self._services_listing(fact):
                    for endpoints in self.in_namespace(namespace).endpoints[name]:
                        entries = (entry for group in endpoints.groups for entry in group.addresses)
                        addresses.update(entry.address for entry in entries if entry.pod == fact.ref)
                for address in addresses:
                    yield from self._pods_at(address)
            case Service():
                yield from self._pods_of(fact)
                for port in fact.ports:
                    yield from (endpoint.pod for endpoint in self.endpoints(fact, port) if endpoint.pod)
            case Endpoints():
                if service := self.service(fact.namespace, fact.service):
                    yield from self._exposed_by(service)
            case ServiceEntry():
                # Another ServiceEntry may define a host before or after the change.
                hosts = (self.service(fact.namespace, service.name) for service in fact.services)
                for current in filter(None, hosts):
                    yield from self._exposed_by(current)
            case Namespace() | ServiceAccount() | DestinationRule() | Caller():
                pass
            case UnknownService() | AuthenticationPolicy() | PeerAuthentication():
                pass  # They affect their whole namespace, or the whole mesh.
            case _:
                assert_never(fact)

    def touched_by(self, fact: Fact) -> Iterator[ServiceKey]:
        """Yield the services whose endpoints, decisions or client settings may depend on a fact."""
        match fact:
            case Pod():
                # Include services that select the pod but do not list it: their `identities` depend on it.
                selecting = self.in_namespace(fact.namespace).selecting(fact.meta.labels)
                yield from ((service.namespace, service.name) for service in selecting)
                yield from self._services_listing(fact)
                yield from self._services_sharing_address(fact)
            case Endpoints():
                yield fact.namespace, fact.service
                entries = [entry for group in fact.groups for entry in group.addresses]
                pods = [self.get(entry.pod) for entry in entries if entry.pod]
                pods += [self.pod_at(entry.address, fact.namespace) for entry in entries]
                if service := self.service(fact.namespace, fact.service):
                    # EndpointSlices and Endpoints replace the selector, so selected pods are affected too.
                    pods += self._pods_of(service)
                for pod in {pod.ref: pod for pod in pods if isinstance(pod, Pod)}.values():
                    yield from self.touched_by(pod)
            case ServiceEntry():
                # It does not affect the modes of ports, because policies target only v1 Services.
                yield from ((service.namespace, service.name) for service in fact.services)
                yield from self._services_listing(fact)
                yield from self._services_sharing_address(fact)
            case DestinationRule():
                yield from ((s.namespace, s.name) for s in self.services() if fact.is_about(s.host))
            case Service() | UnknownService() | AuthenticationPolicy() | PeerAuthentication():
                everywhere = self._is_mesh_wide(fact)
                yield from (
                    (s.namespace, s.name)
                    for s in self.services()
                    if everywhere or s.namespace == fact.namespace or not s.selector
                )
                own_pods = self.in_namespace(fact.namespace).pods.values()
                for own_pod in () if everywhere else own_pods:
                    # A Service of another namespace can list the pod too.
                    yield from self._services_listing(own_pod)
                if isinstance(fact, Service):
                    yield fact.namespace, fact.name
                    yield from self._services_sharing_address(fact)
                    # `may_answer` depends on this Service for the Services that list its clusterIP.
                    yield from self._services_listing(fact)
            case Namespace() | ServiceAccount() | Caller():
                pass
            case _:
                assert_never(fact)

    # --- lookups ---------------------------------------------------------------------------------

    def in_namespace(self, namespace: str, *, with_defaults: bool = True) -> NamespaceFacts:
        """Return the facts of a namespace, with or without default objects."""
        return (self._all if with_defaults else self._without_defaults).get(namespace, NOTHING)

    def namespaces(self) -> Iterator[str]:
        """Yield the namespaces with objects other than the default objects, sorted."""
        yield from sorted(self._without_defaults)

    def get(self, ref: Ref) -> Fact | None:
        """Return an object by name, or None."""
        return self.in_namespace(ref.namespace).facts.get(ref)

    def facts(self, *, with_defaults: bool = True) -> Iterator[Fact]:
        """Yield every object, with or without default objects."""
        namespaces = self._all if with_defaults else self._without_defaults
        for namespace in sorted(namespaces):
            yield from namespaces[namespace].facts.values()

    def services(self) -> Iterator[Service]:
        """Yield every service, by namespace, oldest first within a namespace."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].services.values()

    def rules(self) -> Iterator[DestinationRule]:
        """Yield every DestinationRule, by namespace."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].rules

    def served_rule(self, ref: Ref) -> DestinationRule | None:
        """Return the version of a DestinationRule that clients are currently served, or None."""
        rule = self.served.rules[ref] if ref in self.served.rules else self.get(ref)
        return rule if isinstance(rule, DestinationRule) else None

    def served_rules(self, namespace: str) -> tuple[DestinationRule, ...]:
        """Return the DestinationRules of a namespace that clients are currently served."""
        rules, key = self.in_namespace(namespace).rules, ("served rules", namespace)
        held = {ref: rule for ref, rule in self.served.rules.items() if ref.namespace == namespace}
        if not held:
            return rules
        if key not in self.scratch:
            versions = {rule.ref: rule for rule in rules} | held
            self.scratch[key] = NamespaceFacts({ref: rule for ref, rule in versions.items() if rule}).rules
        served: tuple[DestinationRule, ...] = self.scratch[key]
        return served

    def service(self, namespace: str, name: str) -> Service | None:
        """Return a service by name, or None."""
        return self.in_namespace(namespace).services.get(name)

    def pods(self) -> Iterator[Pod]:
        """Yield every pod, by namespace and name."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].pods.values()

    def callers(self) -> Iterator[Caller]:
        """Yield every object that proves calls from outside the mesh, by namespace."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].callers

    def pod(self, namespace: str, name: str) -> Pod | None:
        """Return a pod by name, or None."""
        return self._all.get(namespace, NOTHING).pods.get(name)

    def pod_at(self, address: str, namespace: str = "") -> Pod | None:
        """Return the pod that has an address; None if no pod has it.

        Several pods can have one address: on the host network, or if a tenant's pod claims an address of
        another namespace. Pods in `namespace` then come first, and the first pod by namespace and name wins.
        Pods come before WorkloadEntries.
        """
        pods = self._pods_at(address)
        return next((pod for pod in pods if pod.namespace == namespace), pods[0] if pods else None)

    def _pods_at(self, address: str) -> list[Pod]:
        pods = [pod for ref in self._addresses.at(address) if isinstance(pod := self.get(ref), Pod)]
        return sorted(pods, key=lambda pod: pod.is_entry) if len(pods) > 1 else pods

    def owners(self, address: str) -> tuple[Pod | Service, ...]:
        """Return the owners of an address: the pods that have it, or else the oldest Service that has it.

        If the oldest Service comes from an API server, it is the owner even if pods have the address: the API
        server allocated its clusterIP. A manifest file can contain any address.

        A WorkloadEntry or ServiceEntry only claims an address: the oldest one owns it, if nothing else does.
        """
        holders = self._addresses.at(address)
        pods = self._pods_at(address)
        services = [s for ref in holders if isinstance(s := self.get(ref), Service)]
        oldest = min(services, key=lambda service: service.meta.age_key, default=None)
        is_allocated = oldest and oldest.meta.uid and not oldest.meta.origin
        if oldest and (is_allocated or not pods or pods[0].is_entry):
            return (oldest,)
        if not pods or pods[0].is_entry:
            entries = (fact for ref in holders if isinstance(fact := self.get(ref), ServiceEntry))
            claims: list[Pod | Service] = [*pods, *(entry.services[0] for entry in entries)]
            return tuple(sorted(claims, key=lambda claim: claim.meta.age_key)[:1])
        return tuple(pod for pod in pods if not pod.is_entry)

    def may_answer(self, service: Service, address: str) -> bool:
        """Whether a service may handle connections to an address.

        It may handle its own clusterIPs, addresses of pods in its namespace, and addresses without an owner.
        Otherwise, a tenant could take over traffic of other namespaces by listing their addresses.
        """
        owners = self.owners(address)
        return not owners or any(
            owner.namespace == service.namespace if isinstance(owner, Pod) else owner.ref == service.ref
            for owner in owners
        )

    def services_at(self, address: str) -> list[Service]:
        """Return the Services with a clusterIP or an endpoint at an address, ready or not, oldest first."""
        named = (service for ref in self._addresses.at(address) for service in self._services_named(ref))
        keys = {(service.namespace, service.name) for service in named}
        keys.update(self._listings.of(address))
        for pod in self._pods_at(address):
            selecting = self.in_namespace(pod.namespace).selecting(pod.meta.labels)
            keys.update((service.namespace, service.name) for service in selecting)
        services = (service for key in keys if (service := self.service(*key)))
        return sorted(services, key=lambda service: service.meta.age_key)

    def services_beside(self, keys: Iterable[ServiceKey]) -> Iterator[ServiceKey]:
        """Yield the services that share an address with a service: a clusterIP, or that of an endpoint."""
        for service in filter(None, (self.service(*key) for key in keys)):
            addresses = {*service.addresses}
            for port in service.ports:
                for endpoint in self.endpoints(service, port):
                    addresses.update((endpoint.address, *endpoint.more_addresses))
                addresses.update(listed.address for listed in self.withheld(service, port))
            for address in addresses:
                yield from ((other.namespace, other.name) for other in self.services_at(address))

    def _lookups(self, service: Service) -> dict[Any, Any]:
        """Return the cache for lookups about a service."""
        return self.memory.lookups.setdefault((service.namespace, service.name), {})

    # --- endpoints -------------------------------------------------------------------------------

    def endpoints(self, service: Service, port: ServicePort) -> tuple[Endpoint, ...]:
        """Return the endpoints of a service port, sorted by address and port.

        A pod with several addresses is one endpoint.

        Endpoints come from EndpointSlices or Endpoints objects if the service has any, or else from its
        selector. Entries whose Pod is unknown (`withheld`) are left out. Kubernetes does not know
        WorkloadEntries, so they always come from the selector.
        """
        memo, key = self._lookups(service), ("endpoints", port)
        if key not in memo:
            facts = self.in_namespace(service.namespace)
            candidates: list[Endpoint] = []
            is_listed = service.name in facts.endpoints
            if is_listed:
                candidates += self._from_listed(service, port)
            if not is_listed or facts.has_workload_entries:
                candidates += self._from_selector(service, port, only_entries=is_listed)
            unique = {(endpoint.address, endpoint.port): endpoint for endpoint in candidates}
            memo[key] = _by_pod(service, [unique[key] for key in sorted(unique)])
        endpoints: tuple[Endpoint, ...] = memo[key]
        return endpoints

    def _from_listed(self, service: Service, port: ServicePort) -> Iterator[Endpoint]:
        for listed in self.listed_endpoints(service, port):
            if not listed.withheld:
                yield _endpoint(service, listed.entry.address, listed.port, listed.pod, listed.entry)

    def listed_endpoints(self, service: Service, port: ServicePort) -> Iterator[ListedEndpoint]:
        """Yield the entries for a service port in EndpointSlices or Endpoints, in their order."""
        for endpoints in self.in_namespace(service.namespace).endpoints.get(service.name, ()):
            for group in endpoints.groups:
                for target in (p.port for p in group.ports if p.name == port.name):
                    for entry in group.addresses:
                        pod = self._pod_behind(entry, service.namespace)
                        yield ListedEndpoint(endpoints.ref, entry, target, pod)

    def withheld(self, service: Service, port: ServicePort) -> tuple[ListedEndpoint, ...]:
        """Return the entries for a service port whose Pod is unknown (`ListedEndpoint.withheld`)."""
        return tuple(listed for listed in self.listed_endpoints(service, port) if listed.withheld)

    def _pod_behind(self, entry: EndpointAddress, namespace: str) -> Pod | None:
        """Return the pod that has an entry's address.

        Return None if the entry's targetRef names an unknown Pod, a Pod without an address, or a Pod with
        another UID.
        """
        if entry.pod is None:
            return self.pod_at(entry.address, namespace) or entry.workload
        target = self.get(entry.pod)
        if not isinstance(target, Pod) or not target.addresses or _has_other_uid(target, entry.pod_uid):
            return None
        # The targetRef may name a pod that does not have the entry's address.
        return target if entry.address in target.addresses else self.pod_at(entry.address, namespace)

    def _from_selector(
        self, service: Service, port: ServicePort, *, only_entries: bool
    ) -> Iterator[Endpoint]:
        # Like Kubernetes' endpoints controller, but pods that are not ready are left out.
        for pod in self._pods_of(service):
            if only_entries and not pod.is_entry:
                continue
            if pod.is_entry and self.pod_at(pod.address, pod.namespace) != pod:
                continue  # The address is that of a Pod, whose sidecar and mode count.
            if pod.address and not pod.ended and (pod.ready or service.publish_not_ready):
                target = target_port(port, pod)
                if target is not None:
                    for address in _addresses_in(pod, service.families):
                        yield _endpoint(service, address, target, pod)

    def _pods_of(self, service: Service) -> Iterator[Pod]:
        return self.in_namespace(service.namespace).selected(service.selector)

    def exposures(self, pod: Pod) -> tuple[Exposure, ...]:
        """Return the service ports that forward to a pod, ready or not.

        The oldest service comes first, and Services come before ServiceEntries, which policies cannot target.
        """
        if self.pod(pod.namespace, pod.name) is not pod:
            return self._find_exposures(pod)
        key = (pod.namespace, pod.name)
        exposures: tuple[Exposure, ...] | None = self.memory.exposures.get(key)
        if exposures is None:
            exposures = self.memory.exposures[key] = self._find_exposures(pod)
        return exposures

    def _find_exposures(self, pod: Pod) -> tuple[Exposure, ...]:
        def precedence(exposure: Exposure) -> tuple[bool, object]:
            return bool(exposure.service.entry_host), exposure.service.meta.age_key

        return tuple(sorted(self._exposures(pod), key=precedence))

    def _exposures(self, pod: Pod) -> Iterator[Exposure]:
        facts = self.in_namespace(pod.namespace)
        # Selectors choose no workload that a ServiceEntry lists.
        for service in facts.selecting(pod.meta.labels) if pod.is_entry or not pod.is_outside else ():
            if pod.is_entry or service.name not in facts.endpoints:
                for port in service.ports:
                    if (target := target_port(port, pod)) is not None:
                        yield Exposure(service, port, target)
        for namespace, name in self._services_listing(pod):
            # A Service can list pods of other namespaces, but its policies must not apply to them.
            if namespace == pod.namespace and (listing := self.service(namespace, name)):
                for port in listing.ports:
                    for endpoint in self.endpoints(listing, port):
                        if endpoint.pod and endpoint.pod.ref == pod.ref:
                            yield Exposure(listing, port, endpoint.port)

    def _services_listing(self, fact: Pod | Service | ServiceEntry) -> Iterable[ServiceKey]:
        """Return the services whose EndpointSlices or Endpoints list a pod or Service, by name or address."""
        names: tuple[str | Ref, ...] = (fact.ref, *addresses_of(fact))
        return dict.fromkeys(key for name in names for key in self._listings.of(name))

    def _services_sharing_address(self, fact: Pod | Service | ServiceEntry) -> Iterator[ServiceKey]:
        """Yield the Services that have an address of a fact, or select a pod that has it."""
        for address in addresses_of(fact):
            for ref in self._addresses.at(address):
                services: Iterable[Service] = self._services_named(ref)
                if isinstance(pod := self.get(ref), Pod):
                    services = self.in_namespace(pod.namespace).selecting(pod.meta.labels)
                yield from ((service.namespace, service.name) for service in services)

    def _services_named(self, ref: Ref) -> tuple[Service, ...]:
        """Return the Service with a name, or those of a ServiceEntry."""
        fact = self.get(ref)
        if isinstance(fact, ServiceEntry):
            return fact.services
        return (fact,) if isinstance(fact, Service) else ()

    def exposure(self, pod: Pod, port: int) -> Exposure | None:
        """Return the service port that a pod's port belongs to: the first of the oldest service."""
        return next((exposure for exposure in self.exposures(pod) if exposure.target == port), None)

    def identities(self, service: Service) -> tuple[str, ...]:
        """Return the SPIFFE IDs of a service's pods, ready or not, in every trust domain, sorted."""
        memo = self._lookups(service)
        if "identities" not in memo:
            pods = {pod.ref: pod for pod in self._pods_of(service)}
            for port in service.ports:
                pods.update({e.pod.ref: e.pod for e in self.endpoints(service, port) if e.pod})
            # A machine without a sidecar has no identity.
            known = [pod for pod in pods.values() if pod.has_sidecar or not pod.is_outside]
            ids = {pod.identity(domain) for pod in known for domain in self.config.trust_domains}
            memo["identities"] = tuple(sorted(ids.union(service.service_accounts)))
        identities: tuple[str, ...] = memo["identities"]
        return identities


def _by_namespace(
    changes: Mapping[Ref, Fact | None] | Mapping[Ref, Fact], old: Mapping[str, NamespaceFacts]
) -> Mapping[str, NamespaceFacts]:
    if not changes:
        return old
    changed: dict[str, dict[Ref, Fact | None]] = {}
    for ref, fact in changes.items():
        changed.setdefault(ref.namespace, {})[ref] = fact
    return {**old, **{name: old.get(name, NOTHING).changed(facts) for name, facts in changed.items()}}


def _has_other_uid(pod: Pod, uid: str) -> bool:
    """Whether `uid` is the UID of another pod of the same name; False if either UID is unknown."""
    return bool(uid and pod.meta.uid and uid != pod.meta.uid)


def _endpoint(
    service: Service, address: str, port: int, pod: Pod | None, entry: EndpointAddress | None = None
) -> Endpoint:
    region, zone, sub_zone = locality_of(pod.meta.labels) if pod else ("", "", "")
    hostname = pod.hostname if pod and pod.subdomain == service.name else ""
    if entry:
        zone, hostname = zone or entry.zone, entry.hostname or hostname
    return Endpoint(
        address=address,
        port=port,
        pod=pod,
        ready=entry.ready if entry else True,
        region=region,
        zone=zone,
        sub_zone=sub_zone,
        hostname=hostname,
    )


def _addresses_in(pod: Pod, families: tuple[Family, ...]) -> tuple[str, ...]:
    """Return the addresses of a pod in a service's IP versions; the first one if there is none."""
    found = tuple(address for address in pod.addresses if family_of(address) in families)
    return found or (pod.address,)


def _by_pod(service: Service, endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """Combine the endpoints of each pod with several addresses, the service's first IP version first.

    EndpointSlices list one IP version each, and do not change at the same time. Use the ready addresses if
    there are any.
    """
    if not any(endpoint.pod and endpoint.pod.more_addresses for endpoint in endpoints):
        return tuple(endpoints)
    groups: dict[object, list[Endpoint]] = {}
    for endpoint in endpoints:
        groups.setdefault((endpoint.pod.ref if endpoint.pod else endpoint.address, endpoint.port), []).append(
            endpoint
        )
    combined = (_combined(service, group) for group in groups.values())
    return tuple(sorted(combined, key=lambda endpoint: (endpoint.address, endpoint.port)))


def _combined(service: Service, endpoints: Sequence[Endpoint]) -> Endpoint:
    pod = endpoints[0].pod
    if len(endpoints) == 1 or pod is None:
        return endpoints[0]

    def rank(endpoint: Endpoint) -> tuple[int, int]:
        order = (*service.families, family_of(endpoint.address))
        return order.index(family_of(endpoint.address)), pod.addresses.index(endpoint.address)

    usable = [endpoint for endpoint in endpoints if endpoint.ready] or endpoints
    first, *more = sorted(usable, key=rank)
    return replace(first, more_addresses=tuple(endpoint.address for endpoint in more))


def target_port(port: ServicePort, pod: Pod) -> int | None:
    """Return the pod's port that a service port forwards to; None if the pod has no port of that name."""
    if port.target_by_name or (pod.is_entry and isinstance(port.target, int)):
        return next((p.port for p in pod.ports if p.name == port.name), None) or int(port.target)
    if isinstance(port.target, int):
        return port.target
    return next((p.port for p in pod.ports if p.name == port.target), None)
