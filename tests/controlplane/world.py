"""A controller that runs in the test, and the pods, services and streams of its small mesh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from tests.support.tasks import background
from xds.mesh.controlplane.controller import Controller
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.model.objects import Change, Fact, Meta, Namespace, Pod, Ref, Service, ServicePort
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import Snapshot

WITHIN = 20.0
STREAM = StreamInfo(peer="ipv4:127.0.0.1:5", variant=Variant.DELTA, type_url="")
NOW = datetime.now(UTC)
AUTHORITY = Authority.create(PrivateKey.generate(), "cluster.local", NOW)


def pod(name: str, *, account: str = "web", created: datetime | None = None, **status: Any) -> Pod:
    meta = Meta(
        ref=Ref("Pod", "shop", name),
        labels={"app": "web", "security.istio.io/tlsMode": "istio"},
        created=created,
    )
    return Pod(meta=meta, service_account=account, **{"address": f"10.0.0.{len(name)}", **status})


def service(name: str) -> Service:
    return Service(
        meta=Meta(ref=Ref("Service", "shop", name)),
        addresses=("10.1.0.1",),
        ports=(ServicePort(port=80, target=8080, name="http"),),
        selector={"app": "web"},
    )


def node(name: str) -> Node:
    return Node(id=f"sidecar~10.0.0.1~{name}.shop~shop.svc.cluster.local")


def namespace(name: str) -> Namespace:
    return Namespace(meta=Meta(ref=Ref("Namespace", "", name)))


@asynccontextmanager
async def running(*facts: Fact, **options: Any) -> AsyncIterator[Controller]:
    controller = Controller(AUTHORITY, **options)
    async with background(controller.run()):
        controller.change(Change(applied=facts))
        async with asyncio.timeout(WITHIN):
            await controller.ready.wait()
        yield controller


async def published(subscriber: Subscriber) -> Snapshot:
    """Wait for the next snapshot of a subscriber, and return it."""
    async with asyncio.timeout(WITHIN):
        await subscriber.changed.wait()
    subscriber.changed.clear()
    assert subscriber.snapshot is not None
    return subscriber.snapshot


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
