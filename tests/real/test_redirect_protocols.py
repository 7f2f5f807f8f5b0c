"""Interception: which protocol a port speaks, whether declared or detected, between pods."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Self

import pytest
import pytest_asyncio

from tests.support.clients import NO_ANSWER
from tests.support.cluster import Cluster, ClusterPod
from tests.support.exchange import FAILS, HTTP1, HTTP2, MTLS, SERVER_FIRST, TCP
from tests.support.manifests import peer_authentication
from tests.support.mesh import Mesh
from tests.support.tcp import Conversation, LineApp, TcpServer
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {
    "http-web": (80, 8080),
    "http2-web": (81, 8081),
    "grpc": (82, 8082),
    "tcp-greets": (91, 9001),
    "greets": (94, 9004),
    "https-own": (443, 8443),
    "own-tls": (444, 8444),
    "http-upgrade": (86, 8086),
    "upgrade": (87, 8087),
}
CLIENT, OUTSIDER = "client.permissive", "outsider.outside"
SLEEP = "spiffe://cluster.local/ns/permissive/sa/sleep"
OWN_NAME = "app.example.org"
MODES = ("permissive", "strict", "disable")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Servers in namespaces that are named after their mode, a client with a sidecar, and one without."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "permissive", account="sleep")
            mesh.pod("outsider", "outside", sidecar=False)
            for namespace in MODES:
                pod = mesh.pod("web", namespace)
                mesh.service("web", namespace, PORTS)
                await mesh.serve(pod, http=(8080, 8081, 8082), greets=(9001, 9004))
            mesh.service(
                "apps",
                "strict",
                {"tcp-said-http": (80, 8090), "said-h2c": (81, 8091), "http-said-tcp": (90, 9090)},
                selector={"app": "web"},
                app_protocols={
                    "tcp-said-http": "http",
                    "said-h2c": "kubernetes.io/h2c",
                    "http-said-tcp": "tcp",
                },
            )
            mesh.service("unnamed", "strict", {"": (80, 8092)}, selector={"app": "web"})
            mesh.service(
                "others", "strict", {"tcp-lines": (80, 9091), "mysql": (3306, 9092)}, selector={"app": "web"}
            )
            await mesh.serve(mesh["web.strict"], http=(8090, 8091, 8092), lines=(9091,), greets=(9090, 9092))
            mesh.apply(peer_authentication("strict", "STRICT"), peer_authentication("disable", "DISABLE"))
            await mesh.start()
            yield mesh


class TestProtocolSelection:
    async def test_app_protocol_overrides_the_port_name(self, mesh):
        http = await mesh.exchange(HTTP1, CLIENT, "apps.strict", 80)
        http2 = await mesh.exchange(HTTP1, CLIENT, "apps.strict", 81)
        tcp = await mesh.exchange(SERVER_FIRST, CLIENT, "apps.strict", 90)

        assert (http.how, http.identity, http.protocol) == (MTLS, SLEEP, "HTTP/1.1")
        assert (http2.how, http2.identity, http2.protocol) == (MTLS, SLEEP, "HTTP/2")
        assert (tcp.how, tcp.pod) == (MTLS, "web.strict")

    @pytest.mark.parametrize("what", [HTTP1, HTTP2])
    async def test_unnamed_port_is_detected(self, mesh, what):
        seen = await mesh.exchange(what, CLIENT, "unnamed.strict", 80)

        assert (seen.how, seen.pod, seen.identity, seen.protocol) == (MTLS, "web.strict", SLEEP, what)

    @pytest.mark.parametrize(("port", "protocol"), [(80, "HTTP/1.1"), (81, "HTTP/2"), (82, "HTTP/2")])
    async def test_declared_protocol_is_used(self, mesh, port, protocol):
        for what in (HTTP1, HTTP2):
            seen = await mesh.exchange(what, CLIENT, "web.strict", port)
            assert (seen.protocol, seen.identity) == (protocol, SLEEP)

    async def test_services_on_one_port_may_differ_in_protocol(self, mesh):
        tcp = await mesh.exchange(TCP, CLIENT, "others.strict", 80)
        http = await mesh.exchange(HTTP1, CLIENT, "web.strict", 80)

        assert (tcp.how, tcp.pod) == (http.how, http.pod) == (MTLS, "web.strict")

    async def test_only_undeclared_ports_wait_for_detection(self, mesh):
        async def waited(host: str, port: int) -> list[int]:
            sidecars = [mesh.sidecar(mesh[name]).admin for name in (CLIENT, "web.strict", "web.disable")]
            stat = r"^listener\..*\.downstream_pre_cx_timeout$"
            before = [await admin.total(stat) for admin in sidecars]
            seen = await mesh.exchange(SERVER_FIRST, CLIENT, host, port)
            assert seen.how != FAILS
            return [await admin.total(stat) - n for admin, n in zip(sidecars, before, strict=True)]

        declared, undeclared, known = 91, 94, 3306
        assert await waited("web.strict", declared) == [0, 0, 0]
        assert await waited("web.strict", undeclared) == [1, 0, 0]
        assert await waited("others.strict", known) == [0, 0, 0]
        assert await waited("web.disable", declared) == [0, 0, 1]
        assert await waited("web.disable", undeclared) == [1, 0, 1]

    async def test_request_names_its_service(self, mesh):
        mesh.wire.forget()

        await mesh.exchange(TCP, CLIENT, "others.strict", 80)

        assert mesh.wire.saw("outbound_.80_._.others.strict.svc.cluster.local"), (
            "in the hello, which all can read"
        )


class TlsLines(LineApp):
    """An application that terminates TLS itself."""

    def __init__(self, name: str, port: int, pod: ClusterPod, tls: ssl.SSLContext) -> None:
        super().__init__(name, port, place=pod.place)
        self._tls = tls

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, sock=self.listener, ssl=self._tls)
        return self


@pytest.fixture(scope="module")
def authority() -> Authority:
    """The CA of the applications' own certificates."""
    return Authority.create(PrivateKey.generate(), "example.org", datetime.now(UTC))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def apps(mesh, authority, tmp_path_factory) -> AsyncIterator[None]:
    """Applications that terminate TLS themselves."""
    leaf = authority.issue("spiffe://example.org/ns/own/sa/app", datetime.now(UTC))
    file = tmp_path_factory.mktemp("own") / "leaf.pem"
    file.touch(0o600)
    file.write_bytes(leaf.chain + leaf.key.to_pem())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    async with AsyncExitStack() as stack:
        for namespace in MODES:
            for port in (8443, 8444):
                app = TlsLines(f"web.{namespace}", port, mesh[f"web.{namespace}"], tls)
                await stack.enter_async_context(app)
        yield


@pytest.mark.usefixtures("apps")
class TestApplicationTls:
    async def answer(
        self, mesh: Mesh, authority: Authority, client: str, host: str, port: int, *alpn: str
    ) -> str:
        """Return the application's answer over TLS, or an empty string."""
        tls = ssl.create_default_context(cadata=authority.certificate_pem.decode())
        tls.check_hostname = False
        if alpn:
            tls.set_alpn_protocols(list(alpn))
        connected = await mesh[client].client.connect(host, port)
        try:
            streams = await asyncio.open_connection(sock=connected, ssl=tls, server_hostname=OWN_NAME)
        except NO_ANSWER:
            return ""
        conversation = Conversation(*streams, timeout=30)
        try:
            return await conversation.ask("hello")
        finally:
            await conversation.close()

    @pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
    @pytest.mark.parametrize("port", [443, 444])
    @pytest.mark.parametrize("namespace", MODES)
    async def test_application_tls_passes_through_sidecars(self, mesh, authority, namespace, port, alpn):
        mesh.wire.forget()

        answer = await self.answer(mesh, authority, CLIENT, f"web.{namespace}", port, *alpn)

        assert answer == f"web.{namespace}: hello"
        within_mutual_tls = namespace != "disable"
        assert mesh.wire.saw(f"outbound_.{port}_._.web.{namespace}.svc") == within_mutual_tls
        assert mesh.wire.saw(OWN_NAME) == (not within_mutual_tls)

    @pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
    @pytest.mark.parametrize("port", [443, 444])
    @pytest.mark.parametrize("namespace", MODES)
    async def test_application_tls_from_outside_is_refused_under_strict(
        self, mesh, authority, namespace, port, alpn
    ):
        answer = await self.answer(mesh, authority, OUTSIDER, f"web.{namespace}", port, *alpn)

        assert answer == ("" if namespace == "strict" else f"web.{namespace}: hello")


class Upgrading(TcpServer):
    """Upgrades every request to another protocol, as WebSocket servers do."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readline()).strip():
            pass
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        while line := await reader.readline():
            writer.write(b"echo: " + line)


@pytest.mark.parametrize("port", [86, 87])
@pytest.mark.parametrize("namespace", MODES)
@pytest.mark.parametrize("client", [CLIENT, OUTSIDER])
async def test_upgraded_connection_passes_data_both_ways(mesh, client, namespace, port):
    place = mesh[f"web.{namespace}"].place
    async with (
        Upgrading(place.listener("0.0.0.0", 8000 + port)),
        mesh[client].client.tcp(f"web.{namespace}", port) as conversation,
    ):
        await conversation.say(
            f"GET /chat HTTP/1.1\r\nHost: web.{namespace}:{port}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: "
            "13\r\n\r"
        )
        if (client, namespace) == (OUTSIDER, "strict"):
            assert await conversation.closed()
            return
        assert (await conversation.hear()).startswith("HTTP/1.1 101 ")
        while await conversation.hear():
            pass
        for line in ("one", "two"):
            assert await conversation.ask(line) == f"echo: {line}"
