"""What a client rejected, so that it is not sent again as it was.

One bad resource is enough for a client to take nothing of a response, so all that came together is suspect, and is
sent again once any of it changes: the cause may be gone then. What was rejected with fewer others is known better.
"""

from __future__ import annotations

from collections.abc import Callable

_UNTIL_IT_RETURNS: frozenset[str] = frozenset()


class RejectionTracker:
    """By name, what may be the cause: a set of names that came in the same response, its own among them."""

    __slots__ = ("_causes",)

    def __init__(self) -> None:
        self._causes: dict[str, frozenset[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._causes)

    def __contains__(self, name: object) -> bool:
        return name in self._causes

    def is_known(self, name: str) -> bool:
        """Whether a resource would be rejected as far as one knows, if it is what it was."""
        return bool(self._causes.get(name))

    def add(self, names: frozenset[str]) -> None:
        """Note that these were rejected together."""
        for name in names:
            before = self._causes.get(name, names)
            nested = before <= names or names <= before
            self._causes[name] = min(before, names, key=len) if nested else before | names

    def add_each(self, names: frozenset[str]) -> None:
        """Note that these were rejected, without holding one back because of another."""
        self._causes = {name: frozenset({name}) for name in names}

    def change(self, changed: str, exists: Callable[[str], bool]) -> list[str]:
        """Return what else is worth another try, now that a resource has changed or gone.

        What does not exist cannot be sent; it waits until it comes back.
        """
        if changed not in self._causes:
            return []
        freed = []
        for name in [name for name, causes in self._causes.items() if changed in causes or name == changed]:
            if exists(name):
                causes = self._causes.pop(name)
                if name != changed or not causes:
                    freed.append(name)
            elif len(self._causes[name]) > 1:
                self._causes[name] = _UNTIL_IT_RETURNS
        return freed

    def discard(self, name: str) -> None:
        """Forget about a resource: it is sent again, or it is gone."""
        self._causes.pop(name, None)

    def clear(self) -> None:
        """Forget everything."""
        self._causes.clear()

    def names(self) -> tuple[str, ...]:
        """Return what was rejected."""
        return tuple(self._causes)
