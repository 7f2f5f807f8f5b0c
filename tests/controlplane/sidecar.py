"""A simulated sidecar, connected to a controller without sockets."""

from __future__ import annotations

import asyncio
from typing import Self

from xds.mesh.controlplane.controller import Controller
from xds.server import Subscriber
from xds.snapshot import LISTENER, Resource, tag_of
from xds.store import Store
from xds.testing import EnvoyClient

WITHIN = 30.0


class Sidecar(EnvoyClient):
    """The sidecar of a pod. It is connected to its controller in an `async with` block.

    When it enters another block, it reports the resources of the last one.
    """

    subscriber: Subscriber
    """The controller's end of the stream."""

    def __init__(self, controller: Controller, name: str, namespace: str) -> None:
        node = f"sidecar~10.0.0.1~{name}.{namespace}~{namespace}.svc.cluster.local"
        super().__init__(controller.connections, node=node, timeout=WITHIN)
        self.controller, self.pod = controller, (namespace, name)

    async def __aenter__(self) -> Self:
        streams = self.controller.connections.streams
        earlier = set(streams.get(self.pod, ()))
        await self.reconnect(self.controller.connections)
        async with asyncio.timeout(WITHIN):
            while not (new := streams.get(self.pod, set()) - earlier):
                await asyncio.sleep(0)
        (self.subscriber,) = new
        return self

    def moved_to(self, controller: Controller) -> Self:
        """Let it connect to another controller next."""
        self.controller = controller
        return self

    async def receive_earlier(self, *resources: Resource) -> None:
        """Receive resources from an earlier control plane, and leave it."""
        store = Store()
        store.replace(resources)
        await self.reconnect(store)
        await self.wait_for(lambda: self.live)
        await self.disconnect()

    def accepts(self, port: int) -> str:
        """Return the first letter of the mode that its accepted listener has for a port."""
        found = "".join(tag_of(each.version) for each in self.resources.get(LISTENER, {}).values())
        before, _, after = found.partition(f"{port}")
        assert before or after, found
        return after[:1]

    def uses_mtls(self, service: str) -> bool:
        """Return whether its accepted endpoints of a service are all marked for mutual TLS."""
        marks = [
            "tlsMode" in each.metadata.filter_metadata["envoy.transport_socket_match"]
            for group in self.endpoints[service].endpoints
            for each in group.lb_endpoints
        ]
        assert len(set(marks)) == 1, marks
        return marks[0]
