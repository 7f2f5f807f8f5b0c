"""Fixtures of a control plane with metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.metrics.plane import SERVICE, Plane, pod
from tests.support.tasks import background
from xds.mesh.model.objects import Change


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    plane = Plane()
    async with background(plane.controller.run()):
        plane.controller.change(Change(applied=(pod("web", "127.9.0.1"), SERVICE)))
        await plane.controller.ready.wait()
        await plane.server.start()
        yield plane
        await plane.server.stop()


@pytest.fixture
async def channel(plane: Plane) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.server.port}") as channel:
        yield channel
