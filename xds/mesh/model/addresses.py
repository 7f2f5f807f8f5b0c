"""Indexes of objects by address. Consecutive meshes share them until an address changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xds.mesh.model.memory import ServiceKey
from xds.mesh.model.namespace import NOTHING, NamespaceFacts
from xds.mesh.model.objects import Endpoints, Fact, Pod, Ref, Service, ServiceEntry

_NO_HOLDERS: Mapping[str, tuple[Ref, ...]] = {}
_NO_SERVICES: Mapping[str | Ref, tuple[ServiceKey, ...]] = {}


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
        services: dict[str | Ref, tuple[ServiceKey, ...]] | None = None
        for namespace in old.keys() | new.keys():
            before, after = old.get(namespace, NOTHING), new.get(namespace, NOTHING)
            if before is after or before.endpoints is after.endpoints:
                continue
            for name in before.endpoints.keys() | after.endpoints.keys():
                was, now = before.endpoints.get(name, ()), after.endpoints.get(name, ())
                if was == now or (listed_before := _listed(was)) == (listed_after := _listed(now)):
                    continue
                if services is None:
                    services = dict(self._services)
                for item in listed_before - listed_after:
                    services[item] = tuple(key for key in services[item] if key != (namespace, name))
                    if not services[item]:
                        del services[item]
                for item in listed_after - listed_before:
                    services[item] = tuple(sorted((*services.get(item, ()), (namespace, name))))
        return self if services is None else Listings(services)

    def of(self, item: str | Ref) -> tuple[ServiceKey, ...]:
        """Return the Services that list an address or a Pod, by namespace and name."""
        return self._services.get(item, ())


def _listed(endpoints: Iterable[Endpoints]) -> set[str | Ref]:
    """Return the addresses and Pods that EndpointSlices or Endpoints contain."""
    entries = [entry for each in endpoints for group in each.groups for entry in group.addresses]
    return {*(entry.address for entry in entries), *(entry.pod for entry in entries if entry.pod)}
