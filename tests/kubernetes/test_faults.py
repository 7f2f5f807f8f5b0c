"""What befalls a cluster while `xds serve --kubernetes` serves its sidecars: nothing that is known is ever lost."""

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
    """Three pods behind a Service, and one that asks."""
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
    """A sidecar that has been told of everything."""
    async with serving.sidecar("client-101", shop.namespace, address(101)) as sidecar:
        await sidecar.until(shop.service, known)
        yield sidecar


def lists(cluster: Cluster, plural: str) -> list[dict[str, str]]:
    """How the control plane has listed a resource."""
    asked = cluster.control_plane.asked(USER)
    return [each.query for each in asked if each.verb == "list" and each.path.endswith(f"/{plural}")]


async def test_while_the_api_server_is_dead_everything_known_stays(
    own_cluster: Cluster, shop: Shop, tmp_path: Path
) -> None:
    kubeconfig = await own_cluster.kubeconfig(USER)
    async with Serving(kubeconfig, tmp_path) as serving:
        await serving.until_ready()
        async with connected(serving, shop, addresses([1, 2, 3])) as sidecar:
            for deaths in range(2):
                own_cluster.stop_api_server()
                await serving.until_ready(OUTDATED)
                async with connected(serving, shop, addresses([deaths + 1, deaths + 2, deaths + 3])):
                    pass  # who comes only now is told everything all the same
                await own_cluster.start_api_server()
                await serving.until_ready()
                await shop.add(deaths + 4)
                await shop.remove(deaths + 1)
                await sidecar.until(shop.service, addresses([deaths + 2, deaths + 3, deaths + 4]))
            assert sidecar.connected
            known = [each for each in sidecar.seen[shop.service] if len(each) < 3]
            assert not known, "an endpoint was gone that had not gone"


async def test_a_process_that_was_there_first_knows_everything_once_it_is_ready(
    own_cluster: Cluster, shop: Shop, tmp_path: Path
) -> None:
    kubeconfig = await own_cluster.kubeconfig(USER)
    own_cluster.stop_api_server()
    async with Serving(kubeconfig, tmp_path) as serving:
        await serving.until_waiting()
        async with serving.sidecar("client-101", shop.namespace, address(101)) as early:
            starting = asyncio.create_task(own_cluster.start_api_server())
            await early.until(shop.service, addresses([1, 2, 3]))
            await serving.until_ready()
            assert all(shop.service in each for each in early.clusters), "told of a part first"
            assert len(early.seen[shop.service]) == 1, "told of a part first"
            await starting


async def test_policies_outlive_the_api_server(own_cluster: Cluster, shop: Shop, tmp_path: Path) -> None:
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
            assert not any(mtls for each in sidecar.seen[shop.service] for mtls in each.values())


async def test_what_changed_before_a_compaction_is_all_that_is_different_after_it(
    own_cluster: Cluster, shop: Shop, tmp_path: Path
) -> None:
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
            # What it was at is gone; of pods it may learn that later than of endpoints.
            await eventually(lambda: len(lists(own_cluster, "pods")) == before + 1, timeout=PATIENCE)
            assert all(each.keys() >= addresses([2, 3]) for each in sidecar.seen[shop.service])


async def test_a_connection_that_breaks_in_the_middle_of_what_it_says_loses_nothing(
    own_cluster: Cluster, shop: Shop, tmp_path: Path
) -> None:
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
                # A slice may come before the Pod that it names, which is left out until it is known.
                assert all(len(each) >= 2 for each in sidecar.seen[shop.service])


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
async def test_the_clock_of_the_api_server_may_be_another(
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
async def test_credentials_and_certificates_are_good_though_clocks_are_minutes_apart(
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
    """Return the environment that gives a process another clock."""
    for name in ("faketimeMT", "faketime"):
        for folder in Path("/usr/lib").glob("*/faketime"):
            if (found := folder / f"lib{name}.so.1").exists():
                return {"LD_PRELOAD": str(found), "FAKETIME": skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    pytest.skip("needs libfaketime (Debian: apt-get install libfaketime)")
