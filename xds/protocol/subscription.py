"""A client's subscription to one type: names, glob collections, or a wildcard (legacy or explicit)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from xds.protocol.limits import size_of

WILDCARD = "*"

_URN = "xdstp://"
_MEMBERS = "/*"


def collection(name: str) -> str:
    """Return the glob collection of a resource name: the part before the last slash, and `/*`.

    A collection has the context parameters of its xdstp names. The result is empty if the name has no slash.
    """
    path, mark, parameters = name.partition("?") if name.startswith(_URN) else (name, "", "")
    parent, slash, _ = path.rpartition("/")
    return f"{parent}{_MEMBERS}{mark}{parameters}" if slash else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChange:
    """Changes that a request made to a subscription."""

    asked: tuple[str, ...] = ()
    """Names that require a response, even if there is no such resource."""
    entered: bool = False
    """Whether the request started a wildcard subscription."""
    dropped: bool = False
    """Whether the client may have unsubscribed from resources."""

    def __bool__(self) -> bool:
        return bool(self.asked) or self.entered or self.dropped


class Subscription:
    """A client's subscription to one type.

    Args:
        legacy: Whether a client that has never named a resource subscribes to all of them, as before the name
            `*` existed. Envoy's xDS protocol page defines this for listeners and clusters only.
        globs: Whether a name that ends in `/*` subscribes to a collection.
    """

    __slots__ = ("_globs", "_legacy", "collections", "names", "size", "wildcard")

    def __init__(self, *, legacy: bool, globs: bool = True) -> None:
        self.names: frozenset[str] = frozenset()
        self.collections: frozenset[str] = frozenset()
        """Names that subscribe to a glob collection."""
        self.wildcard = False
        """Whether the client subscribes to all resources of the type."""
        self.size = 0
        """Size of the names, in bytes."""
        self._legacy = legacy
        self._globs = globs

    def covers(self, name: str) -> bool:
        """Whether the client subscribes to a resource name."""
        return (
            self.wildcard
            or name in self.names
            or (bool(self.collections) and collection(name) in self.collections)
        )

    def replace(self, names: Collection[str]) -> SubscriptionChange:
        """Apply a state-of-the-world request, which has all names."""
        if names:
            self._legacy = False
        wildcard = WILDCARD in names or self._legacy
        wanted = dict.fromkeys(name for name in names if name != WILDCARD)
        difference = SubscriptionChange(
            asked=tuple(name for name in wanted if name not in self.names),
            entered=wildcard and not self.wildcard,
            dropped=(self.wildcard and not wildcard) or any(name not in wanted for name in self.names),
        )
        if difference:
            self.names = frozenset(wanted)
            self.collections = self._collections(wanted)
            self.size = size_of(wanted)
            self.wildcard = wildcard
        return difference

    def change(self, subscribe: Iterable[str], unsubscribe: Iterable[str]) -> SubscriptionChange:
        """Apply a delta request.

        Names to subscribe to are added before names to unsubscribe from are removed.
        """
        added, removed = dict.fromkeys(subscribe), dict.fromkeys(unsubscribe)
        was_wildcard = self.wildcard
        self.wildcard = (
            was_wildcard or WILDCARD in added or (self._legacy and not added)
        ) and WILDCARD not in removed
        self._legacy = False
        added.pop(WILDCARD, None)
        removed.pop(WILDCARD, None)
        new = [name for name in added if name not in self.names]
        gone = [name for name in removed if name in self.names or name in added]
        if new:
            self.names = self.names.union(new)
            self.collections = self.collections.union(self._collections(new))
        if gone:
            self.names = self.names.difference(gone)
            self.collections = self.collections.difference(gone)
        self.size += size_of(new) - size_of(gone)
        # Two kinds of names require a response. A client may subscribe again to a resource that it has lost.
        # And a client with a wildcard subscription that unsubscribes from a name has deleted the resource,
        # although the wildcard still covers it.
        asked = (*(name for name in added if name in self.names), *(gone if self.wildcard else ()))
        return SubscriptionChange(
            asked=asked,
            entered=self.wildcard and not was_wildcard,
            dropped=(was_wildcard and not self.wildcard) or bool(gone),
        )

    def share(self, share_strings: Callable[[Collection[str]], Collection[str]]) -> None:
        """Replace the names by the server's equal strings, which all clients share."""
        self.names = frozenset(share_strings(self.names))
        self.collections = self._collections(self.names)

    def is_collection(self, name: str) -> bool:
        """Whether a name subscribes to a glob collection."""
        return self._globs and _MEMBERS in name and name == collection(name)

    def _collections(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset(filter(self.is_collection, names)) if self._globs else frozenset()
