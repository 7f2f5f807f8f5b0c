"""The messages of a port-forward, and the choice of a pod."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from xds.mesh.kube.port_forward import POD_LABELS, Channels, Forwarder, PortForwardError, find_pod

PORT = 15010
PREFIX = PORT.to_bytes(2, "little")


def test_data_follows_the_port_and_errors_are_kept_apart() -> None:
    channels = Channels(PORT)
    messages = [b"\0" + PREFIX, b"\1" + PREFIX, b"\0", b"\0abc", b"\0" + PREFIX, b"\1no ", b"\1way", b"\0d"]
    assert b"".join(map(channels.decode, messages)) == b"abc" + PREFIX + b"d"
    assert channels.error == b"no way"
    assert channels.encode(b"abc") == b"\0abc"


def test_port_and_data_in_one_message_are_separated() -> None:
    channels = Channels(PORT)
    assert channels.decode(b"\0" + PREFIX + b"abc") == b"abc"
    assert channels.decode(b"\1" + PREFIX + b"why") == b""
    assert channels.error == b"why"


def test_error_is_truncated() -> None:
    channels = Channels(PORT)
    for _ in range(20):
        channels.decode(b"\1" + (b"" if channels.error else PREFIX) + b"x" * 100)
    assert channels.error == b"x" * 1000


@pytest.mark.parametrize("message", [b"", b"\2abc", b"\xff", b"\0\0\x50", b"\1a", b"\0" + PREFIX[::-1]])
def test_malformed_message_is_rejected(message: bytes) -> None:
    with pytest.raises(
        PortForwardError, match=r"the API server (sent a message of an unknown|forwards another)"
    ):
        Channels(PORT).decode(message)


class Flood:
    """A WebSocket to a pod that sends more than a client reads."""

    def __init__(self) -> None:
        self._messages = itertools.chain([b"\0" + PREFIX], itertools.repeat(b"\0" + b"x" * 65536))

    async def websocket(self, _: str, __: str, *, ports: int) -> Flood:
        assert ports == PORT
        return self

    async def receive(self) -> aiohttp.WSMessage:
        return aiohttp.WSMessage(aiohttp.WSMsgType.BINARY, next(self._messages), None)

    async def close(self) -> None:
        pass


async def test_end_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    api: Any = Flood()
    forwarder = Forwarder(api, "mesh", "xds-1", PORT, lambda *_: None)
    relayed: list[tuple[asyncio.Task[None], asyncio.WriteTransport]] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        relayed.append((task, writer.transport))
        await forwarder.relay(reader, writer)

    server = await asyncio.start_unix_server(relay, tmp_path / "socket")
    _, client = await asyncio.open_unix_connection(tmp_path / "socket")
    while client.transport.is_reading():
        await asyncio.sleep(0)
    [(task, transport)] = relayed
    sizes = deque([0], maxlen=100)
    while {*sizes} != {sizes[0]} or not sizes[0]:  # Until the socket takes no more data.
        sizes.append(transport.get_write_buffer_size())
        await asyncio.sleep(0)
    task.cancel()
    await task
    assert transport.get_write_buffer_size() == 0
    client.close()
    server.close()
    await client.wait_closed()


class Pods:
    """An API server with pods: their names, and whether they are ready or terminating."""

    def __init__(self, **pods: str) -> None:
        self._pods = pods

    async def list_all(self, path: str, **query: str) -> list[Any]:
        assert (path, query) == ("/api/v1/namespaces/mesh/pods", {"labelSelector": POD_LABELS})
        return [
            {
                "metadata": {
                    "name": name.replace("_", "-"),
                    **({"deletionTimestamp": "x"} if state == "terminating" else {}),
                },
                "status": {
                    "conditions": [
                        {"type": "ContainersReady", "status": "True"},
                        {"type": "Ready", "status": str(state != "unready")},
                    ]
                }
                if state != "new"
                else {},
            }
            for name, state in self._pods.items()
        ]


async def test_first_ready_pod_is_chosen() -> None:
    pods: Any = Pods(xds_1="new", xds_2="unready", xds_3="terminating", xds_10="ready", xds_9="ready")
    assert await find_pod(pods, "mesh") == "xds-9"


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        (Pods(), "namespace mesh has no pod of the control plane: run xds install, or set --xds-namespace"),
        (
            Pods(xds_1="new", xds_2="unready"),
            "none of the 2 pods of the control plane in namespace mesh is ready: run xds check",
        ),
    ],
)
async def test_without_a_ready_pod_the_error_says_what_to_do(pods: Any, message: str) -> None:
    with pytest.raises(PortForwardError) as caught:
        await find_pod(pods, "mesh")
    assert str(caught.value) == message
