"""A client's subscription to one type: names, glob collections, or a wildcard (legacy or explicit)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakValueDictionary

from xds.protocol.limits import size_of

WILDCARD = "*"

_URN = "xdstp://"
_MEMBERS = "/*"


_sets: WeakValueDictionary[int, frozenset[str]] = WeakValueDictionary()
"""Sets of names by hash. Many clients subscribe to the same names."""


def collection(name: str) -> str:
    """Return the glob collection of a resource name: the part before the last slash, and `/*`.

    A collection keeps the context parameters of an xdstp name. The result is empty if the name has no slash.
    """
    path, question_mark, parameters = name.partition("?") if name.startswith(_URN) else (name, "", "")
    parent, slash, _ = path.rpartition("/")
    return f"{parent}{_MEMBERS}{question_mark}{parameters}" if slash else ""


class NameList(tuple[str, ...]):  # noqa: SLOT001 - it caches properties
    """The names in a request. Clients that send the same request share what is computed from them."""

    @cached_property
    def unique(self) -> frozenset[str]:
        """The names as a set."""
        return frozenset(self)

    @cached_property
    def size(self) -> int:
        """Size of the names, in bytes."""
        return size_of(self)

    @cached_property
    def collections(self) -> frozenset[str]:
        """Names of glob collections."""
        return _collections(self)

    @cached_property
    def is_plain(self) -> bool:
        """Whether there are names, without the wildcard and without duplicates."""
        return 0 < len(self) == len(self.unique) and WILDCARD not in self.unique


NO_NAMES = NameList()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChange:
    """Effect of a request on a subscription."""

    names_to_answer: tuple[str, ...] = ()
    """Names that require a response, even if there is no such resource."""
    adds_wildcard: bool = False
    """Whether the request started a wildcard subscription."""
    has_unsubscribed: bool = False
    """Whether the client may have unsubscribed from resources."""

    def __bool__(self) -> bool:
        return bool(self.names_to_answer) or self.adds_wildcard or self.has_unsubscribed


class Subscription:
    """A client's subscription to one type.

    Args:
        legacy: Whether a client that has never named a resource subscribes to all resources, as clients did
            before the name `*` existed. Envoy's xDS protocol page defines this for listeners and clusters
            only.
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

    def __bool__(self) -> bool:
        """Whether the client subscribes to anything."""
        return self.wildcard or bool(self.names)

    def covers(self, name: str) -> bool:
        """Whether the client subscribes to a resource name."""
        return (
            self.wildcard
            or name in self.names
            or (bool(self.collections) and collection(name) in self.collections)
        )

    def replace(self, names: Collection[str]) -> SubscriptionChange:
        """Apply a state-of-the-world request, which contains all names."""
        if names:
            self._legacy = False
        wildcard = WILDCARD in names or self._legacy
        new_names = dict.fromkeys(name for name in names if name != WILDCARD)
        change = SubscriptionChange(
            names_to_answer=tuple(name for name in new_names if name not in self.names),
            adds_wildcard=wildcard and not self.wildcard,
            has_unsubscribed=(self.wildcard and not wildcard)
            or any(name not in new_names for name in self.names),
        )
        if change:
            self.names = frozenset(new_names)
            self.collections = self._collections(new_names)
            self.size = size_of(new_names)
            self.wildcard = wildcard
        return change

    def change(self, subscribe: Iterable[str], unsubscribe: Collection[str]) -> SubscriptionChange:
        """Apply a delta request. A name in both lists ends up unsubscribed."""
        if not (self or unsubscribe) and isinstance(subscribe, NameList) and subscribe.is_plain:
            return self._start(subscribe)
        added, removed = dict.fromkeys(subscribe), dict.fromkeys(unsubscribe)
        was_wildcard = self.wildcard
        self.wildcard = (
            was_wildcard or WILDCARD in added or (self._legacy and not added)
        ) and WILDCARD not in removed
        self._legacy = False
        added.pop(WILDCARD, None)
        removed.pop(WILDCARD, None)
        new = [name for name in added if name not in self.names] if self.names else list(added)
        unsubscribed = [name for name in removed if name in self.names or name in added]
        if new:
            self.names = self.names.union(new)
            self.collections = self.collections.union(self._collections(new))
        if unsubscribed:
            self.names = self.names.difference(unsubscribed)
            self.collections = self.collections.difference(unsubscribed)
        self.size += size_of(new) - size_of(unsubscribed)
        # A client may subscribe again to a resource that it has lost. A client that unsubscribes from a name
        # deletes the resource, although its wildcard subscription may still cover it. Answer both.
        subscribed = [name for name in added if name in self.names] if unsubscribed else added
        return SubscriptionChange(
            names_to_answer=(*subscribed, *(unsubscribed if self.wildcard else ())),
            adds_wildcard=self.wildcard and not was_wildcard,
            has_unsubscribed=(was_wildcard and not self.wildcard) or bool(unsubscribed),
        )

    def _start(self, names: NameList) -> SubscriptionChange:
        """Apply the first delta request of a client that subscribes to names only."""
        self._legacy = False
        self.names, self.size = names.unique, names.size
        self.collections = names.collections if self._globs else frozenset()
        return SubscriptionChange(names_to_answer=names)

    def share(self, share_strings: Callable[[Collection[str]], Collection[str]]) -> None:
        """Replace the names by the equal set of another client, or by the server's equal strings."""
        names = _sets.get(hash(self.names))
        if names is None or names is self.names or names != self.names:
            names = frozenset(share_strings(self.names))
            _sets[hash(names)] = names
        self.names = names
        if self.collections:
            self.collections = self._collections(self.names)

    def is_collection(self, name: str) -> bool:
        """Whether a name subscribes to a glob collection."""
        return self._globs and _is_collection(name)

    def _collections(self, names: Iterable[str]) -> frozenset[str]:
        return _collections(names) if self._globs else frozenset()


def _is_collection(name: str) -> bool:
    return _MEMBERS in name and name == collection(name)


def _collections(names: Iterable[str]) -> frozenset[str]:
    """Return the names that subscribe to a glob collection."""
    if _MEMBERS not in "\n".join(names):
        return frozenset()
    return frozenset(filter(_is_collection, names))
