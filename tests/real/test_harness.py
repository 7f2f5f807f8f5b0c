"""Tests of the harness in network namespaces, with Envoys that have static bootstraps."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.real import static_envoy
from tests.support.apps import EchoApp
from tests.support.cluster import Cluster, ClusterPod
from tests.support.envoy import EnvoyProcess
from tests.support.places import run
from tests.support.tcp import LineApp


class Pods:
    """Pods with applications, and optional sidecars that forward everything."""

    def __init__(self, cluster: Cluster, directory: Path, stack: AsyncExitStack) -> None:
        self._cluster, self._directory, self._stack = cluster, directory, stack

    async def add(self, name: str, namespace: str, *, sidecar: bool = False) -> ClusterPod:
        pod = self._cluster.pod(name, namespace, sidecar=sidecar)
        enter = self._stack.enter_async_context
        await enter(EchoApp(name, 8080, place=pod.place))
        if sidecar:
            bootstrap = static_envoy.passing_sidecar(name)
            await enter(EnvoyProcess(name, bootstrap, self._directory, place=pod.place, as_sidecar=True))
        return pod


@pytest.fixture
async def pods(cluster, tmp_path):
    async with AsyncExitStack() as stack:
        yield Pods(cluster, tmp_path, stack)


@pytest.mark.netns
@pytest.mark.envoy
class TestCluster:
    async def test_only_pods_with_sidecars_are_intercepted(self, pods):
        sleep = await pods.add("sleep", "legacy")
        web = await pods.add("web", "full", sidecar=True)

        to_web = await sleep.client.get(f"http://{web.address}:8080/headers")
        to_sleep = await web.client.get(f"http://{sleep.address}:8080/headers")

        assert {name: to_web.echo["headers"].get(name) for name in ("X-Out", "X-In")} == {
            "X-Out": None,
            "X-In": "web",
        }
        assert to_sleep.echo["headers"]["X-Out"] == "web"
        assert to_sleep.echo["peer"][0] == web.address

    async def test_commands_in_a_pod_resolve_service_names(self, pods, cluster):
        sleep = await pods.add("sleep", "full")
        web = await pods.add("web-0", "full")
        service = cluster.service("web", "full", {80: 8080}, [web])
        cluster.service("nodes", "full", {80: 8080}, [web], headless=True)

        for name in ("web", "web.full", "web.full.svc", "web.full.svc.cluster.local"):
            assert sleep.place.run("getent", "ahostsv4", name).split()[0] == service.address
        assert sleep.place.run("getent", "ahostsv4", "web-0.nodes.full").split()[0] == web.address
        assert cluster.resolve("nodes.full", seen_from="legacy") == [web.address]
        assert cluster.resolve("web", seen_from="legacy") == []

    async def test_pod_cannot_reach_this_machine(self, pods, cluster):
        sleep = await pods.add("sleep", "legacy")

        async with LineApp("here", 0, address="0.0.0.0") as outside:
            for address in ("127.0.0.1", "169.254.1.1"):
                with pytest.raises(ConnectionRefusedError):
                    await sleep.client.connect(address, outside.port)
        assert "default" not in cluster.node.run("ip", "route")


@pytest.mark.netns
@pytest.mark.envoy
async def test_failed_test_leaves_nothing_behind(tmp_path):
    envoy_pid = 0

    async def fail() -> None:
        nonlocal envoy_pid
        with Cluster() as cluster:
            async with AsyncExitStack() as stack:
                web = await Pods(cluster, tmp_path, stack).add("web", "full", sidecar=True)
                bootstrap = static_envoy.idle("127.0.0.1", 15099)
                envoy = await stack.enter_async_context(
                    EnvoyProcess("other", bootstrap, tmp_path, place=web.place, as_sidecar=True)
                )
                envoy_pid = envoy.pid
                names.append(cluster.run_id)
                assert cluster.run_id in run("ip", "netns", "list")
                raise ZeroDivisionError

    names: list[str] = []
    with pytest.raises(ZeroDivisionError):
        await fail()

    # Another run of this process may begin with the same number.
    assert f"{names[0]}-" not in run("ip", "netns", "list")
    assert not list(Path("/etc").glob(f"netns/{names[0]}-*"))
    with pytest.raises(ProcessLookupError):
        os.kill(envoy_pid, 0)
