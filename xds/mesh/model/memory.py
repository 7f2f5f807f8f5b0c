"""Cached results about a mesh. The next mesh keeps those that a change cannot affect.

The results are of other modules: lookups, policy decisions and encoded resources. This module only decides
how long they stay.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

ServiceKey: TypeAlias = tuple[str, str]
"""Namespace and name of a service."""

MAX_UNUSED = 100
"""Number of changes after which a result that nothing has used is dropped."""

_NOTHING: Mapping[Any, Any] = {}


@dataclass(slots=True)
class Touched:
    """What a change may affect."""

    services: set[ServiceKey] = field(default_factory=set)
    """Services whose endpoints, settings or modes may differ."""
    settings: set[ServiceKey] = field(default_factory=set)
    """Those of them whose endpoints or settings may differ, and not only their modes."""
    pods: dict[str, set[str]] = field(default_factory=dict)
    """Names of the pods whose inbound ports or modes may differ, by namespace."""
    namespaces: set[str] = field(default_factory=set)
    """Namespaces in which this may be true of every pod."""
    all_pods: bool = False
    """Whether this may be true of every pod of the mesh."""

    def add_pods(self, pods: Iterable[tuple[str, str]]) -> None:
        """Add pods, by namespace and name."""
        for namespace, name in pods:
            self.pods.setdefault(namespace, set()).add(name)


class ServiceMemos:
    """Cached results by service. Results that a change drops stay available as `previous`."""

    def __init__(self) -> None:
        self._current: dict[ServiceKey, dict[Any, Any]] = {}
        self._previous: dict[ServiceKey, dict[Any, Any]] = {}

    def of(self, key: ServiceKey) -> dict[Any, Any]:
        """Return the results about a service."""
        return self._current.setdefault(key, {})

    def previous(self, key: ServiceKey) -> Mapping[Any, Any]:
        """Return earlier results about a service, from before a change dropped them."""
        return self._previous.get(key, _NOTHING)

    def without(self, touched: Collection[ServiceKey]) -> ServiceMemos:
        """Return a copy without the results about some services."""
        # Meshes are made in a thread, and lookups elsewhere may add results meanwhile: change copies.
        memos = ServiceMemos()
        memos._current, memos._previous = self._current.copy(), self._previous.copy()
        for key in touched:
            if (memo := memos._current.pop(key, None)) is not None:
                memos._previous[key] = memo
        return memos


class Carried(NamedTuple):
    """A result about all services, and what may have changed since."""

    value: Any
    """The result, as of some earlier mesh."""
    services: frozenset[ServiceKey] = frozenset()
    """The services that changes may have affected since (`Touched.services`)."""
    settings: frozenset[ServiceKey] = frozenset()
    """Those of them whose settings may differ (`Touched.settings`)."""
    unused: int = 0
    """The number of changes since the result was used."""


class Memory:
    """All cached results about a mesh."""

    def __init__(self) -> None:
        self.lookups: dict[ServiceKey, dict[Any, Any]] = {}
        """Endpoints and identities of services."""
        self.settings = ServiceMemos()
        """Results about a service that do not depend on modes."""
        self.modes = ServiceMemos()
        """Results about a service that depend on the modes of its endpoints as well."""
        self._pods: dict[str, dict[str, Any]] = {}
        self._carried: dict[Hashable, Carried] = {}

    def pods(self, namespace: str) -> dict[str, Any]:
        """Return the results about the inbound ports and modes of pods, by the name of the pod."""
        return self._pods.setdefault(namespace, {})

    def carried(self, key: Hashable) -> Carried | None:
        """Return a result about all services, which may be of an earlier mesh; None if there is none."""
        carried = self._carried.get(key)
        if carried and carried.unused:
            carried = self._carried[key] = carried._replace(unused=0)
        return carried

    def carry(self, key: Hashable, value: Any) -> None:
        """Store a result about all services. It is now up to date."""
        self._carried[key] = Carried(value)

    def without(self, touched: Touched) -> Memory:
        """Return the results that remain after a change."""
        memory = Memory()
        memory.lookups = self.lookups.copy()
        for key in touched.settings:
            memory.lookups.pop(key, None)
        memory.settings = self.settings.without(touched.settings)
        memory.modes = self.modes.without(touched.services)
        if not touched.all_pods:
            memory._pods = self._pods.copy()
            for namespace in touched.namespaces:
                memory._pods.pop(namespace, None)
            for namespace, names in touched.pods.items():
                if namespace in memory._pods:
                    remaining = memory._pods[namespace].copy()
                    for name in names:
                        remaining.pop(name, None)
                    memory._pods[namespace] = remaining
        memory._carried = {
            key: Carried(
                carried.value,
                carried.services | touched.services,
                carried.settings | touched.settings,
                carried.unused + 1,
            )
            for key, carried in self._carried.copy().items()
            if carried.unused < MAX_UNUSED
        }
        return memory
