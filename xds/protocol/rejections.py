"""Tracking of rejected resources, so that they are not sent again unchanged.

One invalid resource can make a client reject a whole response. All resources of that response are therefore
suspects. When one of them changes, the others are retried, because the change may have removed the cause. The
rejection of a smaller response narrows down the cause.
"""

from __future__ import annotations

from collections.abc import Callable

_RETRY_WHEN_EXISTS: frozenset[str] = frozenset()
"""Placeholder for the causes of a resource that must be retried, but does not exist at the moment."""


class RejectionTracker:
    """Tracks the possible causes of each rejection: all names in the rejected response."""

    __slots__ = ("_causes", "_suspects")

    def __init__(self) -> None:
        self._causes: dict[str, frozenset[str]] = {}
        self._suspects: set[str] = set()
        """All causes of these rejections, including names that have been sent again since."""

    def __bool__(self) -> bool:
        return bool(self._causes)

    def __contains__(self, name: object) -> bool:
        return name in self._causes

    def blocks(self, name: str) -> bool:
        """Whether an unchanged resource must not be sent, because it would probably be rejected again."""
        return bool(self._causes.get(name))

    def add(self, names: frozenset[str]) -> None:
        """Record that resources were rejected together."""
        self._suspects |= names
        for name in names:
            causes = self._causes.get(name, names)
            nested = causes <= names or names <= causes
            self._causes[name] = min(causes, names, key=len) if nested else causes | names

    def replace(self, names: frozenset[str]) -> None:
        """Record rejections of individual resources, and forget all earlier rejections."""
        self._causes = {name: frozenset({name}) for name in names}
        self._suspects = set(names)

    def record_change(self, changed: str, exists: Callable[[str], bool]) -> list[str]:
        """Record that a resource has changed or was removed. Return the other resources to retry.

        A resource that does not exist cannot be retried. A later call returns it, once it exists again.
        """
        if changed not in self._suspects:
            return []
        retried = []
        for name in [name for name, causes in self._causes.items() if changed in causes or name == changed]:
            if exists(name):
                causes = self._causes.pop(name)
                if name != changed or not causes:
                    retried.append(name)
            elif len(self._causes[name]) > 1:
                self._causes[name] = _RETRY_WHEN_EXISTS
        self._forget_suspects()
        return retried

    def discard(self, name: str) -> None:
        """Forget the rejection of a resource that was sent again or removed."""
        self._causes.pop(name, None)
        self._forget_suspects()

    def clear(self) -> None:
        """Forget all rejections."""
        self._causes.clear()
        self._forget_suspects()

    def _forget_suspects(self) -> None:
        if not self._causes:
            self._suspects.clear()

    def names(self) -> tuple[str, ...]:
        """Return the names of the rejected resources."""
        return tuple(self._causes)
