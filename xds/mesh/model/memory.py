"""Cached results about a mesh. The next mesh keeps those that a change cannot affect.

The results are of other modules: lookups, policy decisions and encoded resources. This module only decides
how long they stay.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

from xds.mesh.model.objects import PodKey

T = TypeVar("T")

ServiceKey: TypeAlias = tuple[str, str]
"""Namespace and name of a service."""

MAX_UNUSED = 100
"""Number of changes after which a result that nothing has used is dropped."""

MAX_PREVIOUS = 100
"""Number of earlier results about a service above which only those of the last mesh are kept."""

_NOTHING: Mapping[Any, Any] = {}


@dataclass(slots=True)
class Touched:
    """What a change may affect."""

    services: set[ServiceKey] = field(default_factory=set)
    """Services whose endpoints, settings or modes may differ."""
    settings: set[ServiceKey] = field(default_factory=set)
    """Those of them whose endpoints or settings may differ, and not only their modes."""
    pods: set[PodKey] = field(default_factory=set)
    """Pods whose inbound ports, modes or authorization may differ."""
    guarded: set[ServiceKey] = field(default_factory=set)
    """Services whose endpoints may allow other requests. What clients get is the same."""
    all_pods: bool = False
    """Whether the modes of every pod may differ."""


class ServiceMemos:
    """Cached results by service. Results that a change drops stay available as `previous`."""

    def __init__(self) -> None:
        self._current: dict[ServiceKey, dict[Any, Any]] = {}
        self._previous: dict[ServiceKey, Mapping[Any, Any]] = {}

    def of(self, key: ServiceKey) -> dict[Any, Any]:
        """Return the results about a service."""
        return self._current.setdefault(key, {})

    def previous(self, key: ServiceKey) -> Mapping[Any, Any]:
        """Return earlier results about a service, from before a change dropped them."""
        return self._previous.get(key, _NOTHING)

    def without(self, touched: Collection[ServiceKey], deleted: Collection[ServiceKey] = ()) -> ServiceMemos:
        """Return a copy without the results about some services; nothing stays of the deleted ones."""
        memos = ServiceMemos()
        memos._current, memos._previous = self._current.copy(), self._previous.copy()
        for key in touched:
            memo = memos._current.pop(key, None)
            if key in deleted:
                memos._previous.pop(key, None)
            elif memo is not None:
                # A translation may have been cancelled: keep the results that it did not reach.
                earlier = memos._previous.get(key, _NOTHING)
                memos._previous[key] = {**earlier, **memo} if len(earlier) < MAX_PREVIOUS else memo
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
        self.exposures: dict[PodKey, Any] = {}
        """Service ports that forward to a pod."""
        self.pods: dict[PodKey, Any] = {}
        """Results about the inbound ports and modes of a pod."""
        self._carried: dict[Hashable, Carried] = {}

    def carried(self, key: Hashable) -> Carried | None:
        """Return a result about all services, which may be of an earlier mesh; None if there is none."""
        carried = self._carried.get(key)
        if carried and carried.unused:
            carried = self._carried[key] = carried._replace(unused=0)
        return carried

    def carry(self, key: Hashable, value: Any) -> None:
        """Store a result about all services. It is now up to date."""
        self._carried[key] = Carried(value)

    def without(self, touched: Touched, deleted: Collection[ServiceKey] = ()) -> Memory:
        """Return the results that remain after a change that touched and deleted some services."""
        memory = Memory()
        memory.lookups = _without(self.lookups, touched.settings)
        memory.exposures = _without(self.exposures, touched.pods)
        memory.pods = {} if touched.all_pods else _without(self.pods, touched.pods)
        memory.settings = self.settings.without(touched.settings, deleted)
        memory.modes = self.modes.without(touched.services, deleted)
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


def _without(
    results: dict[tuple[str, str], T], touched: Collection[tuple[str, str]]
) -> dict[tuple[str, str], T]:
    """Return a copy without the results with some keys."""
    # Meshes are made in a thread, and lookups elsewhere may add results meanwhile: change a copy.
    results = results.copy()
    for key in touched:
        results.pop(key, None)
    return results
