"""What a proxy should have: resources encoded once, versioned by content, shared by all who need the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias, TypeVar, overload

TYPE_PREFIX = "type.googleapis.com/"
CLUSTER = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
ROUTE = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
SECRET = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
SCOPED_ROUTE = TYPE_PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
VIRTUAL_HOST = TYPE_PREFIX + "envoy.config.route.v3.VirtualHost"
LB_ENDPOINT = TYPE_PREFIX + "envoy.config.endpoint.v3.LbEndpoint"
RUNTIME = TYPE_PREFIX + "envoy.service.runtime.v3.Runtime"
EXTENSION_CONFIG = TYPE_PREFIX + "envoy.config.core.v3.TypedExtensionConfig"

MAX_TTL = 1e8
"""Seconds: three years. More is a mistake."""

T = TypeVar("T")

ResourceKey: TypeAlias = tuple[str, str]
"""type_url, name."""


def content_version(*parts: bytes) -> str:
    """A version that is the same wherever and whenever the content is the same: 16 hex digits of its SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Resource:
    """One xDS resource, ready to send."""

    type_url: str
    name: str
    version: str
    body: bytes = field(repr=False)
    """The encoded message, without its Any wrapping."""
    refs: tuple[ResourceKey, ...] = field(default=(), compare=False, repr=False)
    """Resources that this one makes its client subscribe to by name (a cluster's assignment, a listener's routes)."""
    sources: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The objects it was made from, most telling first, for whoever has to explain a rejection."""
    aliases: tuple[str, ...] = field(default=(), repr=False)
    """Other names that clients ask for it by: of a virtual host, ROUTE_CONFIGURATION/DOMAIN for each of its domains."""
    ttl: float | None = None
    """Seconds that a client keeps it without hearing from the server; None: as long as it is not told otherwise.

    Only said in the delta variant: in the other one Envoy crashes when it runs out (envoy#24271).
    """
    tag: str = ""
    """What the content comes to, in a word that is part of the version; see `tag_of`."""

    @classmethod
    def of(
        cls,
        type_url: str,
        name: str,
        body: bytes,
        *,
        version: str = "",
        tag: str = "",
        refs: tuple[ResourceKey, ...] = (),
        sources: Iterable[str] = (),
        aliases: Iterable[str] = (),
        ttl: float | None = None,
    ) -> Resource:
        """Make a resource whose version is the hash of its body and what goes with it, unless `version` says otherwise.

        A `tag` says in a word what the content comes to, for whoever meets the version again: see `tag_of`.

        TypeError: one of them is of another type than it says here; a single str is neither `sources` nor `aliases`.
        ValueError: `aliases` of something that is no virtual host, or a `ttl` that is not positive.
        """
        _check(type_url, name, body)
        sources = _strings(name, "sources", sources)
        aliases = _strings(name, "aliases", aliases)
        if aliases and type_url != VIRTUAL_HOST:
            raise ValueError(f"{name}: only a VirtualHost can have aliases, and this is {type_url}")
        if ttl is not None and not isinstance(ttl, int | float):
            raise TypeError(f"{name}: ttl={ttl!r} is no number: give seconds")
        if ttl is not None and not 0.001 <= ttl <= MAX_TTL:
            raise ValueError(
                f"{name}: ttl={ttl} is not between 0.001 and {MAX_TTL:.0f} seconds; leave it out for ever"
            )
        extras = (
            *(alias.encode() for alias in aliases),
            *((f"ttl={ttl}".encode(),) if ttl is not None else ()),
        )
        return cls(
            type_url=type_url,
            name=name,
            version=version or content_version(body, *extras) + (f".{tag}" if tag else ""),
            body=body,
            refs=refs,
            sources=sources,
            aliases=aliases,
            ttl=ttl,
            tag=tag,
        )


def tag_of(version: str) -> str:
    """Return the tag in the version of a resource, or those in the version of a set, without anything between them.

    Clients bring the versions of what they have to each stream: so a server that has just started knows what a tag says.
    """
    return version.partition(".")[2]


def _check(type_url: object, name: object, body: object) -> None:
    """Raise TypeError for what could not be sent."""
    if not isinstance(type_url, str) or not isinstance(name, str):
        raise TypeError(
            f"a resource is named by a type URL and a name, which are str, not {type_url!r} and {name!r}"
        )
    if not isinstance(body, bytes):
        raise TypeError(f"{name}: the body is {type(body).__name__}, not bytes: give the encoded message")


def _strings(name: str, what: str, given: Iterable[str]) -> tuple[str, ...]:
    """Return sources or aliases as a tuple. TypeError: a str, which would come apart, or something else in it."""
    if not given:
        return ()
    if isinstance(given, str):
        raise TypeError(f"{name}: {what}={given!r} is one str: give a list, {what}=[{given!r}]")
    found = tuple(given)
    for one in found:
        if not isinstance(one, str):
            raise TypeError(f"{name}: in {what} there is {one!r}, which is no str")
    return found


class ResourceSet(Mapping[str, Resource]):
    """All resources of one type that a proxy may have, by name; immutable, compared by `version`.

    With a `base` it is that set and some more, and costs what is more: what many proxies have in common is kept, and hashed, once.
    The version says what is in the set, and not how it was put together: it is the same with and without a base.
    """

    __slots__ = ("_aliases", "_base", "_depth", "_length", "_own", "_sum", "_tags", "version")

    def __init__(self, resources: Iterable[Resource] = (), *, base: ResourceSet | None = None) -> None:
        own = {resource.name: resource for resource in resources}
        hidden = [base[name] for name in own if name in base] if base is not None else []
        self._fill(own, base, _sum(own.values()) - _sum(hidden), len(own) - len(hidden))

    def _fill(self, own: dict[str, Resource], base: ResourceSet | None, total: int, count: int) -> None:
        """Take what is the set's own, and by how much that changes the sum and the length of the base."""
        self._own, self._base = own, base
        self._aliases: dict[str, str] | None = None
        self._depth: int = base._depth + 1 if base is not None else 0
        self._length: int = count + (base._length if base is not None else 0)
        self._sum: int = (total + (base._sum if base is not None else 0)) % _MODULUS
        tags = {name: each.tag for name, each in own.items() if each.tag}
        if base is not None:
            tags |= {name: tag for name, tag in base._tags.items() if name not in own}
        self._tags: dict[str, str] = tags
        tag = "".join(tags[name] for name in sorted(tags))
        self.version: str = content_version(self._sum.to_bytes(_DIGEST_SIZE, "big")) + (
            f".{tag}" if tag else ""
        )

    def updated(self, resources: Iterable[Resource] = (), removed: Iterable[str] = ()) -> ResourceSet:
        """Return a set without the names in `removed` and then with `resources`; it is hashed at the cost of the change.

        Only for sets without a base. What is removed and was not there is no matter.
        """
        assert self._base is None  # noqa: S101 - what is below a layer is not the layer's to change
        own = dict(self._own)
        gone = [own.pop(name) for name in removed if name in own]
        fresh = {resource.name: resource for resource in resources}
        gone += [own[name] for name in fresh if name in own]
        own |= fresh
        updated = ResourceSet.__new__(ResourceSet)
        updated._fill(own, None, self._sum + _sum(fresh.values()) - _sum(gone), len(own))
        return updated

    def __getitem__(self, name: str) -> Resource:
        if self._base is None or name in self._own:
            return self._own[name]
        return self._base[name]

    # What Mapping has for the next two asks for forgiveness, which every stream would pay for every resource.

    @overload
    def get(self, key: str, /) -> Resource | None: ...
    @overload
    def get(self, key: str, /, default: Resource | T) -> Resource | T: ...
    def get(self, key: str, /, default: Resource | T | None = None) -> Resource | T | None:
        """Return the resource of this name, if there is one."""
        found = self._own.get(key)
        if found is not None:
            return found
        return default if self._base is None else self._base.get(key, default)

    def __contains__(self, name: object) -> bool:
        return name in self._own or (self._base is not None and name in self._base)

    def resolve(self, alias: str) -> str:
        """Return the name of the resource that has an alias; what is none is returned as it is."""
        if alias in self:
            return alias
        if self._aliases is None:
            self._aliases = {alias: each.name for each in self.values() for alias in each.aliases}
        return self._aliases.get(alias, alias)

    @property
    def tagged(self) -> list[str]:
        """The names of the resources that have a tag, sorted."""
        return sorted(self._tags)

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        if self._base is not None:
            yield from (name for name in self._base if name not in self._own)

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceSet) and self.version == other.version

    def __hash__(self) -> int:
        return hash(self.version)

    def __repr__(self) -> str:
        return f"<ResourceSet {self.version}: {', '.join(self)}>"


_DIGEST_SIZE = hashlib.sha256().digest_size
_MODULUS = 1 << 8 * _DIGEST_SIZE


def _sum(resources: Iterable[Resource]) -> int:
    """What resources add to the number that their set's version is made of: a sum, so that one part changes by itself."""
    return sum(_digest(resource.name, resource.version) for resource in resources)


@lru_cache(maxsize=1 << 16)
def _digest(name: str, version: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{len(name)} {name}={version}".encode()).digest(), "big")


def difference(before: ResourceSet, after: ResourceSet) -> tuple[str, ...]:
    """Return the names that are not the same in both sets, first those that are in the second one.

    Costs what differs and what is in layers; between sets without a base it is found once for all who make the same step.
    """
    if before.version == after.version:
        return ()
    if before._depth == after._depth == 0:
        return _compare(before, after)
    present, absent = [], []
    for name in dict.fromkeys(_candidates(before, after)):
        old, new = before.get(name), after.get(name)
        if new is None:
            absent.append(name)
        elif old is None or old.version != new.version:
            present.append(name)
    return (*present, *absent)


def _candidates(before: ResourceSet, after: ResourceSet) -> Iterator[str]:
    """Yield at least the names that are not the same."""
    if before.version == after.version:
        return
    if before._depth == after._depth == 0:
        yield from _compare(before, after)
        return
    old, new = before, after
    if before._depth >= after._depth:
        yield from before._own
        old = before._base or EMPTY
    if after._depth >= before._depth:
        yield from after._own
        new = after._base or EMPTY
    yield from _candidates(old, new)


_MAX_COMPARED = 1024
_compared: dict[tuple[str, str], tuple[str, ...]] = {}
"""By the versions of two sets, for it must not keep the sets."""


def _compare(before: ResourceSet, after: ResourceSet) -> tuple[str, ...]:
    """Return the names that are not the same in sets without a base."""
    key = (before.version, after.version)
    names = _compared.get(key)
    if names is None:
        versions = {resource.name: resource.version for resource in before.values()}
        changed = [name for name, resource in after.items() if versions.get(name) != resource.version]
        names = (*changed, *(name for name in before if name not in after))
        if len(_compared) >= _MAX_COMPARED:
            _compared.clear()
        _compared[key] = names
    return names


EMPTY = ResourceSet()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one proxy should have now, by type. Types that it lacks are empty."""

    types: Mapping[str, ResourceSet] = field(default_factory=dict)
    refusals: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Why there is no resource of a type and name that it may ask for."""
    generation: int = field(default=0, compare=False)
    """A number of its maker's, by which a session says how far its client is."""

    def of(self, type_url: str) -> ResourceSet:
        """Return the resources of a type."""
        return self.types.get(type_url, EMPTY)

    def refused(self, type_url: str) -> Mapping[str, str]:
        """Return which names of a type there are not for this proxy, and why."""
        return {name: why for (kind, name), why in self.refusals.items() if kind == type_url}
