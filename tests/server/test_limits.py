"""Limits of one client: usage of the server, and the messages it receives."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from tests.server.proxies import REQUEST, Client
from tests.support.waiting import eventually
from xds.protocol.limits import Limits
from xds.protocol.wire import SotwRequest
from xds.server import Refused, XdsServer, rest
from xds.server.rest import RestServer
from xds.snapshot import CLUSTER, ENDPOINT

NODE = {"id": "proxy"}
TOO_MANY = [str(number) for number in range(Limits().names + 1)]


@pytest.fixture
async def server(proxies) -> AsyncIterator[XdsServer]:
    async with XdsServer(proxies, "127.0.0.1:0", grace=0.5) as server:
        yield server


@pytest.fixture
async def polled(proxies) -> AsyncIterator[RestServer]:
    server = RestServer(proxies, "127.0.0.1", 0, failed=Counter())
    await server.start()
    yield server
    await server.stop()


async def poll(server: RestServer, body: bytes) -> tuple[int, str]:
    url = f"http://127.0.0.1:{server.port}/v3/discovery:clusters"
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, data=io.BytesIO(body)) as response,
    ):
        return response.status, await response.text()


async def test_r57_too_many_names_on_a_stream_are_an_error(proxies, channel, variant):
    client = Client(channel, variant)
    await client.ask(ENDPOINT, *TOO_MANY)
    code, details = await asyncio.wait_for(client.end(), 30)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "has 100,001 names, and the limit is 100,000 names per client" in details
    assert proxies.streams == []


async def test_r57_too_many_names_in_a_poll_are_an_error(proxies, polled):
    request = {"node": NODE, "resource_names": ["x"] * 40_000}
    status, why = await poll(polled, json.dumps(request).encode())
    assert (status, "more than 30000 commas" in why) == (400, True)
    assert proxies.streams == []


async def test_r57_too_many_names_in_a_fetch_are_an_error(proxies, channel):
    fetch = channel.unary_unary("/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters")
    with pytest.raises(grpc.aio.AioRpcError, match="100,001 names"):
        await fetch(REQUEST(node=NODE, resource_names=TOO_MANY).SerializeToString())
    assert proxies.streams == []


async def test_client_has_a_limited_number_of_streams(proxies, variant):
    async with (
        XdsServer(proxies, "127.0.0.1:0", grace=0.2, limits=Limits(streams=2)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        clients = [Client(channel, variant) for _ in range(2)]
        for client in clients:
            await client.ask(CLUSTER)
            await client.get()
        third = Client(channel, variant)
        await third.ask(CLUSTER)
        code, why = await third.end()
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert why.startswith("the limit is 2 streams per client at the same time")
        fetch = channel.unary_unary("/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters")
        request = REQUEST(node={"id": "sidecar~127.0.0.1~client.ns~ns.svc.cluster.local"})
        with pytest.raises(grpc.aio.AioRpcError, match="the limit is 2 streams per client"):
            await fetch(request.SerializeToString())
        other = Client(channel, variant, node="other")
        await other.ask(CLUSTER)
        await other.get()
        clients[0].call.cancel()
        # And whatever was refused has left.
        await eventually(lambda: len(proxies.subscribers) == 2)
        await fetch(request.SerializeToString())


async def test_streams_of_a_client_share_its_budget(proxies, variant):
    async with (
        XdsServer(proxies, "127.0.0.1:0", grace=0.2, limits=Limits(names=5)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        first, second = Client(channel, variant), Client(channel, variant)
        await first.ask(CLUSTER, "a", "b", "c")
        nonce = (await first.get()).nonce
        await second.ask(CLUSTER, "a", "b", "c")
        code, why = await second.end()
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert why.startswith("the streams of this client have 6 names, and the limit is 5 names per client")
        await first.ask(CLUSTER, "x", nonce=nonce)
        await first.get()


async def test_polls_have_the_limits_of_the_server(proxies):
    server = RestServer(proxies, "127.0.0.1", 0, limits=Limits(names=1, request_size=1000))
    await server.start()
    status, why = await poll(server, json.dumps({"node": NODE, "resource_names": ["a", "b"]}).encode())
    assert (status, why.partition(":")[0]) == (
        429,
        "resource_names has 2 names, and the limit is 1 names per client",
    )
    assert (await poll(server, b"x" * 1001))[0] == 413
    await server.stop()


async def test_polls_are_read_in_a_thread(polled, monkeypatch):
    """Reading a poll may take seconds, which would block the event loop."""
    parse, threads = rest._parse_json, []

    def note(body: bytes, limits: Limits) -> SotwRequest:
        threads.append(threading.current_thread())
        return parse(body, limits)

    monkeypatch.setattr(rest, "_parse_json", note)
    body = json.dumps({"node": NODE, "resource_names": ["none"]}).encode()
    assert (await poll(polled, body))[0] == 200
    (thread,) = threads
    assert thread is not threading.main_thread()


async def test_refused_polls_are_counted(proxies, polled):
    assert (await poll(polled, b""))[0] == 400
    proxies.refusal = Refused(grpc.StatusCode.PERMISSION_DENIED, "not you")
    assert (await poll(polled, json.dumps({"node": NODE}).encode()))[0] == 403
    proxies.connect = None
    assert (await poll(polled, json.dumps({"node": NODE}).encode()))[0] == 500
    assert polled._failed == {
        grpc.StatusCode.INVALID_ARGUMENT: 1,
        grpc.StatusCode.PERMISSION_DENIED: 1,
        grpc.StatusCode.INTERNAL: 1,
    }


@pytest.mark.parametrize("word", ["x", "é"])
async def test_status_message_fits_into_the_headers(proxies, channel, polled, word):
    proxies.refusal = Refused(grpc.StatusCode.PERMISSION_DENIED, word * 100_000)
    client = Client(channel)
    await client.ask(CLUSTER)
    code, details = await client.end()
    assert (code, details) == (grpc.StatusCode.PERMISSION_DENIED, f"{word * 997}...")
    status, why = await poll(polled, json.dumps({"node": NODE}).encode())
    assert (status, why) == (403, f"{word * 997}...\n")


@pytest.mark.parametrize("word", ["x", "é"])
async def test_status_message_quotes_a_limited_part_of_the_request(proxies, channel, polled, word):
    fetch = channel.unary_unary("/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters")
    with capture_logs() as logs:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fetch(REQUEST(node=NODE, type_url=word * 500).SerializeToString())
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        _, why = await poll(polled, json.dumps({"node": {"id": {word * 100_000: 1}}}).encode())
        node = Client(channel, node=word * 100_000)
        await node.ask(CLUSTER)
        _, details = await node.end()
    assert details == "node.id is longer than 1,024 bytes"
    assert len(refused.value.details()) <= 1000
    assert len(why) <= 1001
    assert [line["event"] for line in logs] == ["malformed request"] * 3
    assert all(len(line["problem"]) <= 1000 for line in logs)


SECRET_IN_A_LOCAL = """
import asyncio, sys
import grpc.aio
from tests.server.proxies import Client, OneForAll
from tests.protocol.stream import world
from xds.server import XdsServer
from xds.server.rest import RestServer
from xds.snapshot import CLUSTER

class Failing(OneForAll):
    def observe(self, *_):
        key = "PRI" + "VATE"
        raise ZeroDivisionError("a bug")

async def main():
    proxies = Failing(world(CDS="a=1"))
    rest = RestServer(proxies, "127.0.0.1", 0)
    await rest.start()
    async with XdsServer(proxies, "127.0.0.1:0", grace=0.1) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            client = Client(channel)
            await client.ask(CLUSTER)
            assert (await client.end())[0] is grpc.StatusCode.INTERNAL
    import aiohttp
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{rest.port}/v3/discovery:clusters"
        async with session.post(url, json={"node": {"id": "x"}}) as response:
            assert response.status == 500
    await rest.stop()

asyncio.run(main())
"""


def test_no_traceback_formatter_logs_local_variables():
    pytest.importorskip("rich", reason="structlog shows local variables if rich is there")
    done = subprocess.run(
        [sys.executable, "-c", SECRET_IN_A_LOCAL], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("ZeroDivisionError: a bug") == 2
    assert "PRIVATE" not in done.stdout + done.stderr
