"""A gRPC server with the discovery services."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from xds.protocol.limits import DEFAULT, Limits
from xds.server.admission import CheckedServer
from xds.server.connections import ConnectionGuard
from xds.server.discovery import DiscoveryService
from xds.server.proxies import Authenticate, Proxies, is_encrypted
from xds.server.stream import Observer

log = structlog.get_logger(__name__)

OPTIONS = (
    # A proxy that reconnects names all that it has, which is more than the default 4 MiB in a large mesh.
    ("grpc.max_receive_message_length", DEFAULT.request_size),
    ("grpc.max_send_message_length", -1),
    # Per connection. A proxy has one stream, or one per type; a stream that was cancelled counts until it is cleared away.
    ("grpc.max_concurrent_streams", 100),
    # Bytes that are buffered for a stream before it is read. A message that is read comes at full speed, however large.
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    # Otherwise that grows to 100 MiB for each stream of a fast client.
    ("grpc.http2.bdp_probe", 0),
    # Calls that wait for their turn, in total, about 30 kB each: those of a whole mesh that reconnects at once. A storm of more is
    # answered with CANCELLED, in part from the first number on.
    ("grpc.server.max_pending_requests", 5_000),
    ("grpc.server.max_pending_requests_hard_limit", 10_000),
    # So are, by default, those whose turn does not come within 30 s: after a cold start of a large mesh, on a busy machine.
    ("grpc.server_max_unrequested_time_in_server", 600),
    # Find out that a proxy is gone, and let proxies find out that we are.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this one the answer to a ping may take a minute, whatever the one above says.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
    # A connection whose handshakes are not done is closed; by default after two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # So is one without a call: clients make a new one for their next call.
    ("grpc.max_connection_idle_ms", 5 * 60_000),
    # A port that another process has is an error, not something to share.
    ("grpc.so_reuseport", 0),
)

MAX_CONNECTION_AGE = 30 * 60.0
"""Seconds after which connections have to be made anew, unless told otherwise."""

MAX_CONNECTIONS = 30_000
"""Connections to one server, if this process may have so many open files. Far fewer may be unproven: see `xds.server.connections`."""
RESERVED_FILES = 1_024
"""Open files that connections leave for everything else; at most half of those that this process may have."""

MAX_WATCHES = 100
"""Health watches at the same time."""
MAX_SERVICE_NAME = 1_000
"""Characters of the name of a service whose health is watched; it is kept as long as the watch."""

_UNLIMITED = 24 * 3600.0
"""Seconds, as gRPC knows no other way to stop accepting and cancel nothing."""


class XdsServer:
    """A gRPC server with the discovery services and health, and what else is `added` to it before it starts.

    `max_connection_age` is after how many seconds a connection has to be made anew, give or take a tenth that is
    drawn for each, so that proxies spread over servers that were added: its client is told to open streams elsewhere
    (GOAWAY), and those that it has end with UNAVAILABLE ten seconds later. None: never. `grace` is how many seconds
    streams have to end on shutdown. `options` are gRPC's channel arguments, over those in OPTIONS. It is started once.

    `limits` say how much each client may ask for; a client that exceeds them gets RESOURCE_EXHAUSTED.

    `address` is in plaintext; `secure` are others with gRPC's credentials for each, where the same is served over TLS.
    `authenticate` is asked who makes a call, on all of them (`is_encrypted` tells them apart); what it returns is the
    `caller` in StreamInfo, and Refused ends the call. Health answers anybody, over TLS for the server as a whole and
    only to Check.

    On Linux connections whose callers have not proved who they are within some seconds are ended, see
    `xds.server.connections`. In plaintext each call that is answered counts as proof.
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
        limits: Limits = DEFAULT,
    ) -> None:
        self.discovery = DiscoveryService(
            proxies, identifier=identifier, observer=observer, authenticate=authenticate, limits=limits
        )
        self._secure = tuple(secure)
        self._services = tuple(added)
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
        """The port that it listens on, once started; of use when the address leaves the choice with port 0."""
        self.secure_ports: tuple[int, ...] = ()
        """Those of `secure`, in that order."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. RuntimeError: the address cannot be had, or it was started before."""
        if self._server:
            raise RuntimeError("the server is started already")
        if self._is_stopped:
            raise RuntimeError(
                "the server was stopped, and its clients sent elsewhere: make another XdsServer to serve"
            )
        connections = self.discovery.connections
        # gRPC counts those of each port by itself.
        max_per_port = {"grpc.max_allowed_incoming_connections": max_connections() // (1 + len(self._secure))}
        server = grpc.aio.server(
            options=tuple((max_per_port | self._options).items()), interceptors=(connections.interceptor(),)
        )
        server.add_generic_rpc_handlers(self.discovery.handlers())
        health_server = _HealthServer(server, self._health.record_caller)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, health_server)
        connections.own_services.update(health_server.services)
        for add in self._services:
            add(server, self.discovery)
        for handler in self.discovery.handlers():
            await self._health.set(handler.service_name(), health_pb2.HealthCheckResponse.SERVING)
        try:
            self.port = server.add_insecure_port(self._address)
            self.secure_ports = tuple(server.add_secure_port(*each) for each in self._secure)
        except RuntimeError:
            await server.stop(None)
            raise
        await server.start()
        self._server = server
        ports = (port for port in (self.port, *self.secure_ports) if port > 1)  # 1: a Unix socket
        self._guard_task = asyncio.create_task(connections.run(tuple(ports)))
        log.info("serving xDS", address=self._address, port=self.port)
        for (address, _), port in zip(self._secure, self.secure_ports, strict=True):
            log.info("serving xDS over TLS", address=address, port=port)

    async def stop(self) -> None:
        """Stop accepting, end the streams with UNAVAILABLE, one by one, and cancel those left after the grace."""
        if self._server:
            with suppress(TimeoutError):  # Who watches and does not read keeps it waiting.
                await asyncio.wait_for(self._health.enter_graceful_shutdown(), self._grace)
            # gRPC counts the grace from now on, but the last of many streams is told later.
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
    """Return how many connections a server may have, given how many files this process may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, files - min(RESERVED_FILES, files // 2))


class _Health(health.aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """Health as it is, but for who may watch."""

    def __init__(self, connections: ConnectionGuard) -> None:
        super().__init__()
        self._connections = connections
        self._watches = 0

    async def record_caller(self, context: grpc.aio.ServicerContext) -> None:
        """Let everybody in. Over TLS that proves nothing."""
        if is_encrypted(context):
            self._connections.record_unproven(context)
        else:
            self._connections.mark_proven(context)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext) -> None:  # noqa: N802 - gRPC's name for it
        """Watch in plaintext. Over TLS, where anybody may connect, no stream stays open for who has not proved who it is."""
        if is_encrypted(context):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask Check: there is no Watch over TLS")
        if len(request.service) > MAX_SERVICE_NAME:
            problem = f"the name of the service is longer than {MAX_SERVICE_NAME} characters"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        if self._watches >= MAX_WATCHES:
            problem = f"there are {MAX_WATCHES} watches already, the limit (MAX_WATCHES): ask Check"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        self._watches += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watches -= 1

    async def List(self, _: object, context: grpc.aio.ServicerContext) -> None:  # noqa: N802 - gRPC's name for it
        """Say that there is none: what is inherited would say so in a thread."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "ask Check or Watch; reflection lists the services"
        )


class _HealthServer(CheckedServer):
    async def _read_request(self, context: grpc.aio.ServicerContext) -> Any:
        """Read of which service the health is asked, but not of strangers: all are as well as the server is."""
        return (
            health_pb2.HealthCheckRequest() if is_encrypted(context) else await super()._read_request(context)
        )


def _connection_age(seconds: float) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_connection_age_ms", round(seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", 10_000),
    )
