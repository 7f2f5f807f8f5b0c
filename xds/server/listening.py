"""A gRPC server with the discovery services."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from xds.protocol.limits import DEFAULT_LIMITS, Limits
from xds.server.admission import CheckedServer
from xds.server.connections import ConnectionGuard
from xds.server.discovery import DiscoveryService
from xds.server.interceptor import CallInterceptor
from xds.server.proxies import Authenticate, Proxies, is_encrypted
from xds.server.stream import Observer

log = structlog.get_logger(__name__)

OPTIONS = (
    # A reconnecting proxy names all its resources. In a large mesh, that exceeds the default of 4 MiB.
    ("grpc.max_receive_message_length", DEFAULT_LIMITS.request_size),
    ("grpc.max_send_message_length", -1),
    # Maximum for each connection. A proxy has one stream, or one per type. Cancelled streams count until gRPC
    # removes them.
    ("grpc.max_concurrent_streams", 100),
    # Bytes buffered for a stream before it is read. This does not limit the size or the speed of messages.
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    # With this probe, the buffer of each stream of a fast client grows to 100 MiB.
    ("grpc.http2.bdp_probe", 0),
    # Total number of calls that wait for a handler. Each uses about 30 kB. They must allow a whole mesh to
    # reconnect. Above the first number, gRPC cancels some of the calls; above the second, all.
    ("grpc.server.max_pending_requests", 5_000),
    ("grpc.server.max_pending_requests_hard_limit", 10_000),
    # By default, gRPC cancels calls that have waited for 30 s. That is too short for a cold start of a large
    # mesh.
    ("grpc.server_max_unrequested_time_in_server", 600),
    # Detect lost proxies, and let proxies detect a lost server.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this, a ping may remain unanswered for a minute regardless of the keepalive timeout.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
    # Timeout of the TLS and HTTP/2 handshakes. The default is two minutes. When a whole mesh reconnects to a
    # server that has little CPU, most handshakes take seconds.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Close connections without a call. Clients reconnect for their next call.
    ("grpc.max_connection_idle_ms", 5_000),
    # Fail if another process listens on the port, instead of sharing it.
    ("grpc.so_reuseport", 0),
)
"""Default gRPC channel arguments of a server."""

MAX_CONNECTION_AGE = 30 * 60.0
"""Default maximum age of a connection, in seconds."""

MAX_CONNECTIONS = 30_000
"""Maximum number of connections to one server, if the limit of open files allows it."""
RESERVED_FILES = 1_024
"""Number of open files reserved for other purposes; at most half of the limit of the process."""

MAX_WATCHES = 100
"""Maximum number of concurrent health watches."""
MAX_SERVICE_NAME = 1_000
"""Maximum length of a watched service name, in characters. The name is stored while the watch is open."""

_UNLIMITED = 24 * 3600.0
"""Grace in seconds that does not expire. gRPC then stops accepting calls, and cancels none."""


class XdsServer:
    """A gRPC server with the discovery services and the health service.

    On Linux, the server ends connections that send too much before a call on them is accepted: see
    `xds.server.connections`. In plaintext, any answered call counts as accepted.

    The health service accepts all callers. Over TLS, it answers only Check, for the server as a whole.

    A server can be started only once.

    Args:
        proxies: Decides what each client gets.
        address: Address of the plaintext port, such as `127.0.0.1:15010`; port 0 selects a free port.
        identifier: Identifier of the control plane in responses.
        grace: Seconds for streams to end on shutdown.
        max_connection_age: Maximum age of a connection in seconds, with a random deviation of 10 %; None for
            no limit. The limit spreads clients over servers that were added. At this age, the client receives
            a GOAWAY frame, and its streams end with UNAVAILABLE ten seconds later.
        options: gRPC channel arguments, which override `OPTIONS`.
        observer: Observer of all streams.
        added: Functions that add other services. They are called before the server starts.
        secure: Address and gRPC credentials of each TLS port. They have the same services.
        authenticate: Authenticates calls on all ports. `is_encrypted` tells TLS from plaintext. The default
            accepts all callers.
        limits: Limits of each client. A client that exceeds them gets RESOURCE_EXHAUSTED.
        interceptors: Interceptors of `grpc.aio` for all calls. They run after the server's own.
        health: Whether to serve the health service. Without it, `added` can add another one.

    Raises:
        TypeError: An interceptor is not one of `grpc.aio`.
        ValueError: `grace` is negative, or `max_connection_age` is not positive.
    """

    def __init__(
        self,
        proxies: Proxies,
        address: str,
        *,
        identifier: str = "",
        grace: float = 1.0,
        max_connection_age: float | None = MAX_CONNECTION_AGE,
        options: Iterable[tuple[str, Any]] = (),
        observer: Observer | None = None,
        added: Iterable[Callable[[grpc.aio.Server, DiscoveryService], None]] = (),
        secure: Iterable[tuple[str, grpc.ServerCredentials]] = (),
        authenticate: Authenticate | None = None,
        limits: Limits = DEFAULT_LIMITS,
        interceptors: Iterable[grpc.aio.ServerInterceptor] = (),
        health: bool = True,
    ) -> None:
        if grace < 0:
            raise ValueError(f"grace={grace} is negative; 0 ends the streams at once")
        if max_connection_age is not None and max_connection_age <= 0:
            raise ValueError(f"max_connection_age={max_connection_age} is not positive; None is no limit")
        self._interceptors = tuple(interceptors)
        for interceptor in self._interceptors:
            if not isinstance(interceptor, grpc.aio.ServerInterceptor):
                raise TypeError(
                    f"interceptors contains {interceptor!r}, which is not a grpc.aio.ServerInterceptor"
                )
        self.discovery = DiscoveryService(
            proxies, identifier=identifier, observer=observer, authenticate=authenticate, limits=limits
        )
        self._secure = tuple(secure)
        self._added = tuple(added)
        self._serves_health = health
        self._health = _Health(self.discovery.connections)
        self._address = address
        self._grace = grace
        age = () if max_connection_age is None else _connection_age(max_connection_age)
        size = ("grpc.max_receive_message_length", limits.request_size)
        self._options = dict((*OPTIONS, size, *age, *options))
        self._server: grpc.aio.Server | None = None
        self._guard_task: asyncio.Task[None] | None = None
        self._is_stopped = False
        self.port = 0
        """Port of `address`, after `start`."""
        self.secure_ports: tuple[int, ...] = ()
        """Ports of `secure` in the same order, after `start`."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start to listen.

        Raises:
            RuntimeError: an address cannot be used, or the server was started before.
        """
        if self._server:
            raise RuntimeError("the server is already started")
        if self._is_stopped:
            raise RuntimeError("the server was stopped: create a new XdsServer")
        connections = self.discovery.connections
        # gRPC counts the connections of each port separately.
        max_per_port = {"grpc.max_allowed_incoming_connections": max_connections() // (1 + len(self._secure))}
        server = grpc.aio.server(
            options=tuple((max_per_port | self._options).items()),
            interceptors=(CallInterceptor(connections), *self._interceptors),
        )
        server.add_generic_rpc_handlers(self.discovery.handlers())
        if self._serves_health:
            health_server = _HealthServer(server, self._health.record_caller)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, health_server)
            connections.own_services.update(health_server.services)
        for add in self._added:
            add(server, self.discovery)
        for handler in self.discovery.handlers():
            await self._health.set(handler.service_name(), health_pb2.HealthCheckResponse.SERVING)
        address = self._address
        secure_ports = []
        try:
            self.port = server.add_insecure_port(address)
            for address, credentials in self._secure:
                secure_ports.append(server.add_secure_port(address, credentials))
        except RuntimeError as error:
            await server.stop(None)
            raise RuntimeError(f"cannot listen on {address}: {_bind_problem(address)}") from error
        self.secure_ports = tuple(secure_ports)
        await server.start()
        self._server = server
        ports = (port for port in (self.port, *self.secure_ports) if port > 1)  # 1: a Unix socket
        self._guard_task = asyncio.create_task(connections.run(tuple(ports)))
        log.info("serving xDS", address=self._address, port=self.port)
        for (secure_address, _), port in zip(self._secure, self.secure_ports, strict=True):
            log.info("serving xDS over TLS", address=secure_address, port=port)

    async def stop(self) -> None:
        """Stop accepting calls, and end the streams with UNAVAILABLE one by one.

        Streams that are still open after the grace period are cancelled.
        """
        if self._server:
            with suppress(TimeoutError):  # A health watcher that does not read delays this.
                await asyncio.wait_for(self._health.enter_graceful_shutdown(), self._grace)
            # gRPC must not cancel streams that the drain has not ended yet.
            closing = asyncio.create_task(self._server.stop(_UNLIMITED))
            try:
                await asyncio.gather(
                    asyncio.wait((closing,), timeout=self._grace), self.discovery.drain(grace=self._grace)
                )
            finally:
                closing.cancel()
            await self._server.stop(None)
            await self.discovery.wait_closed(grace=self._grace)
            if self._guard_task:
                self._guard_task.cancel()
                await asyncio.wait((self._guard_task,))
            self._server, self._is_stopped = None, True


def max_connections() -> int:
    """Return the maximum number of connections, given the limit of open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, files - min(RESERVED_FILES, files // 2))


class _Health(health.aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """The health service, with limits for Watch."""

    def __init__(self, connections: ConnectionGuard) -> None:
        super().__init__()
        self._connections = connections
        self._watches = 0

    async def record_caller(self, context: grpc.aio.ServicerContext) -> None:
        """Accept all callers. A health check over TLS does not prove the connection."""
        if not is_encrypted(context):
            self._connections.mark_proven(context)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext) -> None:  # noqa: N802
        """Watch a status, in plaintext only. Over TLS, unauthenticated callers must not keep streams open."""
        if is_encrypted(context):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Watch is not available over TLS: use Check")
        if len(request.service) > MAX_SERVICE_NAME:
            problem = f"the service name is longer than {MAX_SERVICE_NAME} characters"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        if self._watches >= MAX_WATCHES:
            problem = f"{MAX_WATCHES} watches are open, the maximum: use Check"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        self._watches += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watches -= 1

    async def List(self, _: object, context: grpc.aio.ServicerContext) -> None:  # noqa: N802
        """Abort as unimplemented. The inherited method would use a thread for that."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "use Check or Watch; reflection lists the services"
        )


class _HealthServer(CheckedServer):
    async def _read_request(self, context: grpc.aio.ServicerContext) -> Any:
        """Read requests only in plaintext. Over TLS, the answer is the server's status in any case."""
        return (
            health_pb2.HealthCheckRequest() if is_encrypted(context) else await super()._read_request(context)
        )


def _connection_age(seconds: float) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_connection_age_ms", round(seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", 10_000),
    )


def _bind_problem(address: str) -> str:
    """Return why an address cannot be used. gRPC only logs the reason."""
    if address.startswith("unix"):
        return "the socket cannot be created"
    host, _, port = address.rpartition(":")
    try:
        resolved = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, target in resolved:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(target)
    except OSError as error:
        return reason_of(error)
    return "the address cannot be used"


def reason_of(error: OSError) -> str:
    """Return why an address cannot be used, without the additions of Python's modules."""
    # The numbers of name resolution errors are negative and no numbers of the operating system.
    number = error.errno or 0
    return (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()
