"""A program that uses the library's types. test_types.py copies it out of the tree to check it."""

import asyncio

from envoy_data_plane.envoy.config.cluster.v3 import Cluster

from xds.builders import cluster, endpoints, http_listener, route, routes
from xds.introspect.diff import diff
from xds.names import xdstp
from xds.resources import LISTENER, Resource, resource
from xds.server import Node, StreamInfo, Subscriber, XdsServer
from xds.snapshot import Snapshot
from xds.store import Acked, Nacked, NackError, Store


class Restricted(Store):
    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        return super().connect(node, stream)


async def main() -> None:
    store = Restricted(group=lambda node: node.cluster)
    web: Cluster = cluster("web")
    made: Resource = resource(web, sources=["clusters.toml:1"])
    store.set(made, endpoints("web", {"10.0.0.1:80": 2}), http_listener("l", "0.0.0.0:80", routes="r"))
    with store.change() as change:
        change.set(routes("r", [route({"web": 1})]), group="edge")
        change.remove(LISTENER, xdstp(LISTENER, "old"))
    before: Snapshot = store.view("a")
    for difference in diff(before, store.view("b")):
        print(difference.fields)
    async with XdsServer(store, "127.0.0.1:0") as server:
        port: int = server.port
        try:
            streams = await store.applied(at_least=1)
            nodes: list[str] = [stream.node.id for stream in streams]
            print(port, nodes)
        except NackError as error:
            names: tuple[str, ...] = error.names
            print(names, error.message)
        async for client, event in store.events():
            if isinstance(event, Acked | Nacked):
                print(client.node.id, event.nonce)


asyncio.run(main())
