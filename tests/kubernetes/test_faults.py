"""Cluster faults while `xds serve --kubernetes` serves sidecars: no known state is lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from tests.kubernetes.environment.cluster import PATIENCE, Cluster
from tests.kubernetes.serving import Cable, Serving
from tests.kubernetes.shop import Shop, address, addresses
from tests.support.waiting import eventually
from xds.mesh.kube.crds import install

pytestmark = [pytest.mark.usefixtures("controllers"), pytest.mark.timeout(300)]

USER = "control-plane"
OUTDATED = r"ready: the API server .+ has been unreachable since \S+Z \(\d{1,3} s\); .+"


@pytest.fixture
async def shop(own_cluster: Cluster) -> Shop:
    """Three pods behind a Service, and a client."""
    grant = ("create", "clusterrolebinding", USER, "--clusterrole=cluster-admin", f"--user={USER}")
    await own_cluster.kubectl(*grant)
    await own_cluster.kubectl("create", "namespace", "istio-system")
    await install(own_cluster.api)
    shop = Shop(own_cluster, await own_cluster.new_namespace("shop"))
    await shop.open()
    await shop.add(1, 2, 3)
    return shop


@asynccontextmanager
async def connected(serving: Serving, shop: Shop, known: set[str]):
    """Connect a sidecar and wait until it knows all endpoints."""
    async with serving.sidecar("client-101", shop.namespace, address(101)) as sidecar:
        await sidecar.until(shop.service, known)
        yield sidecar


def lists(cluster: Cluster, plural: str) -> list[dict[str, str]]:
    """Return the query parameters of the control plane's list requests for a resource."""
    asked = cluster.control_plane.asked(USER)
    return [
        request.query for request in asked if request.verb == "list" and request.path.endswith(f"/{plural}")
    ]


async def test_api_server_outage_keeps_all_facts(own_cluster: Cluster, shop: Shop, tmp_path: Path) -> None:
    kubeconfig = await own_cluster.kubeconfig(USER)
    async with Serving(kubeconfig, tmp_path) as serving:
        await serving.until_ready()
        async with connected(serving, shop, addresses([1, 2, 3])) as sidecar:
            for deaths in range(2):
                own_cluster.stop_api_server()
                await serving.until_ready(OUTDATED)
                async with connected(serving, shop, addresses([deaths + 1, deaths + 2, deaths + 3])):
                    pass  # a new sidecar gets everything, too
                await own_cluster.start_api_server()
                await serving.until_ready()
                await shop.add(deaths + 4)
                await shop.remove(deaths + 1)
                await sidecar.until(shop.service, addresses([deaths + 2, deaths + 3, deaths + 4]))
            assert sidecar.status is None
            known = [endpoints for endpoints in sidecar.seen(shop.service) if len(endpoints) < 3]
            assert not known, "a live endpoint was removed"


async def test_process_started_before_the_api_server_catches_up(
    own_cluster: Cluster, shop: Shop, tmp_path: Path
) -> None:
    kubeconfig = await own_cluster.kubeconfig(USER)
    own_cluster.stop_api_server()
    async with Serving(kubeconfig, tmp_path) as serving:
        await serving.until_waiting()
        starting = asyncio.create_task(own_cluster.start_api_server())
        async with serving.sidecar("client-101", shop.namespace, address(101)) as early:
            await early.until(shop.service, addresses([1, 2, 3]))
            await serving.until_ready()
            assert all(shop.service in clusters for clusters in early.cluster_names), (
                "a partial state was sent first"
            )
            assert len(early.seen(shop.service)) == 1, "a partial state was sent first"
            await starting


async def test_policies_survive_api_server_crashes(own_cluster: Cluster, shop: Shop, tmp_path: Path) -> None:
    plaintext = {"metadata": {"name": "default"}, "spec": {"mtls": {"mode": "DISABLE"}}}
    kind = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication"}
    path = f"/apis/security.istio.io/v1/namespaces/{shop.namespace}/peerauthentications"
    await own_cluster.api.create(path, kind | plaintext)
    kubeconfig = await own_cluster.kubeconfig(USER)
    async with Serving(kubeconfig, tmp_path) as serving:
        await serving.until_ready()
        async with serving.sidecar("client-101", shop.namespace, address(101)) as sidecar:
            await sidecar.until(shop.service, addresses([1, 2, 3]), mtls=False)
            for deaths in range(2):
                own_cluster.stop_api_server()
                await serving.until_ready(OUTDATED)
                await own_cluster.start_api_server()
                await shop.add(deaths + 4)
                await sidecar.until(shop.service, addresses(range(1, deaths + 5)), mtls=False)
            assert not any(mtls for endpoints in sidecar.seen(shop.service) for mtls in endpoints.values())


async def test_compaction_causes_no_other_changes(own_cluster: Cluster, shop: Shop, tmp_path: Path) -> None:
    kubeconfig = await own_cluster.kubeconfig(USER)
    async with Serving(kubeconfig, tmp_path) as serving:
        await serving.until_ready()
        async with connected(serving, shop, addresses([1, 2, 3])) as sidecar:
            before = len(lists(own_cluster, "pods"))
            serving.freeze()
            own_cluster.stop_api_server()
            await own_cluster.start_api_server()
            await shop.add(4)
            await shop.remove(1)
            await own_cluster.compact()
            serving.thaw()
            await sidecar.until(shop.service, addresses([2, 3, 4]))
            # Its version has expired; it may notice that later for pods than for endpoints.
            await eventually(lambda: len(lists(own_cluster, "pods")) == before + 1, timeout=PATIENCE)
            assert all(endpoints.keys() >= addresses([2, 3]) for endpoints in sidecar.seen(shop.service))


async def test_broken_connections_lose_no_change(own_cluster: Cluster, shop: Shop, tmp_path: Path) -> None:
    randomly = random.Random(4)
    plane = own_cluster.control_plane
    async with Cable(plane.address, plane.port) as cable:
        kubeconfig = await own_cluster.kubeconfig(USER, server=cable.server)
        async with Serving(kubeconfig, tmp_path) as serving:
            await serving.until_ready()
            async with connected(serving, shop, addresses([1, 2, 3])) as sidecar:
                before = len(lists(own_cluster, "pods"))
                for number in range(1, 11):
                    cable.cut_after(randomly.randrange(1500))
                    await shop.add(number + 3)
                    await shop.remove(number)
                    await sidecar.until(shop.service, addresses(range(number + 1, number + 4)))
                assert cable.cuts == 10
                assert len(lists(own_cluster, "pods")) == before, "watches go on from where they were"
                # A slice may arrive before its Pod. The endpoint is left out until the Pod is known.
                assert all(len(endpoints) >= 2 for endpoints in sidecar.seen(shop.service))


async def test_five_thousand_pods_are_listed_in_pages(
    own_cluster: Cluster, shop: Shop, tmp_path: Path
) -> None:
    names = iter(range(5000))

    async def create() -> None:
        for number in names:
            await shop.create(f"idle-{number:04}", "idle")

    await asyncio.gather(*(create() for _ in range(32)))
    kubeconfig = await own_cluster.kubeconfig(USER)
    async with Serving(kubeconfig, tmp_path) as serving:
        await serving.until_ready()
        async with connected(serving, shop, addresses([1, 2, 3])) as sidecar:
            pages = lists(own_cluster, "pods")
            assert len(pages) == 11
            assert {page["limit"] for page in pages} == {"500"}
            assert len({page.get("continue") for page in pages}) == 11
            await shop.add(4)
            await sidecar.until(shop.service, addresses([1, 2, 3, 4]))


@pytest.mark.parametrize("skew", ["+26h", "-26h"])
async def test_api_server_clock_may_differ(
    own_cluster: Cluster, shop: Shop, tmp_path: Path, skew: str
) -> None:
    env = another_clock(skew)
    kubeconfig = await own_cluster.kubeconfig(USER)
    async with Serving(kubeconfig, tmp_path, env=env) as serving:
        await serving.until_ready()
        async with connected(serving, shop, addresses([1, 2, 3])) as sidecar:
            own_cluster.stop_api_server()
            await serving.until_ready(OUTDATED)
            await own_cluster.start_api_server()
            await shop.add(4)
            await sidecar.until(shop.service, addresses([1, 2, 3, 4]))


@pytest.mark.parametrize("skew", ["+4m", "-4m"])
async def test_credentials_tolerate_minutes_of_clock_skew(
    own_cluster: Cluster, shop: Shop, tmp_path: Path, skew: str
) -> None:
    env = another_clock(skew)
    kubeconfig = await own_cluster.kubeconfig(USER)
    async with Serving(kubeconfig, tmp_path, env=env) as serving:
        await serving.until_ready()
        root = await own_cluster.until(
            f"/api/v1/namespaces/{shop.namespace}/configmaps/xds-ca-root-cert",
            lambda found: found["data"]["root-cert.pem"],
        )
        token = await own_cluster.token(shop.namespace, "default", audience="xds-ca", pod="client-101")
        secret = await serving.certificate(
            "client-101", shop.namespace, address(101), root["data"]["root-cert.pem"], token
        )
        [leaf, *_] = x509.load_pem_x509_certificates(secret.tls_certificate.certificate_chain.inline_bytes)
        assert leaf.not_valid_before_utc <= datetime.now(UTC) <= leaf.not_valid_after_utc
        assert secret.tls_certificate.private_key.inline_bytes


def another_clock(skew: str) -> dict[str, str]:
    """Return an environment that shifts a process's clock."""
    for name in ("faketimeMT", "faketime"):
        for folder in Path("/usr/lib").glob("*/faketime"):
            if (library := folder / f"lib{name}.so.1").exists():
                return {"LD_PRELOAD": str(library), "FAKETIME": skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    pytest.skip("needs libfaketime (Debian: apt-get install libfaketime)")
