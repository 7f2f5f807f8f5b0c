"""Limits for connections whose callers are not authenticated.

gRPC accepts connections itself and passes only calls to Python. It reads any amount of data that opens no
call, and does not count small headers. `ConnectionGuard` therefore finds the connections of a server among
the file descriptors of this process, and shuts down those that send too much.

A connection is proven once a call on it is accepted. In plaintext, any answered call counts. Only unproven
connections are limited by bytes.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import stat
import struct
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
import grpc.aio
import structlog

from xds.checkpoint import Checkpoint
from xds.server.proxies import Address, peer_address
from xds.server.token_bucket import TokenBucket

log = structlog.get_logger(__name__)

MAX_UNPROVEN_BYTES: Final = 5 << 18
"""Maximum number of bytes that an unproven connection may send.

Until a call is accepted, flow control limits an honest client to 64 KiB on each of at most 16 streams.
"""

_SCAN_INTERVAL: Final = 0.25
"""Minimum interval between scans, in seconds."""
_SCAN_INTERVAL_PER_DESCRIPTOR: Final = 0.0002
"""Minimum interval between scans for each file descriptor, in seconds.

Checking a descriptor takes 3 µs, so scans use at most 1.5 % of the time.
"""
_DESCRIPTORS: Final = "/proc/self/fd"
"""Directory of the file descriptors of this process."""
_BYTES_RECEIVED: Final = struct.Struct("=128xQ")
"""Position of `tcpi_bytes_received` in Linux's `struct tcp_info`."""

_TOO_MANY_BYTES = "too many bytes without proof"

_Peer: TypeAlias = tuple[Address, int]
"""Address and port of a client."""


class _Socket(NamedTuple):
    """A socket of this process."""

    descriptor: int
    peer: _Peer | None
    """The client; None if the socket is not a connection of the server."""


class ConnectionGuard:
    """Shuts down connections that exceed their limits. It works only on Linux, and while `run` is active.

    The services report accepted calls with `mark_proven`.
    """

    def __init__(self) -> None:
        self.own_services: set[str] = set()
        """Full names of services that report their own calls. All others accept all callers."""
        self.ended: Counter[str] = Counter({_TOO_MANY_BYTES: 0})
        """Number of connections that were shut down, by reason."""
        self._sockets: dict[int, _Socket] = {}
        """Sockets of the last scan, by inode."""
        self._proven: dict[_Peer, float] = {}
        """Clients with a proven connection, and when it was last proven."""
        self._is_running = False
        self._logging = TokenBucket(1, 0.1)

    def mark_proven(self, context: grpc.aio.ServicerContext) -> None:
        """Record an accepted call, which proves its connection."""
        if self._is_running and (peer := _peer_of(context)):
            self._proven[peer] = _now()

    async def run(self, ports: Collection[int]) -> None:
        """Guard the connections to these local ports, until cancelled."""
        if sys.platform != "linux" or not ports:
            return
        self._is_running = True
        try:
            while True:
                count = 0
                try:
                    count = await self._scan(frozenset(ports))
                    self._end_excessive()
                except Exception as error:  # noqa: BLE001 - the next scan may succeed
                    problem = f"{type(error).__name__}: {error}"
                    self._log("error", "scan of connections failed", problem=problem)
                await asyncio.sleep(max(_SCAN_INTERVAL, count * _SCAN_INTERVAL_PER_DESCRIPTOR))
        finally:
            self._is_running = False

    async def _scan(self, ports: Collection[int]) -> int:
        """Find the sockets of this process. Return the number of its descriptors."""
        started_at = _now()
        # In a thread: it makes a system call for each of up to 10,000 descriptors, and each can wait 5 ms for
        # another thread.
        descriptors = await asyncio.to_thread(os.listdir, _DESCRIPTORS)
        checkpoint = Checkpoint()  # A number of calls is no limit: each can wait 5 ms for a busy thread.
        sockets: dict[int, _Socket] = {}
        for descriptor in map(int, descriptors):
            if inode := _inode(descriptor):
                known = self._sockets.get(inode)
                peer = known.peer if known else _client(descriptor, ports)
                sockets[inode] = _Socket(descriptor, peer)
            await checkpoint()
        self._sockets = sockets
        connected = {each.peer for each in sockets.values()}
        self._proven = {
            peer: at for peer, at in self._proven.items() if at >= started_at or peer in connected
        }
        return len(descriptors)

    def _end_excessive(self) -> None:
        """Shut down the unproven connections that have sent too much, so that gRPC closes them."""
        addresses = []
        for inode, (descriptor, peer) in tuple(self._sockets.items()):
            if peer and peer not in self._proven and _bytes_received(descriptor) > MAX_UNPROVEN_BYTES:
                del self._sockets[inode]
                with suppress(OSError), _duplicate(descriptor, inode) as copy:
                    copy.shutdown(socket.SHUT_RDWR)
                    addresses.append(str(peer[0]))
        if addresses:
            self.ended[_TOO_MANY_BYTES] += len(addresses)
            self._log(
                "warning", f"connections ended: {_TOO_MANY_BYTES}", count=len(addresses), example=addresses[0]
            )

    def _log(self, level: str, message: str, **fields: Any) -> None:
        """Log at most one line in 10 s."""
        if self._logging.take(_now()):
            getattr(log, level)(message, **fields)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _peer_of(context: grpc.aio.ServicerContext) -> _Peer | None:
    """Return the client of a call; None if it has no address."""
    peer = context.peer()
    host, port = peer_address(peer), peer.rpartition(":")[2]
    return (host, int(port)) if host is not None and port.isdecimal() else None


def _inode(descriptor: int) -> int:
    """Return the inode of a socket descriptor; 0 for other descriptors."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return 0
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else 0


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Use a socket without owning its descriptor. Another thread may close it and reuse the number.

    Raises:
        OSError: the descriptor is not a socket.
    """
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _client(descriptor: int, ports: Collection[int]) -> _Peer | None:
    """Return the client of a TCP connection to one of these local ports; None for all other sockets."""
    try:
        with _borrowed(descriptor) as found:
            if found.family not in {socket.AF_INET, socket.AF_INET6} or found.type != socket.SOCK_STREAM:
                return None
            if found.getsockname()[1] not in ports:
                return None
            host, port = found.getpeername()[:2]
    except (OSError, ValueError, TypeError, IndexError, AttributeError):
        # A listener, or a thread of gRPC has closed it and opened another socket with the same number.
        return None
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, port


def _bytes_received(descriptor: int) -> int:
    """Return the number of bytes received from a client; 0 if the kernel does not report it."""
    with suppress(OSError, struct.error), _borrowed(descriptor) as borrowed:
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        return int(_BYTES_RECEIVED.unpack(info)[0])
    return 0


@contextmanager
def _duplicate(descriptor: int, inode: int) -> Iterator[socket.socket]:
    """Duplicate a descriptor. No other thread can close the copy.

    Raises:
        OSError: the socket is closed.
    """
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        if _inode(copy.fileno()) != inode:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        yield copy
