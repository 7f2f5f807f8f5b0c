"""Encoding of discovery responses from resources that are already encoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from xds.snapshot import Resource

PERMISSION_DENIED = 7
"""Value of PERMISSION_DENIED in google.rpc.Code."""


def encode_response(
    *, type_url: str, version: str, nonce: str, resources: Iterable[Resource], identifier: str = ""
) -> bytes:
    """Encode a DiscoveryResponse.

    Args:
        type_url: Type URL of the response.
        version: Version of the type (`version_info`).
        nonce: Nonce of the response.
        resources: Resources of the response.
        identifier: Identifier of the control plane; empty for none.
    """
    parts = [encode_string(1, version)]
    for resource in resources:
        parts += _any_head(resource.type_url, len(resource.body)), resource.body
    parts += encode_string(4, type_url), encode_string(5, nonce), _control_plane(6, identifier)
    return b"".join(parts)


def encode_delta_response(
    *,
    type_url: str,
    version: str,
    nonce: str,
    resources: Iterable[Resource] = (),
    joined: Iterable[bytes] = (),
    removed: Iterable[str] = (),
    unknown: Iterable[str] = (),
    errors: Iterable[tuple[str, str]] = (),
    heartbeats: Iterable[Resource] = (),
    identifier: str = "",
) -> bytes:
    """Encode a DeltaDiscoveryResponse.

    Args:
        type_url: Type URL of the response.
        version: Version of the type (`system_version_info`).
        nonce: Nonce of the response.
        resources: Resources of the response.
        joined: More resources, as `join` has encoded them.
        removed: Names of removed resources.
        unknown: Aliases that no resource has. Each is answered with a resource without a body.
        errors: Names that the client is not allowed to have, each with the reason.
        heartbeats: Resources whose TTL to renew.
        identifier: Identifier of the control plane; empty for none.
    """
    parts = [encode_string(1, version), *joined]
    for resource in resources:
        parts += _resource_head(resource), resource.body
    parts += map(_heartbeat, heartbeats)
    parts += map(_unknown, unknown)
    parts += encode_string(4, type_url), encode_string(5, nonce)
    parts += (encode_bytes(6, name.encode()) for name in removed)
    parts.append(_control_plane(7, identifier))
    parts += (encode_bytes(9, _error(name, reason)) for name, reason in errors)
    return b"".join(parts)


_MAX_CACHED_PARTS = 8
_parts: dict[tuple[int, ...], tuple[tuple[Resource, ...], tuple[Resource, ...], bytes]] = {}
"""Cached results of `first_part`, by the budget and the ids of the resources, which are fast to look up.

Each entry keeps the resources alive, so that no other object can have their ids.
"""


def first_part(resources: tuple[Resource, ...], budget: int) -> tuple[tuple[Resource, ...], bytes]:
    """Return the resources that fit into a delta response, and their encoding.

    Results are cached for all streams.

    Args:
        resources: Resources to send.
        budget: Maximum size of the encoded resources, in bytes. At least one resource is returned, even if
            it is larger.
    """
    if len(resources) < 2:
        return resources, join(resources)
    cache_key = (budget, *map(id, resources))
    cached = _parts.get(cache_key)
    if cached is None:
        part = resources[: count_fitting(resources, budget)]
        if len(_parts) >= _MAX_CACHED_PARTS:
            del _parts[next(iter(_parts))]
        cached = _parts[cache_key] = resources, part, join(part)
    return cached[1:]


def join(resources: Iterable[Resource]) -> bytes:
    """Encode resources as in a delta response."""
    return b"".join(part for resource in resources for part in (_resource_head(resource), resource.body))


def count_fitting(resources: Sequence[Resource], budget: int) -> int:
    """Return how many resources fit into `budget` bytes, from the first: at least one, if there is any."""
    total = 0
    for count, resource in enumerate(resources):
        total += encoded_size(resource)
        if count and total > budget:
            return count
    return len(resources)


def encoded_size(resource: Resource) -> int:
    """Return the size of a resource in a delta response, in bytes.

    It is slightly smaller in a SotW response.
    """
    return len(_resource_head(resource)) + len(resource.body)


def removal_size(name: str) -> int:
    """Return the maximum size of a removal in a delta response, in bytes. An alias is encoded twice."""
    return 15 + 2 * len(name.encode())


# The body is by far the largest part of a resource. The caches therefore contain only the few bytes before
# the body, which are the same for all streams. Fields can be encoded in any order, so the body can be last.


@lru_cache(maxsize=1 << 12)
def _any_head(type_url: str, body: int) -> bytes:
    """Encode the part of a DiscoveryResponse's `resources` element that precedes a body of `body` bytes."""
    return _tag(2, _any_size(type_url, body)) + _any(type_url, body)


def _resource_head(resource: Resource) -> bytes:
    """Encode the part of a DeltaDiscoveryResponse's `resources` element that precedes the resource's body."""
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
    """Encode a Resource without a body, which renews the TTL of the version that the client has."""
    return encode_bytes(2, _named(resource.name, resource.version, (), resource.ttl))


def _unknown(alias: str) -> bytes:
    return encode_bytes(2, _named(alias, "", (alias,), None))


def _named(name: str, version: str, aliases: tuple[str, ...], ttl: float | None) -> bytes:
    """Encode the fields of a Resource other than the body."""
    parts = [
        encode_string(3, name),
        *(encode_bytes(4, alias.encode()) for alias in aliases),
        encode_string(1, version),
    ]
    if ttl is not None:
        parts.append(encode_bytes(6, _duration(ttl)))
    return b"".join(parts)


def _error(name: str, reason: str) -> bytes:
    """Encode a ResourceError, which has the resource's name and a google.rpc.Status."""
    status = b"\x08" + _varint(PERMISSION_DENIED) + encode_string(2, reason)
    return encode_bytes(1, encode_string(1, name)) + encode_bytes(2, status)


def _duration(seconds: float) -> bytes:
    """Encode a positive google.protobuf.Duration."""
    whole, nanos = divmod(round(seconds * 1e9), 10**9)
    return (b"\x08" + _varint(whole) if whole else b"") + (b"\x10" + _varint(nanos) if nanos else b"")


def _any(type_url: str, body: int) -> bytes:
    return encode_string(1, type_url) + _tag(2, body)


def _any_size(type_url: str, body: int) -> int:
    return len(_any(type_url, body)) + body


def _control_plane(number: int, identifier: str) -> bytes:
    return encode_bytes(number, encode_string(1, identifier)) if identifier else b""


def encode_string(number: int, value: str) -> bytes:
    """Encode a string field with a number below 16. An empty string is omitted, as in proto3."""
    return encode_bytes(number, value.encode()) if value else b""


def encode_bytes(number: int, payload: bytes) -> bytes:
    """Encode a field with a number below 16 that contains bytes or an encoded message."""
    return _tag(number, len(payload)) + payload


def _tag(number: int, length: int) -> bytes:
    """Encode the tag and the length of a length-delimited field with a number below 16."""
    return bytes((number << 3 | 2,)) + _varint(length)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
