"""Interception at its edges: pods that ask for themselves, the sidecar's own ports, and destinations that no Service names."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.real.harness.cluster import Cluster
from tests.real.harness.exchange import (
    FAILS,
    HTTP1,
    HTTP2,
    MTLS,
    PLAINTEXT,
    SERVER_FIRST,
    TCP,
    exchange,
)
from tests.real.harness.manifests import peer_authentication
from tests.real.harness.mesh import Mesh
from tests.real.harness.rules import INBOUND, OUTBOUND
from tests.real.harness.wire import Wire

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {"http-web": (80, 8080), "http2-web": (81, 8081), "tcp-lines": (90, 9000), "web": (83, 8083)}
TRAFFIC = [(HTTP1, 80), (HTTP2, 81), (TCP, 90), (HTTP1, 83), (HTTP2, 83)]
TO_STRANGER = [(HTTP1, 80), (HTTP2, 80), (HTTP1, 7777), (HTTP2, 7777), (SERVER_FIRST, 90)]

OPEN, STRICT = "web.permissive", "web.strict"
OUTSIDER, STRANGER = "outsider.outside", "stranger.elsewhere"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Two servers, one of them strict; each has ports, too, that no Service names. Nobody knows the stranger."""
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


class TestAPodThatAsksForItself:
    @pytest.mark.parametrize("namespace", ["permissive", "strict"])
    @pytest.mark.parametrize(("what", "port"), TRAFFIC)
    async def test_through_its_own_service_speaks_mutual_tls_with_itself(self, mesh, namespace, what, port):
        pod = mesh[f"web.{namespace}"]
        with Wire(pod.place, within=pod.address) as inward:
            seen = await exchange(inward.saw, what, pod, "web", port)

            assert (seen.how, seen.pod) == (MTLS, f"web.{namespace}"), seen
            assert inward.saw_tls("127.0.0.1")
        if what != TCP:
            assert seen.identity == f"spiffe://cluster.local/ns/{namespace}/sa/default"

    @pytest.mark.parametrize("port", [8080, 7000])
    async def test_by_its_own_address_is_left_alone(self, mesh, port):
        for pod in (mesh[OPEN], mesh[STRICT]):
            for address in (pod.address, "127.0.0.1"):
                answer = await pod.client.get(f"http://{address}:{port}/")
                assert (answer.pod, answer.identity) == (f"web.{pod.namespace}", "")
                assert answer.echo["peer"][0] == address, "it came straight from the application"


class TestTheSidecarsOwnPorts:
    @pytest.mark.parametrize("port", [INBOUND, OUTBOUND])
    @pytest.mark.parametrize("who", ["outsider", "another with a sidecar", "the pod itself"])
    async def test_are_closed_and_nothing_goes_round_in_circles(self, mesh, who, port):
        pods = {
            "outsider": mesh[OUTSIDER],
            "another with a sidecar": mesh[OPEN],
            "the pod itself": mesh[STRICT],
        }
        client = pods[who].client
        sidecars = [mesh.sidecar(pod).admin for pod in (mesh[OPEN], mesh[STRICT])]
        accepted = r"^listener\.0\.0\.0\.0_150(01|06)\.downstream_cx_total$"
        before = sum([await admin.total(accepted) for admin in sidecars])

        for address in (
            (mesh[STRICT].address, "127.0.0.1") if who == "the pod itself" else (mesh[STRICT].address,)
        ):
            http = await client.get(f"http://{address}:{port}/")
            http2 = await client.get_http2(f"http://{address}:{port}/")
            assert (http.code, http2.code) == ("000", "000")
            async with client.tcp(address, port) as conversation:
                assert await conversation.closed()

        after = sum([await admin.total(accepted) for admin in sidecars])
        assert 3 <= after - before <= 6


class TestAPortThatNoServiceNames:
    @pytest.mark.parametrize(
        ("what", "port"), [(HTTP1, 7000), (HTTP2, 7000), (TCP, 7100), (SERVER_FIRST, 7200)]
    )
    @pytest.mark.parametrize("who", ["outsider", "a client with a sidecar"])
    async def test_is_under_the_policy_of_its_pod(self, mesh, who, what, port):
        client = {"outsider": mesh[OUTSIDER]}.get(who)

        to_open = await mesh.exchange(what, client or mesh[STRICT], mesh[OPEN].address, port)
        to_strict = await mesh.exchange(what, client or mesh[OPEN], mesh[STRICT].address, port)

        assert (to_open.how, to_open.pod) == (PLAINTEXT, "web.permissive"), to_open
        assert to_strict.how == FAILS, to_strict

    @pytest.mark.parametrize(
        ("what", "port"), [(HTTP1, 7001), (HTTP2, 7001), (HTTP1, 7002), (HTTP2, 7002), (SERVER_FIRST, 7201)]
    )
    async def test_may_have_a_mode_of_its_own(self, mesh, what, port):
        for client in (mesh[OUTSIDER], mesh[OPEN]):
            seen = await mesh.exchange(what, client, mesh[STRICT].address, port)
            assert (seen.how, seen.pod) == (PLAINTEXT, "web.strict"), seen


class TestAnUnknownDestination:
    @pytest.fixture
    def registry_only(self, mesh):
        mesh.set(outboundTrafficPolicy={"mode": "REGISTRY_ONLY"})
        yield
        mesh.set()

    @pytest.mark.parametrize(("what", "port"), TO_STRANGER)
    async def test_is_reached_where_any_is_allowed(self, mesh, what, port):
        await mesh.settled()

        seen = await mesh.exchange(what, OPEN, mesh[STRANGER].address, port)

        assert (seen.how, seen.pod) == (PLAINTEXT, "stranger.elsewhere"), seen

    async def test_is_reached_by_whatever_name_it_is_asked_for(self, mesh):
        await mesh.settled()

        answer = await mesh[OPEN].client.get(
            f"http://{mesh[STRANGER].address}/", headers={"host": "www.example.org"}
        )

        assert answer.pod == "stranger.elsewhere"
        assert answer.echo["headers"]["Host"] == "www.example.org"

    async def test_is_refused_where_only_services_are_allowed(self, mesh, registry_only):
        await mesh.settled()

        for what, port in TO_STRANGER:
            seen = await mesh.exchange(what, OPEN, mesh[STRANGER].address, port)
            assert seen.how == FAILS, (what, port, seen)
            if port == 80 and what == HTTP1:
                assert seen.why.startswith("502 502: no service of the mesh is called"), seen
        for what, port in TRAFFIC:
            seen = await mesh.exchange(what, OPEN, "web.strict", port)
            assert (seen.how, seen.pod) == (MTLS, "web.strict"), seen
