"""HTTP listeners for unauthenticated clients, with bounded cost for each client address.

aiohttp implements HTTP. This module accepts connections, limits their number per address, closes slow ones,
and limits the CPU time of each address. The security documentation lists the limits.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Container
from contextlib import suppress
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from xds.server.fair_share import CpuShare
from xds.server.listening import reason_of
from xds.server.proxies import is_local_address

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 128
"""Default maximum number of connections of a listener.

All listeners together use only a fraction of the usual 1,024 file descriptors: xDS needs the others.
"""
MAX_CONNECTIONS_PER_ADDRESS = 32
"""Default maximum number of connections of a client address. Prometheus and the kubelet use one or two."""
MAX_ADDRESSES = 1024
"""Maximum number of client addresses whose CPU time is tracked."""

TLS_HANDSHAKE_TIMEOUT = 5.0
"""Timeout of a TLS handshake, in seconds."""
HEADER_TIMEOUT = 10.0
"""Timeout for complete headers in seconds, from the connection or from the first byte of a later request."""
REQUEST_TIMEOUT = 12.0
"""Timeout for writing the response in seconds, from the headers.

The API server and Prometheus time out after 10 s.
"""
IDLE_TIMEOUT = 120.0
"""Seconds until an idle connection is closed.

Go clients such as the API server close idle connections after 90 s. If the server closed them first, a
request that is just being sent could fail.
"""
SHUTDOWN_TIMEOUT = 3.0
"""Seconds to wait for pending requests when the listener stops, and then for their connections."""
THROTTLE_TIMEOUT = 2.0
"""Maximum seconds that a request waits for CPU time of its address, before it fails with status 429."""

MAX_HEADERS = 64
"""Maximum number of headers of a request."""
MAX_HEADER_SIZE = 4096
"""Maximum size of a request line, a header name or a header value, in bytes."""

CONNECTION_COST = 0.0005
"""CPU seconds charged for a plaintext connection."""
HANDSHAKE_COST = 0.001
"""CPU seconds charged for a TLS connection."""
REQUEST_COST = 0.0005
"""CPU seconds charged for a request, in addition to measured work."""

ACCEPT_RETRY_DELAY = 1.0
"""Seconds to pause accepting when the process has no free file descriptors."""
LOG_INTERVAL = 60.0
"""Minimum interval between log lines with the same event about refused connections, in seconds."""
_BACKLOG = 128


class _Log(logging.LoggerAdapter[logging.Logger]):
    """A logger for aiohttp that logs malformed requests, such as port scans, as debug messages."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **kwargs: Any) -> None:
        if isinstance(exc_info, HttpProcessingError):
            self.debug(msg, *args)
        else:
            super().exception(msg, *args, exc_info=exc_info, **kwargs)


class HttpClient:
    """A client address, with its connections and its CPU share."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connections: dict[_Connection, None] = {}
        """Open connections, oldest first."""
        self.share = CpuShare()


class _Connection(asyncio.Protocol):
    """A protocol that forwards a connection's events to aiohttp, and aborts the connection on a timeout."""

    def __init__(self, client: HttpClient, accepted: socket.socket, http: asyncio.Protocol) -> None:
        self.client = client
        self.socket = accepted
        self._http = http
        client.connections[self] = None
        self._loop = asyncio.get_running_loop()
        self._is_idle = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.lost = self._loop.create_future()
        """Future that completes when the connection is closed."""

    def abort(self) -> None:
        """Close the connection immediately."""
        if self._transport:
            self._transport.abort()
        else:  # End the wait for the first byte, or the TLS handshake.
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def begin_request(self) -> None:
        self._is_idle = False
        self._set_timeout(REQUEST_TIMEOUT)

    def end_request(self) -> None:
        self._is_idle = True
        self._set_timeout(IDLE_TIMEOUT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - it is a stream
        self._transport = transport
        self._set_timeout(HEADER_TIMEOUT)
        self._http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self._is_idle = False
            self._set_timeout(HEADER_TIMEOUT)
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        return self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._transport = self._timer = None
        if not self.lost.done():
            self.lost.set_result(None)
        self._http.connection_lost(exc)

    def _set_timeout(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        if self._transport:
            self._timer = self._loop.call_later(seconds, self._transport.abort)


class HttpListener:
    """Serves an aiohttp application at an address, with limits for connections, time and CPU.

    Args:
        app: Application. A handler is cancelled when its client disconnects.
        host: Name or address to listen on.
        port: Port to listen on; 0 selects a free port.
        tls: TLS context, to serve HTTPS; None for plaintext.
        max_connections: Maximum number of connections. Beyond it, a new connection replaces the oldest
            connection of the address with the most connections.
        max_per_address: Maximum number of connections of one client address. Further connections are closed
            at once.
    """

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
        max_per_address: int = MAX_CONNECTIONS_PER_ADDRESS,
    ) -> None:
        app.middlewares.append(_limited)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_Log(logging.getLogger("aiohttp.server")),
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
            keepalive_timeout=2 * IDLE_TIMEOUT,  # _Connection enforces the timeouts.
            lingering_time=1.0,
            auto_decompress=False,
            max_line_size=MAX_HEADER_SIZE,
            max_field_size=MAX_HEADER_SIZE,
            max_headers=MAX_HEADERS,
            read_bufsize=1 << 14,
        )
        self._host = host
        self._port = port
        self._tls = tls
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._sockets: list[socket.socket] = []
        self._clients: dict[str, HttpClient] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_log: dict[str, float] = {}
        self.port = 0
        """Port of the listener, after `start`."""

    async def start(self) -> None:
        """Start to listen.

        Raises:
            OSError: the address cannot be used.
        """
        loop = asyncio.get_running_loop()
        await self._runner.setup()
        try:
            # Two sockets instead of one: clients' IPv4 addresses then look the same as on 0.0.0.0.
            hosts = ("::", "0.0.0.0") if self._host in {"", "::"} else (self._host,)
            for host in hosts if socket.has_dualstack_ipv6() else hosts[-1:]:
                port = self._sockets[0].getsockname()[1] if self._sockets else self._port
                addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                for family, address in dict.fromkeys((info[0], info[4]) for info in addresses):
                    self._sockets.append(_bind(family, address))
        except OSError as error:
            await self.stop()
            what = f"cannot listen on {self._host}:{self._port}: {reason_of(error)}"
            raise OSError(error.errno, what) from error
        for server_socket in self._sockets:
            loop.add_reader(server_socket, self._accept, server_socket)
        self.port = self._sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and close all connections after their pending requests."""
        loop = asyncio.get_running_loop()
        for server_socket in self._sockets:
            loop.remove_reader(server_socket)
            server_socket.close()
        self._sockets.clear()
        await self._runner.cleanup()
        # The remaining connections have no pending request, or their client does not read the response.
        for client in self._clients.values():
            for connection in client.connections:
                connection.abort()
        await asyncio.gather(*self._tasks)

    def _accept(self, server_socket: socket.socket) -> None:
        """Accept one connection. The event loop calls this method again if more are pending."""
        loop = asyncio.get_running_loop()
        try:
            accepted, address = server_socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            loop.remove_reader(server_socket)
            loop.call_later(ACCEPT_RETRY_DELAY, self._resume, server_socket)
            self._log_refusal("cannot accept connections", problem=str(error))
            return
        accepted.setblocking(False)
        client = self._admit(address[0])
        if client is None or self._runner.server is None:
            accepted.close()
            return
        task = loop.create_task(self._serve(_Connection(client, accepted, self._runner.server())))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _resume(self, server_socket: socket.socket) -> None:
        if server_socket in self._sockets:
            asyncio.get_running_loop().add_reader(server_socket, self._accept, server_socket)

    def _admit(self, address: str) -> HttpClient | None:
        """Charge an address for a connection. Return None if the address exceeds a limit."""
        now = asyncio.get_running_loop().time()
        if address not in self._clients and len(self._clients) >= MAX_ADDRESSES:
            self._forget_addresses(now)
        client = self._clients.pop(address, None) or HttpClient(address)
        self._clients[address] = client  # Move to the end: the least recently used are removed first.
        if len(client.connections) >= self._max_per_address:
            self._log_refusal(
                "connection refused", client=address, limit=f"{self._max_per_address} for one address"
            )
            return None
        if client.share.wait(now) > THROTTLE_TIMEOUT:  # A request would fail as well.
            self._log_refusal("connection refused", client=address, limit=_SHARE)
            return None
        client.share.charge(HANDSHAKE_COST if self._tls else CONNECTION_COST, now)
        if sum(len(other.connections) for other in self._clients.values()) >= self._max_connections:
            largest = max(self._clients.values(), key=lambda other: len(other.connections))
            oldest = next(iter(largest.connections))
            del largest.connections[oldest]
            oldest.abort()
            self._log_refusal("connection closed", client=largest.address, limit=self._max_connections)
        return client

    def _forget_addresses(self, now: float) -> None:
        idle = [client for client in self._clients.values() if not client.connections]
        unused = [client for client in idle if client.share.has_recovered(now)] or idle[: MAX_ADDRESSES // 8]
        for client in unused:
            del self._clients[client.address]

    def _log_refusal(self, event: str, **fields: object) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_log.get(event, 0.0):
            self._next_log[event] = now + LOG_INTERVAL
            log.warning(event, port=self.port, **fields)

    async def _serve(self, connection: _Connection) -> None:
        try:
            try:
                await _readable(connection.socket)
            except TimeoutError:
                connection.socket.close()  # No transport owns the socket yet.
                return
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                connection.socket,
                ssl=self._tls,
                ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT if self._tls else None,
                ssl_shutdown_timeout=TLS_HANDSHAKE_TIMEOUT if self._tls else None,
            )
            await connection.lost
        except OSError as error:
            # The client disconnected, or does not use TLS. The traceback is part of a reference cycle, which
            # would keep 0.3 MB until the next full garbage collection.
            error.__traceback__ = None
        finally:
            connection.client.connections.pop(connection, None)


async def _readable(accepted: socket.socket) -> None:
    """Wait for the first byte. Until then, a connection needs little more than its file descriptor.

    Raises:
        TimeoutError: no byte arrived within HEADER_TIMEOUT.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(accepted, readable.set)
    try:
        async with asyncio.timeout(HEADER_TIMEOUT):
            await readable.wait()
    finally:
        loop.remove_reader(accepted)


def _bind(family: int, address: tuple[Any, ...]) -> socket.socket:
    server_socket = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    server_socket.setblocking(False)
    return server_socket


_PROXY_HEADERS = (
    "Forwarded", "Via", "X-Forwarded-Client-Cert", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
    "X-Real-IP",
)  # fmt: skip
"""Headers of a reverse proxy on this machine. Its clients may be on other machines."""
_SHARE = f"{CpuShare.SHARE:.0%} of a CPU core for one address"


def _connection(request: web.Request) -> _Connection:
    """Return the connection of a request.

    Raises:
        ConnectionResetError: the connection is closed.
    """
    connection = request.transport.get_protocol() if request.transport else None
    if not isinstance(connection, _Connection):
        raise ConnectionResetError("the client disconnected")
    return connection


def client_of(request: web.Request) -> HttpClient:
    """Return the client of a request.

    Raises:
        ConnectionResetError: the connection is closed.
    """
    return _connection(request).client


def restart_timeout(request: web.Request) -> None:
    """Restart the time limit of a response that is written in parts, such as a stream of events.

    Raises:
        ConnectionResetError: the connection is closed.
    """
    _connection(request).begin_request()


def is_local(request: web.Request) -> bool:
    """Return whether a request is of a client on this machine."""
    if request.remote is None or any(name in request.headers for name in _PROXY_HEADERS):
        return False
    return is_local_address(ipaddress.ip_address(request.remote))


def foreign_host(request: web.Request, names: Container[str]) -> str:
    """Return the name in a request's Host header if it may be the name of another site; empty if it is not.

    A page of another site can make its name resolve to this server (DNS rebinding), and then read responses.
    It can use neither an address nor a name without a dot for that.

    Args:
        request: The request.
        names: Names of this server with a dot, in lower case.
    """
    header = request.headers.get("Host", "")
    if header.startswith("["):
        host = header[1:].partition("]")[0]
    else:
        host = header.partition(":")[0].rstrip(".").lower()
    return host if "." in host and host not in names and not _is_address(host) else ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@web.middleware
async def _limited(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Handle a request within the time limit and the CPU share of its client."""
    try:
        connection = _connection(request)
        connection.begin_request()
        try:
            await _throttle(connection.client.share)
            response = await handler(request)
        except web.HTTPException as error:
            await _write(request, error)
            raise
        else:
            await _write(request, response)
            return response
        finally:
            connection.end_request()
    except ConnectionError:  # The client disconnected. Otherwise, aiohttp would log a traceback.
        return web.Response()


async def _throttle(share: CpuShare) -> None:
    loop = asyncio.get_running_loop()
    if (wait := share.wait(loop.time())) > THROTTLE_TIMEOUT:
        refusal = web.HTTPTooManyRequests(
            text=f"this address has used more than {_SHARE}; try again in {wait:.0f} s\n",
            headers={"Retry-After": f"{wait:.0f}"},
        )
        refusal.force_close()
        raise refusal
    share.charge(REQUEST_COST, loop.time())
    await asyncio.sleep(wait)


async def _write(request: web.Request, response: web.StreamResponse) -> None:
    """Write the response here, so that the request timeout covers it. aiohttp does not write it again."""
    await response.prepare(request)
    await response.write_eof()
