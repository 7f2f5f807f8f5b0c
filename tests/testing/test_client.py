"""`EnvoyClient` in memory: what a test can make it do, and how it fails."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tests.library.messages import assignment, eds_cluster, listener, routes
from xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, VIRTUAL_HOST
from xds.server import Refused
from xds.store import NackError, Store
from xds.testing import EnvoyClient, Variant


@pytest.fixture
def store() -> Store:
    store = Store()
    store.set(eds_cluster("web"), assignment("web"), listener("l", "r"), routes("r"))
    return store


@pytest.fixture
async def client(store, variant):
    async with EnvoyClient(store, variant=variant) as client:
        await client.wait_for(lambda: client.live)
        yield client


def lines(client: EnvoyClient) -> list[str]:
    return [line for line in client.conversation if not line.startswith("--")]


async def test_it_is_live_with_nothing(variant):
    store = Store()
    store.replace([])
    async with EnvoyClient(store, variant=variant) as client:
        await client.wait_for(lambda: client.live)
        assert lines(client) == ["> CDS", "< CDS", "> LDS", "> CDS ACK", "< LDS", "> LDS ACK"]


async def test_it_has_messages(client):
    assert client.clusters["web"].name == "web"
    assert client.endpoints["web"].cluster_name == "web"
    assert (*client.listeners, *client.routes, *client.secrets) == ("l", "r")
    assert client.resources[CLUSTER]["web"].version
    assert client.warming == frozenset()


async def test_rejected_assignment_leaves_the_cluster_as_it_was(store, client):
    client.reject(ENDPOINT, "web", "wrong")
    store.set(eds_cluster("web", certificate="default"), assignment("web"))
    await client.wait_for(lambda: client.conversation.nacks)
    assert (CLUSTER, "web") in client.warming
    assert [nack.error for nack in client.conversation.nacks] == ["wrong"]
    with pytest.raises(NackError, match="envoy rejected ClusterLoadAssignment web: wrong"):
        await store.applied()


async def test_rejected_listener_keeps_the_old_one(store, client):
    old = client.resources[LISTENER]["l"]
    client.reject(LISTENER, message="no")
    store.set(listener("l", "s"), routes("s"))
    with pytest.raises(NackError, match=r"Error adding/updating listener\(s\) l: no"):
        await store.applied()
    assert client.resources[LISTENER]["l"] is old
    client.accept(LISTENER)
    store.set(listener("l", "t"), routes("t"))
    await client.wait_for(lambda: "t" in client.routes and not client.warming)


async def test_warming_ends_when_told(store, client, variant):
    """A secret that the SotW server does not know. A delta server would say that it does not exist."""
    store.set(eds_cluster("web", certificate="unknown"), assignment("web"))
    if variant is Variant.DELTA:
        await client.wait_for(lambda: "> SDS ACK" in client.conversation)
        assert not client.warming
        return
    await client.wait_for(lambda: "> SDS unknown" in client.conversation)
    assert client.warming == {(CLUSTER, "web")}
    assert lines(client)[-1] != "> CDS ACK"
    await client.stop_warming()
    assert client.warming == frozenset()
    assert lines(client)[-1] == "> CDS ACK"


async def test_held_clusters_hold_their_assignments(store, client):
    client.hold(CLUSTER)
    store.set(eds_cluster("web", certificate="unknown"), eds_cluster("other"), assignment("web"))
    await client.wait_for(lambda: client.held(CLUSTER))
    assert "other" not in client.clusters
    await client.release(CLUSTER)
    await client.wait_for(lambda: "other" in client.clusters and not client.held(ENDPOINT))


async def test_responses_are_answered_one_by_one(store, client):
    client.hold(CLUSTER)
    store.set(eds_cluster("other"), assignment("other"))
    response = await client.answer(CLUSTER, "no")
    assert "other" in {each.name for each in response.resources}
    assert client.conversation.nacks[-1].error.endswith("other: no")
    assert "other" not in client.clusters
    store.set(eds_cluster("other", certificate="new"))
    await client.answer(CLUSTER)
    assert "other" in client.clusters
    assert len(client.conversation.nacks) == 1
    await client.wait_for(lambda: "other" in client.endpoints)
    client.timeout = 0.01
    with pytest.raises(AssertionError, match="a response of CDS"):
        await client.answer(CLUSTER)


async def test_response_without_resources_is_rejected(store, client):
    """In the SotW variant, the response is empty; in the delta variant, it only has a removal."""
    client.hold(CLUSTER)
    store.remove(CLUSTER, "web")
    response = await client.answer(CLUSTER, "no")
    assert response.resources == ()
    assert client.conversation.nacks[-1].error == "no"
    assert "web" in client.clusters
    client.reject(CLUSTER, "other")
    store.set(eds_cluster("other"))
    await client.answer(CLUSTER)
    assert client.conversation.nacks[-1].error.endswith("other: rejected by the test")


async def test_rejections_set_during_an_answer_stay(store, client):
    client.hold(CLUSTER)
    client.reject(CLUSTER, "web")
    answer = asyncio.create_task(client.answer(CLUSTER, "no"))
    await asyncio.sleep(0)  # `answer` waits for the response before this test does.
    store.set(eds_cluster("other"), assignment("other"))
    async with client._sending:  # Let the answer wait.
        await client.wait_for(lambda: client.conversation[-1].startswith("< CDS other"))
        client.accept(CLUSTER, "web")
        client.reject(CLUSTER, "more", "later")
    await answer
    assert [*client.model.rejected] == [(CLUSTER, "more")]


async def test_rejection_with_a_condition(store, client):
    """The client rejects the routes only while they have the header."""
    client.reject(ROUTE, message="no", when=lambda route: route.vhost_header == "x-bad")
    client.reject(CLUSTER, "web", "never", when=lambda cluster: cluster.name != "web")
    store.set(routes("r", "x-bad"), eds_cluster("web", certificate="new"))
    with pytest.raises(NackError, match="RouteConfiguration r: no"):
        await store.applied()
    store.set(routes("r", "x-good"))
    await client.wait_for(lambda: client.routes["r"].vhost_header == "x-good")
    assert len(client.conversation.nacks) == 1


async def test_routes_of_a_replaced_listener_stay_until_it_drains(store, client):
    store.set(listener("l", "s"), routes("s"))
    await client.wait_for(lambda: "s" in client.routes and not client.warming)
    assert client.model.wanted(ROUTE) == ("r", "s")
    await client.drain()
    assert client.model.wanted(ROUTE) == ("s",)
    assert "r" not in client.routes


async def test_clusters_on_demand(store, client, variant):
    store.set(eds_cluster("late"), assignment("late"))
    await client.wait_for(lambda: "late" in client.endpoints)
    await client.demand(CLUSTER, "late")
    request = client.conversation.requests[-1]
    assert request.names == (("*", "late") if variant is Variant.SOTW else ("late",))
    await client.reconnect()
    request = next(each for each in client.conversation.requests[::-1] if each.type_url == CLUSTER)
    assert request.names == ("*", "late")


async def test_virtual_hosts_on_demand(store):
    async with EnvoyClient(store) as client:
        await client.wait_for(lambda: client.live)
        await client.demand(VIRTUAL_HOST, "r/web.example")
        await client.wait_for(lambda: "> VHDS ACK" in client.conversation)


async def test_refused_stream_fails_the_wait(variant):
    class Guarded(Store):
        def connect(self, node, stream):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"{node.id} is unknown")

    async with EnvoyClient(Guarded(), variant=variant, node="stranger") as client:
        with pytest.raises(
            AssertionError, match=r"ended with PERMISSION_DENIED \(stranger is unknown\) before"
        ):
            await client.wait_for(lambda: client.live)
        assert client.status == (grpc.StatusCode.PERMISSION_DENIED, "stranger is unknown")


async def test_invalid_request_ends_the_stream(store, variant):
    async with EnvoyClient(store, variant=variant, node="") as client:
        with pytest.raises(
            AssertionError, match=r"INVALID_ARGUMENT \(the first request .* must have node\.id"
        ):
            await client.wait_for(lambda: client.live)


async def test_failure_of_the_program_fails_the_wait(variant):
    class Broken(Store):
        def observe(self, subscriber, event):
            raise ZeroDivisionError("oh")

    async with EnvoyClient(Broken(), variant=variant) as client:
        with pytest.raises(AssertionError, match=r"ended with INTERNAL \(ZeroDivisionError: oh\)"):
            await client.wait_for(lambda: client.live)


async def test_failure_of_the_client_is_raised(store):
    async with EnvoyClient(store) as client:
        client.model.receive = None
        with pytest.raises(TypeError, match="not callable"):
            await client.wait_for(lambda: client.live)


async def test_disconnected_client_keeps_its_resources(store, client):
    await client.disconnect()
    assert not store.clients
    assert "web" in client.clusters
    await client.connect()
    with pytest.raises(RuntimeError, match=r"envoy is connected: call reconnect\(\)"):
        await client.connect()


async def test_wait_names_what_is_missing(client):
    client.timeout = 0.01
    with pytest.raises(
        AssertionError, match=r"(?s)not within 0\.01 s: a green cluster\n-- .*> CDS.*has: web \(CDS\)"
    ):
        await client.wait_for(lambda: "green" in client.clusters, "a green cluster")


async def test_wait_shows_the_source_of_a_lambda(client):
    client.timeout = 0.01
    with pytest.raises(
        AssertionError, match=r"0\.01 s: await client\.wait_for\(lambda: \"green\" in client\.clusters\)\n"
    ):
        await client.wait_for(lambda: "green" in client.clusters)
    without_source = eval("lambda: False")
    with pytest.raises(AssertionError, match=r"0\.01 s: <lambda>\n"):
        await client.wait_for(without_source)

    def green_arrives() -> bool:
        return False

    with pytest.raises(AssertionError, match=r"0\.01 s: green_arrives\n"):
        await client.wait_for(green_arrives)
