"""Serve the endpoints of `xds:///svc` to gRPC clients.

python api_listener.py [ADDRESS]      address to serve xDS at (default: 127.0.0.1:18000)
"""

import asyncio
import sys
from contextlib import suppress

from envoy_data_plane.envoy.config.cluster import v3 as clusters
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoints
from envoy_data_plane.envoy.config.listener import v3 as listeners
from envoy_data_plane.envoy.config.route import v3 as routes
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as http

from xds.codec import pack
from xds.server import XdsServer
from xds.store import Acked, Store

ADS = core.ConfigSource(ads=core.AggregatedConfigSource())
rds = http.Rds(config_source=ADS, route_config_name="svc-routes")
router = http.HttpFilter(name="router", typed_config=pack(Router()))
api = listeners.ApiListener(api_listener=pack(http.HttpConnectionManager(rds=rds, http_filters=[router])))
every = routes.Route(match=routes.RouteMatch(prefix=""), route=routes.RouteAction(cluster="backends"))
host = routes.VirtualHost(name="all", domains=["*"], routes=[every])
eds = clusters.ClusterEdsClusterConfig(eds_config=ADS)


def backends(port: int) -> endpoints.ClusterLoadAssignment:
    address = core.Address(socket_address=core.SocketAddress(address="127.0.0.1", port_value=port))
    one = endpoints.LbEndpoint(endpoint=endpoints.Endpoint(address=address))
    zone = core.Locality(zone="a")
    local = endpoints.LocalityLbEndpoints(locality=zone, load_balancing_weight=1, lb_endpoints=[one])
    return endpoints.ClusterLoadAssignment(cluster_name="backends", endpoints=[local])


async def main(address: str = "127.0.0.1:18000") -> None:
    store = Store()
    store.set(listeners.Listener(name="svc", api_listener=api))
    store.set(routes.RouteConfiguration(name="svc-routes", virtual_hosts=[host]))
    store.set(
        clusters.Cluster(name="backends", type=clusters.ClusterDiscoveryType.EDS, eds_cluster_config=eds)
    )
    async with XdsServer(store, address) as server:
        store.set(backends(server.port))  # It serves gRPC's health service, too: something to reach.
        print(f"ask 127.0.0.1:{server.port} where svc is", flush=True)
        async for client, event in store.events():
            if isinstance(event, Acked):
                print(f"{client.node.id} took {', '.join(event.names)}", flush=True)


with suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
