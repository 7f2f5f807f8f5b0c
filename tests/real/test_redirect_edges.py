"""Interception edge cases: pods that call themselves, sidecar ports, and destinations outside Services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from tests.support import manifests
from tests.support.apps import EchoApp
from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, HTTP2, MTLS, PLAINTEXT, SERVER_FIRST, TCP, exchange
from tests.support.manifests import Manifest, peer_authentication, policy
from tests.support.mesh import Mesh
from tests.support.waiting import eventually
from tests.support.wire import Wire
from xds.mesh.sidecar.rules import RedirectConfig

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {
    "http-web": (80, 8080),
    "http2-web": (81, 8081),
    "tcp-lines": (90, 9000),
    "web": (83, 8083),
    "http-local": (85, 8085),
}
TRAFFIC = [(HTTP1, 80), (HTTP2, 81), (TCP, 90), (HTTP1, 83), (HTTP2, 83)]
TO_STRANGER = [(HTTP1, 80), (HTTP2, 80), (HTTP1, 7777), (HTTP2, 7777), (SERVER_FIRST, 90)]

OPEN, STRICT = "web.permissive", "web.strict"
OUTSIDER, STRANGER = "outsider.outside", "stranger.elsewhere"


def listed(
    mesh: Mesh, name: str, pod: str, ports: dict[str, tuple[int, int]], *, ready: bool = True
) -> Iterator[Manifest]:
    """Write a service without a selector, and its endpoints."""
    service = mesh.cluster.service(name, "listed", dict(ports.values()), [mesh[pod]])
    written = manifests.service(name, "listed", ports, address=service.address)
    del written["spec"]["selector"]
    yield written
    yield endpoint_slice(name, "listed", ports, mesh[pod].address, ready=ready)


def endpoint_slice(
    name: str, namespace: str, ports: dict[str, tuple[int, int]], address: str, **conditions: bool
) -> Manifest:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": key, "port": target} for key, (_, target) in ports.items()],
        "endpoints": [{"addresses": [address], "conditions": conditions}],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Two servers, one STRICT, which also have ports outside Services, and a stranger outside the mesh."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("outsider", "outside", sidecar=False)
            stranger = cluster.pod("stranger", "elsewhere", sidecar=False)
            await mesh.serve(stranger, http=(80, 7777), greets=(90,))
            for namespace in ("permissive", "strict"):
                pod = mesh.pod("web", namespace)
                mesh.service("web", namespace, PORTS)
                await mesh.serve(
                    pod, http=(8080, 8081, 8083, 7000, 7001, 7002), lines=(9000, 7100), greets=(7200, 7201)
                )
            mesh.apply(
                *listed(mesh, "outside", STRANGER, {"http-web": (80, 7777), "greets": (90, 90)}),
                *listed(mesh, "inside", STRICT, {"http-web": (80, 8080), "lines": (90, 9000)}),
                *listed(mesh, "unready", STRICT, {"http-web": (80, 8080), "lines": (90, 9000)}, ready=False),
                peer_authentication(
                    "permissive", "PERMISSIVE", name="web", selector={"app": "web"}, ports={7002: "STRICT"}
                ),
                peer_authentication("strict", "STRICT"),
                peer_authentication(
                    "strict",
                    "STRICT",
                    name="web",
                    selector={"app": "web"},
                    ports={7001: "PERMISSIVE", 7002: "DISABLE", 7201: "DISABLE"},
                ),
            )
            await mesh.start()
            yield mesh


class TestPodThatCallsItself:
    @pytest.mark.parametrize("namespace", ["permissive", "strict"])
    @pytest.mark.parametrize(("what", "port"), TRAFFIC)
    async def test_pod_uses_mutual_tls_to_itself_through_its_service(self, mesh, namespace, what, port):
        pod = mesh[f"web.{namespace}"]
        with Wire(pod.place, within=pod.address) as inward:
            seen = await exchange(inward.saw, what, pod, "web", port)

            assert (seen.how, seen.pod) == (MTLS, f"web.{namespace}"), seen
            assert inward.saw_tls("127.0.0.1")
        if what != TCP:
            assert seen.identity == f"spiffe://cluster.local/ns/{namespace}/sa/default"

    @pytest.mark.parametrize("port", [8080, 7000])
    async def test_own_address_is_not_intercepted(self, mesh, port):
        for pod in (mesh[OPEN], mesh[STRICT]):
            for address in (pod.address, "127.0.0.1"):
                answer = await pod.client.get(f"http://{address}:{port}/")
                assert (answer.pod, answer.identity) == (f"web.{pod.namespace}", "")
                assert answer.echo["peer"][0] == address, "it came straight from the application"


class TestSidecarPorts:
    @pytest.mark.parametrize("port", [RedirectConfig().inbound_port, RedirectConfig().outbound_port])
    @pytest.mark.parametrize(("target", "other"), [(OPEN, STRICT), (STRICT, OPEN)])
    @pytest.mark.parametrize("who", ["outsider", "another with a sidecar", "the pod itself"])
    async def test_sidecar_ports_are_closed_without_loops(self, mesh, who, target, other, port):
        client = mesh[{"outsider": OUTSIDER, "another with a sidecar": other}.get(who, target)].client
        addresses = [mesh[target].address, *(("127.0.0.1",) if who == "the pod itself" else ())]
        sidecars = [mesh.sidecar(mesh[name]).admin for name in (OPEN, STRICT)]
        accepted = r"^listener\.0\.0\.0\.0_150(01|06)\.downstream_cx_total$"
        before = sum([await admin.total(accepted) for admin in sidecars])

        for address in addresses:
            http = await client.get(f"http://{address}:{port}/")
            http2 = await client.get_http2(f"http://{address}:{port}/")
            assert (http.code, http2.code) == ("000", "000")
            async with client.tcp(address, port) as conversation:
                assert await conversation.closed()

        async def accepted_connections() -> int:
            """Return their number as soon as all are counted, which can be after they are closed."""
            number = sum([await admin.total(accepted) for admin in sidecars]) - before
            assert number >= 3 * len(addresses)
            return number

        count = await eventually(accepted_connections, timeout=10)
        assert count == 3 * len(addresses), "each connection is accepted once, without a loop"

    async def test_only_health_is_reachable_from_other_pods(self, mesh):
        for pod in (mesh[OPEN], mesh[STRICT]):
            for client in (mesh[OUTSIDER], mesh[OPEN], mesh[STRICT]):
                ready = await client.client.get(f"http://{pod.address}:15021/healthz/ready")
                more = await client.client.get(f"http://{pod.address}:15021/stats")
                admin = await client.client.get(f"http://{pod.address}:15000/ready")
                assert (ready.code, more.code) == ("200", "404")
                assert admin.code in ("000", "503"), admin
            assert (await pod.client.get("http://127.0.0.1:15000/ready")).ok


class TestPortOutsideServices:
    @pytest.mark.parametrize(
        ("what", "port"), [(HTTP1, 7000), (HTTP2, 7000), (TCP, 7100), (SERVER_FIRST, 7200)]
    )
    @pytest.mark.parametrize("who", ["outsider", "a client with a sidecar"])
    async def test_port_outside_services_has_the_mode_of_the_pod(self, mesh, who, what, port):
        client = {"outsider": mesh[OUTSIDER]}.get(who)

        to_open = await mesh.exchange(what, client or mesh[STRICT], mesh[OPEN].address, port)
        to_strict = await mesh.exchange(what, client or mesh[OPEN], mesh[STRICT].address, port)

        assert (to_open.how, to_open.pod) == (PLAINTEXT, "web.permissive"), to_open
        assert to_strict.how == FAILS, to_strict

    @pytest.mark.parametrize(
        ("what", "port"), [(HTTP1, 7001), (HTTP2, 7001), (HTTP1, 7002), (HTTP2, 7002), (SERVER_FIRST, 7201)]
    )
    async def test_port_outside_services_may_have_its_own_mode(self, mesh, what, port):
        for client in (mesh[OUTSIDER], mesh[OPEN]):
            seen = await mesh.exchange(what, client, mesh[STRICT].address, port)
            assert (seen.how, seen.pod) == (PLAINTEXT, "web.strict"), seen

    async def test_port_outside_services_may_be_strict_alone(self, mesh):
        for what in (HTTP1, HTTP2):
            open_ = await mesh.exchange(what, OUTSIDER, mesh[OPEN].address, 7001)
            locked = await mesh.exchange(what, OUTSIDER, mesh[OPEN].address, 7002)
            assert (open_.how, locked.how) == (PLAINTEXT, FAILS)


class TestApplicationOnLoopback:
    async def test_application_on_loopback_needs_an_app_address(self, mesh):
        async def asked() -> str:
            return (await mesh.exchange(HTTP1, OPEN, "web.strict", 85)).how

        async with EchoApp("web.strict", 8085, place=mesh[STRICT].place, address="127.0.0.1"):
            assert await asked() == FAILS, "by default it is nobody's but the pod's"

            async with settings(mesh, inboundTrafficPolicy={"mode": "LOCALHOST"}):
                assert await asked() == MTLS
                for what, port in TRAFFIC:
                    seen = await mesh.exchange(what, OPEN, "web.strict", port)
                    assert (seen.how, seen.pod) == (MTLS, STRICT)


class TestServiceWithListedEndpoints:
    async def test_listed_addresses_outside_pods_are_reached(self, mesh):
        http = await mesh.exchange(HTTP1, OPEN, "outside.listed", 80)
        tcp = await mesh.exchange(SERVER_FIRST, OPEN, "outside.listed", 90)

        assert (http.how, http.pod) == (tcp.how, tcp.pod) == (PLAINTEXT, STRANGER)

    async def test_listed_pods_are_reached_in_their_mode(self, mesh):
        for what, port in ((HTTP1, 80), (TCP, 90)):
            inside = await mesh.exchange(what, OPEN, "inside.listed", port)
            outside = await mesh.exchange(what, OUTSIDER, "inside.listed", port)
            assert (inside.how, inside.pod, outside.how) == (MTLS, STRICT, FAILS)

    async def test_unready_listed_endpoints_get_no_traffic(self, mesh):
        http = await mesh.exchange(HTTP1, OPEN, "unready.listed", 80)
        tcp = await mesh.exchange(TCP, OPEN, "unready.listed", 90)

        assert (http.how, tcp.how) == (FAILS, FAILS)
        assert http.why.startswith("503 no healthy upstream"), http


@asynccontextmanager
async def settings(mesh: Mesh, **settings: Any) -> AsyncIterator[None]:
    """Apply other mesh-wide settings for a while."""
    mesh.set(**settings)
    await mesh.settled()
    yield
    mesh.set()
    await mesh.settled()


class TestUnknownDestination:
    @pytest.mark.parametrize(("what", "port"), TO_STRANGER)
    async def test_allow_any_reaches_unknown_destinations(self, mesh, what, port):
        seen = await mesh.exchange(what, OPEN, mesh[STRANGER].address, port)

        assert (seen.how, seen.pod) == (PLAINTEXT, "stranger.elsewhere"), seen

    async def test_allow_any_accepts_any_host_header(self, mesh):
        answer = await mesh[OPEN].client.get(
            f"http://{mesh[STRANGER].address}/", headers={"host": "www.example.org"}
        )

        assert answer.pod == "stranger.elsewhere"
        assert answer.echo["headers"]["Host"] == "www.example.org"

    async def test_registry_only_refuses_unknown_destinations(self, mesh):
        async with settings(mesh, outboundTrafficPolicy={"mode": "REGISTRY_ONLY"}):
            for what, port in TO_STRANGER:
                seen = await mesh.exchange(what, OPEN, mesh[STRANGER].address, port)
                assert seen.how == FAILS, (what, port, seen)
                if port == 80 and what == HTTP1:
                    assert seen.why.startswith("502 502: no service of the mesh is called"), seen
            for what, port in TRAFFIC:
                seen = await mesh.exchange(what, OPEN, "web.strict", port)
                assert (seen.how, seen.pod) == (MTLS, STRICT), seen


async def test_terminating_pod_keeps_its_ports_and_its_policy(mesh):
    """A terminating pod is in no EndpointSlice that counts, and still serves the connections that it has."""
    ports = {"http-web": (80, 8080)}
    pod = mesh.pod("web", "leaving")
    mesh.service("web", "leaving", ports)
    await mesh.serve(pod, http=(8080,))
    mesh.apply(
        policy("web", "leaving", "STRICT", "web"),
        endpoint_slice("web", "leaving", ports, pod.address, ready=True),
    )
    await mesh.start()
    (inbound,) = await mesh.sidecar(pod).admin.config("ListenersConfigDump")

    mesh.apply(
        endpoint_slice("web", "leaving", ports, pod.address, ready=False, serving=True, terminating=True)
    )
    await mesh.settled()

    assert await mesh.sidecar(pod).admin.config("ListenersConfigDump") == [inbound], "nothing is drained"
    assert (await mesh.exchange(HTTP1, OUTSIDER, pod.address, 8080)).how == FAILS
