"""Index of objects by address. Consecutive meshes share it until an address changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xds.mesh.model.objects import Fact, Pod, Ref, Service, ServiceEntry

_NO_HOLDERS: Mapping[str, tuple[Ref, ...]] = {}


class Addresses:
    """Immutable index of live Pods, Services and ServiceEntries by address."""

    def __init__(self, holders: Mapping[str, tuple[Ref, ...]] = _NO_HOLDERS) -> None:
        self._holders = holders

    def changed(self, changes: Iterable[tuple[Ref, Fact | None, Fact | None]]) -> Addresses:
        """Return the index after changes.

        Each change is the name of an object, its old version and its new version (None if there is none).
        """
        holders: dict[str, tuple[Ref, ...]] | None = None
        for ref, old, new in changes:
            old_addresses, new_addresses = addresses_of(old), addresses_of(new)
            if old_addresses == new_addresses:
                continue
            if holders is None:
                holders = dict(self._holders)
            for address in old_addresses:
                remaining = tuple(holder for holder in holders[address] if holder != ref)
                if remaining:
                    holders[address] = remaining
                else:
                    del holders[address]
            for address in new_addresses:
                others = holders.get(address)
                holders[address] = tuple(sorted((*others, ref))) if others else (ref,)
        return self if holders is None else Addresses(holders)

    def at(self, address: str) -> tuple[Ref, ...]:
        """Return the objects that have an address: Pods first, each kind by namespace and name."""
        return self._holders.get(address, ())


def addresses_of(fact: Fact | None) -> tuple[str, ...]:
    """Return the addresses that a fact claims, without duplicates."""
    if isinstance(fact, ServiceEntry):
        fact = fact.services[0]
    return tuple(dict.fromkeys(fact.addresses)) if isinstance(fact, Pod | Service) else ()
