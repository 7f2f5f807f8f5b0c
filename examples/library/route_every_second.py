"""Add a route to an Envoy every second: /1, /2, /3 and so on, each with its own response.

Usage: python route_every_second.py [ADDRESS [PORT]]

ADDRESS is the address to serve xDS on (default: 127.0.0.1:18000). Envoy listens on PORT (default: 10000).
"""

import asyncio
import itertools
import sys
from contextlib import suppress

from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration

from xds.builders import direct_response, http_listener, routes
from xds.resources import ROUTE
from xds.server import XdsServer
from xds.store import NackError, Store, Subscribed


def configuration(count: int) -> RouteConfiguration:
    numbers = range(1, count + 1)
    numbered = [direct_response(200, f"this is route {number}\n", path=f"/{number}") for number in numbers]
    return routes("routes", numbered)


async def main(address: str = "127.0.0.1:18000", port: str = "10000") -> None:
    store = Store()
    store.set(http_listener("http", f"127.0.0.1:{port}", routes="routes"), configuration(0))
    async with XdsServer(store, address) as server:
        print(f"waiting for an Envoy on 127.0.0.1:{server.port}", flush=True)
        async for client, event in store.events():
            if isinstance(event, Subscribed) and event.type_url == ROUTE:
                print(f"{client.node.id} subscribed to {', '.join(event.names)}", flush=True)
                break
        for count in itertools.count(1):
            store.set(configuration(count))
            try:
                await store.applied()
                print(f"added /{count}: ACKed", flush=True)
            except NackError as error:
                print(f"added /{count}: {error}", flush=True)
            await asyncio.sleep(1)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
