"""Mesh: all facts at one moment, with the indexes that decisions need.

`apply` returns the next mesh. The two meshes share the indexes of namespaces that the change does not affect,
and the cached results (`memory`) about services and pods that it does not affect. The cost of a change
therefore depends on the size of the change, not on the size of the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, assert_never

from xds.mesh.model.addresses import AddressIndex, Listings, addresses_of
from xds.mesh.model.defaults import default_objects
from xds.mesh.model.families import Family, family_of
from xds.mesh.model.locality import Locality, locality_of
from xds.mesh.model.memory import Memory, ServiceKey, Touched
from xds.mesh.model.namespace import NOTHING, NamespaceFacts
from xds.mesh.model.objects import (
    TRAFFIC_KINDS,
    AuthorizationPolicy,
    CallerFact,
    Change,
    DestinationRule,
    EndpointAddress,
    Endpoints,
    Fact,
    MeshConfig,
    ModePolicy,
    Namespace,
    Pod,
    PortKey,
    Ref,
    ServedDiff,
    Service,
    ServiceAccount,
    ServiceEntry,
    ServicePort,
    Sidecar,
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
    def is_unknown(self) -> bool:
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
        self._addresses = AddressIndex().changed((ref, None, fact) for ref, fact in by_ref.items())
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
        self.served = ServedDiff()
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
        if not any(ref.kind == "Sidecar" for ref in facts):
            mesh.touched = frozenset(touched.services | touched.guarded)
        deleted = {key for key in touched.services if self.service(*key) and not mesh.service(*key)}
        mesh.memory = self.memory.without(touched, deleted)
        return mesh

    def with_served(self, served: ServedDiff) -> Mesh:
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
                touched.services |= self._services_of(pod)
                touched.pods.add(pod.key)
        old_allow, new_allow = self.served.allow, served.allow
        touched.pods.update(
            ref.key for ref in old_allow.keys() | new_allow.keys() if old_allow.get(ref) != new_allow.get(ref)
        )
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
        services: set[ServiceKey] = set()
        pods: list[Pod] = []
        match fact:
            case Namespace() if self.config.discovery_selectors:
                services.update(service.key for service in self.in_namespace(fact.name).services.values())
            case Namespace() | ServiceAccount() | CallerFact():
                return  # They affect only predictions.
            case Sidecar():
                return  # Results about a service are the same for all clients that see it.
            case Pod():
                pods += [fact, *self._pods_at(*addresses_of(fact))]
                # An entry that names a pod may have the address of another one.
                for key in self._listings.of(fact.ref):
                    pods += self._pods_about(key)
            case Service() | ServiceEntry() | Endpoints():
                services.update(_names_of(fact))
                for key in [*services]:
                    pods += self._pods_about(key)
                services |= self._keys_at(*addresses_of(fact))
            case DestinationRule():
                services.update(service.key for service in self.services() if fact.is_about(service.host))
            case ModePolicy() if fact.is_mesh_wide(self.config.root_namespace):
                for namespace, facts in self._all.items():
                    services.update((namespace, name) for name in facts.services)
                touched.all_pods = True
            case AuthorizationPolicy():
                self._touch_guarded(touched, fact)
            case UnknownService() | ModePolicy():
                facts = self.in_namespace(fact.namespace)
                services.update(service.key for service in facts.services.values())
                pods += facts.pods.values()
            case _:
                assert_never(fact)
        for pod in pods:
            services |= self._services_of(pod)
        touched.services |= services
        touched.pods.update(pod.key for pod in pods)
        if not isinstance(fact, ModePolicy):
            touched.settings |= services

    def _touch_guarded(self, touched: Touched, policy: AuthorizationPolicy) -> None:
        """Add the pods that an AuthorizationPolicy selects, and their services."""
        is_mesh_wide = policy.is_mesh_wide(self.config.root_namespace)
        for facts in self._all.values() if is_mesh_wide else (self.in_namespace(policy.namespace),):
            for pod in facts.selected(policy.selector) if policy.selector else facts.pods.values():
                touched.pods.add(pod.key)
                touched.guarded |= self._services_of(pod)

    def _pods_about(self, key: ServiceKey) -> Iterator[Pod]:
        """Yield the pods that a service selects, or that have an address of its endpoints."""
        facts = self.in_namespace(key[0])
        if service := self.service(*key):
            yield from self._pods_of(service)
        for endpoints in facts.endpoints.get(key[1], ()):
            for group in endpoints.groups:
                yield from self._pods_at(*(entry.address for entry in group.addresses))

    def _services_of(self, pod: Pod) -> set[ServiceKey]:
        """Return the services that select a pod, or have one of its addresses."""
        selecting = self.in_namespace(pod.namespace).selecting(pod.meta.labels)
        return {service.key for service in selecting} | self._keys_at(*addresses_of(pod))

    def _keys_at(self, *addresses: str) -> set[ServiceKey]:
        """Return the services with a clusterIP or an endpoint at one of these addresses, ready or not."""
        keys: set[ServiceKey] = set()
        for address in addresses:
            keys.update(self._listings.of(address))
            for ref in self._addresses.at(address):
                fact = self.get(ref)
                if isinstance(fact, Pod):
                    selecting = self.in_namespace(ref.namespace).selecting(fact.meta.labels)
                    keys.update(service.key for service in selecting)
                elif isinstance(fact, Service | ServiceEntry):
                    keys.update(_names_of(fact))
        return keys

    # --- lookups ---------------------------------------------------------------------------------

    def in_namespace(self, namespace: str, *, with_defaults: bool = True) -> NamespaceFacts:
        """Return the facts of a namespace, with or without default objects."""
        return (self._all if with_defaults else self._without_defaults).get(namespace, NOTHING)

    def namespaces(self) -> Iterator[str]:
        """Yield the namespaces with objects other than the default objects, sorted."""
        yield from sorted(self._without_defaults)

    def namespace_objects(self) -> Iterator[Namespace]:
        """Yield every Namespace. Namespaces in folders often have no such object."""
        facts = self.in_namespace("").facts.values()
        yield from (fact for fact in facts if isinstance(fact, Namespace))

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

    def callers(self) -> Iterator[CallerFact]:
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

    def _pods_at(self, *addresses: str) -> list[Pod]:
        refs = (ref for address in addresses for ref in self._addresses.at(address))
        pods = [pod for ref in refs if isinstance(pod := self.get(ref), Pod)]
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
        services = (service for key in self._keys_at(address) if (service := self.service(*key)))
        return sorted(services, key=lambda service: service.meta.age_key)

    def services_beside(self, keys: Iterable[ServiceKey]) -> Iterator[ServiceKey]:
        """Yield the services that share an address with a service: a clusterIP, or that of an endpoint."""
        for service in filter(None, (self.service(*key) for key in keys)):
            addresses = {*service.addresses}
            for port in service.ports:
                for endpoint in self.endpoints(service, port):
                    addresses.update((endpoint.address, *endpoint.more_addresses))
                addresses.update(listed.address for listed in self.unknown_endpoints(service, port))
            for address in addresses:
                yield from (other.key for other in self.services_at(address))

    def _lookups(self, service: Service) -> dict[Any, Any]:
        """Return the cache for lookups about a service."""
        return self.memory.lookups.setdefault(service.key, {})

    # --- endpoints -------------------------------------------------------------------------------

    def endpoints(self, service: Service, port: ServicePort) -> tuple[Endpoint, ...]:
        """Return the endpoints of a service port, sorted by address and port.

        A pod with several addresses is one endpoint.

        Endpoints come from EndpointSlices or Endpoints objects if the service has any, or else from its
        selector. Entries whose Pod is unknown (`unknown_endpoints`) are left out. Kubernetes does not know
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
            if not listed.is_unknown:
                yield _endpoint(service, listed.entry.address, listed.port, listed.pod, listed.entry)

    def listed_endpoints(self, service: Service, port: ServicePort) -> Iterator[ListedEndpoint]:
        """Yield the entries for a service port in EndpointSlices or Endpoints, in their order."""
        for endpoints in self.in_namespace(service.namespace).endpoints.get(service.name, ()):
            for group in endpoints.groups:
                for target in (p.port for p in group.ports if p.name == port.name):
                    for entry in group.addresses:
                        pod = self._pod_behind(entry, service.namespace)
                        yield ListedEndpoint(endpoints.ref, entry, target, pod)

    def unknown_endpoints(self, service: Service, port: ServicePort) -> tuple[ListedEndpoint, ...]:
        """Return the entries for a service port whose Pod is unknown (`ListedEndpoint.is_unknown`)."""
        return tuple(listed for listed in self.listed_endpoints(service, port) if listed.is_unknown)

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
        exposures: tuple[Exposure, ...] | None = self.memory.exposures.get(pod.key)
        if exposures is None:
            exposures = self.memory.exposures[pod.key] = self._find_exposures(pod)
        return exposures

    def _find_exposures(self, pod: Pod) -> tuple[Exposure, ...]:
        def precedence(exposure: Exposure) -> tuple[bool, object]:
            return bool(exposure.service.entry_host), exposure.service.meta.age_key

        return tuple(sorted(self._exposures(pod), key=precedence))

    def _exposures(self, pod: Pod) -> Iterator[Exposure]:
        found: set[ServiceKey] = set()
        names: tuple[str | Ref, ...] = (pod.ref, *addresses_of(pod))
        for namespace, name in dict.fromkeys(key for item in names for key in self._listings.of(item)):
            # A Service can list pods of other namespaces, but its policies must not apply to them.
            if namespace == pod.namespace and (listing := self.service(namespace, name)):
                for port in listing.ports:
                    for endpoint in self.endpoints(listing, port):
                        if endpoint.pod and endpoint.pod.ref == pod.ref:
                            found.add(listing.key)
                            yield Exposure(listing, port, endpoint.port)
        if pod.is_outside and not pod.is_entry:
            return  # Selectors choose no workload that a ServiceEntry lists.
        for service in self.in_namespace(pod.namespace).selecting(pod.meta.labels):
            # EndpointSlices do not list a terminating pod, but its connections last until they are drained.
            if service.key not in found:
                for port in service.ports:
                    if (target := target_port(port, pod)) is not None:
                        yield Exposure(service, port, target)

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


def _names_of(fact: Service | ServiceEntry | Endpoints) -> Iterator[ServiceKey]:
    """Yield the names of the services that a fact is about."""
    services = fact.services if isinstance(fact, ServiceEntry) else (fact,)
    for service in services:
        yield service.namespace, service.service if isinstance(service, Endpoints) else service.name


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
