"""Index of the Pods and Services that have an address, shared by consecutive meshes while it is unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xds.mesh.model.objects import Fact, Pod, Ref, Service

_NO_HOLDERS: Mapping[str, tuple[Ref, ...]] = {}


class Addresses:
    """Immutable index of live Pods and Services by address."""

    def __init__(self, holders: Mapping[str, tuple[Ref, ...]] = _NO_HOLDERS) -> None:
        self._holders = holders

    def changed(self, changes: Iterable[tuple[Ref, Fact | None, Fact | None]]) -> Addresses:
        """Return the index after changes: names of objects with their old and new versions, or None."""
        holders: dict[str, tuple[Ref, ...]] | None = None
        for changed, old, new in changes:
            before, after = addresses_of(old), addresses_of(new)
            if before == after:
                continue
            if holders is None:
                holders = dict(self._holders)
            for address in before:
                left = tuple(ref for ref in holders[address] if ref != changed)
                if left:
                    holders[address] = left
                else:
                    del holders[address]
            for address in after:
                others = holders.get(address)
                holders[address] = tuple(sorted((*others, changed))) if others else (changed,)
        return self if holders is None else Addresses(holders)

    def at(self, address: str) -> tuple[Ref, ...]:
        """Return the objects that have an address: Pods by namespace and name, then Services."""
        return self._holders.get(address, ())


def addresses_of(fact: Fact | None) -> tuple[str, ...]:
    """Return an object's own addresses, without duplicates."""
    return tuple(dict.fromkeys(fact.addresses)) if isinstance(fact, Pod | Service) else ()
