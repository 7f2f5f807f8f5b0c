"""A changed resource is encoded once, however many proxies get it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from xds.codec import encode_counts
from xds.mesh.controlplane.controller import Controller
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.model.objects import Change, Meta, Pod, Ref, Service, ServicePort
from xds.protocol.session import Variant
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import ENDPOINT

PROXIES = 1000
STREAM = StreamInfo(peer="ipv4:127.0.0.1:5", variant=Variant.DELTA, type_url="")


def pod(name: str, address: str, app: str) -> Pod:
    labels = {"app": app, "security.istio.io/tlsMode": "istio"}
    return Pod(meta=Meta(ref=Ref("Pod", "shop", name), labels=labels), address=address)


async def all_have_news(subscribers: list[Subscriber]) -> None:
    async with asyncio.timeout(60):
        for subscriber in subscribers:
            await subscriber.changed.wait()
            subscriber.changed.clear()


async def test_change_for_1000_proxies_is_encoded_once():
    service = Service(
        meta=Meta(ref=Ref("Service", "shop", "web")),
        addresses=("10.1.0.1",),
        ports=(ServicePort(port=80, target=8080, name="http"),),
        selector={"app": "web"},
    )
    clients = [pod(f"client-{n}", f"10.2.{n // 250}.{n % 250 + 1}", "client") for n in range(PROXIES)]
    # Without certificates, which need a thousand signatures.
    authority = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC))
    controller = Controller(authority, serve_keys=False)
    work = asyncio.create_task(controller.run())
    controller.change(Change(applied=(service, pod("web-1", "10.3.0.1", "web"), *clients)))
    await controller.ready.wait()
    subscribers = [
        controller.connections.connect(
            Node(id=f"sidecar~10.2.0.1~{each.name}.shop~shop.svc.cluster.local"), STREAM
        )
        for each in clients
    ]
    await all_have_news(subscribers)
    before = encode_counts.copy()
    made = controller.stats.translated
    controller.change(Change(applied=(pod("web-2", "10.3.0.2", "web"),)))
    await all_have_news(subscribers)
    assert encode_counts - before == {"envoy.config.endpoint.v3.ClusterLoadAssignment": 1}
    assert controller.stats.translated - made == PROXIES
    # All proxies share the same bytes.
    name = "outbound|80||web.shop.svc.cluster.local"
    bodies = {id(each.snapshot.of(ENDPOINT)[name].body) for each in subscribers if each.snapshot}
    assert len(bodies) == 1
    assert all(subscriber.changed_at is not None for subscriber in subscribers)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
