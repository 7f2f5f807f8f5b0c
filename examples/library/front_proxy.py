"""Configure an Envoy as a front proxy of two HTTP servers, which this program runs as well.

Usage: python front_proxy.py [ADDRESS [PORT]]

ADDRESS is the address to serve xDS on (default: 127.0.0.1:18000). Envoy listens on PORT (default: 10000).
"""

import asyncio
import sys
from contextlib import suppress

from xds.builders import cluster, endpoints, http_listener, route, routes
from xds.server import XdsServer
from xds.store import Acked, Store


async def start_app(name: str) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n%s\n" % name.encode())
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


async def main(address: str = "127.0.0.1:18000", port: str = "10000") -> None:
    apps = [await start_app(name) for name in "ab"]
    addresses = [f"127.0.0.1:{app.sockets[0].getsockname()[1]}" for app in apps]
    store = Store()
    store.set(
        http_listener("http", f"127.0.0.1:{port}", routes="routes"),
        routes("routes", [route("apps")]),
        cluster("apps"),
        endpoints("apps", addresses),
    )
    async with XdsServer(store, address) as server:
        print(f"waiting for an Envoy on 127.0.0.1:{server.port}", flush=True)
        async for client, event in store.events():
            if isinstance(event, Acked):
                kind = event.type_url.rpartition(".")[2]
                print(f"{client.node.id} ACKed {kind} {', '.join(event.names)}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
