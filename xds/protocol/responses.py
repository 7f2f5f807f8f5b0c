"""The wire format of discovery responses, which are joined from bytes that are ready already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from xds.snapshot import Resource

PERMISSION_DENIED = 7
"""A google.rpc.Code."""


def response(
    *, type_url: str, version: str, nonce: str, resources: Iterable[Resource], identifier: str = ""
) -> bytes:
    """Join a DiscoveryResponse."""
    parts = [text(1, version)]
    for resource in resources:
        parts += _any_head(resource.type_url, len(resource.body)), resource.body
    parts += text(4, type_url), text(5, nonce), _control_plane(6, identifier)
    return b"".join(parts)


def encode_delta_response(
    *,
    type_url: str,
    version: str,
    nonce: str,
    resources: Iterable[Resource] = (),
    joined: bytes = b"",
    removed: Iterable[str] = (),
    unknown: Iterable[str] = (),
    errors: Iterable[tuple[str, str]] = (),
    heartbeats: Iterable[Resource] = (),
    identifier: str = "",
) -> bytes:
    """Join a DeltaDiscoveryResponse.

    `joined` are resources that `first_part` has joined. `unknown` are aliases that are nothing's: each is answered with a
    resource without a body. `errors` say of names why the client may not have them. `heartbeats` are resources that the client has and may keep for another `ttl`.
    """
    parts = [text(1, version), joined]
    for resource in resources:
        parts += _resource_head(resource), resource.body
    parts += map(_heartbeat, heartbeats)
    parts += map(_unknown, unknown)
    parts += text(4, type_url), text(5, nonce)
    parts += (_bytes(6, name.encode()) for name in removed)
    parts.append(_control_plane(7, identifier))
    parts += (_bytes(9, _error(name, why)) for name, why in errors)
    return b"".join(parts)


_MAX_CACHED_PARTS = 8
_parts: dict[tuple[int, ...], tuple[tuple[Resource, ...], tuple[Resource, ...], bytes]] = {}
"""By the ids of resources, for that is quick to look up: these, so that their ids stay theirs, and what is made of them."""


def first_part(resources: tuple[Resource, ...], budget: int) -> tuple[tuple[Resource, ...], bytes]:
    """Take as many resources as fit into a delta response of so many bytes, and at least one; join them.

    That is done once for all streams that are to send the same.
    """
    if len(resources) < 2:
        return resources, b"".join(part for each in resources for part in (_resource_head(each), each.body))
    key = (budget, *map(id, resources))
    known = _parts.get(key)
    if known is None:
        taken = resources[: fitting(resources, budget)]
        joined = b"".join(part for each in taken for part in (_resource_head(each), each.body))
        if len(_parts) >= _MAX_CACHED_PARTS:
            del _parts[next(iter(_parts))]
        known = _parts[key] = resources, taken, joined
    return known[1:]


def fitting(resources: Sequence[Resource], budget: int) -> int:
    """Return how many resources, from the first on, fit into a response of so many bytes: at least one, if there is any."""
    total = 0
    for count, resource in enumerate(resources):
        total += size(resource)
        if count and total > budget:
            return count
    return len(resources)


def size(resource: Resource) -> int:
    """Return how many bytes a resource takes in a delta response, which is a little more than in the other kind."""
    return len(_resource_head(resource)) + len(resource.body)


def absence(name: str) -> int:
    """Return how many bytes it takes at most to say that there is no resource of a name: an alias is said twice."""
    return 15 + 2 * len(name.encode())


# A resource's body is by far the most of it, so what is kept is only what goes before the body: small, and the
# same for every stream. The fields of a message may come in any order, so the body can be the last of them.


@lru_cache(maxsize=1 << 12)
def _any_head(type_url: str, body: int) -> bytes:
    """Everything of a DiscoveryResponse's `resources` element that goes before the resource's own `body` bytes."""
    return _tag(2, _any_size(type_url, body)) + _any(type_url, body)


def _resource_head(resource: Resource) -> bytes:
    """Everything of a DeltaDiscoveryResponse's `resources` element that goes before the resource's own bytes."""
    return _named_head(
        resource.type_url,
        resource.name,
        resource.version,
        aliases=resource.aliases,
        ttl=resource.ttl,
        body=len(resource.body),
    )


@lru_cache(maxsize=1 << 16)
def _named_head(
    type_url: str, name: str, version: str, *, aliases: tuple[str, ...], ttl: float | None, body: int
) -> bytes:
    wrapper = _any_size(type_url, body)
    head = _named(name, version, aliases, ttl) + _tag(2, wrapper)
    return _tag(2, len(head) + wrapper) + head + _any(type_url, body)


def _heartbeat(resource: Resource) -> bytes:
    """A resource that is what the client has, which is said by its version alone."""
    return _bytes(2, _named(resource.name, resource.version, (), resource.ttl))


def _unknown(alias: str) -> bytes:
    return _bytes(2, _named(alias, "", (alias,), None))


def _named(name: str, version: str, aliases: tuple[str, ...], ttl: float | None) -> bytes:
    """Everything of a Resource besides what it is."""
    parts = [text(3, name), *(_bytes(4, alias.encode()) for alias in aliases), text(1, version)]
    if ttl is not None:
        parts.append(_bytes(6, _duration(ttl)))
    return b"".join(parts)


def _error(name: str, why: str) -> bytes:
    """A ResourceError: the resource's name, and a google.rpc.Status."""
    return _bytes(1, text(1, name)) + _bytes(2, b"\x08" + _varint(PERMISSION_DENIED) + text(2, why))


def _duration(seconds: float) -> bytes:
    """A google.protobuf.Duration, of positive length."""
    whole, nanos = divmod(round(seconds * 1e9), 10**9)
    return (b"\x08" + _varint(whole) if whole else b"") + (b"\x10" + _varint(nanos) if nanos else b"")


def _any(type_url: str, body: int) -> bytes:
    return text(1, type_url) + _tag(2, body)


def _any_size(type_url: str, body: int) -> int:
    return len(_any(type_url, body)) + body


def _control_plane(number: int, identifier: str) -> bytes:
    return _bytes(number, text(1, identifier)) if identifier else b""


def text(number: int, value: str) -> bytes:
    """Encode a field that is a string, of a number below 16."""
    return _bytes(number, value.encode()) if value else b""


def _bytes(number: int, payload: bytes) -> bytes:
    return _tag(number, len(payload)) + payload


def _tag(number: int, length: int) -> bytes:
    """The start of a length-delimited field with a number below 16."""
    return bytes((number << 3 | 2,)) + _varint(length)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
