"""`xds serve --kubernetes` as a process, with a fake API server."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.cli.serve_kubernetes import ANY_PORT, TIMEOUT, Serve, serving
from tests.sources.fake_apiserver import FakeApiServer
from tests.support.waiting import eventually


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(tmp_path) as server:
        server.serve_istio()
        await server.put("pods", pod("web"))
        yield server


def pod(name: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "shop", "labels": {"security.istio.io/tlsMode": "istio"}}
    return {"metadata": meta, "status": {"podIP": "127.9.0.1", "phase": "Running"}}


async def test_serve_survives_an_outage_of_the_api_server(server: FakeApiServer, tmp_path: Path) -> None:
    async with serving(server, tmp_path) as serve:
        assert await serve.wait_ready(200) == "ready\n"
        assert serve.logged('event="objects changed" source=kubernetes applied=1')
        assert not serve.logged("serves private keys"), "on Kubernetes a key requires authentication"
        assert "xds_source_stale_seconds 0.0" in (await serve.get("/metrics"))[1]
        await server.stop()
        text = await serve.wait_ready(200, "has been unreachable since", "stays in use")
        assert text.startswith(f"ready: the API server at {server.url} has been unreachable since 20")
        _, metrics = await serve.get("/metrics")
        assert "xds_source_stale_seconds 0.0" not in metrics
        await server.start()
        await serve.wait_ready(200)
        await eventually(lambda: serve.logged('event="problem solved"', "cannot be reached"), timeout=TIMEOUT)
        assert len(serve.logged('event="problem found"', "cannot be reached")) == 1
        await server.put("pods", pod("more"))
        await eventually(
            lambda: len(serve.logged('event="objects changed" source=kubernetes applied=1')) == 2,
            timeout=TIMEOUT,
        )
        assert await serve.stop() == 0
        assert serve.logged('event="control plane stopped"')
        assert not serve.logged("Traceback")


async def test_not_ready_before_the_first_list_and_stops_at_once(
    server: FakeApiServer, tmp_path: Path
) -> None:
    await server.stop()
    async with serving(server, tmp_path) as serve:
        text = await serve.wait_ready(503, "waiting for namespaces", "cannot be reached")
        assert server.url in text
        assert await serve.get("/healthz") == (200, "ok\n")
        assert (await serve.get("/metrics"))[0] == 200
        assert not serve.logged('event="control plane ready"')
        assert await serve.stop() == 0
    async with serving(server, tmp_path) as serve:
        await serve.wait_ready(503)
        await server.start()
        await serve.wait_ready(200)


async def test_settings_and_trust_domain_come_from_config_map(server: FakeApiServer, tmp_path: Path) -> None:
    meta = {"name": "istio", "namespace": "mesh"}
    await server.put("configmaps", {"metadata": meta, "data": {"mesh": "trustDomain: example.org\nbad: 1\n"}})
    options = (
        "--namespace",
        "mesh",
        "--mesh-config-map",
        "istio",
        "--set",
        "meshConfig.trustDomain=over.org",
    )
    async with serving(server, tmp_path, *options) as serve:
        await serve.wait_ready(200)
        assert serve.logged("event=notice", 'where="ConfigMap mesh/istio"', "bad is not a known field")
        secret = server.objects("secrets")["mesh", "xds-ca-secret"]
        root = x509.load_pem_x509_certificate(b64decode(secret["data"]["ca-cert.pem"]))
        assert b"over.org" in root.public_bytes(Encoding.DER)


async def test_kubeconfig_comes_from_the_environment(server: FakeApiServer, tmp_path: Path) -> None:
    async with Serve(
        tmp_path, "--kubernetes", "--context=fake", *ANY_PORT, kubeconfig=server.kubeconfig()
    ) as serve:
        await serve.wait_ready(200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "use either --manifests DIR or --kubernetes"),
        (("--kubernetes", "--manifests", "."), "use either --manifests DIR or --kubernetes, not both"),
        (("--manifests", ".", "--context", "x"), "--context requires --kubernetes"),
        (
            ("--manifests", ".", "--advertise-address", "10.0.0.1"),
            "--advertise-address requires --kubernetes",
        ),
        (("--kubernetes", "--advertise-address", "pod:1"), "'pod:1' is not an IP address"),
        (("--kubernetes", "--enforce-plan"), "--enforce-plan requires --webhook-address"),
        (("--manifests", ".", "--mesh-config-map", "x"), "--mesh-config-map requires --kubernetes"),
        (("--kubernetes", "--mesh-config", "/dev/null"), "use --mesh-config-map with --kubernetes"),
        (("--kubernetes", "--kubeconfig", __file__), "is not a valid kubeconfig file"),
        (("--kubernetes", "--context", "nowhere"), "there is no kubeconfig at"),
        (("--kubernetes", "--set", "nonsense"), "is not of the form KEY=VALUE"),
    ],
)
async def test_wrong_usage_exits_with_2(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    async with Serve(tmp_path, *options) as serve:
        async with asyncio.timeout(TIMEOUT):
            assert await serve.process.wait() == 2
        assert message in serve.log.read_text()
        assert "Traceback" not in serve.log.read_text()
