"""Port-forwards to pods of the control plane, through WebSockets of the API server and the kubelet.

Each connection has its own WebSocket. The protocol cannot close one direction only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import printable

POD_LABELS = "app.kubernetes.io/name=xds,app.kubernetes.io/component=control-plane"
"""Label selector of the control plane's pods."""
PROTOCOL = "v4.channel.k8s.io"
"""WebSocket subprotocol: the first byte of a binary message is the number of its channel."""

_DATA, _ERROR = 0, 1
_READ_SIZE = 65_536
_MAX_ERROR = 1_000


class PortForwardError(Exception):
    """A port cannot be forwarded. The message explains why, and what to do."""


class Channels:
    """The two channels that carry a forwarded port: data, and errors of the kubelet.

    The kubelet sends the number of the port first on each channel.
    """

    def __init__(self, port: int) -> None:
        self._prefixes = [port.to_bytes(2, "little")] * 2
        self.error = b""
        """The error that the kubelet has sent; empty without one."""

    def encode(self, data: bytes) -> bytes:
        """Return the message that sends data to the pod."""
        return bytes([_DATA]) + data

    def decode(self, message: bytes) -> bytes:
        """Return the data in a message; empty if it has none. Raises PortForwardError if it is malformed."""
        if not message or message[0] not in {_DATA, _ERROR}:
            raise PortForwardError("the API server sent a message of an unknown channel")
        channel, content = message[0], message[1:]
        if content and (prefix := self._prefixes[channel]):
            if not content.startswith(prefix):
                raise PortForwardError("the API server forwards another port")
            self._prefixes[channel], content = b"", content[len(prefix) :]
        if channel == _DATA:
            return content
        self.error = (self.error + content)[:_MAX_ERROR]
        return b""


async def find_pod(api: KubeApi, namespace: str) -> str:
    """Return the name of a ready pod of the control plane.

    Raises:
        PortForwardError: no pod is ready.
        KubeError: the API server rejected the request, or cannot be reached.
    """
    pods = await api.list_all(f"/api/v1/namespaces/{namespace}/pods", labelSelector=POD_LABELS)
    ready = [str(pod["metadata"]["name"]) for pod in pods if _is_ready(pod)]
    if ready:
        return min(ready, key=natural_key)
    if pods:
        raise PortForwardError(
            f"none of the {len(pods)} pods of the control plane in namespace {namespace} is ready: run xds "
            "check"
        )
    raise PortForwardError(
        f"namespace {namespace} has no pod of the control plane: run xds install, or set --xds-namespace"
    )


def _is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    is_ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return is_ready and not pod["metadata"].get("deletionTimestamp")


class Forwarder:
    """Relays connections to a port of a pod."""

    def __init__(
        self, api: KubeApi, namespace: str, pod: str, port: int, report: Callable[[str, bool], None]
    ) -> None:
        """Create a forwarder.

        Args:
            api: the API server.
            namespace: namespace of the pod.
            pod: name of the pod.
            port: port on the loopback address of the pod.
            report: called when a connection fails, before it is closed, with the reason, and whether the pod
                cannot be reached any more.
        """
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
        self._port = port
        self._report = report
        self._opened: list[aiohttp.ClientWebSocketResponse] = []

    async def open(self) -> None:
        """Open the WebSocket of the first connection. Raises KubeError."""
        self._opened.append(await self._open())

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay a connection until either side closes it."""
        channels = Channels(self._port)
        try:
            socket = self._opened.pop() if self._opened else await self._open()
            try:
                await _first(_send(channels, reader, socket), _receive(channels, socket, writer))
            finally:
                await socket.close()
            if channels.error:
                self._report(printable(channels.error.decode(errors="replace")), False)
        except (KubeError, PortForwardError) as error:
            self._report(str(error), True)
        except asyncio.CancelledError:
            # At the end of the program: do not wait for a client that does not read. asyncio would log it.
            writer.transport.abort()
        finally:
            writer.close()

    async def _open(self) -> aiohttp.ClientWebSocketResponse:
        return await self._api.websocket(self._path, PROTOCOL, ports=self._port)


async def _first(*coroutines: Any) -> None:
    """Run coroutines until the first one ends, and cancel the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(
    channels: Channels, reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse
) -> None:
    """Send data until the local end of the connection is closed."""
    with suppress(OSError):
        while data := await reader.read(_READ_SIZE):
            # If the WebSocket is closed, `_receive` ends, and knows why.
            with suppress(OSError):
                await socket.send_bytes(channels.encode(data))


async def _receive(
    channels: Channels, socket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter
) -> None:
    """Receive data until the pod closes the connection. Raises PortForwardError if the WebSocket breaks."""
    while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
        if data := channels.decode(message.data):
            writer.write(data)
            with suppress(OSError):
                await writer.drain()
    if message.type is not aiohttp.WSMsgType.CLOSE:
        raise PortForwardError("the connection to the API server broke")
