"""The facts of one namespace, indexed on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TypeVar

from xds.mesh.model.objects import (
    AuthorizationPolicy,
    CallerFact,
    DestinationRule,
    Endpoints,
    Fact,
    ModePolicy,
    Object,
    Pod,
    Ref,
    Service,
    ServiceAccount,
    ServiceEntry,
    Sidecar,
    UnknownService,
)

T = TypeVar("T", bound=Object)


def covers(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a selector matches labels: they contain all of its pairs."""
    return all(labels.get(key) == value for key, value in selector.items())


def oldest_first(objects: Iterable[T]) -> tuple[T, ...]:
    """Sort by age: creation time, then namespace, then name (ADR 0007)."""
    return tuple(sorted(objects, key=lambda item: item.meta.age_key))


class NamespaceFacts:
    """The facts of one namespace, by kind. The namespace `""` contains the cluster-scoped facts."""

    def __init__(self, facts: Mapping[Ref, Fact]) -> None:
        self.facts = facts

    def changed(self, changes: Mapping[Ref, Fact | None]) -> NamespaceFacts:
        """Return the facts after changes. Objects without a new version are removed."""
        changed = NamespaceFacts(
            {ref: fact for ref, fact in {**self.facts, **changes}.items() if fact is not None}
        )
        # Not the kinds of the names: an UnknownService has the name of an EndpointSlice that was rejected.
        facts = (fact for ref, new in changes.items() for fact in (self.facts.get(ref), new))
        kinds = {type(fact) for fact in facts if fact is not None}
        if kinds <= _INDEXES.keys():
            obsolete = {"facts"}.union(*(_INDEXES[kind] for kind in kinds))
            # Another thread may add an index meanwhile.
            indexes = vars(self).copy()
            vars(changed).update((name, index) for name, index in indexes.items() if name not in obsolete)
        return changed

    def _of(self, kind: type[T]) -> tuple[T, ...]:
        return oldest_first(fact for fact in self.facts.values() if isinstance(fact, kind))

    @cached_property
    def services(self) -> Mapping[str, Service]:
        """Services by name, oldest first, then the hosts of ServiceEntries; the oldest one defines a host."""
        services = {service.name: service for service in self._of(Service)}
        for entry in self.service_entries:
            for service in entry.services:
                services.setdefault(service.name, service)
        return services

    @cached_property
    def service_entries(self) -> tuple[ServiceEntry, ...]:
        """ServiceEntries, oldest first."""
        return self._of(ServiceEntry)

    @cached_property
    def has_workload_entries(self) -> bool:
        """Whether the namespace has a WorkloadEntry."""
        return any(pod.is_entry for pod in self.pods.values())

    @cached_property
    def export_scopes(self) -> frozenset[str]:
        """Namespaces whose clients see other services of this namespace than the clients elsewhere."""
        return frozenset(name for service in self.services.values() for name in service.export_to)

    @cached_property
    def pods(self) -> Mapping[str, Pod]:
        """Pods by name, sorted by name."""
        return {pod.name: pod for pod in sorted(self._of(Pod), key=lambda pod: pod.name)}

    @cached_property
    def service_accounts(self) -> frozenset[str]:
        """Names of ServiceAccounts, and of the service accounts of pods."""
        accounts = (account.name for account in self._of(ServiceAccount))
        return frozenset((*accounts, *(pod.service_account for pod in self.pods.values())))

    @cached_property
    def _by_label(self) -> Mapping[tuple[str, str], list[Pod]]:
        pods: dict[tuple[str, str], list[Pod]] = {}
        for pod in self.pods.values():
            for pair in pod.meta.labels.items():
                pods.setdefault(pair, []).append(pod)
        return pods

    @property
    def labels(self) -> AbstractSet[tuple[str, str]]:
        """Labels of all pods, as (key, value) pairs."""
        return self._by_label.keys()

    def selected(self, selector: Mapping[str, str]) -> Iterator[Pod]:
        """Yield the pods that a selector matches, sorted by name; an empty selector matches no pod."""
        rarest = min((self._by_label.get(pair, []) for pair in selector.items()), key=len, default=[])
        yield from (pod for pod in rarest if covers(selector, pod.meta.labels))

    @cached_property
    def endpoints(self) -> Mapping[str, tuple[Endpoints, ...]]:
        """Endpoints by service name: EndpointSlices, else Endpoints objects, or those of a ServiceEntry."""
        by_service: dict[str, list[Endpoints]] = {}
        for endpoints in sorted(self._of(Endpoints), key=lambda endpoints: endpoints.name):
            by_service.setdefault(endpoints.service, []).append(endpoints)
        endpoints_by_service = {
            name: tuple(e for e in listed if e.ref.kind == "EndpointSlice") or tuple(listed)
            for name, listed in by_service.items()
        }
        for entry in self.service_entries:
            for endpoints in entry.endpoints:
                if self.services[endpoints.service].ref == entry.ref:
                    endpoints_by_service[endpoints.service] = (endpoints,)
        return endpoints_by_service

    @cached_property
    def peer_authentications(self) -> tuple[ModePolicy, ...]:
        """PeerAuthentications, oldest first."""
        return tuple(policy for policy in self._of(ModePolicy) if policy.is_peer_authentication)

    @cached_property
    def workload_authentications(self) -> tuple[ModePolicy, ...]:
        """PeerAuthentications with a selector, oldest first."""
        return tuple(item for item in self.peer_authentications if item.selector)

    @cached_property
    def has_targets(self) -> bool:
        """Whether a policy targets a service, so that pods of the namespace may differ."""
        return any(policy.targets for policy in self.policies)

    @cached_property
    def policies(self) -> tuple[ModePolicy, ...]:
        """Other policies that set modes, oldest first; those for the whole mesh in the namespace `""`."""
        return tuple(policy for policy in self._of(ModePolicy) if not policy.is_peer_authentication)

    @cached_property
    def authorization_policies(self) -> tuple[AuthorizationPolicy, ...]:
        """AuthorizationPolicies, oldest first."""
        return self._of(AuthorizationPolicy)

    @cached_property
    def _authorization_by_label(self) -> Mapping[tuple[str, str] | None, list[AuthorizationPolicy]]:
        policies: dict[tuple[str, str] | None, list[AuthorizationPolicy]] = {}
        for policy in self.authorization_policies:
            policies.setdefault(min(policy.selector.items(), default=None), []).append(policy)
        return policies

    def authorizing(self, labels: Mapping[str, str]) -> Iterator[AuthorizationPolicy]:
        """Yield the AuthorizationPolicies for pods with these labels, by name."""
        if self.authorization_policies:
            policies = (
                policy
                for pair in (None, *labels.items())
                for policy in self._authorization_by_label.get(pair, ())
                if covers(policy.selector, labels)
            )
            # The labels' order differs between pods with equal rules.
            yield from sorted(policies, key=lambda policy: policy.name)

    @cached_property
    def unknown_services(self) -> frozenset[str]:
        """Names of Services whose pods and ports are unknown (`UnknownService`)."""
        return frozenset(fact.service for fact in self._of(UnknownService))

    @cached_property
    def rules(self) -> tuple[DestinationRule, ...]:
        """DestinationRules, oldest first; rules with a workloadSelector come before all others."""
        return tuple(sorted(self._of(DestinationRule), key=lambda rule: rule.selector is None))

    @cached_property
    def sidecars(self) -> tuple[Sidecar, ...]:
        """Sidecars, oldest first; those that have or may have a workloadSelector come before all others."""
        return tuple(sorted(self._of(Sidecar), key=lambda each: not (each.selector or each.scope_unknown)))

    @cached_property
    def callers(self) -> tuple[CallerFact, ...]:
        """Objects that prove calls from outside the mesh, oldest first."""
        return self._of(CallerFact)

    @cached_property
    def _by_selector(self) -> Mapping[tuple[str, str], list[Service]]:
        services: dict[tuple[str, str], list[Service]] = {}
        for service in self.services.values():
            if service.selector:
                services.setdefault(min(service.selector.items()), []).append(service)
        return services

    def selecting(self, labels: Mapping[str, str]) -> Iterator[Service]:
        """Yield the services whose selector matches these labels."""
        for pair in labels.items():
            for service in self._by_selector.get(pair, ()):
                if covers(service.selector, labels):
                    yield service


_INDEXES: Mapping[type, AbstractSet[str]] = {
    Pod: {"has_workload_entries", "pods", "service_accounts", "_by_label"},
    Endpoints: {"endpoints"},
    CallerFact: {"callers"},
    AuthorizationPolicy: {"authorization_policies", "_authorization_by_label"},
}
"""For each kind that changes often, the indexes that depend on its objects."""

NOTHING = NamespaceFacts({})
