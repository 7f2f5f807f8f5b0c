"""Interception: the path of all kinds of traffic between pods, in every mode, with and without sidecars."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, HTTP2, MTLS, PLAINTEXT, SERVER_FIRST, TCP
from tests.support.manifests import peer_authentication
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {
    "http-web": (80, 8080),
    "http2-web": (81, 8081),
    "grpc-api": (82, 8082),
    "tcp-lines": (90, 9000),
    "tcp-greets": (91, 9001),
    "web": (83, 8083),
    "lines": (93, 9003),
    "greets": (94, 9004),
}
"""Ports of every server."""
UNDECLARED = (83, 93, 94)
"""Ports whose names declare no protocol."""

TRAFFIC = [
    (HTTP1, 80), (HTTP2, 80), (HTTP1, 81), (HTTP2, 81), (HTTP2, 82), (TCP, 90), (SERVER_FIRST, 91),
    (HTTP1, 83), (HTTP2, 83), (TCP, 93), (SERVER_FIRST, 94),
]  # fmt: skip

CLIENT, OUTSIDER = "client.permissive", "outsider.outside"
SLEEP = "spiffe://cluster.local/ns/permissive/sa/sleep"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Servers in namespaces that are named after their mode, a client with a sidecar, and one without."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "permissive", account="sleep")
            mesh.pod("outsider", "outside", sidecar=False)
            for namespace in ("permissive", "strict", "disable", "legacy"):
                pod = mesh.pod("web", namespace, sidecar=namespace != "legacy")
                mesh.service("web", namespace, PORTS)
                await mesh.serve(pod, http=(8080, 8081, 8082, 8083), lines=(9000, 9003), greets=(9001, 9004))
            mesh.apply(peer_authentication("strict", "STRICT"), peer_authentication("disable", "DISABLE"))
            mesh.apply(peer_authentication("legacy", "STRICT"))
            await mesh.start()
            yield mesh


class TestEveryKindOfTraffic:
    @pytest.mark.parametrize(
        ("namespace", "how"),
        [("permissive", MTLS), ("strict", MTLS), ("disable", PLAINTEXT), ("legacy", PLAINTEXT)],
    )
    @pytest.mark.parametrize(("what", "port"), TRAFFIC)
    async def test_traffic_from_a_sidecar_is_encrypted_if_possible(self, mesh, namespace, how, what, port):
        mesh.wire.forget()

        seen = await mesh.exchange(what, CLIENT, f"web.{namespace}", port)

        assert (seen.how, seen.pod) == (how, f"web.{namespace}"), seen
        assert mesh.wire.saw_tls(mesh[f"web.{namespace}"].address) == (how == MTLS)
        if what in (HTTP1, HTTP2):
            assert seen.identity == (SLEEP if how == MTLS else "")
        if port in UNDECLARED:
            assert seen.protocol == what.removeprefix("server-first ")

    @pytest.mark.parametrize(
        ("namespace", "how"),
        [("permissive", PLAINTEXT), ("strict", FAILS), ("disable", PLAINTEXT), ("legacy", PLAINTEXT)],
    )
    @pytest.mark.parametrize(("what", "port"), TRAFFIC)
    async def test_plaintext_client_is_refused_under_strict(self, mesh, namespace, how, what, port):
        mesh.wire.forget()

        seen = await mesh.exchange(what, OUTSIDER, f"web.{namespace}", port)

        assert seen.how == how, seen
        assert seen.pod == ("" if how == FAILS else f"web.{namespace}")
        assert not mesh.wire.saw_tls(mesh[OUTSIDER].address)
        assert not seen.identity
        assert "TimeoutError" not in seen.why, "it is refused, not ignored"


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "web",
            "web.permissive",
            "web.permissive.svc",
            "web.permissive.svc.cluster.local",
            "web.permissive.svc.cluster.local.",
            "WEB.Permissive",
            "VIP",
        ],
    )
    @pytest.mark.parametrize("suffix", ["", ":80"])
    async def test_service_is_reached_by_all_names_and_ports(self, mesh, name, suffix):
        address = mesh.address("web", "permissive")
        host = address if name == "VIP" else name

        answer = await mesh[CLIENT].client.get(f"http://{address}/", headers={"host": host + suffix})

        assert (answer.pod, answer.identity) == ("web.permissive", SLEEP)
        assert answer.echo["headers"]["Host"] == host + suffix

    async def test_resolved_names_work_for_all_protocols(self, mesh):
        for name in ("web", "web.permissive", "web.permissive.svc", "web.permissive.svc.cluster.local"):
            for what, port in ((HTTP1, 80), (HTTP2, 83), (TCP, 90), (TCP, 93)):
                mesh.wire.forget()
                seen = await mesh.exchange(what, CLIENT, name, port)
                assert (seen.how, seen.pod) == (MTLS, "web.permissive"), (name, port)
                assert mesh.wire.saw_tls(mesh["web.permissive"].address)

    async def test_short_names_work_only_within_the_namespace(self, mesh):
        address = mesh.address("web", "strict")

        answer = await mesh[CLIENT].client.get(f"http://{address}/", headers={"host": "web2"})

        assert not answer.ok
