"""Mesh: the set of facts at one moment, with the indexes that decisions need.

`apply` returns the next mesh. It shares everything that the change does not affect with the previous one: the
indexes of other namespaces, and cached results (`memo`) of services that cannot be affected. The cost of a
change therefore depends on the size of the change, not of the mesh.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from xds.mesh.model.addresses import Addresses, addresses_of
from xds.mesh.model.defaults import default_objects
from xds.mesh.model.namespace import NOTHING, NamespaceFacts
from xds.mesh.model.objects import (
    LOCALITY_LABEL,
    AuthenticationPolicy,
    Change,
    DestinationRule,
    EndpointAddress,
    Endpoints,
    Fact,
    MeshConfig,
    PeerAuthentication,
    Pod,
    PortKey,
    Ref,
    Served,
    Service,
    ServicePort,
    UnknownService,
)

ServiceKey: TypeAlias = tuple[str, str]
"""Namespace and name of a service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address that serves a service port."""

    address: str
    """IP address."""
    port: int
    """Port at the address."""
    pod: Pod | None = None
    """Workload behind the address; None for an address outside the mesh."""
    ready: bool = True
    """Whether traffic is sent to the endpoint."""
    hostname: str = ""
    """Name of this endpoint alone, as HOSTNAME.SERVICE; empty if it has none."""
    region: str = ""
    """Region of the endpoint's locality."""
    zone: str = ""
    """Zone of the endpoint's locality."""
    sub_zone: str = ""
    """Sub-zone of the endpoint's locality."""


class Listed(NamedTuple):
    """One entry of an EndpointSlice or Endpoints object, for one service port."""

    source: Ref
    """Object that has the entry."""
    entry: EndpointAddress
    """The entry."""
    port: int
    """Port at the address."""
    pod: Pod | None
    """Workload behind the address; None if there is none or it is unknown."""

    @property
    def address(self) -> str:
        """Address of the entry."""
        return self.entry.address

    @property
    def withheld(self) -> bool:
        """Whether the entry names a Pod that is not known with this address, so its mode is unknown."""
        return self.entry.pod is not None and self.pod is None


class Exposure(NamedTuple):
    """A service port that leads to a port of a pod."""

    service: Service
    """Service that selects or lists the pod."""
    port: ServicePort
    """Port of the Service."""
    target: int
    """Port of the pod."""


class Mesh:
    """All facts at one moment.

    Facts and indexes never change; `apply` returns the next mesh. Caches (`memo`, `scratch`) and `failures`
    are written while the mesh is in use.
    """

    def __init__(self, facts: Iterable[Fact] = (), config: MeshConfig | None = None) -> None:
        self.config = config or MeshConfig()
        given = {fact.ref: fact for fact in facts}
        self._given: Mapping[str, NamespaceFacts] = _by_namespace(given, {})
        self._addresses = Addresses().changed((ref, None, fact) for ref, fact in given.items())
        self._memos: dict[ServiceKey, dict[Any, Any]] = {}
        self._exposed_at: dict[str | Ref | None, list[ServiceKey]] | None = None
        self.scratch: dict[Any, Any] = {}
        """Cached results for the mesh as a whole. The next mesh starts with an empty cache."""
        self.failures: dict[Ref, Exception] = {}
        """Unexpected errors during translation, by the object that caused them."""
        self._before: dict[ServiceKey, dict[Any, Any]] = {}
        self.touched: frozenset[ServiceKey] | None = None
        """Services that the change from the previous mesh may have affected; None for all."""
        self.served = Served()
        """Where sidecars are served something other than the desired state, during rollouts."""
        self._add_installed()

    def _add_installed(self) -> None:
        extra = {
            fact.ref: fact
            for fact in default_objects(self.config)
            if fact.ref not in self.in_namespace(fact.namespace, given=True).facts
        }
        self._all = _by_namespace(extra, self._given)

    def apply(self, change: Change) -> Mesh:
        """Return the mesh after a change. `self` is not modified."""
        facts: dict[Ref, Fact | None] = {fact.ref: fact for fact in change.applied}
        facts.update({ref: None for ref in change.removed if ref not in facts})
        kinds = {ref.kind for ref in facts}
        mesh = Mesh(config=change.config or self.config)
        mesh.served = self.served
        mesh._given = _by_namespace(facts, self._given)
        mesh._addresses = self._addresses.changed((ref, self.get(ref), fact) for ref, fact in facts.items())
        mesh._exposed_at = None if kinds & {"EndpointSlice", "Endpoints"} else self._exposed_at
        mesh._add_installed()
        if mesh.config != self.config:
            return mesh
        touched: set[ServiceKey] = set()
        for ref, new in facts.items():
            for state, fact in ((self, self.get(ref)), (mesh, new or mesh.get(ref))):
                if fact is not None:
                    touched.update(state.touched_by(fact))
        mesh.touched = frozenset(touched)
        mesh._take_memos(self, touched)
        return mesh

    def with_served(self, served: Served) -> Mesh:
        """Return a mesh with the same facts and another served state. `self` is not modified."""
        before = self.served
        changed: set[PortKey] = set()
        for was, now in ((before.modes, served.modes), (before.mtls, served.mtls)):
            changed |= {key for key in was.keys() | now.keys() if was.get(key) != now.get(key)}
        pods = {pod.ref: pod for ref, _ in changed if isinstance(pod := self.get(ref), Pod)}
        mesh = Mesh(config=self.config)
        mesh._given, mesh._all = self._given, self._all
        mesh._addresses, mesh._exposed_at = self._addresses, self._exposed_at
        mesh.served = served
        mesh.touched = frozenset(key for pod in pods.values() for key in self.touched_by(pod))
        mesh._take_memos(self, mesh.touched)
        return mesh

    def _take_memos(self, before: Mesh, touched: Collection[ServiceKey]) -> None:
        memos = before._memos
        self._memos = {key: memo for key, memo in memos.items() if key not in touched}
        # A mesh that was never translated has no newer results than its predecessor.
        self._before = before._before | {
            key: memo for key, memo in memos.items() if key in touched and not memo.keys() <= _own_keys(memo)
        }

    def touched_by(self, fact: Fact) -> Iterator[ServiceKey]:
        """Yield the services whose endpoints, decisions or client settings may depend on a fact."""
        match fact:
            case Pod():
                # Also services that select the pod but do not list it: their identities include the pod's.
                selecting = self.in_namespace(fact.namespace).selecting(fact.meta.labels)
                yield from ((service.namespace, service.name) for service in selecting)
                yield from self._listing(fact)
                yield from self._sharing(fact)
            case Endpoints():
                yield fact.namespace, fact.service
                entries = [entry for group in fact.groups for entry in group.addresses]
                pods = [self.get(entry.pod) for entry in entries if entry.pod]
                pods += [self.pod_at(entry.address, fact.namespace) for entry in entries]
                if service := self.service(fact.namespace, fact.service):
                    # EndpointSlices replace the selector.
                    pods += self._pods_of(service)
                for pod in {pod.ref: pod for pod in pods if isinstance(pod, Pod)}.values():
                    yield from self.touched_by(pod)
            case DestinationRule():
                yield from ((s.namespace, s.name) for s in self.services() if fact.is_about(s.host))
            case Service() | UnknownService() | AuthenticationPolicy() | PeerAuthentication():
                everywhere = not fact.namespace or (
                    isinstance(fact, PeerAuthentication) and fact.namespace == self.config.root_namespace
                )
                yield from (
                    (s.namespace, s.name)
                    for s in self.services()
                    if everywhere or s.namespace == fact.namespace or not s.selector
                )
                if isinstance(fact, Service):
                    yield fact.namespace, fact.name
                    yield from self._sharing(fact)
                    # A listed address belongs to the listing Service only while no Service has it as a
                    # clusterIP.
                    yield from self._listing(fact)

    # --- lookups ---------------------------------------------------------------------------------

    def in_namespace(self, namespace: str, *, given: bool = False) -> NamespaceFacts:
        """Return the facts of a namespace; with `given`, without default objects."""
        return (self._given if given else self._all).get(namespace, NOTHING)

    def namespaces(self) -> Iterator[str]:
        """Yield the namespaces with objects other than the default objects, sorted."""
        yield from sorted(self._given)

    def get(self, ref: Ref) -> Fact | None:
        """Return an object by name, or None."""
        return self.in_namespace(ref.namespace).facts.get(ref)

    def facts(self) -> Iterator[Fact]:
        """Yield every object, including default objects."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].facts.values()

    def services(self) -> Iterator[Service]:
        """Yield every service, by namespace, oldest first within it."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].services.values()

    def rules(self) -> Iterator[DestinationRule]:
        """Yield every DestinationRule, by namespace."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].rules

    def service(self, namespace: str, name: str) -> Service | None:
        """Return a service by name, or None."""
        return self.in_namespace(namespace).services.get(name)

    def pods(self) -> Iterator[Pod]:
        """Yield every pod, by namespace and name."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].pods.values()

    def pod(self, namespace: str, name: str) -> Pod | None:
        """Return a pod by name, or None."""
        return self.in_namespace(namespace).pods.get(name)

    def pod_at(self, address: str, namespace: str = "") -> Pod | None:
        """Return the pod that has an address, as seen from a namespace (may be empty).

        If several pods have it (host network, or a claim on a foreign address), pods of the namespace come
        first, then the first by name.
        """
        pods = self._pods_at(address)
        return next((pod for pod in pods if pod.namespace == namespace), pods[0] if pods else None)

    def _pods_at(self, address: str) -> list[Pod]:
        return [pod for ref in self._addresses.at(address) if isinstance(pod := self.get(ref), Pod)]

    def owners(self, address: str) -> tuple[Pod | Service, ...]:
        """Return the owners of an address: the pods that have it, else the oldest Service that has it.

        A Service from an API server comes first, because the API server allocated its address. Files can
        contain any address.
        """
        pods = self._pods_at(address)
        services = [s for ref in self._addresses.at(address) if isinstance(s := self.get(ref), Service)]
        oldest = min(services, key=lambda service: service.meta.age_key, default=None)
        is_allocated = oldest and oldest.meta.uid and not oldest.meta.origin
        return (oldest,) if oldest and (is_allocated or not pods) else tuple(pods)

    def may_answer(self, service: Service, address: str) -> bool:
        """Whether a service may handle connections to an address.

        It may for its own clusterIPs, for pods of its namespace, and for addresses without an owner.
        Otherwise a tenant could take traffic of other namespaces by listing their addresses.
        """
        owners = self.owners(address)
        return not owners or any(
            owner.namespace == service.namespace if isinstance(owner, Pod) else owner.ref == service.ref
            for owner in owners
        )

    def memo(self, service: Service) -> dict[Any, Any]:
        """Return the cache for results about a service. A change that may affect the service clears it."""
        return self._memos.setdefault((service.namespace, service.name), {})

    def previous_memo(self, service: Service) -> Mapping[Any, Any]:
        """Return the cache from before the last change that affected the service, as a fallback."""
        return self._before.get((service.namespace, service.name), {})

    # --- endpoints -------------------------------------------------------------------------------

    def endpoints(self, service: Service, port: ServicePort) -> tuple[Endpoint, ...]:
        """Return the endpoints of a service port: from EndpointSlices or Endpoints, else from the selector.

        They are sorted by address and port, so that the result does not depend on the order of the input.
        Entries whose pod is not known (`withheld`) are left out.
        """
        memo, key = self.memo(service), ("endpoints", port)
        if key not in memo:
            is_listed = service.name in self.in_namespace(service.namespace).endpoints
            found = self._listed(service, port) if is_listed else self._selected(service, port)
            unique = {(endpoint.address, endpoint.port): endpoint for endpoint in found}
            memo[key] = tuple(unique[key] for key in sorted(unique))
        endpoints: tuple[Endpoint, ...] = memo[key]
        return endpoints

    def _listed(self, service: Service, port: ServicePort) -> Iterator[Endpoint]:
        for listed in self.listed(service, port):
            if not listed.withheld:
                entry = listed.entry
                found = _endpoint(service, entry.address, listed.port, listed.pod)
                yield replace(
                    found,
                    ready=entry.ready,
                    zone=found.zone or entry.zone,
                    hostname=entry.hostname or found.hostname,
                )

    def listed(self, service: Service, port: ServicePort) -> Iterator[Listed]:
        """Yield the entries of EndpointSlices or Endpoints for a service port, in their order."""
        for endpoints in self.in_namespace(service.namespace).endpoints.get(service.name, ()):
            for group in endpoints.groups:
                for target in (p.port for p in group.ports if p.name == port.name):
                    for entry in group.addresses:
                        yield Listed(endpoints.ref, entry, target, self._behind(entry, service.namespace))

    def withheld(self, service: Service, port: ServicePort) -> tuple[Listed, ...]:
        """Return the entries for a service port that name a Pod that is not known with their address."""
        return tuple(listed for listed in self.listed(service, port) if listed.withheld)

    def _behind(self, entry: EndpointAddress, namespace: str) -> Pod | None:
        """Return the pod behind an entry; None for an unknown Pod, which may have a sidecar."""
        if entry.pod is None:
            return self.pod_at(entry.address, namespace)
        named = self.get(entry.pod)
        if not isinstance(named, Pod) or not named.addresses or _is_another(named, entry.pod_uid):
            return None
        # An entry may name a pod that does not have its address.
        return named if entry.address in named.addresses else self.pod_at(entry.address, namespace)

    def _selected(self, service: Service, port: ServicePort) -> Iterator[Endpoint]:
        # Like Kubernetes' endpoints controller, but without pods that are not ready.
        for pod in self._pods_of(service):
            if pod.address and not pod.ended and (pod.ready or service.publish_not_ready):
                target = target_port(port, pod)
                if target is not None:
                    yield _endpoint(service, pod.address, target, pod)

    def _pods_of(self, service: Service) -> Iterator[Pod]:
        return self.in_namespace(service.namespace).selected(service.selector)

    def exposures(self, pod: Pod) -> tuple[Exposure, ...]:
        """Return the service ports that lead to a pod, ready or not, oldest service first."""
        return tuple(sorted(self._exposures(pod), key=lambda exposure: exposure.service.meta.age_key))

    def _exposures(self, pod: Pod) -> Iterator[Exposure]:
        facts = self.in_namespace(pod.namespace)
        for service in facts.selecting(pod.meta.labels):
            if service.name not in facts.endpoints:
                for port in service.ports:
                    if (target := target_port(port, pod)) is not None:
                        yield Exposure(service, port, target)
        for namespace, name in self._listing(pod):
            # Any namespace can list any address; its policies must not apply to pods of other namespaces.
            if namespace == pod.namespace and (listing := self.service(namespace, name)):
                for port in listing.ports:
                    for endpoint in self.endpoints(listing, port):
                        if endpoint.pod and endpoint.pod.ref == pod.ref:
                            yield Exposure(listing, port, endpoint.port)

    def _listing(self, fact: Pod | Service) -> Iterable[ServiceKey]:
        """Return the services whose EndpointSlices or Endpoints list a pod or Service, by name or address."""
        if self._exposed_at is None:
            self._exposed_at = {}
            for namespace in sorted(self._all):
                for name, listed in self._all[namespace].endpoints.items():
                    groups = (group for endpoints in listed for group in endpoints.groups)
                    entries = [entry for group in groups for entry in group.addresses]
                    for key in {entry.address for entry in entries} | {entry.pod for entry in entries}:
                        self._exposed_at.setdefault(key, []).append((namespace, name))
        names: tuple[str | Ref, ...] = (fact.ref, *addresses_of(fact))
        return dict.fromkeys(key for name in names for key in self._exposed_at.get(name, []))

    def _sharing(self, fact: Pod | Service) -> Iterator[ServiceKey]:
        """Yield the Services that have or claim an address of a pod or Service."""
        for ref in (ref for address in addresses_of(fact) for ref in self._addresses.at(address)):
            if ref.kind == "Service":
                yield ref.namespace, ref.name

    def exposure(self, pod: Pod, port: int) -> Exposure | None:
        """Return the service port that a pod's port belongs to: the first of the oldest service."""
        return next((found for found in self.exposures(pod) if found.target == port), None)

    def identities(self, service: Service) -> tuple[str, ...]:
        """Return the SPIFFE IDs of a service's pods, ready or not, in every trust domain, sorted."""
        memo = self.memo(service)
        if "identities" not in memo:
            pods = {pod.ref: pod for pod in self._pods_of(service)}
            for port in service.ports:
                pods.update({e.pod.ref: e.pod for e in self.endpoints(service, port) if e.pod})
            found = {pod.identity(domain) for pod in pods.values() for domain in self.config.trust_domains}
            memo["identities"] = tuple(sorted(found.union(service.service_accounts)))
        identities: tuple[str, ...] = memo["identities"]
        return identities


def _own_keys(memo: Mapping[Any, Any]) -> set[Any]:
    """Return the keys of a memo that the mesh itself sets."""
    return {key for key in memo if key == "identities" or key[0] == "endpoints"}


def _by_namespace(
    changes: Mapping[Ref, Fact | None] | Mapping[Ref, Fact], old: Mapping[str, NamespaceFacts]
) -> Mapping[str, NamespaceFacts]:
    if not changes:
        return old
    changed: dict[str, dict[Ref, Fact]] = {}
    for ref, fact in changes.items():
        if ref.namespace not in changed:
            changed[ref.namespace] = dict(old.get(ref.namespace, NOTHING).facts)
        facts = changed[ref.namespace]
        if fact is None:
            facts.pop(ref, None)
        else:
            facts[ref] = fact
    return {**old, **{namespace: NamespaceFacts(facts) for namespace, facts in changed.items()}}


def _is_another(pod: Pod, uid: str) -> bool:
    """Whether a uid belongs to another pod of the same name; False if one of the uids is unknown."""
    return bool(uid and pod.meta.uid and uid != pod.meta.uid)


def _endpoint(service: Service, address: str, port: int, pod: Pod | None) -> Endpoint:
    locality = (pod.meta.labels.get(LOCALITY_LABEL) if pod else "") or ""
    region, zone, sub_zone = (*locality.replace("/", ".").split("."), "", "", "")[:3]
    hostname = pod.hostname if pod and pod.subdomain == service.name else ""
    return Endpoint(
        address=address,
        port=port,
        pod=pod,
        region=region,
        zone=zone,
        sub_zone=sub_zone,
        hostname=hostname,
    )


def target_port(port: ServicePort, pod: Pod) -> int | None:
    """Return the pod's port that a service port leads to; None if the pod has no port of that name."""
    if isinstance(port.target, int):
        return port.target
    return next((p.port for p in pod.ports if p.name == port.target), None)
