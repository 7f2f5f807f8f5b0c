"""Limits for connections whose callers are not authenticated.

gRPC accepts connections itself, passes only calls to Python, and has no limit per address. `ConnectionGuard`
therefore finds the connections of a server among the file descriptors of this process. The services report
their calls to it.

A connection is proven once a call on it is accepted. In plaintext, any answered call counts. The guard shuts
down unproven connections that stay open too long, are too many, or send too much. A proven connection is
ended only if its caller makes more calls than `PROVEN_CALLS`.

Calls wait in one queue, and gRPC does not remove the calls of closed connections from it. The guard therefore
blocks an address that makes too many calls for a while.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import ipaddress
import os
import socket
import stat
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from xds.checkpoint import Checkpoint
from xds.server.blocking import Network, block, network_of
from xds.server.proxies import Address, caller_key, peer_address
from xds.server.token_bucket import TokenBucket, TokenBuckets

log = structlog.get_logger(__name__)

PROOF_TIMEOUT: Final = 15.0
"""Time within which a connection must be proven, in seconds. Proxies make a call as soon as they connect."""
CROWDED_PROOF_TIMEOUT: Final = 5.0
"""The same for connections beyond MAX_UNPROVEN_PER_ADDRESS of their address, in seconds."""
MAX_UNPROVEN_PER_ADDRESS: Final = 32
"""Number of unproven connections of one address that may use the whole PROOF_TIMEOUT.

This is the number of pods behind one NAT that may connect at once.
"""
MAX_UNPROVEN: Final = 4_096
"""Maximum number of unproven connections in total.

A connection costs about 50 kB over TLS. The limit must allow a whole mesh to reconnect at once.
"""
MAX_UNPROVEN_BYTES: Final = 5 << 18
"""Maximum number of bytes that an unproven connection may send.

Until a call is accepted, flow control limits an honest client to 64 KiB on each of at most 16 streams.
"""
UNPROVEN_CALLS: Final = (100, 10)
"""Unproven calls of one address: burst and rate per second.

A proxy with an invalid token retries at most once per second.
"""
BLOCK_TIME: Final = 5.0
"""Seconds for which an address is blocked if it exceeds the limit of unproven calls or bytes."""
ALL_UNPROVEN_CALLS: Final = (1_000, 200)
"""Unproven calls of all addresses: burst and rate per second.

An attacker may have many addresses. A refused call uses about 0.3 ms of the event loop's time.
"""
PROVEN_CALLS: Final = (1_000, 100)
"""Calls of a proven caller from one address: burst and rate per second. A proxy makes one per connection."""
PLAINTEXT_CALLS: Final = (20_000, 1_000)
"""Plaintext calls of one address: burst and rate per second. All its callers share the limit."""
MAX_BACKLOG: Final = 60.0
"""Maximum extension of PROOF_TIMEOUT in seconds, while honest callers wait for their calls to be handled."""

_SCAN_INTERVAL: Final = 0.5
"""Minimum interval between scans, in seconds.

The interval is a quarter of this if a connection that must end has no known descriptor.
"""
_SCAN_INTERVAL_PER_DESCRIPTOR: Final = 0.0002
"""Minimum interval between scans for each file descriptor, in seconds.

Checking a descriptor takes 3 µs, so scans use at most 1.5 % of the time.
"""
_BACKLOG_TTL: Final = 60.0
"""Seconds for which an observed backlog extends the timeouts."""
_LOG_INTERVAL: Final = 10.0
"""Minimum interval between log lines, in seconds."""
_MAX_BUCKETS: Final = 4_096
"""Maximum number of addresses and callers whose calls are counted."""
_MAX_BLOCKED: Final = 256
"""Maximum number of blocked addresses.

The kernel accepts 4,096 instructions, and an address needs up to five.
"""
_DESCRIPTORS: Final = "/proc/self/fd"
"""Directory of the file descriptors of this process."""
_BYTES_RECEIVED: Final = struct.Struct("=128xQ")
"""Position of `tcpi_bytes_received` in Linux's `struct tcp_info`."""

_Key = tuple[Address, int]

_NO_PROOF = "no proof in time"
_TOO_MANY_OF_ADDRESS = "too many connections of one address without proof"
_TOO_MANY = "too many connections without proof"
_TOO_MANY_BYTES = "too many bytes without proof"
_TOO_MANY_UNPROVEN_CALLS = "too many calls without proof"
_TOO_MANY_CALLS = "too many calls"
_REASONS = (
    _NO_PROOF,
    _TOO_MANY_OF_ADDRESS,
    _TOO_MANY,
    _TOO_MANY_BYTES,
    _TOO_MANY_UNPROVEN_CALLS,
    _TOO_MANY_CALLS,
)


@dataclass(slots=True, eq=False)
class _Connection:
    """A connection, identified by the address and port of the client."""

    key: _Key
    """Address and port of the client."""
    network: Network
    """Unit of per-address limits that the client belongs to."""
    since: float
    """Time the connection was first seen, in seconds of the event loop's clock."""
    age: float = 0.0
    """Age in seconds, not counting times when this process was too busy to scan."""
    sockets: dict[int, int] = field(default_factory=dict)
    """File descriptors by inode; empty until a scan finds them.

    A client may use one local port for connections to several ports of the server.
    """
    proven: TokenBucket | None = None
    """Bucket for calls of the proven caller; None while the connection is unproven."""
    is_authenticated: bool = False
    """Whether the proven caller presented a credential."""
    end_reason: str = ""
    """Reason to end the connection as soon as its descriptor is known; empty to keep it."""


@dataclass(slots=True)
class _EndedConnections:
    """Ended connections that have not been logged."""

    reasons: Counter[str] = field(default_factory=Counter)
    addresses: set[Address] = field(default_factory=set)


class ConnectionGuard:
    """Ends connections that exceed their limits. It works only on Linux.

    The services report accepted calls with `mark_proven` and other calls with `record_unproven`. Connections
    are ended only while `run` is active.
    """

    def __init__(self) -> None:
        self.own_services: set[str] = set()
        """Full names of services that report their own calls. All other services accept all callers."""
        self.ended: Counter[str] = Counter(dict.fromkeys(_REASONS, 0))
        """Number of ended connections, by reason."""
        self.unproven_calls = 0
        """Number of calls that were refused, or were answered without proving the connection."""
        self._connections: dict[_Key, _Connection] = {}
        self._other_sockets: set[int] = set()
        """Inodes of sockets that are not connections of the server."""
        self._buckets = TokenBuckets(_MAX_BUCKETS)
        self._all_unproven_bucket = TokenBucket(*ALL_UNPROVEN_CALLS)
        self._backlog = 0.0
        self._backlog_until = 0.0
        self._running = False
        self._listeners: dict[int, int] = {}
        """File descriptors of listening sockets, by inode."""
        self._blocked: OrderedDict[Network, float] = OrderedDict()
        """End time of each block, by address."""
        self._scanned_at = 0.0
        self._scan_interval = _SCAN_INTERVAL
        self._wakeup = asyncio.Event()
        self._unlogged = _EndedConnections()
        self._logged_at = float("-inf")
        self._failed_at = float("-inf")

    def mark_proven(self, context: grpc.aio.ServicerContext, caller: Any = None) -> None:
        """Record an accepted call, which proves its connection.

        Args:
            context: Context of the call.
            caller: Authenticated caller; None if the call was accepted without a credential.
        """
        if not (connection := self._connection_of(context)):
            return
        now = _now()
        if connection.proven is None:
            waited = min(now - connection.since, MAX_BACKLOG)
            if waited > self._backlog or now > self._backlog_until:
                self._backlog, self._backlog_until = waited, now + _BACKLOG_TTL
            connection.proven = self._proven_bucket(connection.key[0], caller)
            connection.is_authenticated = caller is not None
        self._charge(connection, connection.proven, now)

    def record_unproven(self, context: grpc.aio.ServicerContext, *, undecided: bool = False) -> None:
        """Record a call that was refused, or was answered without proving the connection.

        Args:
            context: Context of the call.
            undecided: Whether the credential could not be checked, such as while the API server is down. This
                affects all honest callers at the same time, so only the limit per address applies.
        """
        self.unproven_calls += 1
        if not (connection := self._connection_of(context)):
            return
        now = _now()
        if connection.proven:
            self._charge(connection, connection.proven, now)
            return
        address_bucket = self._buckets.of(connection.network, *UNPROVEN_CALLS)
        exceeds_bucket = not address_bucket.take(now)
        if exceeds_bucket or not (undecided or self._all_unproven_bucket.take(now)):
            # Do not block an address with few calls because of calls from other addresses.
            if exceeds_bucket or address_bucket.is_half_spent:
                self._block(connection.network, now)
            self._end(connection, _TOO_MANY_UNPROVEN_CALLS)

    def _charge(self, connection: _Connection, bucket: TokenBucket, now: float) -> None:
        """Count a call of a proven caller, and end the connection if it exceeds the limit."""
        if not bucket.take(now):
            if connection.is_authenticated:  # In plaintext, an address may have many clients.
                self._block(connection.network, now)
            self._end(connection, _TOO_MANY_CALLS)

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """Return an interceptor that records calls of services that are not in `own_services`.

        It also records calls of unknown methods.
        """
        return _Interceptor(self)

    async def run(self, ports: Collection[int]) -> None:
        """Guard the connections to these local ports, until cancelled."""
        if sys.platform != "linux" or not ports:
            return
        self._running = True
        try:
            while True:
                try:
                    await self._scan(frozenset(ports))
                except Exception as error:  # noqa: BLE001 - the next scan may succeed
                    self._log_scan_failure(error)
                await asyncio.sleep(self._scan_interval / 4)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._scan_interval * 3 / 4):
                        await self._wakeup.wait()
                self._wakeup.clear()
        finally:
            self._running = False
            self._connections.clear()
            self._blocked.clear()
            self._update_filters()

    def _connection_of(self, context: grpc.aio.ServicerContext) -> _Connection | None:
        """Return the connection of a call; None if it is not guarded."""
        if not self._running:
            return None
        peer = context.peer()
        host, port = peer_address(peer), peer.rpartition(":")[2]
        if host is None or not port.isdecimal():
            return None
        key = host, int(port)
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connections[key] = _Connection(key, network_of(key[0]), _now())
        return connection

    def _proven_bucket(self, address: Address, caller: Any) -> TokenBucket:
        if caller is None:
            return self._buckets.of((address, None), *PLAINTEXT_CALLS)
        return self._buckets.of((address, caller_key(caller)), *PROVEN_CALLS)

    async def _scan(self, ports: Collection[int]) -> None:
        """Update the set of connections, and end connections that exceed a limit."""
        started_at = _now()
        seen_inodes: set[int] = set()
        connection_by_inode = {
            inode: connection for connection in self._connections.values() for inode in connection.sockets
        }
        # In a thread: it makes a system call for each of up to 10,000 descriptors, and each can wait 5 ms for
        # another thread.
        descriptors = await asyncio.to_thread(os.listdir, _DESCRIPTORS)
        checkpoint = Checkpoint()  # A number of calls is no limit: each can wait 5 ms for a busy thread.
        for descriptor in map(int, descriptors):
            if (inode := _inode(descriptor)) and inode not in seen_inodes:
                seen_inodes.add(inode)
                if connection := connection_by_inode.get(inode):
                    connection.sockets[inode] = descriptor
                elif inode in self._listeners:
                    self._listeners[inode] = descriptor
                elif inode not in self._other_sockets:
                    self._classify(descriptor, inode, ports)
            await checkpoint()
        self._other_sockets &= seen_inodes
        for inode in self._listeners.keys() - seen_inodes:
            del self._listeners[inode]
        for key, connection in tuple(self._connections.items()):
            for inode in connection.sockets.keys() - seen_inodes:
                del connection.sockets[inode]
            if not connection.sockets and connection.since < started_at:
                del self._connections[key]
        now = _now()
        self._scan_interval = max(_SCAN_INTERVAL, len(descriptors) * _SCAN_INTERVAL_PER_DESCRIPTOR)
        await self._enforce_limits(now, min(now - self._scanned_at, 2 * self._scan_interval))
        self._scanned_at = now
        self._unblock(now)
        self._log_ended(now)

    def _classify(self, descriptor: int, inode: int, ports: Collection[int]) -> None:
        """Classify a socket that is new since the last scan."""
        endpoints = _inspect_socket(descriptor, inode)
        if endpoints is None:
            return  # Closed in the meantime.
        local_port, key = endpoints
        if local_port not in ports:
            self._other_sockets.add(inode)
            return
        if key is None:
            self._listeners[inode] = descriptor
            return
        connection = self._connections.setdefault(key, _Connection(key, network_of(key[0]), _now()))
        connection.sockets[inode] = descriptor

    async def _enforce_limits(self, now: float, elapsed: float) -> None:
        """End the connections that exceed a limit.

        Args:
            now: Current time, in seconds of the event loop's clock.
            elapsed: Seconds to add to the age of all connections.
        """
        by_network: dict[Network, list[_Connection]] = {}
        for connection in tuple(self._connections.values()):
            if connection.end_reason:
                self._end(connection, connection.end_reason)
            elif connection.proven is None and connection.sockets:
                by_network.setdefault(connection.network, []).append(connection)
        extension = self._backlog if now <= self._backlog_until else 0.0
        remaining: list[tuple[int, float, _Connection]] = []
        checkpoint = Checkpoint()
        for network, connections in by_network.items():
            connections.sort(key=lambda connection: connection.since, reverse=True)
            for rank, connection in enumerate(connections):
                if connection.proven is not None:  # Proven in the meantime.
                    continue
                age = connection.age - extension
                connection.age += elapsed
                if age > PROOF_TIMEOUT:
                    self._end(connection, _NO_PROOF)
                elif rank >= MAX_UNPROVEN_PER_ADDRESS and age > CROWDED_PROOF_TIMEOUT:
                    self._end(connection, _TOO_MANY_OF_ADDRESS)
                elif _bytes_received(connection) > MAX_UNPROVEN_BYTES:
                    self._block(network, now)
                    self._end(connection, _TOO_MANY_BYTES)
                else:
                    remaining.append((rank, age, connection))
                    await checkpoint()
        remaining.sort(key=lambda item: item[:2])  # Addresses with the most connections are last.
        for _, _, connection in remaining[MAX_UNPROVEN:]:
            if connection.proven is None:
                self._end(connection, _TOO_MANY)

    def _end(self, connection: _Connection, reason: str) -> None:
        if not connection.sockets:
            connection.end_reason = reason
            self._wakeup.set()
            return
        for inode, descriptor in connection.sockets.items():
            if _shut_down(descriptor, inode):
                self.ended[reason] += 1
                self._unlogged.reasons[reason] += 1
                self._unlogged.addresses.add(connection.key[0])
                self._other_sockets.add(inode)  # Ignore the socket while gRPC closes it.
        self._connections.pop(connection.key, None)

    def _block(self, network: Network, now: float) -> None:
        """Block an address for BLOCK_TIME."""
        is_new = network not in self._blocked
        self._blocked[network] = now + BLOCK_TIME
        if len(self._blocked) > _MAX_BLOCKED:
            self._blocked.popitem(last=False)
        if is_new:
            self._update_filters()

    def _unblock(self, now: float) -> None:
        """Unblock addresses whose block has expired."""
        expired = [network for network, until in self._blocked.items() if until <= now]
        for network in expired:
            del self._blocked[network]
        if expired:
            self._update_filters()

    def _update_filters(self) -> None:
        for inode, descriptor in self._listeners.items():
            with suppress(OSError), _duplicate(descriptor, inode) as listener:
                block(listener, self._blocked)

    def _log_scan_failure(self, error: Exception) -> None:
        """Log a failed scan, at most once per _LOG_INTERVAL."""
        if (now := _now()) >= self._failed_at + _LOG_INTERVAL:
            self._failed_at = now
            log.error("scan of connections failed", problem=f"{type(error).__name__}: {error}")

    def _log_ended(self, now: float) -> None:
        """Log all ended connections in one line."""
        if not self._unlogged.reasons or now < self._logged_at + _LOG_INTERVAL:
            return
        self._logged_at = now
        ended, self._unlogged = self._unlogged, _EndedConnections()
        log.warning(
            "connections ended",
            reasons=dict(ended.reasons),
            addresses=len(ended.addresses),
            example=str(next(iter(ended.addresses))),
        )


class _Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Records the calls of services that are not in `own_services`, and of unknown methods."""

    def __init__(self, guard: ConnectionGuard) -> None:
        self._guard = guard

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the handler of a call, wrapped if the guard must record the call."""
        handler = await continuation(details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._unknown)
        if details.method.rpartition("/")[0].lstrip("/") in self._guard.own_services:
            return handler
        request = "stream" if handler.request_streaming else "unary"
        response = "stream" if handler.response_streaming else "unary"
        behavior = _recorded(getattr(handler, f"{request}_{response}"), self._guard.mark_proven)
        make = getattr(grpc, f"{request}_{response}_rpc_method_handler")
        return make(behavior, handler.request_deserializer, handler.response_serializer)

    async def _unknown(self, _: object, context: grpc.aio.ServicerContext) -> None:
        self._guard.record_unproven(context)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def _recorded(behavior: Callable[..., Any], record: Callable[[Any], None]) -> Callable[..., Any]:
    """Wrap the function that handles a call. The wrapper records the call first."""
    if inspect.isasyncgenfunction(behavior):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            record(context)
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response

        return stream
    if inspect.iscoroutinefunction(behavior):

        async def call(request: Any, context: Any) -> Any:
            record(context)
            return await behavior(request, context)

        return call

    loop = asyncio.get_running_loop()

    def in_thread(request: Any, context: Any) -> Any:
        loop.call_soon_threadsafe(record, context)
        return behavior(request, context)

    return in_thread


def _now() -> float:
    return asyncio.get_running_loop().time()


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


def _inspect_socket(descriptor: int, inode: int) -> tuple[int, _Key | None] | None:
    """Return the local port and the peer of a TCP socket; None if the socket or its connection is closed.

    The peer of a listening socket is None. For other kinds of sockets, the port is 0.
    """
    try:
        with _borrowed(descriptor) as borrowed:
            endpoints: tuple[int, _Key | None] = 0, None
            if borrowed.family in {socket.AF_INET, socket.AF_INET6} and borrowed.type == socket.SOCK_STREAM:
                local_port = borrowed.getsockname()[1]
                if borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    endpoints = local_port, None
                else:
                    endpoints = local_port, _peer_key(*borrowed.getpeername()[:2])
    except (OSError, ValueError, TypeError, IndexError, AttributeError):
        # A thread of gRPC may close the socket, and open another kind of socket with the same number.
        return None
    return endpoints if _inode(descriptor) == inode else None


def _peer_key(host: str, port: int) -> _Key:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, port


def _bytes_received(connection: _Connection) -> int:
    """Return the number of bytes received from a client; 0 if the kernel does not report it."""
    total = 0
    for descriptor in connection.sockets.values():
        with suppress(OSError, struct.error), _borrowed(descriptor) as borrowed:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
            total += _BYTES_RECEIVED.unpack(info)[0]
    return total


def _shut_down(descriptor: int, inode: int) -> bool:
    """Shut down a socket, so that gRPC closes it. Return False if it is already closed."""
    try:
        with _duplicate(descriptor, inode) as copy:
            copy.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True


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
