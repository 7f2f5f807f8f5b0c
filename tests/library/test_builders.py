"""What `xds.builders` makes, served to a real Envoy. Examples and tutorials use the rest."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import ClusterDiscoveryType

from tests.peers.certificates import Authority
from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.loopback import free_port
from tests.support.upstream import Upstream
from xds import builders as b
from xds.builders import _tls
from xds.mesh.envoy.tls import SYSTEM_ROOTS
from xds.resources import LISTENER, RUNTIME
from xds.server import XdsServer
from xds.store import Acked, Store
from xds.store.scopes import ResourceLike
from xds.testing import bootstrap

TIMEOUT = 30
ME, PEER = "spiffe://mesh/server", "spiffe://mesh/client"


@asynccontextmanager
async def serving(
    tmp_path: Path, resources: Iterable[ResourceLike], *, layer: str = ""
) -> AsyncIterator[tuple[Store, EnvoyProcess]]:
    """An Envoy that has ACKed the resources, and its store."""
    store = Store()
    store.set(*resources)
    server = XdsServer(store, "127.0.0.1:0", grace=0.2)
    await server.start()
    events = store.events()
    made = bootstrap("edge", server.port)
    if layer:
        source = {"ads": {}, "resource_api_version": "V3"}
        rtds = {"name": layer, "rtds_layer": {"name": layer, "rtds_config": source}}
        made["layered_runtime"] = {"layers": [rtds]}
    try:
        async with EnvoyProcess("edge", made, tmp_path) as envoy, asyncio.timeout(TIMEOUT):
            async for _, event in events:
                if isinstance(event, Acked) and event.type_url == LISTENER:
                    break
            await store.applied()
            yield store, envoy
    finally:
        await server.stop()


@pytest.mark.envoy
async def test_http_routes(tmp_path):
    port, client = free_port(), Client()
    at = f"http://127.0.0.1:{port}"
    async with Upstream() as blue, Upstream() as green:
        shown = [
            b.direct_response(418, "tea", path="/tea"),
            b.redirect(prefix="/old", to_path="/new", permanent=True),
            b.redirect(path="/secure", https=True),
            b.route("green", prefix="/v1/", headers={"x-canary": "yes"}, prefix_rewrite="/"),
            b.route("green", regex="/v[2-9]", timeout=None, retries=0),
        ]
        resources = (
            b.http_listener("http", f"127.0.0.1:{port}", routes="r", websocket=True, trusted_hops=1),
            b.routes("r", [b.virtual_host("web", [*shown, b.route("blue")], domains=[f"127.0.0.1:{port}"])]),
            b.cluster("blue"),
            b.endpoints("blue", {f"127.0.0.1:{blue.port}": 2}),
            b.cluster("green", [f"127.0.0.1:{green.port}"]),
        )
        async with serving(tmp_path, resources) as (store, _):
            tea = await client.get(f"{at}/tea")
            assert (tea.code, tea.text) == ("418", "tea")
            old = await client.get(f"{at}/old/x")
            assert (old.code, old.headers["location"]) == ("308", f"{at}/new")
            secure = await client.get(f"{at}/secure")
            assert (secure.code, secure.headers["location"][:6]) == ("307", "https:")
            assert (await client.get(f"{at}/v1/x")).text == str(blue.port)
            assert (await client.get(f"{at}/v1/x", headers={"x-canary": "yes"})).text == str(green.port)
            assert (await client.get(f"{at}/a/../v2")).text == str(green.port)
            assert (await client.get(at, headers={"host": "other"})).code == "404"
            store.set(b.routes("r", [b.route({"blue": 1, "green": 1})]))
            await store.applied()
            answers = {answer.text for answer in await client.gets(at, 50)}
            assert answers == {str(blue.port), str(green.port)}
            store.set(b.routes("r", [b.route({"blue": 0, "green": 1})]))
            await store.applied()
            assert {answer.text for answer in await client.gets(at, 10)} == {str(green.port)}


@pytest.mark.envoy
async def test_tcp_listener_and_host_names(tmp_path):
    one, two, client = free_port(), free_port(), Client()
    async with Upstream() as app:
        resources = (
            b.tcp_listener("one", f"127.0.0.1:{one}", "app"),
            b.tcp_listener("two", f"127.0.0.1:{two}", {"app": 1, "none": 0}),
            b.cluster("app", [f"localhost:{app.port}"]),
            b.cluster("none", []),
        )
        async with serving(tmp_path, resources):
            for port in (one, two):
                assert (await client.get(f"http://127.0.0.1:{port}")).text == str(app.port)


@pytest.mark.envoy
@pytest.mark.parametrize("http2", [False, True])
async def test_mutual_tls_between_two_listeners(tmp_path, http2):
    """The first listener's cluster is the second listener, which accepts only the client of its list."""
    outer, inner, client = free_port(), free_port(), Client()
    authority = Authority(tmp_path)
    secrets = [b.roots("roots", Path(authority.issue(ME)["ca_certificate_file"]).read_bytes())]
    for identity in (ME, PEER):
        files = authority.issue(identity)
        chain, key = (Path(files[f"{kind}_file"]).read_bytes() for kind in ("certificate", "private_key"))
        secrets.append(b.certificate(identity.rpartition("/")[2], chain, key))

    def cluster(certificate: str, server: str = ME):
        tls = b.upstream_tls("server.test", names=[server], roots="roots", certificate=certificate)
        return b.cluster("inner", [f"127.0.0.1:{inner}"], tls=tls, http2=http2)

    tls = b.downstream_tls("server", client_roots="roots", client_names=[PEER])
    resources = (
        *secrets,
        cluster("client"),
        b.http_listener("outer", f"127.0.0.1:{outer}", routes=b.routes("outer", [b.route("inner")])),
        b.http_listener(
            "inner", f"127.0.0.1:{inner}", routes=b.routes("inner", [b.direct_response(200)]), tls=tls
        ),
    )
    async with serving(tmp_path, resources) as (store, envoy):
        url = f"http://127.0.0.1:{outer}"
        assert (await client.get(url)).code == "200"
        name = "http.inner.downstream_cx_http2_total" if http2 else "http.inner.downstream_cx_http1_total"
        assert await envoy.admin.stat(name) == 1
        store.set(cluster("server"))
        await store.applied()
        assert (await client.get(url)).code == "503"  # The client shows another identity.
        store.set(cluster("client", "spiffe://mesh/other"))
        await store.applied()
        assert (await client.get(url)).code == "503"  # The server shows another identity.
        store.set(cluster("client"))
        await store.applied()
        assert (await client.get(url)).code == "200"
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        refused = await client.get(f"https://127.0.0.1:{inner}", tls=anybody)
        assert refused.error  # A client without a certificate.


@pytest.mark.envoy
async def test_system_roots_verify_the_server_by_default(tmp_path, monkeypatch):
    """The cluster is a listener whose certificate is of another authority, until that is the system's."""
    outer, inner, client = free_port(), free_port(), Client()
    files = Authority(tmp_path).issue(ME)
    chain, key = (Path(files[f"{kind}_file"]).read_bytes() for kind in ("certificate", "private_key"))

    def cluster():
        tls = b.upstream_tls("server.test", names=[ME])
        return b.cluster("inner", [f"127.0.0.1:{inner}"], tls=tls)

    resources = (
        b.certificate("server", chain, key),
        cluster(),
        b.http_listener("outer", f"127.0.0.1:{outer}", routes=b.routes("outer", [b.route("inner")])),
        b.http_listener(
            "inner",
            f"127.0.0.1:{inner}",
            routes=b.routes("inner", [b.direct_response(200)]),
            tls=b.downstream_tls("server"),
        ),
    )
    async with serving(tmp_path, resources) as (store, envoy):
        url = f"http://127.0.0.1:{outer}"
        assert (await client.get(url)).code == "503"
        assert await envoy.admin.stat("cluster.inner.ssl.fail_verify_error") > 0
        monkeypatch.setattr(_tls, "SYSTEM_ROOTS", files["ca_certificate_file"])
        store.set(cluster())
        await store.applied()
        assert (await client.get(url)).code == "200"


def test_mesh_has_the_same_system_roots():
    assert _tls.SYSTEM_ROOTS == SYSTEM_ROOTS


@pytest.mark.envoy
async def test_runtime_layer(tmp_path):
    port = free_port()
    resources = (
        b.http_listener("http", f"127.0.0.1:{port}", routes=b.routes("r", [b.direct_response(200)])),
        b.runtime("layer", {"shift": {"green": 10}, "on": True}),
    )
    async with serving(tmp_path, resources, layer="layer") as (store, envoy):
        entries = (await envoy.admin.json("/runtime"))["entries"]
        assert {name: entry["final_value"] for name, entry in entries.items()} == {
            "shift.green": "10",
            "on": "true",
        }
        store.set(b.runtime("layer", {"shift": {"green": 20}}))
        await store.applied()
        entries = (await envoy.admin.json("/runtime"))["entries"]
        assert entries["shift.green"]["final_value"] == "20"
    assert RUNTIME in store.view("edge").types


def test_kind_of_cluster_follows_its_endpoints():
    kinds = {None: "EDS", "10.0.0.1:80": "STATIC", "[::1]:80": "STATIC", "web.example:80": "STRICT_DNS"}
    for endpoint, kind in kinds.items():
        made = b.cluster("c", None if endpoint is None else iter([endpoint]))
        assert made.type is ClusterDiscoveryType[kind]
        assert bool(made.load_assignment) is bool(endpoint)


@pytest.mark.parametrize("address", ["", "web", "web:", ":80", "web:http", "::1:80", "[::1]", "a:²"])
def test_bad_address_is_named(address):
    with pytest.raises(ValueError, match="write HOST:PORT") as raised:
        b.cluster("c", [address])
    assert repr(address) in str(raised.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: b.cluster("c", "10.0.0.1:80"), TypeError, r"pass a list, \['10.0.0.1:80'\]"),
        (lambda: b.endpoints("c", ["web:80"]), ValueError, r"pass it to cluster\('c', \['web:80'\]\)"),
        (lambda: b.cluster("c", ["web:99999"]), ValueError, "'web:99999': the port is above 65535"),
        (lambda: b.cluster("c", [("10.0.0.1", 80)]), TypeError, "write a str HOST:PORT"),
        (lambda: b.endpoints("c", [("10.0.0.1", 80)]), TypeError, r"not an address: \('10.0.0.1', 80\)"),
        (lambda: b.http_listener("l", 80, routes="r"), TypeError, "not an address: 80; write a str"),
        (
            lambda: b.cluster("c", tls=True),
            TypeError,
            r"tls= takes upstream_tls\(\.\.\.\), .* not bool",
        ),
        (
            lambda: b.http_listener("l", "[::]:80", routes="r", tls=b.upstream_tls("web")),
            TypeError,
            r"takes downstream_tls\(\.\.\.\), a DownstreamTlsContext, not UpstreamTlsContext",
        ),
        (lambda: b.route({"c": -5, "d": 1}), ValueError, "negative weight: {'c': -5}"),
        (lambda: b.route("c", prefix="foo"), ValueError, "matches no request: write prefix='/foo'"),
        (lambda: b.redirect(path="foo", host="a"), ValueError, "matches no request: write path='/foo'"),
        (lambda: b.routes("r", b.route("c")), TypeError, "r: pass a list, not one Route"),
        (lambda: b.virtual_host("v", b.route("c")), TypeError, "v: pass a list of routes, not one Route"),
        (
            lambda: b.virtual_host("v", [], domains="a.example"),
            TypeError,
            r"pass a list, domains=\['a.example'\]",
        ),
        (lambda: b.upstream_tls(names="web"), TypeError, r"pass a list, names=\['web'\]"),
        (lambda: b.upstream_tls("web", alpn="h2"), TypeError, r"pass a list, alpn=\['h2'\]"),
        (
            lambda: b.downstream_tls("c", client_roots="r", client_names="web"),
            TypeError,
            r"pass a list, client_names=\['web'\]",
        ),
        (lambda: b.route("c", prefix="/a", path="/b"), ValueError, "pass one of prefix='/a', path='/b'"),
        (lambda: b.route({"c": 0}), ValueError, "no cluster has a positive weight"),
        (
            lambda: b.tcp_listener("t", "127.0.0.1:1", {"c": 0}),
            ValueError,
            "no cluster has a positive weight",
        ),
        (lambda: b.redirect(path="/a"), ValueError, "pass https=True, host= or to_path="),
        (lambda: b.routes("r", [b.route("c"), b.virtual_host("v", [])]), TypeError, "or a list of routes"),
        (b.upstream_tls, ValueError, "pass the server's host name"),
        (lambda: b.downstream_tls("c", client_names=["a"]), ValueError, "requires client_roots="),
    ],
)
def test_misuse_is_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()
