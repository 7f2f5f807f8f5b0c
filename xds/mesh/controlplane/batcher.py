"""Batches of changes that arrive close together."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from xds.mesh.model.objects import Change, merge_changes

DEBOUNCE = 0.01
"""Quiet period before pending changes are applied, in seconds."""
ENDPOINT_DEBOUNCE = 0.001
"""Quiet period of a batch that contains only endpoints, if none was applied in the `MAX_DEBOUNCE` before it.

Endpoint changes are usually single, and clients use removed endpoints until they are applied. Related
policies usually change together, so that they need the longer quiet period.
"""
MAX_DEBOUNCE = 0.05
"""Seconds after which pending changes are applied, even if more keep arriving."""


_ENDPOINT_KINDS = frozenset({"Pod", "EndpointSlice", "Endpoints"})
"""Kinds of objects that endpoints are made from. Those without EndpointSlices come from pods."""


class Batch(NamedTuple):
    """Changes to apply together."""

    change: Change
    """The merged changes."""
    changed_at: float
    """When the first of them arrived, in seconds of the event loop's clock."""


class ChangeBatcher:
    """Collect changes until none has arrived for a moment."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._first_at = self._last_at = 0.0
        self._applied_at = -inf
        """When the last batch was applied."""
        self._is_urgent = False
        """Whether `ENDPOINT_DEBOUNCE` applies to the batch."""

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, change: Change, now: float) -> None:
        """Add a change that arrived now."""
        self._last_at = now
        if not self._changes:
            self._first_at = now
            self._is_urgent = now >= self._applied_at + MAX_DEBOUNCE
        self._is_urgent = self._is_urgent and _is_about_endpoints(change)
        self._changes.append(change)

    @property
    def due_at(self) -> float:
        """When to apply the batch, in seconds of the event loop's clock; infinity if it is empty."""
        if not self._changes:
            return inf
        debounce = ENDPOINT_DEBOUNCE if self._is_urgent else DEBOUNCE
        return min(self._last_at + debounce, self._first_at + MAX_DEBOUNCE)

    def take(self) -> Batch:
        """Return the batch, and start another one."""
        changes, self._changes = self._changes, []
        return Batch(merge_changes(changes), self._first_at)

    def applied(self, now: float) -> None:
        """Record that the last batch has been applied."""
        self._applied_at = now


def _is_about_endpoints(change: Change) -> bool:
    refs = (*(fact.ref for fact in change.applied), *change.removed)
    return change.config is None and all(ref.kind in _ENDPOINT_KINDS for ref in refs)
