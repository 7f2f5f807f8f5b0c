"""Configure proxyless gRPC clients of `xds:///svc`, and serve gRPC's health service as its only endpoint.

Usage: python api_listener.py [ADDRESS]

ADDRESS is the address to listen on (default: 127.0.0.1:18000).
"""

import asyncio
import sys
from contextlib import suppress

from xds.builders import api_listener, cluster, endpoints, route, routes
from xds.server import XdsServer
from xds.store import Acked, Store


async def main(address: str = "127.0.0.1:18000") -> None:
    store = Store()
    store.set(
        api_listener("svc", routes="svc-routes"),
        routes("svc-routes", [route("backends")]),
        cluster("backends"),
    )
    async with XdsServer(store, address) as server:
        # XdsServer also serves gRPC's health service.
        store.set(endpoints("backends", [f"127.0.0.1:{server.port}"]))
        print(f"serving xds:///svc on 127.0.0.1:{server.port}", flush=True)
        async for client, event in store.events():
            if isinstance(event, Acked):
                print(f"{client.node.id} ACKed {', '.join(event.names)}", flush=True)


with suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
