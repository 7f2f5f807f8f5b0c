"""Tell gRPC clients where `xds:///svc` is, with no proxy in between.

python api_listener.py [ADDRESS]      where to serve xDS; 127.0.0.1:18000 if it is not said
"""

import asyncio
import sys
from contextlib import suppress

import grpc.aio
from envoy_data_plane.envoy.config.cluster import v3 as clusters
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoints
from envoy_data_plane.envoy.config.listener import v3 as listeners
from envoy_data_plane.envoy.config.route import v3 as routes
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as http
from grpc_health.v1 import health, health_pb2_grpc

from xds.descriptors import pack
from xds.server import XdsServer
from xds.store import Acked, Store

ADS = core.ConfigSource(ads=core.AggregatedConfigSource())

router = http.HttpFilter(name="router", typed_config=pack(Router()))
manager = http.HttpConnectionManager(
    rds=http.Rds(config_source=ADS, route_config_name="svc-routes"), http_filters=[router]
)
listener = listeners.Listener(name="svc", api_listener=listeners.ApiListener(api_listener=pack(manager)))

everything = routes.Route(match=routes.RouteMatch(prefix=""), route=routes.RouteAction(cluster="backends"))
host = routes.VirtualHost(name="all", domains=["*"], routes=[everything])
route = routes.RouteConfiguration(name="svc-routes", virtual_hosts=[host])

eds = clusters.ClusterEdsClusterConfig(eds_config=ADS)
cluster = clusters.Cluster(name="backends", type=clusters.ClusterDiscoveryType.EDS, eds_cluster_config=eds)


def assignment(port: int) -> endpoints.ClusterLoadAssignment:
    address = core.Address(socket_address=core.SocketAddress(address="127.0.0.1", port_value=port))
    one = endpoints.LbEndpoint(endpoint=endpoints.Endpoint(address=address))
    here = endpoints.LocalityLbEndpoints(
        locality=core.Locality(zone="a"), load_balancing_weight=1, lb_endpoints=[one]
    )
    return endpoints.ClusterLoadAssignment(cluster_name="backends", endpoints=[here])


async def main(address: str = "127.0.0.1:18000") -> None:
    backend = grpc.aio.server()  # What the clients are to reach: any gRPC server.
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), backend)
    port = backend.add_insecure_port("127.0.0.1:0")
    await backend.start()

    store = Store()
    store.set(listener, route, cluster, assignment(port))
    try:
        async with XdsServer(store, address) as server:
            print(f"ask 127.0.0.1:{server.port} where svc is: it is 127.0.0.1:{port}", flush=True)
            async for client, event in store.events():
                if isinstance(event, Acked):
                    print(f"{client.node.id} took {', '.join(event.names)}", flush=True)
    finally:
        await backend.stop(None)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
