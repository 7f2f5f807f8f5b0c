"""Who has which address: an index that the meshes of one history share as far as it stays the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xds.mesh.model.objects import Fact, Pod, Ref, Service

_NOBODY: Mapping[str, tuple[Ref, ...]] = {}


class Addresses:
    """Live pods and Services by the addresses they have. `changed` makes the next index; none ever changes."""

    def __init__(self, holders: Mapping[str, tuple[Ref, ...]] = _NOBODY) -> None:
        self._holders = holders

    def changed(self, changes: Iterable[tuple[Ref, Fact | None, Fact | None]]) -> Addresses:
        """Return the index after changes; each is an object as it was and as it is, None where it is not there."""
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
        """Return who has an address: Pods by namespace and name, then Services."""
        return self._holders.get(address, ())


def addresses_of(fact: Fact | None) -> tuple[str, ...]:
    """Return the addresses that are an object's own, without repetition."""
    return tuple(dict.fromkeys(fact.addresses)) if isinstance(fact, Pod | Service) else ()
