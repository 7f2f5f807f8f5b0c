"""Mesh: the immutable set of facts at one moment, and the indexes that decisions are made from.

`apply` makes the next mesh and shares with the old one all that the change does not touch: indexes of other
namespaces, and whatever was worked out (`memo`) for services that cannot be affected. So the cost of a change
follows the change.
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
"""namespace, name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address that serves a service port."""

    address: str
    port: int
    pod: Pod | None = None
    """The workload behind the address; None for an address outside the mesh."""
    ready: bool = True
    hostname: str = ""
    """HOSTNAME.SERVICE is a name for this endpoint alone."""
    region: str = ""
    zone: str = ""
    sub_zone: str = ""


class Listed(NamedTuple):
    """One entry of an EndpointSlice or Endpoints object, for one service port."""

    source: Ref
    """The object that lists it."""
    entry: EndpointAddress
    port: int
    pod: Pod | None
    """The workload behind the address, as far as it is known."""

    @property
    def address(self) -> str:
        """The address that is listed."""
        return self.entry.address

    @property
    def withheld(self) -> bool:
        """Whether it names a Pod that is not known (with this address), so what to send there is unknown."""
        return self.entry.pod is not None and self.pod is None


class Exposure(NamedTuple):
    """A service port that leads to a port of a pod."""

    service: Service
    port: ServicePort
    target: int


class Mesh:
    """All facts at one moment. `apply` makes the next one; nothing ever changes an existing one."""

    def __init__(self, facts: Iterable[Fact] = (), config: MeshConfig | None = None) -> None:
        self.config = config or MeshConfig()
        given = {fact.ref: fact for fact in facts}
        self._given: Mapping[str, NamespaceFacts] = _by_namespace(given, {})
        self._addresses = Addresses().changed((ref, None, fact) for ref, fact in given.items())
        self._memos: dict[ServiceKey, dict[Any, Any]] = {}
        self._exposed_at: dict[str | Ref | None, list[ServiceKey]] | None = None
        self.scratch: dict[Any, Any] = {}
        """What others worked out from this mesh as a whole; the next mesh starts with none of it."""
        self.failures: dict[Ref, Exception] = {}
        """Objects for which something could not be worked out, which should never happen, and why."""
        self._before: dict[ServiceKey, dict[Any, Any]] = {}
        self.touched: frozenset[ServiceKey] | None = None
        """The services that the change may have affected which made this mesh; None: all of them."""
        self.served = Served()
        """Where sidecars are not served what is wanted yet."""
        self._add_installed()

    def _add_installed(self) -> None:
        extra = {
            fact.ref: fact
            for fact in default_objects(self.config)
            if fact.ref not in self.in_namespace(fact.namespace, given=True).facts
        }
        self._all = _by_namespace(extra, self._given)

    def apply(self, change: Change) -> Mesh:
        """Return the mesh after a change; `self` stays as it is."""
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

    def serving(self, served: Served) -> Mesh:
        """Return the same facts with something else served; `self` stays as it is."""
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
        # A mesh that nobody has translated has nothing better than the one before it.
        self._before = before._before | {
            key: memo for key, memo in memos.items() if key in touched and not memo.keys() <= _own_keys(memo)
        }

    def touched_by(self, fact: Fact) -> Iterator[ServiceKey]:
        """Yield the services whose endpoints, decisions or client settings may depend on a fact."""
        match fact:
            case Pod():
                # Selected, though not listed: a service's identities are those of all its pods.
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
                    # Being listed at all takes the place of being selected.
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
                    # An address that is listed is the lister's only as long as no Service has it.
                    yield from self._listing(fact)

    # --- looking things up -------------------------------------------------------------------------------------------

    def in_namespace(self, namespace: str, *, given: bool = False) -> NamespaceFacts:
        """Return the facts of a namespace; `given`: without those that installing created."""
        return (self._given if given else self._all).get(namespace, NOTHING)

    def namespaces(self) -> Iterator[str]:
        """Yield the namespaces that have objects, sorted; not those that have only what installing created."""
        yield from sorted(self._given)

    def get(self, ref: Ref) -> Fact | None:
        """Return the object of that name."""
        return self.in_namespace(ref.namespace).facts.get(ref)

    def facts(self) -> Iterator[Fact]:
        """Yield every object, also those that installing created."""
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
        """Return the service of that name."""
        return self.in_namespace(namespace).services.get(name)

    def pods(self) -> Iterator[Pod]:
        """Yield every pod, by namespace and name."""
        for namespace in sorted(self._all):
            yield from self._all[namespace].pods.values()

    def pod(self, namespace: str, name: str) -> Pod | None:
        """Return the pod of that name."""
        return self.in_namespace(namespace).pods.get(name)

    def pod_at(self, address: str, namespace: str = "") -> Pod | None:
        """Return the pod that has an address, as seen from a namespace (empty: from none).

        Of several (host network, or one that claims another's) the first by name, those of the namespace
        before any other.
        """
        pods = self._pods_at(address)
        return next((pod for pod in pods if pod.namespace == namespace), pods[0] if pods else None)

    def _pods_at(self, address: str) -> list[Pod]:
        return [pod for ref in self._addresses.at(address) if isinstance(pod := self.get(ref), Pod)]

    def owners(self, address: str) -> tuple[Pod | Service, ...]:
        """Return whose an address is: the pods that have it, else the oldest Service that has it; nobody's: empty.

        A Service of an API server comes first: it got its address there, and nobody else can have it. In
        files, anybody can write any address.
        """
        pods = self._pods_at(address)
        services = [s for ref in self._addresses.at(address) if isinstance(s := self.get(ref), Service)]
        oldest = min(services, key=lambda service: service.meta.age_key, default=None)
        is_allocated = oldest and oldest.meta.uid and not oldest.meta.origin
        return (oldest,) if oldest and (is_allocated or not pods) else tuple(pods)

    def may_answer(self, service: Service, address: str) -> bool:
        """Whether a service may decide what becomes of connections to an address.

        It may for its own virtual address, for pods of its namespace, and for what belongs to no pod and no
        Service: what somebody lists in a namespace of their own must not take anybody else's traffic.
        """
        owners = self.owners(address)
        return not owners or any(
            owner.namespace == service.namespace if isinstance(owner, Pod) else owner.ref == service.ref
            for owner in owners
        )

    def memo(self, service: Service) -> dict[Any, Any]:
        """Return a place for what is worked out for a service; it is kept until a change touches the service."""
        return self._memos.setdefault((service.namespace, service.name), {})

    def before(self, service: Service) -> Mapping[Any, Any]:
        """Return what was worked out for a service before the last change that touched it, for want of better."""
        return self._before.get((service.namespace, service.name), {})

    # --- endpoints ---------------------------------------------------------------------------------------------------

    def endpoints(self, service: Service, port: ServicePort) -> tuple[Endpoint, ...]:
        """Return who serves a service port: from EndpointSlices or Endpoints, else from the selector.

        Sorted by address and port, so that the order of the input never shows. Without those whose pod is not
        known (`withheld`).
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
        """Return the entries for a service port that are no endpoints until the pod that they name is known."""
        return tuple(listed for listed in self.listed(service, port) if listed.withheld)

    def _behind(self, entry: EndpointAddress, namespace: str) -> Pod | None:
        """Return the pod behind an entry. A Pod that is not known may have a sidecar: nothing stands in for it."""
        if entry.pod is None:
            return self.pod_at(entry.address, namespace)
        named = self.get(entry.pod)
        if not isinstance(named, Pod) or not named.addresses or _is_another(named, entry.pod_uid):
            return None
        # That it names a pod does not make the address that pod's.
        return named if entry.address in named.addresses else self.pod_at(entry.address, namespace)

    def _selected(self, service: Service, port: ServicePort) -> Iterator[Endpoint]:
        # As Kubernetes' own endpoints controller does, except that pods that are not ready are left out, not
        # listed as such.
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
            # Anybody may list any address in a namespace of their own: that must not bring their policies
            # here.
            if namespace == pod.namespace and (listing := self.service(namespace, name)):
                for port in listing.ports:
                    for endpoint in self.endpoints(listing, port):
                        if endpoint.pod and endpoint.pod.ref == pod.ref:
                            yield Exposure(listing, port, endpoint.port)

    def _listing(self, fact: Pod | Service) -> Iterable[ServiceKey]:
        """The services whose EndpointSlices or Endpoints list a pod or a Service, by its name or by its addresses."""
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
        """The Services that have, or claim, one of a pod's or a Service's addresses."""
        for ref in (ref for address in addresses_of(fact) for ref in self._addresses.at(address)):
            if ref.kind == "Service":
                yield ref.namespace, ref.name

    def exposure(self, pod: Pod, port: int) -> Exposure | None:
        """Return the service port that a pod's listener serves on `port`: the oldest service's, its first such port."""
        return next((found for found in self.exposures(pod) if found.target == port), None)

    def identities(self, service: Service) -> tuple[str, ...]:
        """Return the SPIFFE ids that a service's pods may show, ready or not, under every trust domain; sorted."""
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
    """Return the keys of what a mesh itself keeps in a memo."""
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
    """Whether a uid is that of another pod of the same name, as far as both uids are known."""
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
    """Return the pod's port that a service port leads to; None if it names a port that the pod does not have."""
    if isinstance(port.target, int):
        return port.target
    return next((p.port for p in pod.ports if p.name == port.target), None)
