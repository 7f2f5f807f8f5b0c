"""xds.mesh.v1.Proxies: connected proxies, their status, and what they wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.protocol.stream import world
from tests.server.proxies import Client, OneForAll
from xds.introspect import Introspection
from xds.mesh.controlplane.absence import Absences, Absent
from xds.mesh.controlplane.proxies_service import SERVICE, ProxiesService
from xds.mesh.v1 import described
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.session import Variant
from xds.server import Subscriber, XdsServer
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE

WITHIN = 30.0
SNAPSHOT = world(CDS="a=1 b=1", LDS="l=1>r", RDS="r=1")


def node(name: str) -> str:
    namespace = name.partition(".")[2]
    return f"sidecar~127.0.0.1~{name}~{namespace}.svc.cluster.local"


class Ask:
    """A client of the service and of discovery."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def answer(self, **request: str | bool) -> pb.ListProxiesResponse:
        method = self._channel.unary_unary(
            f"/{SERVICE}/List",
            request_serializer=pb.ListProxiesRequest.SerializeToString,
            response_deserializer=pb.ListProxiesResponse.FromString,
        )
        response = await method(pb.ListProxiesRequest(**request), timeout=WITHIN)
        assert abs(response.time.ToSeconds() - time.time()) < WITHIN
        return response

    async def list(self, **request: str | bool) -> list[pb.Proxy]:
        return list((await self.answer(**request)).proxies)

    async def type(self, type_url: str, **request: str | bool) -> pb.Type:
        """Return the status of a type on the only stream of the only proxy."""
        [proxy] = await self.list(**request)
        [stream] = proxy.streams
        [found] = [kind for kind in stream.types if kind.type_url == type_url]
        return found

    async def until(self, state: pb.State, type_url: str, **request: str | bool) -> pb.Type:
        """Ask until a type has a state. Only the server knows when it has read the client's requests."""
        async with asyncio.timeout(WITHIN):
            while (found := await self.type(type_url, **request)).state != state:
                await asyncio.sleep(0.01)
        return found

    def watch(self, **request: str | bool) -> grpc.aio.UnaryStreamCall:
        method = self._channel.unary_stream(
            f"/{SERVICE}/Watch",
            request_serializer=pb.WatchProxiesRequest.SerializeToString,
            response_deserializer=pb.WatchProxiesResponse.FromString,
        )
        return method(pb.WatchProxiesRequest(**request), timeout=3 * WITHIN)

    async def client(self, name: str = "web.shop", variant: Variant = Variant.DELTA) -> Client:
        """A client that has subscribed to clusters and received a response."""
        client = Client(self._channel, variant, node=node(name) if "." in name else name)
        await client.ask(CLUSTER)
        await client.get()
        return client


@pytest.fixture
def proxies() -> OneForAll:
    return OneForAll(SNAPSHOT)


@pytest.fixture
def missing() -> dict[str, str]:
    """Reasons why proxies have no configuration, by node ID."""
    return {}


@pytest.fixture
def absences() -> list[Absences]:
    """Proxies that should be connected. A test may replace the value."""
    return [Absences()]


@pytest.fixture
async def server(
    proxies: OneForAll, missing: dict[str, str], absences: list[Absences]
) -> AsyncIterator[XdsServer]:
    def why(subscriber: Subscriber) -> str:
        return missing.get(subscriber.node.id, "")

    added = [Introspection([ProxiesService(why, absences=lambda: absences[0])], documented=described)]
    server = XdsServer(proxies, "127.0.0.1:0", grace=0.2, added=added)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def ask(server: XdsServer) -> AsyncIterator[Ask]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Ask(channel)


async def test_no_proxy_is_connected(ask: Ask):
    assert await ask.list() == []


async def test_connected_proxies_are_listed(ask: Ask):
    before = time.time()
    await ask.client("web.shop", Variant.DELTA)
    await ask.client("app.shop", Variant.SOTW)
    await ask.client("not-a-sidecar", Variant.SOTW)
    await ask.client("web.shop", Variant.DELTA)
    found = await ask.list()
    assert [(each.namespace, each.pod, len(each.streams)) for each in found] == [
        ("", "", 1),
        ("shop", "app", 1),
        ("shop", "web", 2),
    ]
    assert [each.node_id for each in found] == ["not-a-sidecar", node("app.shop"), node("web.shop")]
    assert [each.streams[0].variant for each in found] == [pb.Stream.SOTW, pb.Stream.SOTW, pb.Stream.DELTA]
    for proxy in found:
        for stream in proxy.streams:
            assert stream.peer.startswith("ipv4:127.0.0.1:")
            assert stream.type_url == ""
            assert before - 1 < stream.connected_at.ToMilliseconds() / 1000 < time.time() + 1
    first, second = found[2].streams
    assert first.connected_at.ToNanoseconds() <= second.connected_at.ToNanoseconds()


async def test_watch_lists_absent_sidecars_only_on_change(ask: Ask, absences: list[Absences]):
    absences[0] = Absences((Absent("shop", "dead", None), Absent("bank", "x", 1.0)))
    watch = ask.watch(namespace="shop")
    first = await watch.read()
    assert [each.pod for each in first.not_connected.pods] == ["dead"]
    assert (first.not_connected.total, first.not_connected.may_be_on_other_replica) == (1, False)
    await ask.client("web.shop")
    second = await watch.read()
    assert second.proxies
    assert not second.HasField("not_connected")
    # The client sends nothing more, so nothing else changes.
    absences[0] = Absences((), may_be_on_other_replica=True)
    while not second.HasField("not_connected"):
        second = await watch.read()
    assert (second.not_connected.total, second.not_connected.may_be_on_other_replica) == (0, True)


async def test_pod_name_selects_one_sidecar(ask: Ask, absences: list[Absences]):
    absences[0] = Absences((Absent("shop", "web-1", None), Absent("shop", "web", None)))
    await ask.client("web-2.shop")
    for proxy, connected, absent in (
        ("web", ["web-2"], ["web-1", "web"]),
        ("web.shop", [], ["web"]),
        ("web-2.shop", ["web-2"], []),
    ):
        found = await ask.answer(proxy=proxy)
        assert [each.pod for each in found.proxies] == connected
        assert [each.pod for each in found.not_connected.pods] == absent


async def test_stream_for_one_type_has_its_type(server: XdsServer, ask: Ask):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method = "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters"
        client = Client(channel, Variant.DELTA, method=method)
        await client.ask()
        await client.get()
        [proxy] = await ask.list()
        assert proxy.streams[0].type_url == CLUSTER


async def test_a_type_waits_for_an_answer_until_it_is_synced(ask: Ask):
    client = Client(ask._channel, Variant.SOTW, node=node("web.shop"))
    await client.ask(ROUTE, "r", "none")
    response = await client.get()
    kind = await ask.type(ROUTE)
    assert (kind.state, kind.waiting.reason, kind.unanswered) == (pb.WAITING, pb.Waiting.ACK, 1)
    assert (kind.wildcard, kind.names, kind.version) == (False, 2, "")
    assert kind.waiting.since == kind.sent_at
    assert not kind.HasField("acked_at")
    assert kind.resources == pb.Counts(stale=1, not_sent=1)
    await client.ask(ROUTE, "r", "none", nonce=response.nonce)
    kind = await ask.until(pb.SYNCED, ROUTE)
    assert (kind.unanswered, kind.version) == (0, response.version_info)
    assert not kind.HasField("waiting")
    assert kind.acked_at.ToNanoseconds() >= kind.sent_at.ToNanoseconds()
    assert kind.resources == pb.Counts(synced=1, not_sent=1)


async def test_a_type_waits_for_another(ask: Ask):
    client = await ask.client()
    kind = await ask.type(CLUSTER)
    assert kind.waiting.reason == pb.Waiting.ACK, "the client has sent nothing since"
    await client.ask(LISTENER)
    async with asyncio.timeout(WITHIN):
        while (kind := await ask.type(CLUSTER)).waiting.reason == pb.Waiting.ACK:
            await asyncio.sleep(0.01)
    assert (kind.waiting.reason, kind.waiting.type_url) == (pb.Waiting.TYPE, ENDPOINT)
    kind = await ask.type(LISTENER, unsynced=True)
    assert (kind.waiting.reason, kind.waiting.type_url) == (pb.Waiting.TYPE, CLUSTER)
    [listener] = kind.unsynced
    assert (listener.name, listener.state, listener.version) == ("l", pb.Resource.NOT_SENT, "1")
    assert (listener.sent_version, listener.HasField("updated_at")) == ("", False)


async def test_rejection_has_resources_and_sources(ask: Ask):
    client = Client(ask._channel, Variant.DELTA, node=node("web.shop"))
    await client.ask(CLUSTER)
    response = await client.get()
    await client.ask(CLUSTER, nonce=response.nonce, error="Error adding cluster b: nonsense")
    kind = await ask.until(pb.REJECTED, CLUSTER, unsynced=True)
    rejection = kind.rejection
    assert rejection.message == "Error adding cluster b: nonsense"
    assert (list(rejection.resources), list(rejection.sources)) == (["b"], ["Object ns/b"])
    assert list(rejection.causes) == ["Object ns/b"]
    assert rejection.version == response.system_version_info
    assert abs(rejection.time.ToSeconds() - time.time()) < WITHIN
    assert kind.resources.error == 1
    [rejected] = [each for each in kind.unsynced if each.state == pb.Resource.ERROR]
    assert (rejected.name, rejected.sent_version, rejected.version) == ("b", "1", "1")
    assert list(rejected.rejection.sources) == ["Object ns/b"]
    # Names are included on request only, rejections always.
    kind = await ask.type(CLUSTER)
    assert not kind.unsynced
    assert kind.rejection == rejection


async def test_proxy_without_configuration_has_a_reason(
    ask: Ask, proxies: OneForAll, missing: dict[str, str]
):
    proxies.snapshot = None
    missing[node("web.shop")] = "its pod is not known"
    client = Client(ask._channel, node=node("web.shop"))
    await client.ask(CLUSTER)
    async with asyncio.timeout(WITHIN):
        while not (found := await ask.list()):
            await asyncio.sleep(0.01)
    [proxy] = found
    assert proxy.problem == "its pod is not known"
    [kind] = proxy.streams[0].types
    assert (kind.state, kind.waiting.reason) == (pb.WAITING, pb.Waiting.CONFIGURATION)
    since, connected_at = kind.waiting.since, proxy.streams[0].connected_at
    assert abs(since.ToMilliseconds() - connected_at.ToMilliseconds()) < 1000 * WITHIN


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        ({"proxy": "web.shop"}, ["web.shop"]),
        ({"proxy": "web"}, ["web.bank", "web.shop", "web.shop2"]),
        ({"proxy": "web.shop2"}, ["web.shop2"]),
        ({"proxy": node("web.shop")}, ["web.shop"]),
        ({"proxy": "sidecar~127.0.0.1~web.s"}, ["web.shop", "web.shop2"]),
        ({"proxy": "eb.shop"}, []),
        ({"namespace": "bank"}, ["web.bank"]),
        ({"namespace": "ban"}, []),
        ({"proxy": "web", "namespace": "shop"}, ["web.shop"]),
    ],
)
async def test_proxies_are_filtered(ask: Ask, request_: dict[str, str], found: list[str]):
    for name in ("web.shop2", "web.shop", "web.bank"):
        await ask.client(name)
    assert [f"{each.pod}.{each.namespace}" for each in await ask.list(**request_)] == found


async def test_no_resource_is_shown(ask: Ask):
    client = await ask.client()
    await client.ask(ROUTE, "r")
    found = await ask.list(unsynced=True)
    assert [each.name for each in found[0].streams[0].types[0].unsynced] == ["a", "b"]
    shown = b"".join(each.SerializeToString() for each in found)
    for resources in SNAPSHOT.types.values():
        for resource in resources.values():
            assert resource.body not in shown
