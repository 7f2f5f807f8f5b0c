"""An HTTP/2 client that sends single frames and enforces no rules of the protocol.

peer = await connect(target.address, tls=target.trust, source="127.0.0.2")
stream = peer.open("/grpc.health.v1.Health/Watch")
await peer.closed.wait()
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS = 4
CANCEL = struct.pack("!I", 8)
MAX_FRAME = 16_384
"""Size of the largest frame that a server has to accept, in bytes."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode a frame."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def literal(value: bytes) -> bytes:
    """Encode a string for HPACK: without Huffman coding."""
    prefix = bytes([len(value)]) if len(value) < 127 else bytes([127]) + _varint(len(value) - 127)
    return prefix + value


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def call_headers(path: str, extra: Iterable[tuple[str, str]] = (), scheme: bytes = b"\x87") -> bytes:
    """Encode the headers of a gRPC call; nothing is added to the dynamic table."""
    fields = (("te", "trailers"), *extra)
    return b"".join(
        (
            b"\x83" + scheme,  # :method POST, :scheme https
            b"\x04" + literal(path.encode()),
            b"\x01" + literal(b"xds"),  # :authority
            b"\x0f\x10" + literal(b"application/grpc"),
            *(b"\x00" + literal(name.encode()) + literal(value.encode()) for name, value in fields),
        )
    )


def message(body: int | bytes) -> bytes:
    """Encode a gRPC message; a number is the size of a body of zeros."""
    body = bytes(body)
    return b"\x00" + struct.pack("!I", len(body)) + body


OPENING = PREFACE + frame(SETTINGS, 0, 0)
"""Connection preface of a client."""


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.closed = asyncio.Event()
        self.received = asyncio.Event()
        """Set when the server sends anything."""
        self.frames: dict[int, int] = {}
        """Number of received frames by kind."""
        self.ended: set[int] = set()
        """Streams that the server has ended."""
        self.writable = asyncio.Event()
        self.writable.set()
        self._received = bytearray()
        self._next = 1

    def connection_made(self, transport) -> None:
        self.transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self.closed.set()
        self.received.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 9:
            length = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + length:
                return
            kind, flags, stream = struct.unpack("!BBI", self._received[3:9])
            payload = bytes(self._received[9 : 9 + length])
            del self._received[: 9 + length]
            self.frame_received(kind, flags, stream, payload)
            self.received.set()

    def frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Handle a frame."""
        self.frames[kind] = self.frames.get(kind, 0) + 1
        if kind == RST_STREAM or (kind in {DATA, HEADERS} and flags & END_STREAM):
            self.ended.add(stream)
        if kind in {SETTINGS, PING} and not flags & ACK:
            self.send(frame(kind, ACK, 0, payload if kind == PING else b""))

    def send(self, data: bytes) -> None:
        """Send bytes, unless the connection is closed."""
        if not self.transport.is_closing() and not self.closed.is_set():
            self.transport.write(data)

    def open(self, path: str, body: bytes = b"", extra: Iterable[tuple[str, str]] = ()) -> int:
        """Open a stream, and send data regardless of flow control. Return its number."""
        stream, self._next = self._next, self._next + 2
        block = call_headers(path, extra)
        parts = [block[at : at + MAX_FRAME] for at in range(0, len(block), MAX_FRAME)]
        for number, part in enumerate(parts):
            kind = CONTINUATION if number else HEADERS
            self.send(frame(kind, END_HEADERS if number == len(parts) - 1 else 0, stream, part))
        for at in range(0, len(body), MAX_FRAME):
            self.send(frame(DATA, 0, stream, body[at : at + MAX_FRAME]))
        return stream

    def cancel(self, stream: int) -> None:
        """Reset a stream."""
        self.send(frame(RST_STREAM, 0, stream, CANCEL))

    def close(self) -> None:
        """Close the TCP connection without an HTTP/2 message."""
        self.transport.abort()


async def connect(
    address: tuple[str, int],
    *,
    tls: ssl.SSLContext | None = None,
    source: str = "127.0.0.1",
    preface: bytes = OPENING,
) -> Peer:
    """Connect from an address of this machine, and send the beginning of HTTP/2."""
    _, peer = await asyncio.get_running_loop().create_connection(
        Peer,
        *address,
        ssl=tls,
        server_hostname="localhost" if tls else None,
        local_addr=(source, 0),
        ssl_handshake_timeout=60 if tls else None,
    )
    peer.send(preface)
    return peer


def trust(root: bytes) -> ssl.SSLContext:
    """Return the settings of a TLS client that speaks HTTP/2 and has no certificate."""
    context = ssl.create_default_context(cadata=root.decode())
    context.set_alpn_protocols(["h2"])
    return context
