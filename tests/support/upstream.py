"""An HTTP application that says which one it is, cheaply: requests come by the thousand."""

from __future__ import annotations

import asyncio

from tests.support.places import HERE
from tests.support.tcp import TcpServer

SLOW_PATH = "/slow"
"""Where an answer takes a moment."""

_MOMENT = 0.03


class Upstream(TcpServer):
    """Answers every request with the number of its port."""

    def __init__(self) -> None:
        super().__init__(HERE.listener("127.0.0.1", 0))
        self._answer = answer(str(self.port))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.split(b" ", 2)[1] == SLOW_PATH.encode():
                await asyncio.sleep(_MOMENT)
            writer.write(self._answer)


def answer(text: str) -> bytes:
    """Return an HTTP response."""
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()
