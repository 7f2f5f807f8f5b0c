"""Indexes of objects by address. Consecutive meshes share them until an address changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xds.mesh.model.memory import ServiceKey
from xds.mesh.model.namespace import NOTHING, NamespaceFacts
from xds.mesh.model.objects import Endpoints, Fact, Pod, Ref, Service, ServiceEntry

_NO_HOLDERS: Mapping[str, tuple[Ref, ...]] = {}
_NO_SERVICES: Mapping[str | Ref, tuple[ServiceKey, ...]] = {}


class AddressIndex:
    """Immutable index of live Pods, Services and ServiceEntries by address."""

    def __init__(self, holders: Mapping[str, tuple[Ref, ...]] = _NO_HOLDERS) -> None:
        self._holders = holders

    def changed(self, changes: Iterable[tuple[Ref, Fact | None, Fact | None]]) -> AddressIndex:
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
        return self if holders is None else AddressIndex(holders)

    def at(self, address: str) -> tuple[Ref, ...]:
        """Return the objects that have an address: Pods first, each kind by namespace and name."""
        return self._holders.get(address, ())


def addresses_of(fact: Fact | None) -> tuple[str, ...]:
    """Return the addresses that a fact claims, without duplicates."""
    if isinstance(fact, ServiceEntry):
        fact = fact.services[0]
    return tuple(dict.fromkeys(fact.addresses)) if isinstance(fact, Pod | Service) else ()


class Listings:
    """Immutable index of Services by the addresses and Pods that their EndpointSlices or Endpoints list."""

    def __init__(self, services: Mapping[str | Ref, tuple[ServiceKey, ...]] = _NO_SERVICES) -> None:
        self._services = services

    def changed(self, old: Mapping[str, NamespaceFacts], new: Mapping[str, NamespaceFacts]) -> Listings:
        """Return the index after changes of namespaces.

        Args:
            old: Facts by namespace, as in this index.
            new: Facts by namespace after the changes.
        """
        added: dict[str | Ref, set[ServiceKey]] = {}
        removed: dict[str | Ref, set[ServiceKey]] = {}
        for namespace in old.keys() | new.keys():
            before, after = old.get(namespace, NOTHING), new.get(namespace, NOTHING)
            if before is after or before.endpoints is after.endpoints:
                continue
            for name in before.endpoints.keys() | after.endpoints.keys():
                was, now = before.endpoints.get(name, ()), after.endpoints.get(name, ())
                if was == now:
                    continue
                listed_before, listed_after = _listed(was), _listed(now)
                for item in listed_before - listed_after:
                    removed.setdefault(item, set()).add((namespace, name))
                for item in listed_after - listed_before:
                    added.setdefault(item, set()).add((namespace, name))
        if not (added or removed):
            return self
        services = dict(self._services)
        for item in added.keys() | removed.keys():
            keys = {*services.get(item, ())} - removed.get(item, set()) | added.get(item, set())
            services[item] = tuple(sorted(keys))
            if not keys:
                del services[item]
        return Listings(services)

    def of(self, item: str | Ref) -> tuple[ServiceKey, ...]:
        """Return the Services that list an address or a Pod, by namespace and name."""
        return self._services.get(item, ())


def _listed(endpoints: Iterable[Endpoints]) -> set[str | Ref]:
    """Return the addresses and Pods that EndpointSlices or Endpoints contain."""
    entries = [entry for each in endpoints for group in each.groups for entry in group.addresses]
    return {*(entry.address for entry in entries), *(entry.pod for entry in entries if entry.pod)}
