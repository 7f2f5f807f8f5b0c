"""Probes of a pod under STRICT: the kubelet probes the sidecar, which probes the application."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime

import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from tests.sidecar.apps import App
from tests.sidecar.pods import ProxyMesh
from tests.support.answers import Answer
from tests.support.clients import Client
from tests.support.cluster import Cluster
from tests.support.manifests import peer_authentication
from tests.support.tcp import LineApp
from tests.support.waiting import eventually
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

HTTP, HTTPS, TCP, GRPC, HANGING, UNUSED = 8080, 8443, 9000, 9001, 9002, 9003
PERIOD = 2
"""Period of the probes that the sidecar makes on its own, in seconds."""

ORIGINALS = {
    "/app-health/web/readyz": {
        "httpGet": {
            "path": "healthz?deep=1&name=a%20b",
            "port": HTTP,
            "httpHeaders": [
                {"name": "X-Probe", "value": "100% ready"},
                {"name": "Host", "value": "web.example"},
            ],
        },
        "timeoutSeconds": 10,
    },
    "/app-health/web/livez": {"httpGet": {"port": HTTP}, "timeoutSeconds": 10},
    "/app-health/web/startupz": {"httpGet": {"path": "/moved", "port": HTTP}, "timeoutSeconds": 10},
    "/app-health/tls/livez": {
        "httpGet": {"path": "/tls", "port": HTTPS, "scheme": "HTTPS"},
        "timeoutSeconds": 10,
    },
    "/app-health/tcp/livez": {"tcpSocket": {"port": TCP}, "timeoutSeconds": 10, "periodSeconds": PERIOD},
    "/app-health/grpc/livez": {"grpc": {"port": GRPC}, "timeoutSeconds": 10, "periodSeconds": PERIOD},
    "/app-health/grpc/readyz": {
        "grpc": {"port": GRPC, "service": "shop"},
        "timeoutSeconds": 10,
        "periodSeconds": PERIOD,
    },
    "/app-health/hanging/livez": {"httpGet": {"port": HANGING}, "timeoutSeconds": 1},
    "/app-health/unused/livez": {"httpGet": {"port": UNUSED}, "timeoutSeconds": 10},
    "/app-health/unused/readyz": {"tcpSocket": {"port": UNUSED}},
    "/app-health/unused/startupz": {"grpc": {"port": UNUSED}},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A pod under STRICT whose applications do not run yet, and a client outside the mesh."""
    with Cluster() as cluster:
        async with ProxyMesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            pod = mesh.pod("web", "strict")
            mesh.pod("outsider", "outside", sidecar=False)
            mesh.service("web", "strict", {"http": (80, HTTP), "tcp": (90, TCP)})
            mesh.apply(peer_authentication("strict", "STRICT"))
            mesh.probes[pod.address] = ORIGINALS
            await mesh.start()
            yield mesh


@pytest.fixture
def pod(mesh):
    return mesh["web.strict"]


@pytest.fixture
def kubelet(mesh, pod):
    """Send requests as the kubelet does: from the node, in plaintext, to the pod's address."""

    async def ask(path: str, port: int = 15020, **how: object) -> Answer:
        headers = {"user-agent": "kube-probe/1.37", "accept": "*/*"}
        url = f"http://{pod.address}:{port}{path}"
        return await Client(mesh.cluster.node).get(url, headers=headers, **how)

    return ask


@pytest.fixture
def send(mesh, pod):
    """Send bytes to port 15020 from outside the mesh, and return the first line of the answer."""

    async def send(data: bytes) -> bytes:
        connected = await Client(mesh["outsider.outside"].place).connect(pod.address, 15020)
        reader, writer = await asyncio.open_connection(sock=connected)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.readline(), 90)
        finally:
            writer.close()

    return send


async def becomes(kubelet, path: str, code: str) -> None:
    """Wait until a probe has this status: for a period and a timeout at most, on a slow machine longer."""

    async def has() -> bool:
        answer = await kubelet(path)
        assert answer.code == code, answer
        return True

    await eventually(has, timeout=3 * (PERIOD + 10), every=0.1, what=f"{path} is {code}")


class TestHttp:
    async def test_original_probe_fails_under_strict(self, kubelet, pod):
        async with App().at(pod.place, HTTP):
            assert (await kubelet("/healthz", HTTP)).code == "000"
            assert (await pod.client.get(f"http://{pod.address}:{HTTP}/healthz")).ok

    async def test_application_response_is_returned(self, kubelet, pod):
        app = App()
        async with app.at(pod.place, HTTP):
            answer = await kubelet("/app-health/web/readyz")
            assert (answer.code, answer.text) == ("200", "/healthz?deep=1&name=a%20b is 200")

            app.status = 500
            answer = await kubelet("/app-health/web/readyz")
            assert (answer.code, answer.text) == ("500", "/healthz?deep=1&name=a%20b is 500")

            app.status = 204
            assert (await kubelet("/app-health/web/readyz")).code == "204"

    async def test_application_receives_the_original_probe(self, kubelet, pod):
        app = App()
        async with app.at(pod.place, HTTP):
            await kubelet("/app-health/web/readyz")
            await kubelet("/app-health/web/livez")

        full, bare = app.requests
        assert (full.headers["Host"], full.headers["X-Probe"]) == ("web.example", "100% ready")
        assert (bare.path_qs, bare.headers["Host"]) == ("/", f"{pod.address}:{HTTP}")
        assert {request.headers["User-Agent"] for request in app.requests} == {"kube-probe/1.37"}

    async def test_probe_headers_are_not_duplicated(self, mesh, pod):
        app = App()
        async with app.at(pod.place, HTTP):
            await Client(mesh.cluster.node).get(
                f"http://{pod.address}:15020/app-health/web/readyz",
                headers={"X-Probe": "100% ready", "Host": "web.example"},
            )

        (request,) = app.requests
        assert request.headers.getall("X-Probe") == ["100% ready"]
        assert request.headers.getall("Host") == ["web.example"]

    async def test_probe_fails_without_the_application(self, kubelet, pod):
        async with App().at(pod.place, HTTP):
            assert (await kubelet("/app-health/web/livez")).ok

        assert (await kubelet("/app-health/web/livez")).code == "503"
        assert (await kubelet("/app-health/unused/livez")).code == "503"

        async with App().at(pod.place, HTTP):
            assert (await kubelet("/app-health/web/livez")).ok

    async def test_hanging_application_fails_after_the_probe_timeout(self, kubelet, pod):
        listener = pod.place.listener("0.0.0.0", HANGING)
        try:
            answer = await kubelet("/app-health/hanging/livez", timeout=30)
        finally:
            listener.close()

        assert answer.code == "504"

    async def test_redirect_succeeds_without_a_location(self, kubelet, pod):
        async with App().at(pod.place, HTTP):
            answer = await kubelet("/app-health/web/startupz")

        assert answer.code == "302"
        assert "location" not in answer.headers

    async def test_https_probe_accepts_any_certificate(self, kubelet, pod, tmp_path):
        authority = Authority.create(PrivateKey.generate(), "example.org", datetime.now(UTC))
        leaf = authority.issue("spiffe://example.org/ns/own/sa/app", datetime.now(UTC))
        (tmp_path / "leaf.pem").write_bytes(leaf.chain + leaf.key.to_pem())
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(tmp_path / "leaf.pem")
        async with App().at(pod.place, HTTPS, tls):
            answer = await kubelet("/app-health/tls/livez")
            assert (answer.code, answer.text) == ("200", "/tls is 200")

        assert (await kubelet("/app-health/tls/livez")).code == "503"


class TestTcpAndGrpc:
    async def test_unused_port_fails(self, kubelet):
        assert (await kubelet("/app-health/unused/readyz")).code == "503"
        assert (await kubelet("/app-health/unused/startupz")).code == "503"

    async def test_tcp_probe_follows_the_application(self, kubelet, pod):
        for _ in range(2):
            async with LineApp("web", TCP, place=pod.place):
                await becomes(kubelet, "/app-health/tcp/livez", "200")
            await becomes(kubelet, "/app-health/tcp/livez", "503")

    async def test_grpc_probe_follows_its_service(self, kubelet, pod):
        status = health_pb2.HealthCheckResponse
        servicer = health.HealthServicer()
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        with pod.place.entered():
            server.add_insecure_port(f"0.0.0.0:{GRPC}")
        await server.start()
        try:
            await servicer.set("shop", status.NOT_SERVING)
            await becomes(kubelet, "/app-health/grpc/livez", "200")
            assert (await kubelet("/app-health/grpc/readyz")).code == "503"

            await servicer.set("shop", status.SERVING)
            await becomes(kubelet, "/app-health/grpc/readyz", "200")

            await servicer.set("shop", status.NOT_SERVING)
            await becomes(kubelet, "/app-health/grpc/readyz", "503")
            assert (await kubelet("/app-health/grpc/livez")).code == "200"
        finally:
            await server.stop(None)
        await becomes(kubelet, "/app-health/grpc/livez", "503")


class TestOtherAccess:
    async def test_application_refuses_plaintext(self, mesh, pod):
        async with App().at(pod.place, HTTP), LineApp("web", TCP, place=pod.place):
            for place in (mesh.cluster.node, mesh["outsider.outside"].place):
                assert (
                    await Client(place).get(f"http://{pod.address}:{HTTP}/app-health/web/livez")
                ).code == "000"
                with pytest.raises(ConnectionError):
                    async with Client(place).tcp(pod.address, TCP) as conversation:
                        await conversation.ask("hello")

    @pytest.mark.parametrize(
        "path", ["/", "/app-health/web", "/app-health/web/readyz/", "/healthz", "/app-health/other/livez"]
    )
    async def test_other_paths_are_not_forwarded(self, kubelet, pod, path):
        app = App()
        async with app.at(pod.place, HTTP):
            assert (await kubelet(path)).code == "404"
        assert not app.requests

    @pytest.mark.parametrize(
        ("request_line", "headers", "code"),
        [
            ("GET /app-health/web/livez", "", "200"),
            ("POST /app-health/web/livez", "", "404"),
            ("POST /app-health/web/livez", "Content-Length: 1\r\n\r\na", "404"),
            ("DELETE /app-health/web/livez", "", "404"),
            ("GET /app-health/web/livez?all=1", "", "404"),
            ("GET /app-health/web/livez?", "", "404"),
            ("GET /app-health/web/livez", "Content-Length: 2\r\n\r\nab", "413"),
            ("GET /app-health/web/livez", "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n", "413"),
            (
                "GET /app-health/web/livez",
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: YQ==\r\n",
                "403",
            ),
        ],
    )
    async def test_caller_cannot_change_a_probe(self, send, pod, request_line, headers, code):
        app = App()
        async with app.at(pod.place, HTTP):
            answer = await send(f"{request_line} HTTP/1.1\r\nHost: web\r\n{headers}\r\n".encode())
        assert answer.split()[1].decode() == code
        assert bool(app.requests) == (code == "200")

    async def test_slow_request_ends(self, send):
        answer = await send(b"GET /app-health/web/livez HTTP/1.1\r\nHost: web\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ")

    async def test_http2_is_not_accepted(self, send):
        answer = await send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert answer.startswith(b"HTTP/1.1 400 ")

    async def test_application_gets_no_header_of_the_caller(self, mesh, pod):
        caller = {
            "Authorization": "Bearer x",
            "Cookie": "a=b",
            "X-Forwarded-Client-Cert": "URI=spiffe://x",
            "x_forwarded_client_cert": "URI=spiffe://x",
            "X-Probe": "other",
            "Host": "other",
            "User": "u",
            "User-Agents": "u",
        }
        app = App()
        async with app.at(pod.place, HTTP):
            for path in ("readyz", "livez"):
                url = f"http://{pod.address}:15020/app-health/web/{path}"
                assert (await Client(mesh["outsider.outside"].place).get(url, headers=caller)).ok
        first, second = (
            {name.lower(): value for name, value in each.headers.items() if not name.startswith("x-envoy-")}
            for each in app.requests
        )
        assert first.pop("user-agent") == second.pop("user-agent")
        assert first == {"x-probe": "100% ready", "host": "web.example", "accept": "*/*"}
        assert second == {"host": f"{pod.address}:{HTTP}", "accept": "*/*"}

    async def test_sidecar_serves_readiness_and_metrics(self, kubelet):
        assert (await kubelet("/healthz/ready", 15021)).text.strip() == "LIVE"
        metrics = await kubelet("/stats/prometheus", 15090)
        assert "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n" in metrics.text
        assert (await kubelet("/config_dump", 15090)).code == "404"
        assert (await kubelet("/stats", 15090)).code == "404"
