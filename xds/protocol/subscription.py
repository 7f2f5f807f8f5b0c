"""Which resources of one type a client wants: names, or all of them, asked for in the old way or the new."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from xds.protocol.limits import size_of

WILDCARD = "*"

_URN = "xdstp://"
_MEMBERS = "/*"


def collection(name: str) -> str:
    """Return the glob collection that a resource is in by its name: what is before the last slash, and `/*`.

    The parameters of an xdstp name are those of its collection. Empty: there is no slash in the name.
    """
    path, mark, parameters = name.partition("?") if name.startswith(_URN) else (name, "", "")
    parent, slash, _ = path.rpartition("/")
    return f"{parent}{_MEMBERS}{mark}{parameters}" if slash else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChange:
    """What a request changed in a subscription."""

    asked: tuple[str, ...] = ()
    """Names that want an answer, whether or not there is such a resource."""
    entered: bool = False
    """Whether the client wants all resources from now on, and did not before."""
    dropped: bool = False
    """Whether there may be resources that the client no longer wants."""

    def __bool__(self) -> bool:
        return bool(self.asked) or self.entered or self.dropped


class Subscription:
    """A client's subscription to one type.

    `legacy` says whether a client that has never named anything wants everything, as it was before `*`. That is so
    for listeners and clusters; for the other types it would send the whole mesh to those who only said hello. `globs`
    says whether a name that ends in `/*` stands for a collection.
    """

    __slots__ = ("_globs", "_legacy", "collections", "names", "size", "wildcard")

    def __init__(self, *, legacy: bool, globs: bool = True) -> None:
        self.names: frozenset[str] = frozenset()
        self.collections: frozenset[str] = frozenset()
        """Those of the names that stand for all resources of a collection."""
        self.wildcard = False
        self.size = 0
        """Bytes of the names."""
        self._legacy = legacy
        self._globs = globs

    def covers(self, name: str) -> bool:
        """Whether the client wants the resource of this name, if there is one."""
        return (
            self.wildcard
            or name in self.names
            or (bool(self.collections) and collection(name) in self.collections)
        )

    def replace(self, names: Collection[str]) -> SubscriptionChange:
        """Take the whole list of a state-of-the-world request."""
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
        """Apply a delta request: first what it adds, then what it takes away."""
        added, taken = dict.fromkeys(subscribe), dict.fromkeys(unsubscribe)
        before = self.wildcard
        self.wildcard = (
            before or WILDCARD in added or (self._legacy and not added)
        ) and WILDCARD not in taken
        self._legacy = False
        added.pop(WILDCARD, None)
        taken.pop(WILDCARD, None)
        new = [name for name in added if name not in self.names]
        gone = [name for name in taken if name in self.names or name in added]
        if new:
            self.names = self.names.union(new)
            self.collections = self.collections.union(self._collections(new))
        if gone:
            self.names = self.names.difference(gone)
            self.collections = self.collections.difference(gone)
        self.size += size_of(new) - size_of(gone)
        # A client may subscribe again to what it has lost, and one that takes a name back from a subscription to
        # everything has forgotten the resource, though it still wants it: both wait for an answer.
        asked = (*(name for name in added if name in self.names), *(gone if self.wildcard else ()))
        return SubscriptionChange(
            asked=asked,
            entered=self.wildcard and not before,
            dropped=(before and not self.wildcard) or bool(gone),
        )

    def share(self, known: Callable[[Collection[str]], Collection[str]]) -> None:
        """Replace the client's copies of names by those of the server, which many clients share."""
        self.names = frozenset(known(self.names))
        self.collections = self._collections(self.names)

    def is_collection(self, name: str) -> bool:
        """Whether a name stands for all resources of a collection."""
        return self._globs and _MEMBERS in name and name == collection(name)

    def _collections(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset(filter(self.is_collection, names)) if self._globs else frozenset()
