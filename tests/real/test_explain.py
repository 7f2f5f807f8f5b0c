"""`xds explain` with real sidecars: what policies require, beside what the sidecars have ACKed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import manifests
from tests.support.authorization import authorization_policy, operation, source, when
from tests.support.controlplane import xds
from tests.support.local import LocalMesh
from tests.support.waiting import eventually

pytestmark = pytest.mark.envoy

HTTP = 8080


async def test_explanation_follows_what_real_sidecars_use(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        client, server, bare = (
            mesh.pod("client", "ns"),
            mesh.pod("web", "ns"),
            mesh.pod("bare", "ns", sidecar=False),
        )
        await mesh.serve(server, http=(HTTP,))
        mesh.service("web", "ns", {"http": (80, HTTP)})
        mesh.apply(manifests.peer_authentication("ns", "DISABLE"))
        await mesh.start(client, server)

        async def explain(pod: str = "client.ns") -> dict[str, Any]:
            words = ("explain", pod, "web.ns", f"--xds-address={mesh.plane.address}", "-o", "json")
            found: dict[str, Any] = json.loads(await xds(*words, may_be_no=True))
            return found

        async def has(outcome: str, *, in_use: bool) -> bool:
            found = await explain()
            (group,) = found["groups"]
            assert group["outcome"] == outcome
            assert (not group["differences"]) is in_use, group["differences"]
            return True

        async def uses_mtls() -> bool:
            answer = await client.client.get("http://web.ns:80/headers")
            assert answer.code == "200"
            return "spiffe://" in answer.text

        async def is_held_up() -> bool:
            (group,) = (await explain())["groups"]
            assert group["outcome"] == "mtls"
            assert group["desired"] == {"send": "MTLS", "mode": "STRICT"}
            assert group["served"] == {"send": "PLAINTEXT", "mode": "PERMISSIVE"}
            assert "the client is still configured to send plaintext, not mutual TLS" in group["differences"]
            assert any("web waiting for its listener" in text for text in group["differences"])
            return True

        await eventually(lambda: has("plaintext", in_use=True))
        assert not await uses_mtls()

        with mesh.sidecar(server).suspended():
            mesh.apply(manifests.peer_authentication("ns", "STRICT"))
            await eventually(is_held_up)
        await eventually(lambda: has("mtls", in_use=True))
        assert await uses_mtls()

        async def all_acked() -> dict[str, Any] | None:
            found = await explain()
            (proxy,) = found["groups"][0]["serverProxies"]
            acked = {proxy["ackedGeneration"], found["clientProxy"]["ackedGeneration"]}
            return found if acked == {proxy["servedGeneration"]} else None

        found = await eventually(all_acked, what="the control plane has read the ACKs")
        (group,) = found["groups"]
        (proxy,) = group["serverProxies"]
        assert proxy["certificateExpires"] > found["time"]
        assert group["identities"] == ["spiffe://cluster.local/ns/ns/sa/web"]
        assert group["server"]["decidedBy"]["place"].endswith("peerauthentication-ns-default.yaml:1")
        # The words are those of the manifests; only what is in use is added.
        words = ("explain", "client.ns", "web.ns", "-o", "json", f"--manifests={mesh.manifests.directory}")
        (intent,) = json.loads(await xds(*words))["groups"]
        assert group["tls"] == "TLS 1.3; curves X25519MLKEM768, X25519, P-256"
        only_in_use = ("served", "serverProxies", "tls")
        assert {key: value for key, value in intent.items() if key not in only_in_use} == {
            key: value for key, value in group.items() if key not in only_in_use
        }
        assert (await explain("bare.ns"))["groups"][0]["reason"] == "server-requires-mtls"
        assert not (await bare.client.get("http://web.ns:80/headers")).ok


REQUESTS: list[tuple[str, str, dict[str, str], str]] = [
    ("GET", "/headers", {}, "200"),
    ("GET", "/headers?a=b", {}, "200"),
    ("POST", "/headers", {}, "403"),
    ("GET", "/other", {}, "403"),
    ("GET", "/other", {"x-token": "secret"}, "200"),
    ("GET", "/other", {"x-token": "secret2"}, "403"),
    ("DELETE", "/other", {"x-token": "secret"}, "403"),
]


async def test_verdict_for_a_request_is_that_of_the_sidecar(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        client, server = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        await mesh.serve(server, http=(HTTP,))
        mesh.service("web", "ns", {"http": (80, HTTP)})
        mesh.apply(
            authorization_policy(
                "ns",
                source(namespaces=["ns"]) | operation(methods=["GET"], paths=["/headers"], hosts=["web.ns"]),
                source(namespaces=["ns"]) | when("request.headers[x-token]", "secret"),
            ),
            authorization_policy("ns", operation(methods=["DELETE"]), action="DENY", name="no"),
        )
        await mesh.start(client, server)

        async def denies() -> bool:
            return (await client.client.get("http://web.ns:80/other")).code == "403"

        await eventually(denies)
        for method, path, headers, expected in REQUESTS:
            answer = await client.client.get(f"http://web.ns:80{path}", method=method, headers=headers)
            given = (f"--header={name}={value}" for name, value in headers.items())
            request = (f"--method={method}", f"--path={path}", "--host=web.ns", *given)
            words = ("explain", "client.ns", "web.ns", f"--xds-address={mesh.plane.address}", "-o", "json")
            (group,) = json.loads(await xds(*words, *request, may_be_no=True))["groups"]
            assert answer.code == expected, request
            assert group["access"]["access"] == ("allowed" if expected == "200" else "denied"), request
