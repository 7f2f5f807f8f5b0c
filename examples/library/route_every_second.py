"""Give an Envoy one more route every second: /1, /2, /3 and so on, each with its own response.

python route_every_second.py [ADDRESS [PORT]]      address to serve xDS at (default: 127.0.0.1:18000), and
port
                                                   that Envoy listens on (default: 10000)
"""

import asyncio
import itertools
import sys
from contextlib import suppress

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.listener import v3 as listeners
from envoy_data_plane.envoy.config.route import v3 as routes
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as http

from xds.codec import pack
from xds.resources import ROUTE
from xds.server import XdsServer
from xds.store import NackError, Store, Subscribed

ADS = core.ConfigSource(ads=core.AggregatedConfigSource())


def listener(port: int) -> listeners.Listener:
    manager = http.HttpConnectionManager(
        stat_prefix="http",
        rds=http.Rds(config_source=ADS, route_config_name="routes"),
        http_filters=[http.HttpFilter(name="router", typed_config=pack(Router()))],
    )
    chain = listeners.FilterChain(filters=[listeners.Filter(name="http", typed_config=pack(manager))])
    address = core.Address(socket_address=core.SocketAddress(address="127.0.0.1", port_value=port))
    return listeners.Listener(name="http", address=address, filter_chains=[chain])


def answer(number: int) -> routes.Route:
    body = core.DataSource(inline_string=f"this is route {number}\n")
    match = routes.RouteMatch(path=f"/{number}")
    return routes.Route(match=match, direct_response=routes.DirectResponseAction(status=200, body=body))


def configuration(count: int) -> routes.RouteConfiguration:
    answers = [answer(number) for number in range(1, count + 1)]
    host = routes.VirtualHost(name="all", domains=["*"], routes=answers)
    return routes.RouteConfiguration(name="routes", virtual_hosts=[host])


async def main(address: str = "127.0.0.1:18000", port: str = "10000") -> None:
    store = Store()
    store.set(listener(int(port)), configuration(0))
    async with XdsServer(store, address) as server:
        print(f"start an Envoy that asks 127.0.0.1:{server.port}", flush=True)
        async for client, event in store.events():
            if isinstance(event, Subscribed) and event.type_url == ROUTE:
                print(f"{client.node.id} asks for {', '.join(event.names)}", flush=True)
                break
        for count in itertools.count(1):
            store.set(configuration(count))
            try:
                await store.applied()
                print(f"added /{count}: acknowledged", flush=True)
            except NackError as error:
                print(f"added /{count}: {error}", flush=True)
            await asyncio.sleep(1)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
