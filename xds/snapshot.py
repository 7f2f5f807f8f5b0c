"""What a proxy should have: resources encoded once, versioned by content, shared by all who need the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

TYPE_PREFIX = "type.googleapis.com/"
CLUSTER = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
ROUTE = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
SECRET = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

ResourceKey: TypeAlias = tuple[str, str]
"""type_url, name."""


def content_version(*parts: bytes) -> str:
    """A version that is the same wherever and whenever the content is the same: 16 hex digits of its SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
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

    @classmethod
    def of(
        cls,
        type_url: str,
        name: str,
        body: bytes,
        *,
        version: str = "",
        refs: tuple[ResourceKey, ...] = (),
        sources: tuple[str, ...] = (),
    ) -> Resource:
        """Make a resource whose version is the hash of its body, unless `version` says otherwise."""
        return cls(
            type_url=type_url,
            name=name,
            version=version or content_version(body),
            body=body,
            refs=refs,
            sources=sources,
        )


class ResourceSet(Mapping[str, Resource]):
    """All resources of one type that a proxy may have, by name; immutable, compared by `version`.

    With a `base` it is that set and some more, and costs what is more: what many proxies have in common is kept, and hashed, once.
    """

    __slots__ = ("_base", "_own", "version")

    def __init__(self, resources: Iterable[Resource] = (), *, base: ResourceSet | None = None) -> None:
        self._own = {resource.name: resource for resource in resources}
        self._base: Mapping[str, Resource] = base or {}
        self.version: str = content_version(
            *(f"{name}={self._own[name].version}".encode() for name in sorted(self._own)),
            *((base.version.encode(),) if base else ()),
        )

    def __getitem__(self, name: str) -> Resource:
        return self._own[name] if name in self._own else self._base[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in self._base if name not in self._own)

    def __len__(self) -> int:
        return len(self._own) + sum(name not in self._own for name in self._base)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceSet) and self.version == other.version

    def __hash__(self) -> int:
        return hash(self.version)

    def __repr__(self) -> str:
        return f"<ResourceSet {self.version}: {', '.join(self)}>"


EMPTY = ResourceSet()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one proxy should have now, by type. Types that it lacks are empty."""

    types: Mapping[str, ResourceSet] = field(default_factory=dict)

    def of(self, type_url: str) -> ResourceSet:
        """Return the resources of a type."""
        return self.types.get(type_url, EMPTY)
