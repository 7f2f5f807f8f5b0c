"""Services whose visibility changes while real sidecars use them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import yaml

from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, MTLS, PLAINTEXT, TCP
from tests.support.manifests import Manifest
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.netns, pytest.mark.envoy]

CALLS = ((HTTP1, 80), (TCP, 90))


def sidecar(namespace: str, *hosts: str, mode: str = "") -> Manifest:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": "default", "namespace": namespace},
        "spec": {
            "egress": [{"hosts": list(hosts)}],
            **({"outboundTrafficPolicy": {"mode": mode}} if mode else {}),
        },
    }


def namespace(name: str, **labels: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


async def test_change_reaches_the_sidecars_that_it_concerns(tmp_path):
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path) as mesh:
            clients = [mesh.pod("client", namespace) for namespace in ("shop", "front", "back")]
            server = mesh.pod("web", "shop")
            mesh.service("web", "shop", {"http": (80, 8080), "tcp": (90, 9000)})
            await mesh.serve(server, http=(8080,), lines=(9000,))
            mesh.cluster.publish()
            await mesh.start()
            (plain,) = (
                found
                for path in mesh.manifests.directory.glob("*.yaml")
                for found in yaml.safe_load_all(path.read_text())
                if found["kind"] == "Service"
            )

            async def hows(export_to: str = "", *more: Manifest, **settings: object) -> list[str]:
                exported = deepcopy(plain)
                if export_to:
                    exported["metadata"]["annotations"] = {"networking.istio.io/exportTo": export_to}
                mesh.apply(exported)
                mesh.manifests.write("more", *more)
                mesh.set(**settings)
                await mesh.settled()
                found = []
                predicted = await mesh.reach()
                for client in clients:
                    name = f"client.{client.namespace}"
                    how = {(await mesh.exchange(what, client, "web.shop", port)).how for what, port in CALLS}
                    assert how == {hop["outcome"] for hop in predicted if hop["client"] == name}
                    found.append("".join(how))
                return found

            assert await hows() == [MTLS, MTLS, MTLS]
            assert await hows("., front") == [MTLS, MTLS, PLAINTEXT]
            assert await hows("back") == [PLAINTEXT, PLAINTEXT, MTLS]
            assert await hows(defaultServiceExportTo=["."]) == [MTLS, PLAINTEXT, PLAINTEXT]
            limit, isolate = sidecar("istio-system", "./*"), sidecar("shop", "~/*")
            assert await hows("", limit) == [MTLS, PLAINTEXT, PLAINTEXT]
            assert await hows("", limit, sidecar("front", "*/web.shop.svc.cluster.local")) == [
                MTLS,
                MTLS,
                PLAINTEXT,
            ]
            assert await hows("front, shop", isolate) == [PLAINTEXT, MTLS, PLAINTEXT]
            limit, isolate = (
                sidecar("istio-system", "./*", mode="REGISTRY_ONLY"),
                sidecar("back", "~/*", mode="ALLOW_ANY"),
            )
            assert await hows("", limit, isolate) == [MTLS, FAILS, PLAINTEXT]
            assert await hows() == [MTLS, MTLS, MTLS]
            selectors = [{"matchLabels": {"mesh": "yes"}}]
            assert await hows("", namespace("shop"), discoverySelectors=selectors) == [PLAINTEXT] * 3
            assert await hows("", namespace("shop", mesh="yes"), discoverySelectors=selectors) == [MTLS] * 3
            assert (
                await hows("", namespace("shop", mesh="no"), discoverySelectors=selectors) == [PLAINTEXT] * 3
            )
            assert await hows("~", outboundTrafficPolicy={"mode": "REGISTRY_ONLY"}) == [FAILS, FAILS, FAILS]
