"""HTTP/2 with prior knowledge: one request on a connection, and the server's side as a protocol."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError

from tests.support.answers import Answer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Respond = Callable[[str, dict[str, str]], AsyncIterator[bytes]]
"""(path, headers) -> the body of a 200, in pieces."""


class ClosedError(ConnectionError):
    """The connection or stream ended before the response did."""


async def request(
    connected: socket.socket,
    authority: str,
    path: str,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send a GET over an established connection, and close it."""
    name = authority if tls else None
    reader, writer = await asyncio.open_connection(sock=connected, ssl=tls, server_hostname=name)
    try:
        link = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        link.initiate_connection()
        stream = link.get_next_available_stream_id()
        fields = {":method": "GET", ":scheme": "http", ":authority": authority, ":path": path, **headers}
        link.send_headers(stream, list(fields.items()), end_stream=True)
        code, seen, body = "", {}, b""
        while True:
            writer.write(link.data_to_send())
            await writer.drain()
            data = await reader.read(65536)
            if not data:
                raise ClosedError("closed by the server")
            for event in _received(link, data):
                match event:
                    case ResponseReceived(headers=got):
                        seen = {str(name): str(value) for name, value in got}
                        code = seen.pop(":status")
                    case DataReceived(data=some, flow_controlled_length=length):
                        body += some
                        link.acknowledge_received_data(length, stream)
                    case StreamReset() | ConnectionTerminated():
                        raise ClosedError(repr(event))
                    case StreamEnded():
                        return Answer(code=code, text=body.decode(), headers=seen)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


class ServerProtocol(asyncio.Protocol):
    """Answers every request with 200 and what `respond` says. Bodies of requests are passed over."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._link = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._answering: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._link.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = _received(self._link, data)
        except ClosedError:
            self._transport.close()
            return
        for event in events:
            match event:
                case RequestReceived(stream_id=stream, headers=fields):
                    headers = {str(name): str(value) for name, value in fields}
                    self._answering[stream] = asyncio.ensure_future(self._answer(stream, headers))
                case DataReceived(stream_id=stream, flow_controlled_length=length):
                    self._link.acknowledge_received_data(length, stream)
                case StreamReset(stream_id=stream):
                    self._cancel(stream)
                case ConnectionTerminated():
                    self._transport.close()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        for stream in list(self._answering):
            self._cancel(stream)

    async def _answer(self, stream: int, headers: dict[str, str]) -> None:
        try:
            self._link.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
            async for some in self._respond(headers[":path"], headers):
                self._link.send_data(stream, some)
                self._flush()
            self._link.end_stream(stream)
            self._flush()
        except ProtocolError:
            self._transport.close()
        finally:
            self._answering.pop(stream, None)

    def _cancel(self, stream: int) -> None:
        if task := self._answering.pop(stream, None):
            task.cancel()

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._link.data_to_send())


def _received(link: H2Connection, data: bytes) -> list[Event]:
    try:
        return link.receive_data(data)
    except ProtocolError as error:
        raise ClosedError(str(error)) from error
