"""The ConfigMap with the roots in every namespace: published, restored, silent about deleted namespaces."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.kube import reconciler
from xds.mesh.kube import root_publisher as module
from xds.mesh.kube.api import KubeApi
from xds.mesh.kube.lease import Lease
from xds.mesh.kube.root_publisher import KEY, NAME, RootPublisher

RULES = [
    {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list", "watch"]},
    {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [NAME],
        "verbs": ["list", "watch", "create", "patch"],
    },
]
"""The rights that the module documents."""


@pytest.fixture(scope="module")
def control_plane(bare: ControlPlane) -> ControlPlane:
    """A control plane for this file alone, because these tests write in every namespace."""
    return bare


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "MIN_INTERVAL", 0.01)
    monkeypatch.setattr(reconciler, "RETRY_DELAY", 0.2)
    monkeypatch.setattr(module, "WRITE_INTERVAL", 0.0)


def path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{NAME}"


async def until(cluster: Cluster, namespace: str, text: str) -> dict[str, Any]:
    return await cluster.until(path(namespace), lambda found: found.get("data", {}).get(KEY) == text)


def leading(cluster: Cluster, text: str) -> RootPublisher:
    return RootPublisher(cluster.api, text.encode, leads=lambda: True)


async def test_roots_are_in_all_namespaces_and_follow_a_rotation(cluster: Cluster) -> None:
    text = b"first"
    roots = RootPublisher(cluster.api, lambda: text, leads=lambda: True)
    async with cluster.namespace() as old, background(roots.run()):
        for namespace in (old, "default", "kube-system"):
            await until(cluster, namespace, "first")
        async with cluster.namespace() as new:
            await until(cluster, new, "first")
            text = b"second"
            roots.trigger()
            for namespace in (old, new, "default"):
                await until(cluster, namespace, "second")


async def test_changed_or_deleted_roots_are_restored(cluster: Cluster) -> None:
    async with cluster.namespace() as namespace, background(leading(cluster, "right").run()):
        await until(cluster, namespace, "right")
        await cluster.api.patch(path(namespace), {"data": {KEY: "wrong"}})
        await until(cluster, namespace, "right")
        await cluster.api.patch(path(namespace), {"data": None})
        await until(cluster, namespace, "right")
        await cluster.api.delete(path(namespace))
        await until(cluster, namespace, "right")


async def test_unchanged_roots_are_not_written_again(cluster: Cluster) -> None:
    roots = leading(cluster, "right")
    async with cluster.namespace() as namespace:
        assert await roots.reconcile()
        before = (await until(cluster, namespace, "right"))["metadata"]["resourceVersion"]
        assert await roots.reconcile()
        after = (await until(cluster, namespace, "right"))["metadata"]["resourceVersion"]
    assert before == after


async def test_terminating_namespace_is_not_logged(cluster: Cluster) -> None:
    holding = "example.com/hold"
    async with cluster.namespace() as namespace:
        await cluster.api.create(
            f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "x", "finalizers": [holding]}}
        )
    try:
        roots = leading(cluster, "right")
        with capture_logs() as logs:
            assert await roots.reconcile()
            # Also if the namespace was not yet terminating when it was read.
            assert await roots._write(namespace, "right")
            assert await roots._write("never-there", "right")
        assert logs == []
    finally:
        await cluster.api.patch(
            f"/api/v1/namespaces/{namespace}/configmaps/x", {"metadata": {"finalizers": None}}
        )


async def test_documented_rights_suffice_and_missing_are_logged_once(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        namespace = await stack.enter_async_context(cluster.namespace())
        api: KubeApi = await stack.enter_async_context(await cluster.connect("publisher"))
        roots = RootPublisher(api, lambda: b"right", leads=lambda: True)
        with capture_logs() as logs:
            assert not await roots.reconcile()
            assert not await roots.reconcile()
        assert len(logs) == 1
        assert 'cannot list resource "namespaces"' in logs[0]["problem"]

        await cluster.allow("publisher", RULES)
        async with background(roots.run()):
            await until(cluster, namespace, "right")
            await cluster.api.delete(path(namespace))
            await until(cluster, namespace, "right")


async def test_another_replica_replaces_a_killed_leader(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        namespace = await stack.enter_async_context(cluster.namespace())
        leases = [Lease(cluster.api, "default", name, duration=6) for name in ("a", "b")]
        texts = dict(zip(leases, ("by a", "by b"), strict=True))
        tasks = {}
        for lease, text in texts.items():
            roots = RootPublisher(cluster.api, text.encode, leads=lambda lease=lease: lease.held)
            tasks[lease] = [
                await stack.enter_async_context(background(part.run())) for part in (lease, roots)
            ]
        (holder,) = await eventually(lambda: [lease for lease in leases if lease.held], timeout=60)
        await until(cluster, namespace, texts[holder])
        # As by SIGKILL: the lease is not released.
        holder._release = _nothing
        for task in tasks[holder]:
            task.cancel()
        (other,) = [lease for lease in leases if lease is not holder]
        await until(cluster, namespace, texts[other])


async def _nothing() -> None:
    pass
