"""Policies and rules that change while sidecars run: clients send what the server accepts, by port."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, MTLS, PLAINTEXT, TCP
from tests.support.manifests import Manifest, destination_rule, peer_authentication
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {"http-web": (80, 8080), "tcp-lines": (90, 9000), "web": (83, 8083)}
CLIENTS = ("client.apps", "old.apps")
"""One uses delta xDS, the other, like the server, state-of-the-world xDS."""
OUTSIDER = "outsider.outside"
WEB, BARE = "web.full", "bare.full"
APP = {"app": "web"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A server with a sidecar and one without, two clients with one and one without. Tests add policies."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "apps")
            mesh.pod("old", "apps", sotw=True)
            mesh.pod("outsider", "outside", sidecar=False)
            for name in ("web", "bare"):
                pod = mesh.pod(name, "full", sidecar=name == "web", sotw=True)
                mesh.service(name, "full", PORTS)
                await mesh.serve(pod, http=(8080, 8083), lines=(9000,))
            await mesh.start()
            yield mesh


async def under(mesh: Mesh, *objects: Manifest, **settings: Any) -> None:
    """Apply exactly these objects."""
    mesh.set(**settings)
    mesh.manifests.write("policies", *objects)
    await mesh.settled()
    # A pooled connection that is no longer allowed gets one more response.
    for client in CLIENTS:
        for host in (WEB, BARE):
            for port in (80, 83):
                await mesh.exchange(HTTP1, client, host, port)


async def ways(mesh: Mesh, client: str, host: str = WEB) -> dict[int, str]:
    """Return the kind of a client's traffic, by port of the service."""
    seen = {
        port: await mesh.exchange(what, client, host, port)
        for what, port in ((HTTP1, 80), (TCP, 90), (HTTP1, 83))
    }
    for port in (80, 83):
        assert bool(seen[port].identity) == (seen[port].how == MTLS)
    return {port: answers.how for port, answers in seen.items()}


async def inside(mesh: Mesh, host: str = WEB) -> dict[int, str]:
    """Return the kind of traffic of all clients with a sidecar."""
    one, other = [await ways(mesh, client, host) for client in CLIENTS]
    assert one == other
    return one


async def outside(mesh: Mesh, host: str = WEB) -> dict[int, str]:
    """Return the kind of traffic of a client without a sidecar."""
    return await ways(mesh, OUTSIDER, host)


def all_of(how: str) -> dict[int, str]:
    return dict.fromkeys((80, 90, 83), how)


def mesh_wide(mode: str) -> Manifest:
    return peer_authentication("istio-system", mode)


def namespaced(mode: str) -> Manifest:
    return peer_authentication("full", mode)


def workload(mode: str, ports: dict[int, str] | None = None, **labels: str) -> Manifest:
    return peer_authentication("full", mode, name="workload", selector=labels or APP, ports=ports)


class TestPeerAuthentication:
    @pytest.mark.parametrize(
        ("objects", "from_inside", "from_outside"),
        [
            pytest.param([], all_of(MTLS), all_of(PLAINTEXT), id="none is PERMISSIVE"),
            pytest.param([mesh_wide("DISABLE")], all_of(PLAINTEXT), all_of(PLAINTEXT), id="mesh DISABLE"),
            pytest.param(
                [mesh_wide("DISABLE"), workload("STRICT")], all_of(MTLS), all_of(FAILS),
                id="mesh DISABLE, workload STRICT (istio#56084)",
            ),
            pytest.param(
                [mesh_wide("DISABLE"), workload("PERMISSIVE")], all_of(MTLS), all_of(PLAINTEXT),
                id="mesh DISABLE, workload PERMISSIVE",
            ),
            pytest.param(
                [mesh_wide("DISABLE"), namespaced("STRICT"), workload("DISABLE")],
                all_of(PLAINTEXT), all_of(PLAINTEXT), id="namespace STRICT, workload DISABLE",
            ),
            pytest.param(
                [namespaced("STRICT"), workload("DISABLE", app="other")], all_of(MTLS), all_of(FAILS),
                id="namespace STRICT, another workload DISABLE",
            ),
            pytest.param(
                [workload("STRICT", {8080: "DISABLE"})],
                {80: PLAINTEXT, 90: MTLS, 83: MTLS}, {80: PLAINTEXT, 90: FAILS, 83: FAILS},
                id="workload STRICT, a port DISABLE",
            ),
            pytest.param(
                [namespaced("STRICT"), workload("DISABLE", {9000: "STRICT", 8083: "PERMISSIVE"})],
                {80: PLAINTEXT, 90: MTLS, 83: MTLS}, {80: PLAINTEXT, 90: FAILS, 83: PLAINTEXT},
                id="workload DISABLE, ports STRICT and PERMISSIVE",
            ),
        ],
    )  # fmt: skip
    async def test_mode_applies_to_clients_and_server_on_every_port(
        self, mesh, objects: list[Manifest], from_inside: dict[int, str], from_outside: dict[int, str]
    ):
        await under(mesh, *objects)

        assert await inside(mesh) == from_inside
        assert await outside(mesh) == from_outside
        assert await inside(mesh, BARE) == await outside(mesh, BARE) == all_of(PLAINTEXT)

    async def test_mode_may_change_repeatedly(self, mesh):
        for mode, from_inside, from_outside in 2 * [
            ("STRICT", MTLS, FAILS),
            ("DISABLE", PLAINTEXT, PLAINTEXT),
            ("PERMISSIVE", MTLS, PLAINTEXT),
            ("DISABLE", PLAINTEXT, PLAINTEXT),
        ]:
            await under(mesh, mesh_wide("DISABLE"), workload(mode))
            assert await inside(mesh) == all_of(from_inside), mode
            assert await outside(mesh) == all_of(from_outside), mode


def rule(host: str, policy: dict[str, Any], namespace: str = "full", name: str = "rule") -> Manifest:
    made = destination_rule(name, namespace, host, "DISABLE")
    made["spec"]["trafficPolicy"] = policy
    return made


def tls(mode: str, **more: Any) -> dict[str, Any]:
    return {"tls": {"mode": mode, **more}}


class TestDestinationRule:
    @pytest.mark.parametrize(
        ("server", "mode", "how"),
        [
            ("STRICT", "DISABLE", FAILS),
            ("STRICT", "ISTIO_MUTUAL", MTLS),
            ("PERMISSIVE", "DISABLE", PLAINTEXT),
            ("PERMISSIVE", "ISTIO_MUTUAL", MTLS),
            ("PERMISSIVE", "SIMPLE", FAILS),
            ("DISABLE", "DISABLE", PLAINTEXT),
            ("DISABLE", "ISTIO_MUTUAL", FAILS),
        ],
    )
    async def test_rule_overrides_auto_mtls(self, mesh, server, mode, how):
        await under(mesh, namespaced(server), rule("web.full.svc.cluster.local", tls(mode)))

        assert await inside(mesh) == all_of(how)
        assert await outside(mesh) == all_of(FAILS if server == "STRICT" else PLAINTEXT)

    @pytest.mark.parametrize(("mode", "how"), [("DISABLE", PLAINTEXT), ("ISTIO_MUTUAL", FAILS)])
    async def test_rule_applies_to_servers_without_a_sidecar(self, mesh, mode, how):
        await under(mesh, rule("*.full.svc.cluster.local", tls(mode)))

        assert await inside(mesh, BARE) == all_of(how)

    async def test_rule_that_contradicts_the_server_gives_503(self, mesh):
        await under(mesh, namespaced("DISABLE"), rule("web", tls("ISTIO_MUTUAL")))

        answer = await mesh[CLIENTS[0]].client.get("http://web.full/headers")

        assert answer.code == "503"
        assert "connection failure" in answer.text

    async def test_rule_may_have_port_settings(self, mesh):
        ports = [{"port": {"number": 80}, **tls("ISTIO_MUTUAL")}, {"port": {"number": 83}}]
        await under(mesh, rule("web", tls("DISABLE") | {"portLevelSettings": ports}))

        # A port's settings replace all others. Auto mTLS decides where they leave out the mode.
        assert await inside(mesh) == {80: MTLS, 90: PLAINTEXT, 83: MTLS}

    async def test_rule_in_the_client_namespace_overrides_others(self, mesh):
        await under(
            mesh,
            rule("web.full.svc.cluster.local", tls("DISABLE"), "apps"),
            rule("web", tls("ISTIO_MUTUAL")),
        )

        assert await inside(mesh) == all_of(PLAINTEXT)

    async def test_rule_may_require_an_identity(self, mesh):
        server = "spiffe://cluster.local/ns/full/sa/default"
        await under(mesh, rule("web", tls("ISTIO_MUTUAL", subjectAltNames=[server])))
        assert await inside(mesh) == all_of(MTLS)

        await under(mesh, rule("web", tls("ISTIO_MUTUAL", subjectAltNames=[f"{server}x"])))
        assert await inside(mesh) == all_of(FAILS)

    async def test_rule_for_all_hosts_replaces_auto_mtls(self, mesh):
        await under(mesh, mesh_wide("STRICT"), rule("*.local", tls("ISTIO_MUTUAL"), "istio-system"))

        assert await inside(mesh) == all_of(MTLS)
        assert await inside(mesh, BARE) == all_of(FAILS)


async def test_without_auto_mtls_only_rules_enable_tls(mesh):
    await under(mesh, enableAutoMtls=False)
    assert await inside(mesh) == all_of(PLAINTEXT)

    await under(mesh, namespaced("STRICT"), enableAutoMtls=False)
    assert await inside(mesh) == all_of(FAILS)

    await under(mesh, namespaced("STRICT"), rule("web", tls("ISTIO_MUTUAL")), enableAutoMtls=False)
    assert await inside(mesh) == all_of(MTLS)
