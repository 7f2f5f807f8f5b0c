"""What the streams of many clients share: the difference between two resource sets, and the sent versions.

Clients with equal configuration share a root; each adds a layer of its own resources. When the root changes,
these clients need the same update, so the difference of the two roots is computed and encoded once. For each
client, only a root and the few versions that differ from it are stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from functools import cached_property, lru_cache
from itertools import chain
from typing import TypeVar, overload
from weakref import WeakValueDictionary

from xds.protocol.responses import encode_delta_response, encoded_size, join
from xds.snapshot import EMPTY, ENDPOINT, Resource, ResourceSet, difference

T = TypeVar("T")

_MAX_RESPONSES = 4
"""Number of encoded responses that a change keeps."""

_MAX_RECENT = 8
"""Number of changes that are kept although no stream needs them at the moment.

Changes of one resource are not kept: they are cheap to compute, and the resource may be large.
"""

_MAX_RECENT_INITIAL = 16
"""Same for changes that add all resources of a root, also if it has only one.

Each client needs them when it connects. The clients of each namespace have their own route configurations.
With their encoded responses (_MAX_RESPONSES), they take at most 240 MiB, and usually a tenth of that.
"""


class SharedChange:
    """The difference between two roots. Make one with `shared_change`.

    Args:
        before: previous root.
        after: next root.
    """

    def __init__(self, before: ResourceSet, after: ResourceSet) -> None:
        names = difference(before, after)
        self.after = after
        """Next root."""
        self.resources = tuple(after[name] for name in names if name in after)
        """Added resources, and the next versions of changed ones."""
        self.before = {resource.name: before.get(resource.name) for resource in self.resources}
        """Previous versions of these resources, by name; None for added ones."""
        self.removed = names[len(self.resources) :]
        """Names of the removed resources."""
        self._covering: frozenset[str] | None = None
        """The last set of names that contains all names of these resources."""
        self._contained: deque[Collection[str]] = deque(maxlen=4)
        """The last arguments for which `contains_all` returned True."""
        self._responses: dict[tuple[str, str, bytes, str], bytes] = {}
        """The last results of `response`."""

    @property
    def encoded(self) -> bytes:
        """The added and changed resources, as in a delta response."""
        return self._encoded if len(self.resources) > 1 else join(self.resources)

    @cached_property
    def _encoded(self) -> bytes:
        return join(self.resources)

    def response(self, *, version: str, nonce: str, others: bytes, identifier: str) -> bytes:
        """Return a delta response with the added and changed resources, and others.

        The last ones are kept, because streams with the same history need the same bytes, which may be
        megabytes.

        Args:
            version: Version of the type (`system_version_info`).
            nonce: Nonce of the response.
            others: Other resources, as `join` has encoded them.
            identifier: Identifier of the control plane; empty for none.
        """
        key = (version, nonce, others, identifier)
        response = self._responses.get(key)
        if response is None:
            response = encode_delta_response(
                type_url=self.resources[0].type_url,
                version=version,
                nonce=nonce,
                joined=(self.encoded, others),
                identifier=identifier,
            )
            if len(self._responses) >= _MAX_RESPONSES:
                del self._responses[next(iter(self._responses))]
            self._responses[key] = response
        return response

    @cached_property
    def size(self) -> int:
        """Size of `encoded`, in bytes."""
        return sum(map(encoded_size, self.resources))

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the added and changed resources. Changes of the same resources share one object."""
        return _shared_set(frozenset(self.before))

    @cached_property
    def added(self) -> frozenset[str]:
        """Names of the added resources: the same object as `names` if none is changed."""
        if not any(self.before.values()):
            return self.names
        return frozenset(name for name, resource in self.before.items() if resource is None)

    def is_covered_by(self, names: frozenset[str]) -> bool:
        """Whether a set contains the names of all added and changed resources. Many clients share one set."""
        if names is not self._covering and names.issuperset(self.before):
            self._covering = names
        return names is self._covering

    def contains_all(self, names: Collection[str]) -> bool:
        """Whether all names are those of added or changed resources. Many clients pass the same object."""
        if not names or any(names is known for known in self._contained):
            return True
        contains_all = all(map(self.before.__contains__, names))
        if contains_all and len(names) <= len(self.before):
            self._contained.append(names)
        return contains_all

    @cached_property
    def assignments(self) -> tuple[str, ...]:
        """Names of the assignments that the resources refer to."""
        return assignments_of(self.resources)


@lru_cache(maxsize=8)
def _shared_set(names: frozenset[str]) -> frozenset[str]:
    return names


def assignments_of(clusters: Iterable[Resource]) -> tuple[str, ...]:
    """Return the names of the assignments that clusters refer to."""
    refs = (ref for cluster in clusters for ref in cluster.refs)
    return tuple(dict.fromkeys(name for type_url, name in refs if type_url == ENDPOINT))


_changes: WeakValueDictionary[tuple[str, str, str], SharedChange] = WeakValueDictionary()
"""Changes by type, and the versions of the previous and the next root."""
_recent: deque[SharedChange] = deque(maxlen=_MAX_RECENT)
_recent_initial: deque[SharedChange] = deque(maxlen=_MAX_RECENT_INITIAL)


def shared_change(type_url: str, before: ResourceSet, after: ResourceSet) -> SharedChange:
    """Return the difference between two roots of a type, which all streams share."""
    key = (type_url, before.version, after.version)
    change = _changes.get(key)
    if change is None or change.after is not after:
        change = _changes[key] = SharedChange(before, after)
        if before is EMPTY and change.resources:
            _recent_initial.append(change)
        elif len(change.resources) > 1:
            _recent.append(change)
    return change


class SentVersions(MutableMapping[str, str]):
    """Version of each resource that a client was sent, by name.

    The client has the versions of a root, except for its own. If a change is `behind`, the client still has
    the previous versions of the changed resources. Without a root, all versions are its own.
    """

    __slots__ = ("_own", "_root", "behind")

    def __init__(self) -> None:
        self._root: ResourceSet | None = None
        self.behind: SharedChange | None = None
        """Change of the root that the client was not sent yet."""
        self._own: dict[str, str | None] = {}
        """Versions that differ from those of the root; None for resources that the client does not have."""

    @property
    def has_root(self) -> bool:
        """Whether the client has the versions of a root, except for its own."""
        return self._root is not None

    def own_names(self) -> list[str]:
        """Return the sorted names of the resources whose version is stored for this client alone."""
        return sorted(self._own)

    def _shared(self, name: str) -> str | None:
        """Return the version that a resource has unless the client has its own."""
        if self._root is None:
            return None
        is_behind = self.behind is not None and name in self.behind.before
        resource = self.behind.before[name] if self.behind and is_behind else self._root.get(name)
        return resource.version if resource else None

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str | T) -> str | T: ...
    def get(self, name: str, /, default: str | T | None = None) -> str | T | None:
        """Return the version of a resource, or `default` if the client does not have it."""
        version = self._own[name] if name in self._own else self._shared(name)
        return default if version is None else version

    def __getitem__(self, name: str) -> str:
        version = self.get(name)
        if version is None:
            raise KeyError(name)
        return version

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        yield from (name for name, version in self._own.items() if version is not None)
        yield from (name for name in self._root or () if name not in self._own and self._shared(name))

    def __len__(self) -> int:
        if self._root is None:
            return len(self._own)
        own = sum(
            (version is not None) - (self._shared(name) is not None) for name, version in self._own.items()
        )
        return len(self._root) + own - (len(self.behind.added) if self.behind else 0)

    def __bool__(self) -> bool:
        if self._root is None or self.behind:
            return len(self) > 0
        return len(self._root) > len(self._own) or len(self) > 0  # Counting them takes longer.

    def __setitem__(self, name: str, version: str) -> None:
        self._set(name, version)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._set(name, None)

    def _set(self, name: str, version: str | None) -> None:
        if version == self._shared(name):
            self._own.pop(name, None)
        else:
            self._own[name] = version

    def start(self, change: SharedChange) -> None:
        """Refer to a root, of which the client has nothing yet: `change` adds all its resources."""
        self._root, self.behind = change.after, change if change.resources else None

    def forget_root(self) -> None:
        """Refer to no root, because the client has nothing."""
        self._root, self.behind, self._own = None, None, {}

    def resume(self, root: ResourceSet, versions: Mapping[str, str]) -> bool:
        """Refer to a root if a client that reconnects has all its resources, each in the same version.

        Args:
            root: the root.
            versions: Versions of the resources that the client has, by name. Others are not recorded.

        Returns:
            Whether the client has the root.
        """
        if root and all(versions.get(resource.name) == resource.version for resource in root.values()):
            self._root = root
            self._own = {name: version for name, version in self._own.items() if name not in root}
        return self.has_root

    def compact(self, root: ResourceSet) -> None:
        """Refer to a root if the client has all its resources, each in the same version."""
        if self._root is not None or not 0 < len(root) <= len(self._own):
            return
        if all(self._own.get(resource.name) == resource.version for resource in root.values()):
            self._root = root
            self._own = {name: version for name, version in self._own.items() if name not in root}

    def move(self, root: ResourceSet, names: Collection[str], behind: SharedChange | None = None) -> None:
        """Refer to the next root. The versions stay the same. Call `spread` first.

        Args:
            root: Next root.
            names: Names whose versions in both roots may differ, except for those in `behind`.
            behind: Change whose previous versions the client has.
        """
        if self._root is None:
            return
        versions = {name: self.get(name) for name in chain(names, self._own)} if names or self._own else {}
        self._root, self.behind = root, behind
        for name, version in versions.items():
            self._set(name, version)

    def catch_up(self) -> None:
        """Record that the client was sent the change that was behind."""
        own, self.behind = self._own, None
        if own:
            self._own = {name: version for name, version in own.items() if version != self._shared(name)}

    def spread(self) -> SharedChange | None:
        """Store the versions that are behind as the client's own. Return the change that was behind."""
        behind, self.behind = self.behind, None
        if behind:
            versions = ((name, old.version if old else None) for name, old in behind.before.items())
            self._own = {**dict(versions), **self._own}
        return behind

    def conflicts_with(self, change: SharedChange) -> bool:
        """Whether the client has its own versions of resources that a change contains."""
        return bool(self._own) and not change.before.keys().isdisjoint(self._own)
