"""xdstp names: gRPC follows them across authorities, and Envoy subscribes to collections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest

from tests.peers.programs import DEADLINE, Caller, backend, end, kill, servers
from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.loopback import free_port
from xds.builders import api_listener, cluster, direct_response, endpoints, http_listener, route, routes
from xds.names import XdstpName, xdstp
from xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, resource
from xds.server import XdsServer
from xds.store import Acked, Store, Subscribed
from xds.store.scopes import ResourceLike
from xds.testing import bootstrap

ODD = "a b!$&'()*+,;=:@/~-._%é#?"
"""Characters that a name encodes, and those that it does not."""


@asynccontextmanager
async def serving(*resources: ResourceLike) -> AsyncIterator[tuple[Store, XdsServer]]:
    store = Store()
    store.replace(resources)
    server = XdsServer(store, "127.0.0.1:0", grace=0.2)
    await server.start()
    try:
        yield store, server
    finally:
        await server.stop()


async def test_grpc_follows_names_across_authorities():
    """The listener is in one authority, and what it refers to is in another, which has its own server."""
    app, app_port = await backend("one")
    parameters = {"z": "eu west", "a": "1"}
    listener, route_name, cluster_name = (
        xdstp(kind, path, authority=authority, parameters=parameters)
        for kind, path, authority in (
            (LISTENER, "svc", "edge.example"),
            (ROUTE, "svc/routes", "apps.example"),
            (CLUSTER, "one", "apps.example"),
        )
    )
    edge = (api_listener(listener, routes=route_name),)
    apps = (
        routes(route_name, [route(cluster_name)]),
        cluster(cluster_name),
        endpoints(cluster_name, [f"127.0.0.1:{app_port}"]),
    )
    async with serving(*edge) as (edge_store, edge_server), serving(*apps) as (apps_store, apps_server):
        template = xdstp(LISTENER, "NAME", authority="edge.example", parameters=parameters)
        authorities = {
            "edge.example": {
                "xds_servers": servers(edge_server.port),
                "client_listener_resource_name_template": template.replace("NAME", "%s"),
            },
            "apps.example": {"xds_servers": servers(apps_server.port)},
        }
        caller = await Caller.start("aio", 1, target="xds://edge.example/svc", authorities=authorities)
        try:
            assert await caller.answer() == "one"
            async with asyncio.timeout(DEADLINE):
                assert len(await edge_store.applied(at_least=1)) == 1
                assert len(await apps_store.applied(at_least=1)) == 1
        finally:
            await end(caller.process)
    await app.stop(None)


async def test_grpc_sends_names_in_our_canonical_form():
    async with serving() as (store, server):
        template = f"xdstp://x/{LISTENER.rpartition('/')[2]}/%s?z={quote(ODD, safe='')}&a={quote('b=c')}"
        authorities = {
            "x": {
                "xds_servers": servers(server.port),
                "client_listener_resource_name_template": template,
            }
        }
        target = f"xds://x/{quote(ODD, safe='')}"
        events = store.events()
        caller = await Caller.start("sync", server.port, target=target, authorities=authorities)
        assert caller.process.stdin
        caller.process.stdin.write(b"\n")
        async with asyncio.timeout(DEADLINE):
            subscribed = await anext(event async for _, event in events if isinstance(event, Subscribed))
        await kill(caller.process)
    expected = xdstp(LISTENER, ODD, authority="x", parameters={"z": ODD, "a": "b=c"})
    assert subscribed.names == {expected}
    assert XdstpName.parse(expected).parameters == {"z": ODD, "a": "b=c"}


@pytest.mark.envoy
async def test_envoy_subscribes_to_collections(tmp_path):
    """It gets the collection's members only, and follows it as it grows and shrinks."""
    one, two, elsewhere = free_port(), free_port(), free_port()

    def listener(path: str, port: int):
        name = xdstp(LISTENER, path, authority="edge.example")
        return http_listener(name, f"127.0.0.1:{port}", routes=routes("r", [direct_response(200, path)]))

    members = listener("web/one", one), listener("web/two", two)
    async with serving(members[0], listener("other/x", elsewhere)) as (store, server):
        made = bootstrap("edge", server.port)
        dynamic = made["dynamic_resources"]
        dynamic["lds_resources_locator"] = xdstp(LISTENER, "web/*", authority="edge.example")
        client, events = Client(), store.events()
        async with EnvoyProcess("edge", made, tmp_path) as envoy:
            async with asyncio.timeout(DEADLINE):
                await anext(
                    event
                    async for _, event in events
                    if isinstance(event, Acked) and event.type_url == LISTENER
                )
            assert (await client.get(f"http://127.0.0.1:{one}")).text == "web/one"
            store.set(members[1])
            await asyncio.wait_for(store.applied(), DEADLINE)
            assert (await client.get(f"http://127.0.0.1:{two}")).text == "web/two"
            assert (await client.get(f"http://127.0.0.1:{elsewhere}")).error
            store.remove(members[1])
            await asyncio.wait_for(store.applied(), DEADLINE)
            assert await envoy.admin.stat("listener_manager.listener_removed") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (xdstp(SECRET, "a"), "the name is one of type envoy.extensions.transport_sockets.tls.v3.Secret"),
        ("xdstp://x", "not an xdstp name: 'xdstp://x'; the form is xdstp://AUTHORITY/TYPE/PATH"),
        (f"xdstp://x/{CLUSTER[20:]}/a#b", "not an xdstp name"),
        (f"xdstp://x/{CLUSTER[20:]}/a?b=1&a=2", r"clients send this name as xdstp://x/[\w.]+/a\?a=2&b=1"),
        (f"xdstp://x/{CLUSTER[20:]}/a b", "clients send this name as .*/a%20b"),
    ],
)
def test_names_that_no_client_sends_are_refused(name, message):
    made = cluster("web")
    made.name = name
    with pytest.raises(ValueError, match=message):
        resource(made)


def test_assignment_has_the_name_of_its_cluster():
    name = xdstp(CLUSTER, "web", authority="x", parameters={"a": "1"})
    assert resource(cluster(name)).refs == (
        (ENDPOINT, xdstp(ENDPOINT, "web", authority="x", parameters={"a": "1"})),
    )
    assert resource(endpoints(name, [])).name == resource(cluster(name)).refs[0][1]


def test_bad_parts_are_refused():
    for type_url, path in (("Cluster", "a"), (CLUSTER, "")):
        with pytest.raises(ValueError, match="needs a type URL and a path"):
            xdstp(type_url, path)
