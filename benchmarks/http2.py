"""A minimal HTTP/2 and gRPC client for one delta ADS stream at a time, on its own connection.

Bodies are skipped unless the caller needs them: a thousand clients must use less CPU time than the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hpack import Decoder, Encoder

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACK, _END_HEADERS, _END_STREAM = 1, 4, 1
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 4, 5
_WINDOW = 2**31 - 1
_REPLENISH = 2**30
_DEFAULT_WINDOW, _DEFAULT_FRAME = 65535, 16384
PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

TAIL = 512
"""Number of stored bytes at the end of a response. They contain the type and the nonce."""
HEAD = 18
"""Number of stored bytes at the start of a response. They contain the version."""


class Ended(Exception):  # noqa: N818 - reported to the parent process
    """The server ended the stream or the connection."""


class Refused(Ended):
    """The server ended the stream. The connection stays open, and can have another stream."""


class Received(NamedTuple):
    """A gRPC message, or its stored parts."""

    size: int
    head: bytes
    tail: bytes
    body: bytes
    """Body of the message; empty unless the stream stores bodies."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def _request(number: int, token: str) -> bytes:
    """Return the frame that opens a stream."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", PATH),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *([("authorization", f"Bearer {token}")] if token else []),
    ]
    # A new encoder refers to no header of an earlier stream.
    return _frame(_HEADERS, _END_HEADERS, number, Encoder().encode(headers))


def _opening() -> bytes:
    """Return the frames that open a connection."""
    settings = _setting(_INITIAL_WINDOW_SIZE, _WINDOW) + _setting(_MAX_FRAME_SIZE, 2**24 - 1)
    return b"".join(
        (
            _PREFACE,
            _frame(_SETTINGS, 0, 0, settings),
            _frame(_WINDOW_UPDATE, 0, 0, (_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big")),
        )
    )


class Http2Stream:
    """A connection with one stream at a time. It calls `receive` for each message in what `feed` gets."""

    def __init__(self, receive: Callable[[Received], None], *, keep: bool = False, token: str = "") -> None:
        self._receive = receive
        self._keeps_bodies = keep
        self._token = token
        self._number = 1
        """Number of the stream in the connection."""
        self._end = ""
        """Why the server has ended the stream; empty if it has not."""
        self._is_ended = False
        self.out = bytearray(_opening() + _request(self._number, token))
        """Data to write to the socket."""
        self._queue = bytearray()
        """Messages that wait for flow control."""
        self._windows = [_DEFAULT_WINDOW, _DEFAULT_WINDOW]
        """Flow-control windows of the connection and of the stream, in bytes."""
        self._initial, self._frame_size = _DEFAULT_WINDOW, _DEFAULT_FRAME
        self._partial = bytearray()
        """An incomplete frame; for a data frame, only its header."""
        self._frame_remaining = 0
        """Bytes of the current data frame that have not arrived."""
        self._prefix = bytearray()
        """The incomplete gRPC prefix of a message."""
        self._size = 0
        """Size of the current message."""
        self._message_remaining = 0
        """Bytes of the current message that have not arrived."""
        self._head = self._tail = b""
        self._pieces: list[bytes] = []
        """Parts of the current message's body."""
        self._decoder = Decoder()
        self._unacknowledged = 0
        """Received bytes that no WINDOW_UPDATE covers yet."""

    def send(self, message: bytes) -> None:
        """Send a gRPC message when flow control allows it."""
        self._queue += b"\0" + len(message).to_bytes(4, "big") + message
        self._release()

    def reopen(self) -> None:
        """Open another stream, after the server has ended the previous one."""
        self._number += 2
        self._end, self._is_ended = "", False
        self._queue.clear()
        self._prefix.clear()
        self._pieces.clear()
        self._message_remaining = 0
        self._windows[1] = self._initial
        self.out += _request(self._number, self._token)

    def feed(self, data: memoryview) -> None:
        """Process received data. Raise Ended, or Refused if the server has ended only the stream."""
        self._process(data)
        if self._end and not self._is_ended:
            self._is_ended = True
            raise Refused(self._end)

    def _process(self, data: memoryview) -> None:
        position, end = 0, len(data)
        while position < end:
            if self._frame_remaining:
                count = min(self._frame_remaining, end - position)
                self._frame_remaining -= count
                self._payload(data[position : position + count])
                position += count
                continue
            has_header = len(self._partial) >= 9
            length = int.from_bytes(self._partial[:3], "big") if has_header else 0
            count = min(9 + length - len(self._partial), end - position)
            self._partial += data[position : position + count]
            position += count
            if len(self._partial) < 9 + length:
                return
            if not has_header:
                length = int.from_bytes(self._partial[:3], "big")
                if self._partial[3] == _DATA:
                    self._frame_remaining = length
                    self._partial.clear()
                    continue
                if length:
                    continue
            frame, self._partial = bytes(self._partial), bytearray()
            self._control(frame[3], frame[4], int.from_bytes(frame[5:9], "big"), frame[9:])

    def _payload(self, data: memoryview) -> None:
        position, end = 0, len(data)
        while position < end:
            if not self._message_remaining:
                count = min(5 - len(self._prefix), end - position)
                self._prefix += data[position : position + count]
                position += count
                if len(self._prefix) == 5:
                    self._size = self._message_remaining = int.from_bytes(self._prefix[1:], "big")
                    self._prefix.clear()
                    self._head = self._tail = b""
                continue
            count = min(self._message_remaining, end - position)
            piece = data[position : position + count]
            position += count
            self._message_remaining -= count
            if len(self._head) < HEAD:
                self._head += bytes(piece[: HEAD - len(self._head)])
            self._tail = bytes(piece[-TAIL:]) if count >= TAIL else (self._tail + bytes(piece))[-TAIL:]
            if self._keeps_bodies:
                self._pieces.append(bytes(piece))
            if not self._message_remaining:
                body, self._pieces = b"".join(self._pieces), []
                self._receive(Received(self._size, self._head, self._tail, body))
        self._unacknowledged += end
        if self._unacknowledged >= _REPLENISH:
            increment = self._unacknowledged.to_bytes(4, "big")
            self._unacknowledged = 0
            self.out += b"".join(_frame(_WINDOW_UPDATE, 0, each, increment) for each in (0, self._number))

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        match kind:
            case 4 if not flags & _ACK:
                for start in range(0, len(payload), 6):
                    name = int.from_bytes(payload[start : start + 2], "big")
                    value = int.from_bytes(payload[start + 2 : start + 6], "big")
                    if name == _INITIAL_WINDOW_SIZE:
                        self._windows[1] += value - self._initial
                        self._initial = value
                    elif name == _MAX_FRAME_SIZE:
                        self._frame_size = value
                self.out += _frame(_SETTINGS, _ACK, 0, b"")
                self._release()
            case 6 if not flags & _ACK:
                self.out += _frame(_PING, _ACK, 0, payload)
            case 8 if stream in {0, self._number}:
                self._windows[1 if stream else 0] += int.from_bytes(payload, "big")
                self._release()
            case 1:
                headers = self._decoder.decode(payload)
                if flags & _END_STREAM and stream == self._number:
                    status = ", ".join(
                        f"{name}: {value}" for name, value in headers if name.startswith("grpc-")
                    )
                    self._end = f"the server ended the stream: {status}"
            case 3 if stream == self._number:
                self._end = self._end or "the server reset the stream"
            case 7:
                raise Ended(f"the server ended the connection: {payload[8:].decode(errors='replace')}")

    def _release(self) -> None:
        while self._queue and (size := min(len(self._queue), self._frame_size, *self._windows)) > 0:
            self.out += _frame(_DATA, 0, self._number, bytes(self._queue[:size]))
            del self._queue[:size]
            self._windows = [window - size for window in self._windows]
