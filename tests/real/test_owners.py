"""Addresses belong to their owners, unknown pods get no traffic, and sidecar ports are not published."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from tests.support import manifests
from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, MTLS, PLAINTEXT, TCP
from tests.support.manifests import Manifest, destination_rule
from tests.support.mesh import Mesh
from tests.support.predictions import results
from tests.support.waiting import eventually
from xds.mesh.model.objects import Ref

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {"http-web": (80, 8080), "tcp-lines": (90, 9000)}
OWN_NUMBERS = {"http-web": (8080, 8080), "tcp-lines": (9000, 9000)}
TRAFFIC, TO_POD = [(HTTP1, 80), (TCP, 90)], [(HTTP1, 8080), (TCP, 9000)]
CLIENT, OUTSIDER = "client.third", "outsider.third"
WEB, DB = "web.shop", "db.shop"


def slice_of(name: str, namespace: str, ports: dict[str, int], *entries: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": key, "port": port} for key, port in ports.items()],
        "endpoints": list(entries),
    }


def headless(name: str, namespace: str, ports: dict[str, tuple[int, int]]) -> Manifest:
    written = manifests.service(name, namespace, ports)
    del written["spec"]["selector"]
    return written


@asynccontextmanager
async def applied(mesh: Mesh, *objects: Manifest) -> AsyncIterator[None]:
    """Apply objects for a while."""
    mesh.apply(*objects)
    await mesh.settled()
    try:
        yield
    finally:
        mesh.delete(*objects)
    await mesh.settled()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A Service with a virtual address and a headless one in `shop`; a client in `third`; `aaa` is empty."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "third")
            mesh.pod("outsider", "third", sidecar=False)
            for name in ("web", "db"):
                pod = mesh.pod(name, "shop")
                await mesh.serve(pod, http=(8080,), lines=(9000,))
            mesh.service("web", "shop", PORTS)
            mesh.service("db", "shop", OWN_NUMBERS, headless=True)
            mesh.service("admin", "shop", {"http-admin": (81, 15000)}, selector={"app": "web"})
            await mesh.start()
            yield mesh


class TestForeignAddresses:
    async def test_foreign_addresses_get_no_traffic(self, mesh):
        virtual, pod = mesh.address("web", "shop"), mesh[DB].address
        ports = {name: (port, port) for name, (port, _) in PORTS.items()}
        pod_ports = {f"{name}-pod": own for name, own in OWN_NUMBERS.items()}
        claims = [
            headless("taker", "aaa", ports | pod_ports),
            slice_of(
                *("taker", "aaa"),
                {name: port for name, (port, _) in (ports | pod_ports).items()},
                *({"addresses": [address]} for address in (virtual, pod)),
            ),
            destination_rule("taker", "aaa", "taker.aaa.svc.cluster.local", "DISABLE"),
        ]

        async with applied(mesh, *claims):
            seen = [(WEB, await mesh.exchange(what, CLIENT, virtual, port)) for what, port in TRAFFIC]
            seen += [(DB, await mesh.exchange(what, CLIENT, pod, port)) for what, port in TO_POD]

        assert [(exchange.how, exchange.pod) for _, exchange in seen] == [
            (MTLS, owner) for owner, _ in seen
        ], seen

    async def test_http_requests_reach_a_service_that_does_not_own_the_address(self, mesh):
        """HTTP requests are routed by the name of the Service. Other connections pass through."""
        web = mesh[WEB]
        claims = [
            headless("taker", "aaa", OWN_NUMBERS),
            slice_of(
                *("taker", "aaa"),
                {name: port for name, (port, _) in OWN_NUMBERS.items()},
                {"addresses": [web.address]},
            ),
            destination_rule("taker", "aaa", "taker.aaa.svc.cluster.local", "ISTIO_MUTUAL"),
        ]
        known = mesh.cluster.service("taker", "aaa", dict(OWN_NUMBERS.values()), [web], headless=True)

        async with applied(mesh, *claims):
            predicted = results(mesh.facts())
            seen = [(await mesh.exchange(what, CLIENT, "taker.aaa", port)).how for what, port in TO_POD]

        mesh.cluster.services.remove(known)
        mesh.cluster.publish()
        calls = [(Ref("Pod", "third", "client"), Ref("Service", "aaa", "taker"), port) for _, port in TO_POD]
        assert seen == [how for call in calls for how in predicted[call].values()] == [MTLS, PLAINTEXT]


class TestUnknownPod:
    @pytest.mark.parametrize(("name", "traffic"), [("web", TRAFFIC), ("db", TO_POD)])
    async def test_unknown_pod_gets_no_plaintext(self, mesh, name, traffic):
        pod, host = mesh[f"{name}.shop"], f"{name}.shop"
        target = {"kind": "Pod", "name": pod.name, "namespace": pod.namespace}
        ports = {key: port for key, (_, port) in PORTS.items()}
        entry = {"addresses": [pod.address], "targetRef": target}

        async def ways() -> list[str]:
            return [(await mesh.exchange(what, CLIENT, host, port)).how for what, port in traffic]

        async with applied(mesh, slice_of(name, "shop", ports, entry)):
            seen = await ways()
            # Its sidecar and its application keep running, so a request that is sent there succeeds.
            mesh.manifests.remove(f"pod-shop-{name}")
            try:

                async def all_refused() -> bool:
                    seen.extend(found := await ways())
                    return set(found) == {FAILS}

                await eventually(all_refused, timeout=60, what=f"{host} refuses all requests")
            finally:
                mesh.write_pod(pod)
            assert set(seen) == {MTLS, FAILS}
            await mesh.settled()
            assert set(await ways()) == {MTLS}


class TestAdminInterface:
    @pytest.mark.parametrize("mode", ["PASSTHROUGH", "LOCALHOST"])
    async def test_admin_interface_is_not_published(self, mesh, mode):
        mesh.set(inboundTrafficPolicy={"mode": mode})
        await mesh.settled()
        pod = mesh[WEB]
        assert (await pod.client.get("http://127.0.0.1:15000/server_info")).ok

        answers = [
            await mesh[who].client.get(url)
            for who in (CLIENT, OUTSIDER)
            for url in ("http://admin.shop:81/server_info", f"http://{pod.address}:15000/server_info")
        ]

        mesh.set()
        await mesh.settled()
        assert not [answer for answer in answers if answer.ok], answers
