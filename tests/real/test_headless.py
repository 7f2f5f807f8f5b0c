"""Headless services and PASSTHROUGH: a request reaches the addressed pod in that pod's own mode."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, HTTP2, MTLS, PLAINTEXT, SERVER_FIRST, TCP
from tests.support.manifests import destination_rule, peer_authentication
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {
    "http-web": (8080, 8080),
    "http2-web": (8081, 8081),
    "tcp-lines": (9000, 9000),
    "tcp-greets": (9001, 9001),
    "web": (8083, 8083),
    "lines": (9003, 9003),
    "greets": (9004, 9004),
    "http-moved": (80, 8084),
}
TRAFFIC = [
    (HTTP1, 8080), (HTTP2, 8080), (HTTP1, 8081), (HTTP2, 8081), (TCP, 9000), (SERVER_FIRST, 9001),
    (HTTP1, 8083), (HTTP2, 8083), (TCP, 9003), (SERVER_FIRST, 9004), (HTTP1, 8084),
]  # fmt: skip
PASSED = {"http-cache": (80, 8090), "tcp-cache": (90, 9090), "cache": (81, 8091)}
"""Virtual address of the service that its clients balance."""

HOW = {"db-0": MTLS, "db-1": PLAINTEXT}
NEAR, FAR = "client.ns", "client.apps"
TIMES = 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A StatefulSet's two pods under STRICT, one with a sidecar, and clients in both namespaces."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "ns", account="client")
            mesh.pod("client", "apps", account="client")
            mesh.pod("outsider", "outside", sidecar=False)
            for name, sidecar in (("db-0", True), ("db-1", False)):
                pod = mesh.pod(name, "ns", sidecar=sidecar, labels={"app": "db"}, subdomain="db")
                await mesh.serve(
                    pod,
                    http=(8080, 8081, 8083, 8084, 8090, 8091),
                    lines=(9000, 9003, 9090),
                    greets=(9001, 9004),
                )
            mesh.service("db", "ns", PORTS, headless=True)
            mesh.service("cache", "ns", PASSED, selector={"app": "db"})
            rule = destination_rule("cache", "ns", "cache", "DISABLE")
            rule["spec"]["trafficPolicy"] = {"loadBalancer": {"simple": "PASSTHROUGH"}}
            mesh.apply(rule, peer_authentication("istio-system", "STRICT"))
            await mesh.start()
            yield mesh


async def ten_times(mesh: Mesh, what: str, client: str, host: str, port: int) -> Counter[tuple[str, str]]:
    """Count the responses by pod and kind of traffic."""
    if what == SERVER_FIRST:
        seen = await asyncio.gather(*(mesh.exchange(what, client, host, port) for _ in range(TIMES)))
    else:
        seen = [await mesh.exchange(what, client, host, port) for _ in range(TIMES)]
    for exchange in seen:
        assert exchange.how != FAILS, exchange
        assert bool(exchange.identity) == (exchange.how == MTLS and what in (HTTP1, HTTP2)), exchange
    return Counter((exchange.pod, exchange.how) for exchange in seen)


class TestHeadlessPod:
    @pytest.mark.parametrize("pod", ["db-0", "db-1"])
    @pytest.mark.parametrize(("what", "port"), TRAFFIC)
    async def test_pod_is_reached_at_its_address(self, mesh, pod, what, port):
        seen = await ten_times(mesh, what, FAR, mesh[f"{pod}.ns"].address, port)

        assert seen == {(f"{pod}.ns", HOW[pod]): TIMES}

    @pytest.mark.parametrize("pod", ["db-0", "db-1"])
    @pytest.mark.parametrize(
        ("client", "suffix"),
        [(NEAR, ""), (NEAR, ".ns"), (FAR, ".ns"), (FAR, ".ns.svc"), (FAR, ".ns.svc.cluster.local")],
    )
    async def test_pod_is_reached_by_its_name(self, mesh, pod, client, suffix):
        for what, port in TRAFFIC:
            if what != SERVER_FIRST:
                seen = await ten_times(mesh, what, client, f"{pod}.db{suffix}", port)
                assert seen == {(f"{pod}.ns", HOW[pod]): TIMES}, (what, port)

    @pytest.mark.parametrize(
        "host", ["www.example.org", "db-1.db.ns", "db-0.db.ns:8080", "cache.ns", "10.96.0.1"]
    )
    async def test_pod_is_reached_at_its_address_with_any_host_header(self, mesh, host):
        for name, how in HOW.items():
            pod = mesh[f"{name}.ns"]
            for port in (8080, 8083):
                answers = await mesh[FAR].client.gets(
                    f"http://{pod.address}:{port}/", TIMES, headers={"host": host}
                )
                assert {answer.pod for answer in answers} == {f"{name}.ns"}
                assert {bool(answer.identity) for answer in answers} == {how == MTLS}

    async def test_original_destination_header_is_ignored(self, mesh):
        client = mesh.sidecar(mesh[FAR])
        pattern = r"^cluster\.outbound\|8080\|[^|]+\|db\.ns\.svc\.cluster\.local;?\.upstream_rq_total$"
        passed = r"^cluster\.PassthroughCluster\.upstream_(cx|rq)_total$"
        before = await client.admin.stats(f"{pattern}|{passed}")

        for name in HOW:
            await ten_times(mesh, HTTP1, FAR, mesh[f"{name}.ns"].address, 8080)
            await ten_times(mesh, TCP, FAR, mesh[f"{name}.ns"].address, 9000)

        after = await client.admin.stats(f"{pattern}|{passed}")
        grown = {name: after[name] - before.get(name, 0) for name in after}
        assert sorted(n for n in grown.values() if n) == [TIMES, TIMES], grown
        (dump,) = await client.admin.config("ClustersConfigDump")
        clusters = [entry["cluster"] for entry in dump["dynamic_active_clusters"]]
        assert {c["name"] for c in clusters if c["type"] == "ORIGINAL_DST"} == {
            "PassthroughCluster",
            "InboundPassthroughCluster",
        }

    async def test_pod_mode_applies_to_clients_without_a_sidecar(self, mesh):
        locked = await mesh.exchange(HTTP1, "outsider.outside", "db-0.db.ns", 8080)
        open_ = await mesh.exchange(HTTP1, "outsider.outside", "db-1.db.ns", 8080)

        assert (locked.how, open_.how, open_.pod) == (FAILS, PLAINTEXT, "db-1.ns")


async def balanced(mesh: Mesh, what: str, client: str, host: str, port: int) -> set[tuple[str, str]]:
    """Send requests until two pods have answered; return the pods and kinds of traffic."""
    seen: set[tuple[str, str]] = set()
    for _ in range(50):
        each = await mesh.exchange(what, client, host, port)
        seen.add((each.pod, each.how))
        if len(seen) == 2:
            break
    return seen


class TestHeadlessName:
    @pytest.mark.parametrize(
        ("client", "host"), [(NEAR, "db"), (FAR, "db.ns"), (FAR, "db.ns.svc.cluster.local")]
    )
    @pytest.mark.parametrize(("what", "port"), [(HTTP1, 8080), (HTTP2, 8081), (HTTP1, 8083), (HTTP2, 8083)])
    async def test_headless_name_is_balanced_in_the_mode_of_each_pod(self, mesh, client, host, what, port):
        seen = await balanced(mesh, what, client, host, port)

        assert seen == {("db-0.ns", MTLS), ("db-1.ns", PLAINTEXT)}


class TestPassthroughService:
    @pytest.mark.parametrize(("what", "port"), [(HTTP1, 8090), (TCP, 9090), (HTTP1, 8091), (HTTP2, 8091)])
    async def test_passthrough_reaches_each_pod_at_its_address(self, mesh, what, port):
        for pod, how in HOW.items():
            seen = await ten_times(mesh, what, FAR, mesh[f"{pod}.ns"].address, port)
            assert seen == {(f"{pod}.ns", how): TIMES}

    @pytest.mark.parametrize(("what", "port"), [(HTTP1, 80), (TCP, 90), (HTTP1, 81), (HTTP2, 81)])
    async def test_virtual_address_is_balanced(self, mesh, what, port):
        seen = await balanced(mesh, what, FAR, "cache.ns", port)

        assert seen == {("db-0.ns", MTLS), ("db-1.ns", PLAINTEXT)}


async def test_headless_pods_may_be_replaced(mesh):
    async def asked(what: str, port: int, how: str) -> None:
        for host in ("db-1.db.ns", mesh["db-1.ns"].address):
            assert await ten_times(mesh, what, FAR, host, port) == {("db-1.ns", how): TIMES}

    async def only_the_other_is_left() -> None:
        for _ in range(TIMES):
            seen = await mesh.exchange(HTTP1, FAR, "db.ns", 8080)
            assert (seen.pod, seen.how) == ("db-0.ns", MTLS)
        assert not mesh.cluster.resolve("db-1.db.ns", seen_from="apps")

    old = mesh["db-1.ns"]
    mesh.remove(old)
    await mesh.settled()
    await only_the_other_is_left()

    new = mesh.pod("db-1", "ns", labels={"app": "db"}, subdomain="db")
    assert new.address != old.address
    await mesh.serve(new, http=(8080,), lines=(9000,))
    await mesh.start()
    await asked(HTTP1, 8080, MTLS)
    await asked(TCP, 9000, MTLS)
    assert await balanced(mesh, HTTP1, FAR, "db.ns", 8080) == {("db-0.ns", MTLS), ("db-1.ns", MTLS)}
