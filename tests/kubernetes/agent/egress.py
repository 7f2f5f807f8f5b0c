"""An HTTP CONNECT proxy on the node, through which the API server connects to pods, such as webhooks."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.support.clients import Client
from tests.support.places import Namespace
from tests.support.tcp import TcpServer, pumped


class Egress(TcpServer):
    """The proxy of an EgressSelectorConfiguration whose protocol is HTTPConnect, on a Unix socket."""

    def __init__(self, path: Path, node: Namespace) -> None:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(64)
        listener.setblocking(False)
        super().__init__(listener)
        self._client = Client(node)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = request.split(" ", 2)
        assert method == "CONNECT", request
        host, _, port = target.rpartition(":")
        try:
            connected = await self._client.connect(host, int(port))
        except OSError as error:
            writer.write(f"HTTP/1.1 502 {error}\r\n\r\n".encode())
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await pumped(reader, writer, connected)
