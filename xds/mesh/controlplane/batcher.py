"""Batches of changes that arrive close together."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from xds.mesh.model.objects import Change, merge_changes

DEBOUNCE = 0.01
"""Quiet period before pending changes are applied, in seconds."""
MAX_DEBOUNCE = 0.05
"""Seconds after which pending changes are applied, even if more keep arriving."""


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

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, change: Change, now: float) -> None:
        """Add a change that arrived now."""
        self._last_at = now
        if not self._changes:
            self._first_at = now
        self._changes.append(change)

    @property
    def due_at(self) -> float:
        """When to apply the batch, in seconds of the event loop's clock; infinity if it is empty."""
        if not self._changes:
            return inf
        return min(self._last_at + DEBOUNCE, self._first_at + MAX_DEBOUNCE)

    def take(self) -> Batch:
        """Return the batch, and start another one."""
        changes, self._changes = self._changes, []
        return Batch(merge_changes(changes), self._first_at)
