"""A simulated sidecar, connected to a controller without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from xds.codec import message_class
from xds.mesh.controlplane.controller import Controller
from xds.protocol.events import Acked, Nacked, Response, Subscribed
from xds.protocol.session import Session, Variant
from xds.protocol.wire import Node
from xds.server import StreamInfo
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET, Resource

WITHIN = 10.0
_REQUEST = message_class("envoy.service.discovery.v3.DeltaDiscoveryRequest")
_RESPONSE = message_class("envoy.service.discovery.v3.DeltaDiscoveryResponse")


class Sidecar:
    """A delta stream of a pod, open inside an `async with` block.

    It does not answer types that it `withholds`, and NACKs types that it `rejects`.
    """

    def __init__(self, controller: Controller, name: str, namespace: str) -> None:
        self.controller, self.name, self.namespace = controller, name, namespace
        self.withholds: set[str] = set()
        self.rejects: set[str] = set()
        self.brings: dict[str, dict[str, str]] = {}
        """Names and versions of the resources from an earlier stream, by type."""
        self.has: dict[str, dict[str, Resource]] = {}
        self.moved = asyncio.Condition()
        self._asked: dict[str, set[str]] = {}
        self._unanswered: list[tuple[Response, str]] = []

    async def __aenter__(self) -> Self:
        node = Node(id=f"sidecar~10.0.0.1~{self.name}.{self.namespace}~{self.namespace}.svc.cluster.local")
        stream = StreamInfo(peer="ipv4:127.0.0.1:5", variant=Variant.DELTA, type_url="")
        self.session = Session(Variant.DELTA)
        self.subscriber = self.controller.connections.connect(node, stream)
        self.subscriber.session = self.session
        self._node = node.id
        for type_url in (CLUSTER, LISTENER):
            self._send(type_url)
        self._ask(ENDPOINT, set(self.brings.get(ENDPOINT, ())))
        self._ask(SECRET, {"default", "ROOTCA"})
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.controller.connections.disconnect(self.subscriber)

    def versions(self) -> dict[str, dict[str, str]]:
        """Return names and versions of its resources, by type, for the next stream to bring."""
        return {
            kind: {name: resource.version for name, resource in resources.items()}
            for kind, resources in self.has.items()
        }

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds. It is checked after each response to this sidecar."""
        async with asyncio.timeout(WITHIN), self.moved:
            await self.moved.wait_for(condition)

    def answer(self, type_url: str) -> None:
        """Stop withholding a type, and answer the responses that were withheld."""
        self.withholds.discard(type_url)
        waiting, self._unanswered = self._unanswered, []
        for each in waiting:
            self._reply(*each)
        self.subscriber.changed.set()

    def accepts(self, port: int) -> str:
        """Return the first letter of the mode that its accepted listener has for a port."""
        found = "".join(each.tag for each in self.has.get(LISTENER, {}).values())
        before, _, after = found.partition(f"{port}")
        assert before or after, found
        return after[:1]

    def uses_mtls(self, service: str) -> bool:
        """Return whether its accepted endpoints of a service are all marked for mutual TLS."""
        body = self.has[ENDPOINT][service].body
        message = message_class("envoy.config.endpoint.v3.ClusterLoadAssignment").FromString(body)
        marks = [
            "tlsMode" in each.metadata.filter_metadata["envoy.transport_socket_match"]
            for group in message.endpoints
            for each in group.lb_endpoints
        ]
        assert len(set(marks)) == 1, marks
        return marks[0]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.subscriber.changed.clear()
            if self.subscriber.snapshot:
                self.session.serve(self.subscriber.snapshot)
            while (message := self.session.next(loop.time())) is not None:
                sent = self.session.sent
                assert sent
                nonce = _RESPONSE.FromString(message).nonce
                if sent.type_url == CLUSTER:
                    names = {name for each in sent.resources for kind, name in each.refs if kind == ENDPOINT}
                    self._ask(ENDPOINT, names)
                self._reply(sent, nonce)
            async with self.moved:
                self.moved.notify_all()
            await self.subscriber.changed.wait()

    def _reply(self, sent: Response, nonce: str) -> None:
        type_url = sent.type_url
        if type_url in self.withholds:
            self._unanswered.append((sent, nonce))
            return
        if type_url not in self.rejects:
            self.has.setdefault(type_url, {}).update({each.name: each for each in sent.resources})
        self._send(type_url, nonce=nonce, error="no" if type_url in self.rejects else "")

    def _ask(self, type_url: str, names: set[str]) -> None:
        new = names - self._asked.setdefault(type_url, set())
        self._asked[type_url] |= new
        if new:
            self._send(type_url, new)

    def _send(
        self, type_url: str, names: set[str] | None = None, *, nonce: str = "", error: str = ""
    ) -> None:
        request = _REQUEST(type_url=type_url, response_nonce=nonce)
        request.node.id = self._node
        request.resource_names_subscribe.extend(sorted(names or ()))
        if error:
            request.error_detail.code, request.error_detail.message = 13, error
        if not nonce:
            request.initial_resource_versions.update(self.brings.get(type_url, {}))
        for event in self.session.receive(request.SerializeToString(), asyncio.get_running_loop().time()):
            if isinstance(event, Subscribed | Acked | Nacked):
                self.controller.connections.observe(self.subscriber, event)
