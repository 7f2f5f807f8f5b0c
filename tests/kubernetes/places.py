"""API servers that the watch contract is tested with: a fake, a real one, and a named one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.sources.fake_apiserver import NOBODY, FakeApiServer
from xds.mesh.kube import crds
from xds.mesh.kube.api import KubeApi
from xds.mesh.kube.resource import KubeResource

NAMED = os.environ.get("XDS_TEST_KUBECONFIG", "")
"""A kubeconfig: its cluster is tested too, with namespaces and CRDs of the tests."""


@dataclass
class Place:
    """An API server, and a namespace of the test."""

    api: KubeApi
    """Connection of an administrator."""
    other: KubeApi
    """Another connection of an administrator, whose requests are not counted."""
    namespace: str
    stack: AsyncExitStack
    fake: FakeApiServer | None = None
    cluster: Cluster | None = None

    def path(self, plural: str, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    @property
    def maps(self) -> KubeResource:
        return KubeResource(kind="ConfigMap", plural="configmaps", namespace=self.namespace)

    async def put(self, name: str, **data: str) -> None:
        await self.other.create(self.path("configmaps"), {"metadata": {"name": name}, "data": data})

    async def patch(self, name: str, **data: str | None) -> None:
        await self.other.patch(self.path("configmaps", name), {"data": data})

    async def delete(self, name: str) -> None:
        await self.other.delete(self.path("configmaps", name))

    async def serve_kinds(self) -> None:
        """Serve the kinds of policies, without which no control plane starts."""
        if self.fake:
            self.fake.serve_istio()
        else:
            await crds.install(self.other)

    async def nobody(self) -> KubeApi:
        """Connect as a user without rights."""
        if self.fake:
            return await self.stack.enter_async_context(await self.fake.connect(NOBODY))
        if not self.cluster:
            pytest.skip("only of a server of our own")
        return await self.stack.enter_async_context(await self.cluster.connect(f"nobody-{uuid4().hex}"))


@asynccontextmanager
async def fake(folder: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeApiServer(folder))
        apis = [await stack.enter_async_context(await fake.connect()) for _ in range(2)]
        await fake.put("namespaces", {"metadata": {"name": "test"}})
        yield Place(*apis, "test", stack, fake=fake)


@asynccontextmanager
async def real(cluster: Cluster) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(await cluster.connect()) for _ in range(2)]
        namespace = await stack.enter_async_context(cluster.namespace())
        yield Place(*apis, namespace, stack, cluster=cluster)


@asynccontextmanager
async def named(kubeconfig: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(await KubeApi.connect(kubeconfig)) for _ in range(2)]
        namespace = f"xds-test-{uuid4().hex[:10]}"
        await apis[1].create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        try:
            yield Place(*apis, namespace, stack)
        finally:
            await apis[1].delete(f"/api/v1/namespaces/{namespace}")
