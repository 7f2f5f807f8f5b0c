"""HTTP applications: one that echoes requests, over HTTP/1.1 and HTTP/2 on one port, and the real httpbin."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Mapping
from socketserver import ThreadingMixIn
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from aiohttp import web

from tests.support import http2
from tests.support.places import HERE, Place

PIECES_PER_SECOND = 10


class EchoApp:
    """Answers every path with JSON like httpbin's /headers, and its own name: `headers`, `pod`, `protocol`...

    `/slow?seconds=N` sends a response of N * PIECES_PER_SECOND lines over N seconds. Over HTTP/1.1,
    `/forbidden` has status 403.
    """

    def __init__(self, name: str, port: int, *, place: Place = HERE, address: str = "0.0.0.0") -> None:
        self.name = name
        self.listener = place.listener(address, port)
        self.port: int = self.listener.getsockname()[1]

    async def __aenter__(self) -> Self:
        self._http1 = web.Server(self._handle, access_log=None)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Either(self), sock=self.listener)
        self._open: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for transport in list(self._open):
            transport.abort()
        await self._http1.shutdown(1)
        await self._server.wait_closed()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        status = 403 if request.path == "/forbidden" else 200
        response = web.StreamResponse(status=status, headers={"content-type": "application/json"})
        await response.prepare(request)
        peer = request.transport.get_extra_info("peername") if request.transport else None
        async for some in self.body(request.path_qs, dict(_joined(request)), "HTTP/1.1", peer):
            await response.write(some)
        await response.write_eof()
        return response

    async def body(
        self, path: str, headers: Mapping[str, str], protocol: str, peer: Any
    ) -> AsyncIterator[bytes]:
        """Produce the body of a response, in pieces."""
        url = urlsplit(path)
        if url.path == "/slow":
            seconds = float(parse_qs(url.query)["seconds"][0])
            for piece in range(int(seconds * PIECES_PER_SECOND)):
                yield f"{piece}\n".encode()
                await asyncio.sleep(1 / PIECES_PER_SECOND)
            return
        seen = {
            "-".join(part.capitalize() for part in name.split("-")): value for name, value in headers.items()
        }
        echo = {"headers": seen, "pod": self.name, "protocol": protocol, "peer": peer, "path": path}
        yield json.dumps(echo, indent=2).encode()


class _Either(asyncio.Protocol):
    """Hands a connection to HTTP/2 if it begins with the preface, else to HTTP/1.1."""

    def __init__(self, app: EchoApp) -> None:
        self._app = app
        self._begun = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._app._open.add(transport)

    def data_received(self, data: bytes) -> None:
        self._begun += data
        shared = min(len(self._begun), len(http2.PREFACE))
        is_http2 = self._begun[:shared] == http2.PREFACE[:shared]
        if is_http2 and shared < len(http2.PREFACE):
            return
        protocol: asyncio.Protocol = self._http2() if is_http2 else self._app._http1()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._begun)

    def _http2(self) -> http2.ServerProtocol:
        peer = self._transport.get_extra_info("peername")

        def respond(path: str, fields: dict[str, str]) -> AsyncIterator[bytes]:
            headers = {"host": fields.get(":authority", "")}
            headers |= {name: value for name, value in fields.items() if not name.startswith(":")}
            return self._app.body(path, headers, "HTTP/2", peer)

        return http2.ServerProtocol(respond)


class Httpbin:
    """The real httpbin, in threads of its own."""

    def __init__(self, port: int, *, place: Place = HERE, address: str = "127.0.0.1") -> None:
        from httpbin import app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: object) -> None:
                pass

        listener = place.listener(address, port)
        listener.setblocking(True)
        self.port: int = listener.getsockname()[1]
        descriptor = listener.detach()
        self._server = make_server(address, port, app, threaded=True, request_handler=Quiet, fd=descriptor)
        socket.close(descriptor)  # the server has a duplicate
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._server.shutdown)
        await asyncio.to_thread(self._thread.join)
        self._server.server_close()


class WsgirefHttpbin(Httpbin):
    """The real httpbin behind a WSGI server that keeps header names with underscores, as PEP 3333 allows."""

    def __init__(self, port: int, *, place: Place = HERE, address: str = "127.0.0.1") -> None:
        from httpbin import app

        class Quiet(WSGIRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingMixIn, WSGIServer):
            daemon_threads = True

        self._server = Server((address, port), Quiet, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = place.listener(address, port)
        self._server.socket.setblocking(True)
        self._server.server_name, self._server.server_port = address, port
        self._server.setup_environ()
        self._server.set_app(app)
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})


def _joined(request: web.BaseRequest) -> dict[str, str]:
    """Return the headers as WSGI does: one that came twice is joined by commas."""
    joined: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        joined[key] = f"{joined[key]},{value}" if key in joined else value
    return joined
