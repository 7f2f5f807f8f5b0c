"""A server built on the library, without the mesh. It serves one snapshot to all clients, with a Probe."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from datetime import timedelta

from control import respond
from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from probe import Probe

from xds.cli import logs
from xds.codec import encode
from xds.protocol.events import Acked, Nacked, Subscribed
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber, XdsServer
from xds.snapshot import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot


def cluster_name(number: int) -> str:
    return f"outbound|8000||svc-{number:04}.shop.svc.cluster.local"


def make_cluster(number: int) -> Resource:
    ads = core.ConfigSource(ads=core.AggregatedConfigSource())
    message = cluster.Cluster(
        name=cluster_name(number),
        type=cluster.ClusterDiscoveryType.EDS,
        connect_timeout=timedelta(seconds=10),
        eds_cluster_config=cluster.ClusterEdsClusterConfig(eds_config=ads),
    )
    return Resource.of(CLUSTER, message.name, encode(message), refs=((ENDPOINT, message.name),))


def make_assignment(number: int, size: int, port: int) -> Resource:
    hosts = [
        endpoint.LbEndpoint(
            endpoint=endpoint.Endpoint(
                address=core.Address(
                    socket_address=core.SocketAddress(address=f"10.1.1.{host}", port_value=port)
                )
            )
        )
        for host in range(1, size + 1)
    ]
    message = endpoint.ClusterLoadAssignment(
        cluster_name=cluster_name(number), endpoints=[endpoint.LocalityLbEndpoints(lb_endpoints=hosts)]
    )
    return Resource.of(ENDPOINT, message.cluster_name, encode(message))


class SharedSnapshot:
    """An implementation of `Proxies` that serves the same snapshot to all clients."""

    def __init__(self, services: int, endpoints: int) -> None:
        self._size = endpoints
        self._clusters = ResourceSet(make_cluster(number) for number in range(services))
        self._assignments = [make_assignment(number, endpoints, 8000) for number in range(services)]
        self._subscribers: set[Subscriber] = set()
        self._port = 8000
        self.snapshot = self._build_snapshot()

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        subscriber = Subscriber(node, stream)
        subscriber.publish(self.snapshot)
        self._subscribers.add(subscriber)
        return subscriber

    def disconnect(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        """Ignore events."""

    def change(self, count: int) -> None:
        """Change the first `count` assignments, then publish the snapshot. Encoding them is not measured."""
        self._port += 1
        self._assignments[:count] = [make_assignment(n, self._size, self._port) for n in range(count)]
        probe.changed = time.monotonic()
        self.snapshot = self._build_snapshot()
        for subscriber in self._subscribers:
            subscriber.publish(self.snapshot)

    def _build_snapshot(self) -> Snapshot:
        return Snapshot({CLUSTER: self._clusters, ENDPOINT: ResourceSet(self._assignments)})


async def main(services: int, endpoints: int) -> None:
    proxies = SharedSnapshot(services, endpoints)
    probe.commands |= {"one": lambda: proxies.change(1), "all": lambda: proxies.change(services)}
    probe.attach(lambda: True)
    server = XdsServer(proxies, "127.0.0.1:0")
    await server.start()
    respond({"ports": (server.port,), "ready": time.monotonic(), **probe.sample()})
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop()


probe = Probe()

if __name__ == "__main__":
    logs.configure()  # Log to stderr, because responses to commands are written to stdout.
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
