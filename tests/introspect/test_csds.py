"""CSDS: the status of each resource at each proxy."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest

from tests.introspect.grpcurl import call
from tests.peers.xdsprotos import Codec
from tests.protocol.stream import world
from tests.server.proxies import Client
from xds.codec import message_class
from xds.introspect import csds
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.secrets import certificate_secret, roots_secret
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER, SECRET, Resource, ResourceSet, Snapshot

FETCH = f"{csds.SERVICE}/FetchClientStatus"
STREAM = f"{csds.SERVICE}/StreamClientStatus"
RESPONSE = "envoy.service.status.v3.ClientStatusResponse"
REQUEST = message_class("envoy.service.status.v3.ClientStatusRequest")
NODE = "sidecar~127.0.0.1~client.ns~ns.svc.cluster.local"


@pytest.fixture(scope="module")
def codec():
    with Codec() as codec:
        yield codec


def cluster(name: str, **more: object) -> Resource:
    made = message_class("envoy.config.cluster.v3.Cluster")(name=name, **more)
    return Resource.of(CLUSTER, name, made.SerializeToString(), sources=(f"Service ns/{name}",))


def clusters(*resources: Resource) -> Snapshot:
    return Snapshot({CLUSTER: ResourceSet(resources)})


async def fetch(channel: grpc.aio.Channel, codec: Codec, **request: object) -> list[dict]:
    """Send raw bytes, and decode the answer with other generated classes."""
    body = await channel.unary_unary(f"/{FETCH}")(REQUEST(**request).SerializeToString())
    return codec.decode(RESPONSE, body).get("config", [])


def states(client: dict) -> dict[str, str]:
    return {found["name"]: found["config_status"] for found in client.get("generic_xds_configs", [])}


async def until(channel, codec, **wanted: str) -> dict:
    """Ask until the resources of the only client have these states."""
    async with asyncio.timeout(60):
        seen: dict[str, str] = {}
        while not seen or not wanted.items() <= seen.items():
            (found,) = await fetch(channel, codec, exclude_resource_contents=True) or [{}]
            if (now := states(found)) != seen:
                print(seen := now)
            await asyncio.sleep(0.01)
        return found


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def test_answer_without_proxies_is_empty(channel, codec):
    assert await fetch(channel, codec) == []


async def test_a_resource_is_not_sent_then_stale_then_synced(proxies, channel, codec, variant):
    proxies.publish(clusters(cluster("a")))
    client = Client(channel, variant)
    before = time.time()
    await client.ask(CLUSTER, "a", "missing") if variant is Variant.SOTW else await client.ask(CLUSTER, "a")
    response = await client.get()
    names = ("a", "missing") if variant is Variant.SOTW else ("a",)
    wanted = {"a": "STALE"} | ({"missing": "NOT_SENT"} if variant is Variant.SOTW else {})
    found = await until(channel, codec, **wanted)
    assert found["node"] == {"id": NODE}
    sent = found["generic_xds_configs"][0]
    assert sent["type_url"] == CLUSTER
    assert sent["version_info"] == cluster("a").version
    assert before - 1 <= at(sent["last_updated"]) <= time.time() + 1
    await client.ask(CLUSTER, *(names if variant is Variant.SOTW else ()), nonce=response.nonce)
    await until(channel, codec, **(wanted | {"a": "SYNCED"}))


async def test_rejection_has_the_proxys_message(proxies, channel, codec, variant):
    proxies.publish(clusters(cluster("a"), cluster("b")))
    client = Client(channel, variant)
    await client.ask(CLUSTER)
    response = await client.get()
    await client.ask(CLUSTER, nonce=response.nonce, error="Error adding/updating cluster(s) a: no such thing")
    await until(channel, codec, a="ERROR")
    ((found),) = await fetch(channel, codec)
    a, _ = found["generic_xds_configs"]
    error = a["error_state"]
    assert error["details"] == "Error adding/updating cluster(s) a: no such thing"
    assert error["version_info"] == cluster("a").version
    assert error["failed_configuration"] == a["xds_config"] == {"@type": CLUSTER, "name": "a"}
    assert abs(at(error["last_update_attempt"]) - time.time()) < 20
    # The fixed version is not the rejected one.
    mended = cluster("a", alt_stat_name="better")
    proxies.publish(clusters(mended, cluster("b")))
    await client.get()
    await until(channel, codec, a="STALE")
    ((found),) = await fetch(channel, codec)
    a, _ = found["generic_xds_configs"]
    assert a["version_info"] == mended.version
    assert a["xds_config"]["alt_stat_name"] == "better"


async def test_resources_are_left_out_if_so_asked(proxies, channel, codec):
    proxies.publish(clusters(cluster("a")))
    client = Client(channel)
    await client.ask(CLUSTER)
    await client.get()
    ((whole),) = await fetch(channel, codec)
    ((short),) = await fetch(channel, codec, exclude_resource_contents=True)
    assert whole["generic_xds_configs"][0].pop("xds_config") == {"@type": CLUSTER, "name": "a"}
    for found in (whole, short):  # Two clocks are read, at slightly different times.
        assert found["generic_xds_configs"][0].pop("last_updated")
    assert short == whole


@asynccontextmanager
async def connected(channel, *nodes: str):
    clients = [Client(channel, variant, node=node) for node in nodes for variant in Variant]
    for client in clients:
        await client.ask(CLUSTER)
        await client.get()
    yield
    for client in clients:
        client.call.cancel()


async def test_every_stream_is_a_client_of_its_own(channel, codec):
    async with connected(channel, "b", "a"):
        found = await fetch(channel, codec, exclude_resource_contents=True)
    assert [client["node"]["id"] for client in found] == ["a", "a", "b", "b"]
    scopes = [client["client_scope"] for client in found]
    assert len(set(scopes[:2])) == 2
    assert scopes[0].startswith("AggregatedDiscoveryService (sotw) from ipv4:127.0.0.1:")
    assert scopes[1].startswith("AggregatedDiscoveryService (delta) from ipv4:127.0.0.1:")


async def test_node_fields_are_reported(channel, codec, server):
    node = {
        "id": "n",
        "cluster": "c",
        "user_agent_name": "envoy",
        "user_agent_version": "1.40.0",
        "client_features": ["envoy.lb.does_not_support_overprovisioning"],
    }
    method = "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters"
    stream = channel.stream_stream(method)()
    await stream.write(codec.encode("envoy.service.discovery.v3.DiscoveryRequest", {"node": node}))
    await stream.read()
    ((found),) = await fetch(channel, codec, exclude_resource_contents=True)
    assert found["node"] == node
    assert found["client_scope"].startswith("Cluster (sotw) from ")
    stream.cancel()


@pytest.mark.parametrize(
    ("matchers", "wanted"),
    [
        ([], ["app-1", "app-2", "Other"]),
        ([{}], ["app-1", "app-2", "Other"]),
        ([{"node_id": {"exact": "app-1"}}], ["app-1"]),
        ([{"node_id": {"prefix": "app"}}], ["app-1", "app-2"]),
        ([{"node_id": {"suffix": "2"}}], ["app-2"]),
        ([{"node_id": {"contains": "pp-"}}], ["app-1", "app-2"]),
        ([{"node_id": {"exact": "other"}}], []),
        ([{"node_id": {"exact": "oTHER", "ignore_case": True}}], ["Other"]),
        ([{"node_id": {"exact": "app-1"}}, {"node_id": {"prefix": "Oth"}}], ["app-1", "Other"]),
    ],
)
async def test_only_matching_nodes_are_listed(channel, codec, matchers, wanted):
    async with connected(channel, "app-1", "app-2", "Other"):
        found = await fetch(channel, codec, node_matchers=matchers)
    assert {client["node"]["id"] for client in found} == set(wanted)


@pytest.mark.parametrize(
    ("matcher", "problem"),
    [
        (
            {"node_id": {"safe_regex": {"regex": "a+"}}},
            "node_matchers[1].node_id.safe_regex is not supported",
        ),
        ({"node_id": {"custom": {"name": "x"}}}, "node_matchers[1].node_id.custom is not supported"),
        (
            {"node_id": {"ignore_case": True}},
            "node_matchers[1].node_id has no pattern: use one of exact, prefix",
        ),
        ({"node_metadatas": [{}]}, "node_matchers[1].node_metadatas is not supported"),
    ],
)
async def test_a_matcher_that_cannot_be_followed_is_refused_by_name(channel, matcher, problem):
    body = REQUEST(node_matchers=[{"node_id": {"exact": "x"}}, matcher]).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(f"/{FETCH}")(body)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert problem in refused.value.details()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in channel.stream_stream(f"/{STREAM}")(iter([body])):
            pass
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_invalid_request_is_rejected(channel):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(f"/{FETCH}")(b"\xff")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_answers_each_request_as_things_are_then(proxies, channel, codec):
    watching = channel.stream_stream(f"/{STREAM}")()

    async def look() -> list[dict]:
        await watching.write(REQUEST().SerializeToString())
        return codec.decode(RESPONSE, await watching.read()).get("config", [])

    assert await look() == []
    async with connected(channel, "a"):
        assert len(await look()) == 2
    while proxies.subscribers:
        await proxies.left.get()
    assert await look() == []
    await watching.done_writing()
    assert await watching.read() is grpc.aio.EOF
    assert await watching.code() is grpc.StatusCode.OK


async def test_large_answer_is_split_on_a_stream_only(proxies, channel, codec, monkeypatch):
    monkeypatch.setattr(csds, "MAX_PART_SIZE", 1000)
    monkeypatch.setattr(csds, "MAX_RESPONSE_SIZE", 1000)
    names = [f"{number:0>100}" for number in range(40)]
    proxies.publish(clusters(*map(cluster, names), cluster("z", alt_stat_name="z" * 2000)))
    async with connected(channel, "a"):
        parts = [part async for part in channel.stream_stream(f"/{STREAM}")(iter([b""]))]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{FETCH}")(b"")
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "StreamClientStatus" in refused.value.details()
    listed: dict[str, list[str]] = {}
    for part in parts:
        for client in codec.decode(RESPONSE, part)["config"]:
            assert client["node"]["id"] == "a"
            listed.setdefault(client["client_scope"], []).extend(states(client))
    assert [*listed.values()] == [[*names, "z"]] * 2
    assert len(parts) > 8
    assert sorted(map(len, parts))[-3] < 1400, "only a larger resource makes a larger part"


async def test_private_keys_never_show(proxies, channel, target, codec):
    now = datetime.now(UTC)
    authority = Authority.create(PrivateKey.generate(), "cluster.local", now)
    leaf = authority.issue("spiffe://cluster.local/ns/shop/sa/web", now)
    issued = (certificate_secret(leaf), roots_secret([authority.certificate_pem]))
    pem = message_class("envoy.extensions.transport_sockets.tls.v3.Secret").FromString(issued[0].body)
    # The last part belongs to the public key, which the certificate also has.
    lines = leaf.key.to_pem().splitlines()[1:-2]
    assert len(lines[0]) > 40
    upstream = message_class("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext")()
    upstream.common_tls_context.tls_certificates.add().CopyFrom(pem.tls_certificate)
    inline = message_class("envoy.config.cluster.v3.Cluster")(name="inline")
    inline.transport_socket.typed_config.Pack(upstream)
    inline.transport_socket_matches.add(name="m").transport_socket.typed_config.Pack(upstream)
    proxies.publish(
        Snapshot(
            {
                SECRET: ResourceSet(issued),
                CLUSTER: ResourceSet([Resource.of(CLUSTER, "inline", inline.SerializeToString())]),
            }
        )
    )
    client = Client(channel)
    await client.ask(SECRET, *(resource.name for resource in issued), "nothing")
    await client.get()
    await client.ask(CLUSTER)
    got = await client.get()
    assert any(line in got.SerializeToString() for line in lines), "the proxy itself has to get the key"
    await client.ask(CLUSTER, nonce=got.nonce, error=f"bad: {pem.tls_certificate.private_key}")
    await until(channel, codec, **{r.name: "STALE" for r in issued}, nothing="NOT_SENT", inline="ERROR")
    whole = await channel.unary_unary(f"/{FETCH}")(b"")
    streamed = b"".join([part async for part in channel.stream_stream(f"/{STREAM}")(iter([b""]))])
    shown = str(await call(target, FETCH, {}))
    for body in (whole, streamed, shown.encode()):
        assert b"PRIVATE KEY" not in body
        assert not any(line in body for line in lines)
    assert whole.count(b"[redacted]") >= 4
    assert "[redacted]" in shown or "W3JlZGFjdGVkXQ==" in shown


async def test_grpcurl_decodes_every_any(proxies, channel, target):
    proxies.publish(world(CDS="x=1"))
    proxies.publish(clusters(cluster("a")))
    async with connected(channel, "n"):
        (found,) = await call(target, FETCH, {"nodeMatchers": [{"nodeId": {"exact": "n"}}]})
        twice = await call(target, STREAM, {}, {"excludeResourceContents": True})
    first = found["config"][0]["genericXdsConfigs"][0]
    assert first["xdsConfig"] == {"@type": CLUSTER, "name": "a"}
    assert len(twice) == 2
    assert "xdsConfig" not in twice[1]["config"][0]["genericXdsConfigs"][0]
