"""The table of services, and each service on a real socket: streams in both variants, and Fetch."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpclib.const import Cardinality
from structlog.testing import capture_logs

from tests.server.proxies import REQUEST, RESPONSE, Client, OneForAll
from xds.protocol.events import Subscribed
from xds.protocol.session import Variant
from xds.server import Refused, XdsServer
from xds.server.fetch import FIRST_SNAPSHOT_TIMEOUT
from xds.server.services import SERVICES
from xds.snapshot import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot

NODE = "sidecar~127.0.0.1~client.ns~ns.svc.cluster.local"
STREAMS = [
    (name, method, variant)
    for name, service in SERVICES.items()
    for method, variant in ((service.stream, Variant.SOTW), (service.delta, Variant.DELTA))
    if method and service.type_url
]
FETCHES = {
    f"/{name}/{service.fetch}": service.type_url for name, service in SERVICES.items() if service.fetch
}


def snapshot(type_url: str, *words: str) -> Snapshot:
    resources = [Resource.of(type_url, word.partition("=")[0], word.encode()) for word in words]
    return Snapshot({type_url: ResourceSet(resources)})


@pytest.fixture
def proxies() -> OneForAll:
    return OneForAll(snapshot(CLUSTER, "a=1"))


@pytest.fixture
async def channel(proxies) -> AsyncIterator[grpc.aio.Channel]:
    server = XdsServer(proxies, "127.0.0.1:0", identifier="xds-test", grace=0.2)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    await server.stop()


async def fetch(channel: grpc.aio.Channel, method: str, *names: str, **fields: str):
    request = REQUEST(resource_names=names, **fields)
    request.node.id = NODE
    return RESPONSE.FromString(await channel.unary_unary(method)(request.SerializeToString()))


def test_r50_methods_are_those_of_envoys_protos():
    packages = {name.rpartition(".")[0] for name in SERVICES}
    theirs = {}
    for package in packages:
        module = importlib.import_module(f"envoy_data_plane.{package}")
        for name in (name for name in dir(module) if name.endswith("DiscoveryServiceBase")):
            theirs |= {
                path: handler.cardinality for path, handler in getattr(module, name)().__mapping__().items()
            }
    ours = {
        f"/{name}/{method}": cardinality
        for name, service in SERVICES.items()
        for method, cardinality in (
            (service.stream, Cardinality.STREAM_STREAM),
            (service.delta, Cardinality.STREAM_STREAM),
            (service.fetch, Cardinality.UNARY_UNARY),
        )
        if method
    }
    assert ours == theirs


def test_every_type_is_a_message_of_envoy():
    for service in SERVICES.values():
        if service.type_url:
            package, _, name = service.type_url.rpartition("/")[2].rpartition(".")
            assert hasattr(importlib.import_module(f"envoy_data_plane.{package}"), name)


@pytest.mark.parametrize(("service", "method", "variant"), STREAMS)
async def test_r50_each_type_has_streams_of_its_own(proxies, channel, service, method, variant):
    type_url = SERVICES[service].type_url
    proxies.publish(snapshot(type_url, "x=1", "y=1"))
    client = Client(channel, variant, f"/{service}/{method}")
    await client.ask("", "x")
    while b"x=1" not in (response := await client.get()).SerializeToString():
        pass
    assert response.type_url == type_url
    assert proxies.streams[0].type_url == type_url
    await client.ask(type_url, "x", nonce=response.nonce)
    assert (await proxies.events.get()).names == ("x",)


@pytest.mark.parametrize("method", FETCHES)
async def test_r49_fetch_returns_named_or_all_resources(proxies, channel, method):
    type_url = FETCHES[method]
    proxies.publish(snapshot(type_url, "a=1", "b=1", "c=1"))
    some = await fetch(channel, method, "c", "a", "none")
    assert some.type_url == type_url
    assert [resource.type_url for resource in some.resources] == [type_url] * 2
    assert [resource.value for resource in some.resources] == [b"a=1", b"c=1"]
    assert some.control_plane.identifier == "xds-test"
    assert len((await fetch(channel, method)).resources) == 3
    assert len((await fetch(channel, method, "*", type_url=type_url)).resources) == 3
    assert proxies.streams[0].type_url == type_url
    assert proxies.streams[0].peer.startswith("ipv4:127.0.0.1:")
    assert proxies.subscribers == []


@pytest.mark.parametrize("method", sorted(FETCHES))
async def test_r34_fetch_returns_direct_members_of_a_collection(proxies, channel, method):
    type_url = FETCHES[method]
    proxies.publish(snapshot(type_url, "zone/a=1", "zone/b=1", "zone/deeper/c=1", "other=1", "left-out=1"))
    some = await fetch(channel, method, "zone/*", "other")
    assert [resource.value for resource in some.resources] == [b"other=1", b"zone/a=1", b"zone/b=1"]


async def test_version_covers_the_requested_resources(proxies, channel):
    method = "/envoy.service.endpoint.v3.EndpointDiscoveryService/FetchEndpoints"
    proxies.publish(snapshot(ENDPOINT, "a=1", "b=1"))
    before = {names: await fetch(channel, method, *names) for names in [("a",), ("b",), ("a", "b"), ()]}
    proxies.publish(snapshot(ENDPOINT, "a=1", "b=2"))
    after = {names: await fetch(channel, method, *names) for names in before}
    assert len({response.version_info for response in before.values()}) == 3
    assert after["a",].version_info == before["a",].version_info
    assert all(after[names].version_info != before[names].version_info for names in [("b",), ("a", "b"), ()])


async def test_fetch_answers_a_client_with_the_current_version(proxies, channel):
    method = "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"
    first = await fetch(channel, method)
    again = await fetch(channel, method, version_info=first.version_info)
    assert again.SerializeToString() == first.SerializeToString()
    assert len(again.resources) == 1


async def test_fetch_reports_its_node_and_subscription(proxies, channel):
    seen = []
    proxies.observe = lambda subscriber, event: seen.append((subscriber.node.id, event))
    method = "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"
    await fetch(channel, method, "a")
    await fetch(channel, method)
    assert seen == [
        (NODE, Subscribed(type_url=CLUSTER, names=frozenset({"a"}), wildcard=False)),
        (NODE, Subscribed(type_url=CLUSTER, names=frozenset(), wildcard=True)),
    ]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"\xff\xff", "not a protobuf message"),
        (b"", "node.id"),
        (
            b'\x12\x03\x0a\x01x"\x01y',
            "this method serves type.googleapis.com/envoy.config.cluster.v3.Cluster, not y",
        ),
    ],
)
async def test_r60_fetch_refuses_invalid_requests(proxies, channel, message, problem):
    call = channel.unary_unary("/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters")(message)
    with pytest.raises(grpc.aio.AioRpcError, match=problem) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert proxies.streams == []


async def test_fetch_is_refused_as_a_stream_is(proxies, channel):
    proxies.refusal = Refused(grpc.StatusCode.PERMISSION_DENIED, "not you")
    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError, match="not you") as caught:
        await fetch(channel, "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters")
    assert [(line["event"], line["proxy"]) for line in logs] == [("fetch refused", NODE)]
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert proxies.left.empty()


async def test_fetch_waits_a_limited_time_for_a_snapshot(proxies, channel):
    method = "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"
    snapshot, proxies.snapshot = proxies.snapshot, None
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError, match=f"no configuration for {NODE} yet") as caught:
        await fetch(channel, method)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began >= FIRST_SNAPSHOT_TIMEOUT * 0.9
    assert proxies.subscribers == []
    asking = asyncio.create_task(fetch(channel, method))
    while not proxies.subscribers:
        await asyncio.sleep(0.001)
    proxies.publish(snapshot)
    assert len((await asking).resources) == 1
