"""Load balancing by real sidecars: consistent hash, localities, warm-up and connection limits."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tests.support import manifests
from tests.support.answers import Answer
from tests.support.apps import EchoApp
from tests.support.load import Load
from tests.support.local import LocalMesh
from tests.support.loopback import Loopback
from tests.support.manifests import Manifest, peer_authentication
from tests.support.waiting import eventually

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

HTTP, TCP = 8080, 9000
WARMUP = 20
"""Seconds. The first endpoints warm up during the other tests."""
OUTLIER = {
    "consecutive5xxErrors": 1,
    "interval": "0.1s",
    "baseEjectionTime": "300s",
    "maxEjectionPercent": 100,
}
"""Eject an endpoint after its first error, for longer than the test."""

RULES: dict[str, dict[str, Any]] = {
    "header": {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}},
    "maglev": {
        "loadBalancer": {"consistentHash": {"httpHeaderName": "x-user", "maglev": {"tableSize": 1009}}}
    },
    "cookie": {
        "loadBalancer": {"consistentHash": {"httpCookie": {"name": "user", "path": "/", "ttl": "1h"}}}
    },
    "query": {"loadBalancer": {"consistentHash": {"httpQueryParameterName": "user"}}},
    "source": {"loadBalancer": {"consistentHash": {"useSourceIp": True}}},
    "near": {"outlierDetection": {"consecutive5xxErrors": 1, "interval": "300s"}},
    "shares": {
        "loadBalancer": {
            "localityLbSetting": {"distribute": [{"from": "eu/*", "to": {"eu/*": 80, "us": 20}}]}
        }
    },
    "slow": {"loadBalancer": {"warmup": {"duration": "1h", "minimumPercent": 20, "aggression": 2}}},
    "ring": {"loadBalancer": {"consistentHash": {"useSourceIp": True, "ringHash": {"minimumRingSize": 512}}}},
    "failover": {
        "outlierDetection": OUTLIER,
        "loadBalancer": {
            "localityLbSetting": {
                "failover": [{"from": "eu", "to": "us"}],
                "failoverPriority": ["version", "app=web"],
            }
        },
    },
    "once": {"connectionPool": {"http": {"maxRequestsPerConnection": 1}}},
}
"""Traffic policies of services with the same four servers."""


def rule(name: str, policy: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"host": name, "trafficPolicy": policy},
    }


class Pods:
    """A client in region eu, and two servers in each of the regions eu and us, of which one has a sidecar."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self.client = mesh.pod("client", "ns", labels={"istio-locality": "eu.eu-1"})
        self.servers = [
            mesh.pod(
                f"{region}-{kind}",
                "ns",
                sidecar=kind == "mtls",
                labels={"app": "web", "istio-locality": f"{region}.{region}-1"},
            )
            for region in ("eu", "us")
            for kind in ("mtls", "plain")
        ]

    async def start(self) -> None:
        for pod in self.servers:
            await self.mesh.serve(pod, http=(HTTP,), lines=(TCP,))
        for name, policy in RULES.items():
            ports = {"http": (80, HTTP), "tcp": (90, TCP)}
            self.mesh.service(name, "ns", ports, selector={"app": "web"})
            self.mesh.apply(rule(name, policy))
        for name in ("warm-0", "warm-1"):
            pod = self.mesh.pod(name, "ns", sidecar=False, labels={"app": "warm"}, account="warm")
            await self.mesh.serve(pod, http=(HTTP,))
        self.mesh.service("warm", "ns", {"http": (80, HTTP)})
        warmup = {"simple": "ROUND_ROBIN", "warmup": {"duration": f"{WARMUP}s"}}
        self.mesh.apply(rule("warm", {"loadBalancer": warmup}))
        await self.mesh.start(self.client, *(pod for pod in self.servers if pod.name.endswith("mtls")))

        self._started = await self.uptime()

    async def uptime(self) -> int:
        """Return the seconds since the client's sidecar was started."""
        info = await self.mesh.sidecar(self.client).admin.json("/server_info")
        return int(info["uptime_current_epoch"].removesuffix("s"))

    async def are_warm(self) -> bool:
        """Whether the endpoints that the client's sidecar had at first are warm."""
        return await self.uptime() > self._started + WARMUP + 1

    async def get(self, host: str, path: str = "/headers", **headers: str) -> Answer:
        answer = await self.client.client.get(f"http://{host}:80{path}", headers=headers)
        assert answer.ok, answer
        return answer

    async def responders(self, host: str, count: int = 40, **headers: str) -> Counter[str]:
        """Count the pods that respond to requests of the client, without their namespace."""
        answers = [await self.get(host, **headers) for _ in range(count)]
        return Counter(answer.pod.partition(".")[0] for answer in answers)


ALL = {"eu-mtls", "eu-plain", "us-mtls", "us-plain"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pods]:
    async with AsyncExitStack() as exits:
        loopback = exits.enter_context(Loopback())
        mesh = await exits.enter_async_context(LocalMesh(loopback, tmp_path_factory.mktemp("mesh")))
        pods = Pods(mesh)
        await pods.start()
        yield pods
        rejections = [await envoy.rejections() for envoy in mesh.sidecars.values()]
        assert not any(count for counts in rejections for count in counts.values()), rejections


async def user(pods: Pods, host: str, number: int) -> str:
    """Return which pod responds to a user."""
    [found] = await pods.responders(host, 3, **{"x-user": f"user-{number}"})
    return found


async def users(pods: Pods, host: str) -> list[str]:
    """Return which pod responds to each of some users."""
    return [await user(pods, host, number) for number in range(24)]


@pytest.mark.parametrize("host", ["header", "maglev"])
async def test_header_decides(pods: Pods, host: str) -> None:
    seen: set[str] = set()
    for number in range(200):  # Which of the pods has which user depends on their addresses.
        seen.add(await user(pods, host, number))
        if seen == ALL:
            break
    assert seen == ALL


async def test_query_parameter_decides(pods: Pods) -> None:
    found = [{(await pods.get("query", f"/headers?user={user}")).pod for _ in range(3)} for user in range(24)]
    assert {len(responders) for responders in found} == {1}
    assert len(set.union(*found)) > 1


async def test_cookie_is_created_and_decides(pods: Pods) -> None:
    seen = set()
    for _ in range(24):
        first = await pods.get("cookie")
        cookie, *attributes = first.headers["set-cookie"].split("; ")
        assert {"Max-Age=3600", "Path=/"} <= set(attributes)
        again = [await pods.get("cookie", cookie=cookie) for _ in range(3)]
        assert {answer.pod for answer in again} == {first.pod}
        assert not any("set-cookie" in answer.headers for answer in again)
        seen.add(first.pod)
    assert len(seen) > 1


async def test_source_address_decides_for_http_and_tcp(pods: Pods) -> None:
    assert len(await pods.responders("source", 12)) == 1
    responders = set()
    for _ in range(12):
        async with pods.client.client.tcp("source", 90) as conversation:
            responders.add((await conversation.ask("hello")).partition(":")[0])
    assert len(responders) == 1


async def test_requests_stay_in_the_nearest_locality(pods: Pods) -> None:
    assert set(await pods.responders("near")) == {"eu-mtls", "eu-plain"}


async def test_distribute_gives_localities_their_shares(pods: Pods) -> None:
    found = await pods.responders("shares", 200)
    assert set(found) == ALL
    assert 25 <= found["us-mtls"] + found["us-plain"] <= 55, found


@pytest.mark.parametrize("host", ["slow", "ring", "failover"])
async def test_settings_are_accepted(pods: Pods, host: str) -> None:
    """The fixture checks that no sidecar has rejected anything."""
    assert await pods.responders(host, 3)


async def test_connection_serves_no_more_requests_than_allowed(pods: Pods) -> None:
    async def ended() -> int:
        stats = pods.mesh.sidecar(pods.client).admin
        return await stats.total(r"^cluster\.outbound\|80\|\|once\..*\.upstream_cx_max_requests$")

    before = await ended()
    await pods.responders("once", 12)
    assert await ended() - before == 12


async def test_mode_changes_move_no_user_and_no_share(pods: Pods) -> None:
    """A mode change moves each endpoint to another sub-zone. Hash, priority and share do not depend on it."""
    before = await users(pods, "header")
    async with AsyncExitStack() as exits:
        loads = [
            await exits.enter_async_context(
                Load(client=pods.client.client, url=f"http://{host}:80/headers", connections=2)
            )
            for host in ("header", "source", "near", "shares")
        ]
        for mode in ("STRICT", "DISABLE", "PERMISSIVE"):
            pods.mesh.apply(peer_authentication("ns", mode))
            await pods.mesh.settled(timeout=60)
            await asyncio.gather(*(load.more(20) for load in loads))
            assert await users(pods, "header") == before
            assert set(await pods.responders("near")) == {"eu-mtls", "eu-plain"}
            # The load takes part in the turns: only the shares of all requests together are exact.
            now = time.monotonic()
            found = await pods.responders("shares", 100)
            found.update(sent.answer.pod.partition(".")[0] for sent in loads[3].since(now))
            share = (found["us-mtls"] + found["us-plain"]) / found.total()
            assert 0.08 <= share <= 0.32, found
    assert [load.failures for load in loads] == [[], [], [], []]
    assert {sent.answer.pod[:2] for sent in loads[2].sent} == {"eu"}


async def test_requests_fail_over_to_another_region(pods: Pods) -> None:
    mesh = pods.mesh
    servers = [
        mesh.pod(f"{region}-fails", "ns", sidecar=False, labels={"app": "far", "istio-locality": region})
        for region in ("eu", "us")
    ]
    mesh.service("far", "ns", {"http": (80, HTTP)})
    mesh.apply(rule("far", {"outlierDetection": OUTLIER}))
    apps = [EchoApp(f"{pod.name}.ns", HTTP, address=pod.app_address) for pod in servers]
    async with apps[1]:
        async with apps[0]:
            await mesh.settled()
            assert set(await pods.responders("far", 20)) == {"eu-fails"}

        async def fails_over() -> bool:
            return set(await pods.responders("far", 5)) == {"us-fails"}

        await eventually(fails_over, what="requests go to the other region")


async def test_new_endpoint_warms_up(pods: Pods) -> None:
    mesh = pods.mesh
    await eventually(pods.are_warm, timeout=60, what="the first endpoints are warm")
    for number in itertools.count(2):
        began = time.monotonic()
        new = mesh.pod(f"warm-{number}", "ns", sidecar=False, labels={"app": "warm"}, account="warm")
        await mesh.serve(new, http=(HTTP,))
        await mesh.settled()
        found = await pods.responders("warm", 20)
        if time.monotonic() - began < WARMUP / 2:
            break
        # On a slow machine, it is not new any more: try another.
        mesh.delete(manifests.pod(new.name, "ns", new.address, sidecar=False, **new.said))
        await mesh.settled()
    assert found[new.name] <= 5 < min(found["warm-0"], found["warm-1"])

    async def has_its_share() -> bool:
        return (await pods.responders("warm", 30))[new.name] >= 9

    await eventually(has_its_share, timeout=3 * WARMUP, what="the new endpoint has the share of the others")
