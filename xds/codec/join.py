"""Compose large messages from encoded parts, which many messages can share."""

from __future__ import annotations

from collections.abc import Iterable

from xds.codec.encoding import encode_counts


def varint(value: int) -> bytes:
    """Encode an unsigned integer."""
    if value < 0x80:
        return _BYTES[value]
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_BYTES = [bytes((value,)) for value in range(0x80)]


def field(number: int, content: bytes) -> bytes:
    """Encode a field (below 16) that contains a string, bytes or an encoded message."""
    size = len(content)
    return _BYTES[number << 3 | 2] + (_BYTES[size] if size < 0x80 else varint(size)) + content


def integer_field(number: int, value: int) -> bytes:
    """Encode a field (below 16) that contains an unsigned integer; nothing for 0, the default."""
    return _BYTES[number << 3] + varint(value) if value else b""


def join(full_name: str, parts: Iterable[bytes]) -> bytes:
    """Join the fields of a message, in order of their numbers, and count it, as `encode` does."""
    encode_counts[full_name] += 1
    return b"".join(parts)
