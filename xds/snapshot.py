"""Resources, resource sets and snapshots: the desired state of a client.

A resource is encoded once and versioned by its content. Clients that need the same bytes share one object.
"""

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
"""Maximum time to live of a resource, in seconds (three years)."""

T = TypeVar("T")

ResourceKey: TypeAlias = tuple[str, str]
"""A resource's type URL and name."""


def content_version(*parts: bytes) -> str:
    """Return a version that depends on the content alone: 16 hex digits of a SHA-256.

    Equal content has the same version in every process. A client that reconnects to another server therefore
    receives only the resources that differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Resource:
    """One xDS resource, encoded and ready to send.

    Make one with `xds.resources.resource` or with `Resource.of`.
    """

    type_url: str
    """Type URL of the resource, such as `type.googleapis.com/envoy.config.cluster.v3.Cluster`."""
    name: str
    """Name that clients subscribe to."""
    version: str
    """Version of the resource. Two resources with the same type, name and version have the same content."""
    body: bytes = field(repr=False)
    """Encoded message, without the Any around it."""
    refs: tuple[ResourceKey, ...] = field(default=(), compare=False, repr=False)
    """Resources that this one makes a client subscribe to, such as a cluster's assignment."""
    sources: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Objects that the resource was made from, most relevant first. Rejections report them."""
    aliases: tuple[str, ...] = field(default=(), repr=False)
    """Other names of a virtual host: ROUTE_CONFIGURATION/DOMAIN for each of its domains."""
    ttl: float | None = None
    """Seconds after which a client drops the resource unless the server renews it; None for no expiry.

    The TTL is sent in the delta variant only. In the state-of-the-world variant, Envoy crashes when a TTL
    expires (envoy#24271).
    """
    tag: str = ""
    """Word that summarizes the content. It is a part of the version; see `tag_of`."""

    @property
    def content_version(self) -> str:
        """Version that the resource has unless its maker chooses one."""
        return _default_version(self.body, self.aliases, self.ttl, self.tag)

    @property
    def description(self) -> str:
        """Kind and name of the resource, such as `Cluster web`."""
        return describe(self.type_url, self.name)

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
        """Make a resource of any type from encoded bytes.

        Args:
            type_url: Type URL of the resource.
            name: Name that clients subscribe to.
            body: Encoded message, without the Any around it.
            version: Version of the resource. The default is a hash of the body, the aliases and the TTL.
            tag: Word that summarizes the content. It becomes a part of the version; see `tag_of`.
            refs: Type URL and name of each resource that this one makes a client subscribe to.
            sources: Objects that the resource was made from. Rejections report them.
            aliases: Other names of a virtual host.
            ttl: Seconds after which a client drops the resource unless the server renews it.

        Raises:
            TypeError: An argument has the wrong type, for example a single str as `sources` or `aliases`.
            ValueError: A resource other than a virtual host has `aliases`, or `ttl` is not between 0.001 and
                `MAX_TTL`.
        """
        _check(type_url, name, body)
        sources = _strings(name, "sources", sources)
        aliases = _strings(name, "aliases", aliases)
        if aliases and type_url != VIRTUAL_HOST:
            raise ValueError(f"{name}: only a VirtualHost can have aliases, and this is {type_url}")
        if ttl is not None and not isinstance(ttl, int | float):
            raise TypeError(f"{name}: ttl={ttl!r} is not a number of seconds")
        if ttl is not None and not 0.001 <= ttl <= MAX_TTL:
            raise ValueError(
                f"{name}: ttl={ttl} is not between 0.001 and {MAX_TTL:.0f} seconds; "
                "omit it for a resource that never expires"
            )
        return cls(
            type_url=type_url,
            name=name,
            version=version or _default_version(body, aliases, ttl, tag),
            body=body,
            refs=refs,
            sources=sources,
            aliases=aliases,
            ttl=ttl,
            tag=tag,
        )


def _default_version(body: bytes, aliases: Iterable[str], ttl: float | None, tag: str) -> str:
    extras = [alias.encode() for alias in aliases]
    if ttl is not None:
        extras.append(f"ttl={ttl}".encode())
    return content_version(body, *extras) + (f".{tag}" if tag else "")


def describe(type_url: str, name: str) -> str:
    """Return the kind and the name of a resource, such as `Cluster web`."""
    return f"{type_url.rpartition('.')[2]} {name}"


def tag_of(version: str) -> str:
    """Return the tag of a resource's version, or the concatenated tags of a set's version.

    Clients report the versions of their resources when they reconnect. From the tags, a restarted server
    learns what its clients have.
    """
    return version.partition("+")[0].partition(".")[2]


def _check(type_url: object, name: object, body: object) -> None:
    """Raise TypeError for arguments that cannot be sent."""
    if not isinstance(type_url, str) or not isinstance(name, str):
        raise TypeError(f"type_url and name must be str, not {type_url!r} and {name!r}")
    if not isinstance(body, bytes):
        raise TypeError(f"{name}: the body is {type(body).__name__}, not bytes: pass the encoded message")


def _strings(name: str, argument: str, value: Iterable[str]) -> tuple[str, ...]:
    """Return sources or aliases as a tuple. Raise TypeError for a single str or an item that is not a str."""
    if not value:
        return ()
    if isinstance(value, str):
        raise TypeError(f"{name}: {argument}={value!r} is one str: pass a list, {argument}=[{value!r}]")
    items = tuple(value)
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"{name}: {argument} contains {item!r}, which is not a str")
    return items


class ResourceSet(Mapping[str, Resource]):
    """Immutable mapping from name to resource, for all resources of one type. Sets are compared by `version`.

    A set with a `base` is a layer on top of the base. It contains the base's resources and the layer's, which
    replace resources of the base with the same name. Only the layer is stored and hashed again, so resources
    that clients share are stored and hashed once. The version depends on the contents and the label, not on
    layers. Clients report it as the version of the type (`version_info`, `system_version_info`).

    Args:
        resources: Resources of the set, or of the layer.
        base: Set below the layer.
        label: Words for the version, such as the release that the set was made from: `HASH+LABEL`.
    """

    __slots__ = (
        "_aliases", "_base", "_depth", "_layer", "_length", "_sum", "_tags", "has_ttl", "label", "version",
    )  # fmt: skip

    def __init__(
        self, resources: Iterable[Resource] = (), *, base: ResourceSet | None = None, label: str = ""
    ) -> None:
        layer = {resource.name: resource for resource in resources}
        replaced = [base[name] for name in layer if name in base] if base is not None else []
        self._fill(layer, base, _sum(layer.values()) - _sum(replaced), len(layer) - len(replaced), label)

    def _fill(
        self, layer: dict[str, Resource], base: ResourceSet | None, total: int, count: int, label: str
    ) -> None:
        """Set the layer. `total` and `count` are added to the digest sum and the length of the base."""
        self._layer, self._base = layer, base
        self._aliases: dict[str, str] | None = None
        self._depth: int = base._depth + 1 if base is not None else 0
        self._length: int = count + (base._length if base is not None else 0)
        self._sum: int = (total + (base._sum if base is not None else 0)) % _MODULUS
        self.has_ttl: bool = any(resource.ttl for resource in layer.values()) or (
            base is not None and base.has_ttl
        )
        """Whether a resource has a TTL, or a resource of the base."""
        tags = {name: resource.tag for name, resource in layer.items() if resource.tag}
        if base is not None:
            tags |= {name: tag for name, tag in base._tags.items() if name not in layer}
        self._tags: dict[str, str] = tags
        tag = "".join(tags[name] for name in sorted(tags))
        self.version: str = content_version(self._sum.to_bytes(_DIGEST_SIZE, "big")) + (
            f".{tag}" if tag else ""
        )
        self.label: str = label
        """Words that the version contains; empty for none."""
        if label:
            self.version += f"+{label}"

    @property
    def root(self) -> ResourceSet:
        """The set below all layers: the set itself if it has no base."""
        return self if self._base is None else self._base.root

    def layered_names(self) -> tuple[str, ...]:
        """Return the names of the resources in the layers above the root. Names can repeat."""
        return () if self._base is None else (*self._layer, *self._base.layered_names())

    def updated(
        self, resources: Iterable[Resource] = (), removed: Iterable[str] = (), *, label: str = ""
    ) -> ResourceSet:
        """Return a copy in which first the names in `removed` are removed, and then `resources` are set.

        Only the changes are hashed. The set must not have a base. Unknown names in `removed` are ignored.
        """
        assert self._base is None  # noqa: S101 - a layer cannot change the resources of its base
        layer = dict(self._layer)
        dropped = [layer.pop(name) for name in removed if name in layer]
        added = {resource.name: resource for resource in resources}
        dropped += [layer[name] for name in added if name in layer]
        layer |= added
        updated = ResourceSet.__new__(ResourceSet)
        updated._fill(layer, None, self._sum + _sum(added.values()) - _sum(dropped), len(layer), label)
        return updated

    def __getitem__(self, name: str) -> Resource:
        if self._base is None or name in self._layer:
            return self._layer[name]
        return self._base[name]

    # `Mapping` implements `get` and `__contains__` with exceptions. That is too slow, because every stream
    # calls them for every resource.

    @overload
    def get(self, name: str, /) -> Resource | None: ...
    @overload
    def get(self, name: str, /, default: Resource | T) -> Resource | T: ...
    def get(self, name: str, /, default: Resource | T | None = None) -> Resource | T | None:
        """Return the resource with a name, or `default` if there is none."""
        resource = self._layer.get(name)
        if resource is not None:
            return resource
        return default if self._base is None else self._base.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._layer or (self._base is not None and name in self._base)

    def resolve(self, alias: str) -> str:
        """Return the name of the resource with an alias. Any other name is returned unchanged."""
        if alias in self:
            return alias
        if self._aliases is None:
            self._aliases = {alias: resource.name for resource in self.values() for alias in resource.aliases}
        return self._aliases.get(alias, alias)

    @property
    def tagged(self) -> list[str]:
        """Sorted names of the resources that have a tag."""
        return sorted(self._tags)

    def __iter__(self) -> Iterator[str]:
        yield from self._layer
        if self._base is not None:
            yield from (name for name in self._base if name not in self._layer)

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
    """Return the sum of the resources' digests.

    A set's version hashes this sum, so an update hashes only the changed resources.
    """
    return sum(_digest(resource.name, resource.version) for resource in resources)


@lru_cache(maxsize=1 << 16)
def _digest(name: str, version: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{len(name)} {name}={version}".encode()).digest(), "big")


def difference(before: ResourceSet, after: ResourceSet) -> tuple[str, ...]:
    """Return the names that differ between two sets: added and changed resources first, then removed ones.

    The cost is proportional to the differences and to the layers on top of a common base. The difference
    between two sets without a base is cached, because many streams need the same one.
    """
    if before.version == after.version:
        return ()
    if before._depth == after._depth == 0:
        return _compare(before, after)
    return differing(before, after, _candidates(before, after))


def differing(before: ResourceSet, after: ResourceSet, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of some names that differ between two sets: present ones first, then removed ones."""
    present, absent = [], []
    for name in dict.fromkeys(names):
        old, new = before.get(name), after.get(name)
        if new is None:
            absent.append(name)
        elif old is None or old.version != new.version:
            present.append(name)
    return (*present, *absent)


def _candidates(before: ResourceSet, after: ResourceSet) -> Iterator[str]:
    """Yield the names that may differ. Some of them may not."""
    if before.version == after.version:
        return
    if before._depth == after._depth == 0:
        yield from _compare(before, after)
        return
    old, new = before, after
    if before._depth >= after._depth:
        yield from before._layer
        old = before._base or EMPTY
    if after._depth >= before._depth:
        yield from after._layer
        new = after._base or EMPTY
    yield from _candidates(old, new)


_MAX_COMPARED = 1024
_compared: dict[tuple[str, str], tuple[str, ...]] = {}
"""Names that differ between two sets, by the sets' versions. The cache does not keep the sets alive."""


def _compare(before: ResourceSet, after: ResourceSet) -> tuple[str, ...]:
    """Return the names that differ between two sets without a base."""
    version_pair = (before.version, after.version)
    names = _compared.get(version_pair)
    if names is None:
        versions = {resource.name: resource.version for resource in before.values()}
        changed = [name for name, resource in after.items() if versions.get(name) != resource.version]
        names = (*changed, *(name for name in before if name not in after))
        if len(_compared) >= _MAX_COMPARED:
            _compared.clear()
        _compared[version_pair] = names
    return names


EMPTY = ResourceSet()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Desired state of one client: all its resources, by type."""

    types: Mapping[str, ResourceSet] = field(default_factory=dict)
    """Resources by type URL. Other types are empty."""
    denials: Mapping[ResourceKey, str] = field(default_factory=dict)
    """Reason for each resource that the client is not allowed to have. Only delta responses report it.

    Pass a new mapping instead of changing one: a stream compares it with the previous one.
    """
    generation: int = field(default=0, compare=False)
    """Number that the caller chooses. Sessions report the last generation that a client has answered."""

    def of(self, type_url: str) -> ResourceSet:
        """Return the resources of a type."""
        return self.types.get(type_url, EMPTY)

    def denied(self, type_url: str) -> Mapping[str, str]:
        """Return the names of a type that the client is not allowed to have, each with the reason."""
        if not self.denials:
            return {}
        return {name: reason for (kind, name), reason in self.denials.items() if kind == type_url}
