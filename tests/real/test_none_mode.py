"""Interception mode NONE with real sidecars: listeners, and what the outbound proxy forwards or refuses."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from contextlib import AsyncExitStack, ExitStack

import pytest
import pytest_asyncio

from tests.support import manifests
from tests.support.answers import Answer
from tests.support.apps import EchoApp
from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.local import PROXY_PORT, LocalMesh, LocalPod, Spy, http2_inside, listening, raw
from tests.support.loopback import Loopback, free_port
from tests.support.places import Namespace
from tests.support.tcp import Relay
from tests.support.waiting import eventually

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

CLIENT_ID = "spiffe://cluster.local/ns/ns/sa/client"
HTTP, GRPC, ANY_HTTP = 8080, 8082, 9090
TCP, GREETS, ANY_TCP, ANY_GREETS = 9000, 9001, 9091, 9092
PORTS = {
    "http": (80, HTTP),
    "grpc": (81, GRPC),
    "tcp": (82, TCP),
    "tcp-greets": (83, GREETS),
    "any-http": (84, ANY_HTTP),
    "any-tcp": (85, ANY_TCP),
    "any-greets": (86, ANY_GREETS),
}


class Pods:
    """A client, servers with and without a sidecar, and a headless service over one of each kind."""

    def __init__(self, mesh: LocalMesh, spy: Spy) -> None:
        self.mesh, self.spy = mesh, spy
        self.client = mesh.pod("client", "ns")
        self.web = mesh.pod("web", "ns")
        self.plain = mesh.pod("plain", "ns", sidecar=False)
        self.db = [
            mesh.pod(f"db-{n}", "ns", sidecar=not n, labels={"app": "db"}, subdomain="db") for n in (0, 1)
        ]

    async def start(self) -> None:
        for pod in (self.web, self.plain, *self.db):
            await self.mesh.serve(
                pod, http=(HTTP, GRPC, ANY_HTTP), lines=(TCP, ANY_TCP), greets=(GREETS, ANY_GREETS)
            )
        for name in ("web", "plain"):
            self.mesh.service(name, "ns", PORTS, address=f"10.96.0.{len(name)}")
        self.mesh.service("db", "ns", {"http": (HTTP, HTTP), "tcp": (TCP, TCP)})
        self.mesh.service("nobody", "ns", {"http": (80, HTTP)}, address="10.96.0.9")
        await self.mesh.start(self.client, self.web, self.db[0])

    async def get(self, host: str, **how: object) -> Answer:
        return await self.client.client.get(f"http://{host}/headers", **how)

    def tcp(self, host: str, port: int):
        return self.client.client.tcp(host, port)

    async def handshakes(self, pod: LocalPod, port: int) -> int:
        """Return how many mutual TLS connections a port has accepted."""
        name = re.escape(f"listener.{pod.address}_{port}.ssl.handshake")
        return await self.mesh.sidecar(pod).admin.total(f"^{name}$")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(tmp_path_factory):
    async with AsyncExitStack() as exits:
        loopback = exits.enter_context(Loopback())
        spy = await exits.enter_async_context(Spy(loopback.address()))
        directory = tmp_path_factory.mktemp("none")
        mesh = await exits.enter_async_context(LocalMesh(loopback, directory))
        made = Pods(mesh, spy)
        await made.start()
        yield made


class TestHttp:
    @pytest.mark.parametrize("name", ["web", "web.ns", "web.ns.svc", "web.ns.svc.cluster.local", "10.96.0.3"])
    async def test_all_service_names_get_mutual_tls(self, pods, name):
        for host in (name, f"{name}:80"):
            answer = await pods.get(host)
            assert (answer.pod, answer.identity) == ("web.ns", CLIENT_ID)

    async def test_pod_without_a_sidecar_gets_plaintext(self, pods):
        answer = await pods.get("plain")
        assert (answer.pod, answer.certificate) == ("plain.ns", "")

    async def test_http_on_an_undeclared_port_is_detected_inside_tls(self, pods):
        answer = await pods.get("web:84")

        assert (answer.pod, answer.identity) == ("web.ns", CLIENT_ID)
        assert (await pods.get("plain:84")).certificate == ""

    async def test_http_1_0_client_is_served_through_both_sidecars(self, pods):
        for port in (80, 84):
            (answer,) = await raw(pods.client, f"GET http://web:{port}/headers HTTP/1.0\nHost: web:{port}\n")

            assert " 200 OK" in answer.splitlines()[0]
            assert CLIENT_ID in answer

    @pytest.mark.parametrize(("name", "identity"), [("web", CLIENT_ID), ("plain", "")])
    async def test_grpc_port_gets_http2(self, pods, name, identity):
        answer = await pods.get(f"{name}:81")

        assert (answer.echo["protocol"], answer.identity) == ("HTTP/2", identity)

    async def test_application_sees_exactly_one_certificate(self, pods):
        forged = {"x-forwarded-client-cert": "By=me;URI=spiffe://cluster.local/ns/ns/sa/admin"}

        answer = await pods.get("web", headers=forged)
        outsider = await Client().get(f"http://{pods.web.address}:{HTTP}/headers", headers=forged)

        assert answer.certificate.count("URI=") == 1
        assert answer.identity == CLIENT_ID
        assert (outsider.code, outsider.certificate) == ("200", "")

    async def test_application_address_annotation_is_used(self, pods):
        assert pods.web.app_address != pods.web.address
        straight = await Client().get(f"http://{pods.web.app_address}:{HTTP}/headers")
        assert (await pods.get("web")).pod == straight.pod == "web.ns"

    async def test_service_without_endpoints_is_unavailable(self, pods):
        assert (await pods.get("nobody")).code == "503"


class TestHeadlessPods:
    @pytest.mark.parametrize(("number", "identity"), [(0, CLIENT_ID), (1, "")])
    async def test_pod_is_reached_by_name_and_address_in_its_mode(self, pods, number, identity):
        pod = pods.db[number]
        for host in (f"db-{number}.db", f"db-{number}.db.ns.svc.cluster.local", pod.address):
            for _ in range(3):
                answer = await pods.get(f"{host}:{HTTP}")
                assert (answer.pod, answer.identity) == (pod.full_name, identity)
            async with pods.tcp(host, TCP) as conversation:
                assert await conversation.ask("hello") == f"{pod.full_name}: hello"

    async def test_service_name_reaches_both_pods(self, pods):
        seen = {(a.pod, a.identity) for a in [await pods.get(f"db:{HTTP}") for _ in range(50)]}

        assert seen == {("db-0.ns", CLIENT_ID), ("db-1.ns", "")}


class TestConnect:
    @pytest.mark.parametrize(("port", "target"), [(82, TCP), (85, ANY_TCP)])
    async def test_tcp_tunnel_uses_mutual_tls(self, pods, port, target):
        before = await pods.handshakes(pods.web, target)
        async with pods.tcp("web.ns", port) as conversation:
            assert await conversation.ask("hello") == "web.ns: hello"
            assert await conversation.ask("again") == "web.ns: again"

        assert await pods.handshakes(pods.web, target) == before + 1

    @pytest.mark.parametrize(("port", "target"), [(83, GREETS), (86, ANY_GREETS)])
    async def test_server_first_protocol_passes_through_a_tunnel(self, pods, port, target):
        before = await pods.handshakes(pods.web, target)
        for name in ("web", "plain"):
            async with pods.tcp(f"{name}.ns", port) as conversation:
                assert await conversation.hear() == f"220 {name}.ns"
                assert await conversation.ask("hello") == f"{name}.ns: hello"

        assert await pods.handshakes(pods.web, target) == before + 1

    async def test_tunnel_to_an_undeclared_port_is_tcp(self, pods):
        """The sidecar treats tunneled bytes as TCP, although it detects HTTP in requests to the same port."""
        before = await pods.handshakes(pods.web, ANY_HTTP)
        answer = await http2_inside(pods.client, "web.ns", 84)

        assert (answer.pod, answer.echo["protocol"], answer.certificate) == ("web.ns", "HTTP/2", "")
        assert await pods.handshakes(pods.web, ANY_HTTP) == before + 1

    @pytest.mark.parametrize(("name", "identity"), [("web.ns", CLIENT_ID), ("plain.ns", "")])
    async def test_grpc_passes_through_a_tunnel(self, pods, name, identity):
        answer = await http2_inside(pods.client, name, 81)

        assert (answer.pod, answer.echo["protocol"], answer.identity) == (name, "HTTP/2", identity)


class TestRefusals:
    @pytest.mark.parametrize("host", ["example.org", "web.elsewhere", "web:99", f"web:{HTTP}", "client"])
    async def test_unknown_host_is_502_with_a_hint(self, pods, host):
        answer = await pods.get(host)

        message = f"502: no service of the mesh is called {host}; ask for SERVICE.NAMESPACE:PORT\n"
        assert (answer.code, answer.text) == ("502", message)

    @pytest.mark.parametrize("authority", ["example.org:443", "web.elsewhere:80", "web:99", "client:80"])
    async def test_tunnel_to_an_unknown_host_is_502_with_a_hint(self, pods, authority):
        message = f"502: no service of the mesh is called {authority}; ask for SERVICE.NAMESPACE:PORT\n"

        with pytest.raises(ConnectionRefusedError, match=re.escape(f"502 Bad Gateway: {message}")):
            async with pods.tcp(*authority.split(":")):
                pass

    async def test_http_request_to_a_tcp_service_gets_a_hint(self, pods):
        answer = await pods.get("web:82")

        assert (answer.code, answer.text) == ("502", "502: web:82 speaks TCP: use CONNECT\n")

    async def test_addresses_from_the_request_are_not_used(self, pods):
        spy = f"{pods.spy.address}:{pods.spy.port}"
        requests = [
            f"GET http://{spy}/ HTTP/1.1\nHost: {spy}\n",
            f"GET http://{spy}/ HTTP/1.1\nHost: web\n",
            f"GET / HTTP/1.1\nHost: {spy}\n",
            f"GET http://web@{spy}/ HTTP/1.1\nHost: web\n",
            f"CONNECT {spy} HTTP/1.1\nHost: {spy}\n",
            f"CONNECT {spy} HTTP/1.1\nHost: web:82\n",
        ]
        hints = [
            f"GET / HTTP/1.1\nHost: web\n{header}: {spy}\n"
            for header in ("X-Envoy-Original-Dst-Host", "X-Forwarded-Host", "Forwarded")
        ]

        for request, answer in zip(requests, await raw(pods.client, *requests), strict=True):
            assert answer.startswith("HTTP/1.1 502 "), f"{request}: {answer}"
        for request, answer in zip(hints, await raw(pods.client, *hints), strict=True):
            assert answer.startswith("HTTP/1.1 200 "), f"{request}: {answer}"
            assert '"pod": "web.ns"' in answer

        assert pods.spy.came == 0
        async with Client().tcp(pods.spy.address, pods.spy.port) as conversation:
            await conversation.closed()
        assert pods.spy.came == 1

    async def test_sidecars_and_pod_addresses_are_refused(self, pods):
        requests = [
            f"GET http://{pod.address}:{port}/ HTTP/1.1\nHost: web\n"
            for pod in (pods.client, pods.web)
            for port in (15000, PROXY_PORT, 15021, HTTP)
        ]

        for request, answer in zip(requests, await raw(pods.client, *requests), strict=True):
            assert answer.startswith("HTTP/1.1 502 "), f"{request}: {answer}"

    async def test_url_overrides_the_host_header(self, pods):
        (answer,) = await raw(pods.client, "GET http://web/ HTTP/1.1\nHost: example.org\n")

        assert '"pod": "web.ns"' in answer


class TestListeners:
    async def test_health_port_exposes_only_readiness(self, pods):
        def get(path: str):
            return Client().get(f"http://{pods.web.address}:15021{path}")

        ready = await get("/healthz/ready")
        assert (ready.code, ready.text.strip()) == ("200", "LIVE")
        assert {(await get(path)).code for path in ("/", "/ready", "/config_dump", "/quitquitquit")} == {
            "404"
        }

    async def test_loopback_sidecar_listens_only_on_the_pod_address(self, pods):
        sockets = listening(pods.mesh.sidecar(pods.web).pid)

        assert {address for address, _ in sockets} == {pods.web.address}
        assert {port for _, port in sockets} == {15000, PROXY_PORT, 15021, *(t for _, t in PORTS.values())}

    @pytest.mark.netns
    async def test_proxy_and_admin_always_listen_on_loopback(self, tmp_path):
        address, port = "10.78.0.1", free_port()
        with ExitStack() as places, Loopback() as loopback:
            place = Namespace(f"xds-none-{port}")
            places.callback(place.close)
            place.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
            mesh = LocalMesh(loopback, tmp_path)
            # Without the annotation, the application is at 127.0.0.1.
            annotations = {"sidecar.istio.io/interceptionMode": "NONE"}
            mesh.apply(
                manifests.pod("web", "ns", address, labels={"app": "web"}, annotations=annotations),
                manifests.service("web", "ns", {"http": (80, port)}),
            )
            async with mesh:
                door = Relay(
                    place.listener("127.0.0.1", mesh.plane.port),
                    lambda: Client().connect("127.0.0.1", mesh.plane.port),
                )
                web = EnvoyProcess("web.ns", await mesh.plane.bootstrap("web.ns"), tmp_path, place=place)
                async with door, EchoApp("web", port, place=place, address="127.0.0.1"), web:
                    client = Client(place)
                    url = f"http://{address}:{port}/headers"
                    answer = await eventually(lambda: only_ok(client.get(url)))

                    assert answer.pod == "web"
                    assert listening(web.pid) == {
                        ("127.0.0.1", 15000),
                        ("127.0.0.1", PROXY_PORT),
                        (address, 15021),
                        (address, port),
                    }
                    assert (await client.get(f"http://{address}:15021/healthz/ready")).ok


async def only_ok(asking: Awaitable[Answer]) -> Answer:
    answer = await asking
    assert answer.ok, answer
    return answer
