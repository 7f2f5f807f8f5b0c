"""The facts of one namespace, with what is worked out from them on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TypeVar

from xds.mesh.model.objects import (
    AuthenticationPolicy,
    DestinationRule,
    Endpoints,
    Fact,
    Object,
    PeerAuthentication,
    Pod,
    Ref,
    Service,
    UnknownService,
)

T = TypeVar("T", bound=Object)


def covers(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether an object with these labels is selected: every pair of the selector is among them."""
    return all(labels.get(key) == value for key, value in selector.items())


def oldest_first(objects: Iterable[T]) -> tuple[T, ...]:
    """Sort by age: creation time, then namespace, then name (ADR 0007)."""
    return tuple(sorted(objects, key=lambda found: found.meta.age_key))


class NamespaceFacts:
    """The facts of one namespace (`""`: cluster-scoped ones) by kind, with what is worked out from them on demand."""

    def __init__(self, facts: Mapping[Ref, Fact]) -> None:
        self.facts = facts

    def _of(self, kind: type[T]) -> tuple[T, ...]:
        return oldest_first(fact for fact in self.facts.values() if isinstance(fact, kind))

    @cached_property
    def services(self) -> Mapping[str, Service]:
        """Services by name, oldest first."""
        return {service.name: service for service in self._of(Service)}

    @cached_property
    def pods(self) -> Mapping[str, Pod]:
        """Pods by name, in the order of their names: what depends on the order must not depend on age."""
        return {pod.name: pod for pod in sorted(self._of(Pod), key=lambda pod: pod.name)}

    @cached_property
    def _by_label(self) -> Mapping[tuple[str, str], list[Pod]]:
        found: dict[tuple[str, str], list[Pod]] = {}
        for pod in self.pods.values():
            for pair in pod.meta.labels.items():
                found.setdefault(pair, []).append(pod)
        return found

    @property
    def labels(self) -> AbstractSet[tuple[str, str]]:
        """The labels that pods have: key and value."""
        return self._by_label.keys()

    def selected(self, selector: Mapping[str, str]) -> Iterator[Pod]:
        """Yield the pods that a selector covers, in the order of their names; an empty selector covers none."""
        rarest = min((self._by_label.get(pair, []) for pair in selector.items()), key=len, default=[])
        yield from (pod for pod in rarest if covers(selector, pod.meta.labels))

    @cached_property
    def endpoints(self) -> Mapping[str, tuple[Endpoints, ...]]:
        """EndpointSlices by service name; a service's Endpoints only where it has no EndpointSlice."""
        found: dict[str, list[Endpoints]] = {}
        for endpoints in sorted(self._of(Endpoints), key=lambda found: found.name):
            found.setdefault(endpoints.service, []).append(endpoints)
        return {
            name: tuple(e for e in each if e.ref.kind == "EndpointSlice") or tuple(each)
            for name, each in found.items()
        }

    @cached_property
    def peer_authentications(self) -> tuple[PeerAuthentication, ...]:
        """PeerAuthentications, oldest first."""
        return self._of(PeerAuthentication)

    @cached_property
    def policies(self) -> tuple[AuthenticationPolicy, ...]:
        """Alpha Policies (in the cluster scope: MeshPolicies), oldest first."""
        return self._of(AuthenticationPolicy)

    @cached_property
    def unknown_services(self) -> frozenset[str]:
        """Names of Services of which it is not known which pods and ports they have."""
        return frozenset(fact.service for fact in self._of(UnknownService))

    @cached_property
    def rules(self) -> tuple[DestinationRule, ...]:
        """DestinationRules, those for some clients only first, then oldest first."""
        return tuple(sorted(self._of(DestinationRule), key=lambda rule: rule.selector is None))

    @cached_property
    def _by_selector(self) -> Mapping[tuple[str, str], list[Service]]:
        found: dict[tuple[str, str], list[Service]] = {}
        for service in self.services.values():
            if service.selector:
                found.setdefault(min(service.selector.items()), []).append(service)
        return found

    def selecting(self, labels: Mapping[str, str]) -> Iterator[Service]:
        """Yield the services whose selector covers these labels."""
        for pair in labels.items():
            for service in self._by_selector.get(pair, ()):
                if covers(service.selector, labels):
                    yield service


NOTHING = NamespaceFacts({})
