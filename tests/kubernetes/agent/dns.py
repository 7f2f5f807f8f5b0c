"""The cluster's DNS: addresses of Services, over UDP."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping, Sequence

_HEADER = struct.Struct("!6H")
_ANSWER = struct.Struct("!HHHIH4s")
_RESPONSE = 0x8580  # a response, authoritative, recursion available
_NO_SUCH_NAME = 3
_ADDRESS, _INTERNET = 1, 1
_TTL = 1


class Resolver(asyncio.DatagramProtocol):
    """Answers questions from `records`, which may be replaced at any time."""

    def __init__(self) -> None:
        self.records: Mapping[str, Sequence[str]] = {}

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(answer(data, self.records), addr)


def answer(query: bytes, records: Mapping[str, Sequence[str]]) -> bytes:
    """Answer the first question of a query."""
    (number, *_) = _HEADER.unpack_from(query)
    name, end = _name(query, _HEADER.size)
    kind, _ = struct.unpack_from("!2H", query, end)
    question = query[_HEADER.size : end + 4]
    known = records.get(name.lower())
    addresses = known or () if kind == _ADDRESS else ()
    flags = _RESPONSE | (_NO_SUCH_NAME if known is None else 0)
    answers = b"".join(
        _ANSWER.pack(0xC000 | _HEADER.size, _ADDRESS, _INTERNET, _TTL, 4, socket.inet_aton(address))
        for address in addresses
    )
    return _HEADER.pack(number, flags, 1, len(addresses), 0, 0) + question + answers


def _name(query: bytes, at: int) -> tuple[str, int]:
    labels = []
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels), at + 1
