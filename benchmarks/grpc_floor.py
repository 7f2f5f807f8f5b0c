"""The gRPC floor: a server that only writes bytes to many streams with `grpc.aio`, and reads the replies.

It is as fast as a server with this transport can be. Its channel options are those of `xds.server`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import grpc.aio
from control import read_command, respond
from http2 import PATH

from xds.server.listening import OPTIONS


class Floor(grpc.GenericRpcHandler):
    """Sends the requested messages to all streams."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._sends_on_connect = False
        self._push = asyncio.Event()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Handle the delta method of ADS."""
        return grpc.stream_stream_rpc_method_handler(self._stream) if details.method == PATH else None

    def handle(self, command: dict[str, Any]) -> None:
        """Prepare the messages. Send them to all streams, or to each new stream."""
        size, remainder = divmod(command["size"], command["messages"])
        self._messages = [bytes(size)] * (command["messages"] - 1) + [bytes(size + remainder)]
        self._sends_on_connect = command["do"] == "send_on_connect"
        respond({"changed": time.monotonic()})
        if not self._sends_on_connect:
            push, self._push = self._push, asyncio.Event()
            push.set()

    async def _stream(self, _: object, context: grpc.aio.ServicerContext) -> None:
        await context.read()
        reader = asyncio.create_task(_read(context))
        try:
            if self._sends_on_connect:
                await self._write(context)
            while True:
                await self._push.wait()
                await self._write(context)
        finally:
            reader.cancel()

    async def _write(self, context: grpc.aio.ServicerContext) -> None:
        for message in self._messages:
            await context.write(message)


async def _read(context: grpc.aio.ServicerContext) -> None:
    while await context.read() is not grpc.aio.EOF:
        pass


async def main() -> None:
    """Serve until the parent process exits."""
    floor = Floor()
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((floor,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), read_command, floor.handle)
    respond({"port": port})
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
