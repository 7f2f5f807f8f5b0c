"""A control plane with its metrics."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.metrics.controlplane import Metrics
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.model.objects import Meta, Pod, Problem, Ref, Service, ServicePort
from xds.server import XdsServer

WITHIN = 30.0
NODE = "sidecar~127.9.0.1~web.shop~shop.svc.cluster.local"
NAME = "outbound|80||web.shop.svc.cluster.local"


def pod(name: str, address: str) -> Pod:
    labels = {"app": "web", "security.istio.io/tlsMode": "istio"}
    return Pod(meta=Meta(ref=Ref("Pod", "shop", name), labels=labels), address=address)


SERVICE = Service(
    meta=Meta(ref=Ref("Service", "shop", "web")),
    addresses=("10.1.0.1",),
    ports=(ServicePort(port=80, target=8080, name="http"),),
    selector={"app": "web"},
)


class Plane:
    """A control plane with its metrics."""

    def __init__(self) -> None:
        authority = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC))
        self.controller = Controller(authority)
        self.problems: list[Problem] = []
        self.metrics = Metrics(self.controller, lambda: self.problems)
        self.server = XdsServer(
            self.controller.connections, "127.0.0.1:0", grace=0.2, observer=self.metrics.streams
        )
        self.metrics.add_server(self.server.discovery)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        body, _ = self.metrics.render()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float:
        return self.samples().get((name, tuple(sorted(labels.items()))), 0.0)

    async def until(self, name: str, value: float, **labels: str) -> None:
        async with asyncio.timeout(WITHIN):
            while self.get(name, **labels) != value:
                await asyncio.sleep(0.01)
