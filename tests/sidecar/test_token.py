"""A sidecar outside Kubernetes: `xds proxy` with files of `xds token --renew`, and `xds serve` over TLS."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.serve_process import ServeProcess, serving
from tests.sidecar.pods import Process
from tests.support.clients import Client
from tests.support.controlplane import xds_here
from tests.support.loopback import Loopback, free_port
from tests.support.waiting import eventually
from xds.mesh.identity.claims import UnauthenticatedError
from xds.mesh.identity.state_dir import load_or_create_token_key

DEFAULT_LIFETIME = 30
"""Seconds. A token is replaced after half of it, also on a slow machine before it expires."""
POD = """
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {{security.istio.io/tlsMode: istio}}
  annotations: {{sidecar.istio.io/interceptionMode: NONE}}
spec: {{serviceAccountName: seller, containers: [{{name: app, ports: [{{containerPort: 8080}}]}}]}}
status: {{podIP: {}}}
"""


class Site:
    """Shared files and addresses of the control plane, `xds token --renew` and a sidecar."""

    def __init__(self, folder: Path, address: str) -> None:
        self.address = address
        self.state, self.manifests, self._out, self._log = (
            folder / name for name in ("state", "m", "out", "log")
        )
        self.manifests.mkdir()
        (self.manifests / "pod.yaml").write_text(POD.format(address))
        self.port = free_port()
        self.files = self._out / "web.shop"

    def serving(self):
        options = ("--state-dir", self.state, "--xds-tls-address", f"127.0.0.1:{self.port}")
        return serving(self.manifests, *options)

    @asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        words = ("--state-dir", self.state, "--manifests", self.manifests, "--out-dir", self._out)
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "xds", "token", "web.shop", *map(str, words)),
                *("--renew", "--lifetime", str(DEFAULT_LIFETIME)),
                stderr=log,
            )
        try:
            yield
        finally:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 60) == 0, self._log.read_text()

    def environment(self) -> dict[str, str]:
        return {
            "POD_NAME": "web",
            "POD_NAMESPACE": "shop",
            "SERVICE_ACCOUNT": "seller",
            "INSTANCE_IP": self.address,
            "XDS_ADDRESS": f"localhost:{self.port}",
            "XDS_TOKEN_FILE": str(self.files / "token"),
            "XDS_ROOT_FILE": str(self.files / "root-cert.pem"),
            "XDS_INTERCEPTION_MODE": "NONE",
            "XDS_CONCURRENCY": "1",
        }

    def has_expired(self, token: str) -> bool:
        try:
            load_or_create_token_key(self.state).verify(token, datetime.now(UTC))
        except UnauthenticatedError as error:
            return "expired" in str(error)
        return False

    async def certificate(self) -> str:
        """Return the sidecar's active certificate, or an empty string."""
        answer = await Client().get(
            f"http://{self.address}:15000/config_dump?resource=dynamic_active_secrets"
        )
        assert answer.ok
        configs = json.loads(answer.text).get("configs", ())
        secrets = {config["name"]: config["secret"] for config in configs}
        return (
            secrets["default"]["tls_certificate"]["certificate_chain"]["inline_bytes"]
            if "default" in secrets
            else ""
        )

    async def has_other(self, certificate: str) -> bool:
        return await self.certificate() not in {"", certificate}


async def status(plane: ServeProcess) -> str:
    """Return what `xds status` shows of the sidecar."""
    result = await xds_here("status", "web.shop", f"--xds-address=127.0.0.1:{plane.xds}")
    assert result.exit_code == 0, result.output
    return result.stdout


async def is_synced(plane: ServeProcess, secrets: str = "2/2") -> bool:
    """Whether the sidecar is connected and synced, with these secrets."""
    found = re.search(rf"^web\.shop +SDS +{secrets} +synced", await status(plane), re.MULTILINE)
    return found is not None


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Loopback() as loopback:
        yield Site(tmp_path, loopback.address())


@pytest.mark.envoy
@pytest.mark.timeout(300)
async def test_sidecar_reconnects_with_its_renewed_token(site: Site, tmp_path: Path) -> None:
    site.state.mkdir()
    # The sidecar waits for its files, and `xds token` waits for the control plane.
    async with site.renewing(), Process(site.environment(), tmp_path / "envoy"):
        with site.serving() as plane:
            await eventually(lambda: is_synced(plane), timeout=60, what="the sidecar is synced")
            first = (site.files / "token").read_text()
            certificate = await eventually(site.certificate, timeout=60)
            await eventually(lambda: site.has_expired(first), timeout=120, what="the first token has expired")
            assert await is_synced(plane)  # a stream outlives its token
        with site.serving() as plane:
            await eventually(lambda: is_synced(plane), timeout=60, what="the sidecar reconnected")
            assert not plane.logged("caller refused")
            # Keys are in memory only: a new control plane creates another.
            await eventually(lambda: site.has_other(certificate), timeout=60)


@pytest.mark.envoy
@pytest.mark.timeout(300)
async def test_serve_certifies_the_key_of_a_sidecar(site: Site, tmp_path: Path) -> None:
    site.state.mkdir()
    environment = site.environment() | {"XDS_KEY_DIR": str(tmp_path / "key")}
    with site.serving() as plane:
        async with site.renewing(), Process(environment, tmp_path / "envoy"):
            await eventually(site.certificate, timeout=60)
            await eventually(lambda: is_synced(plane, "1/1"), timeout=60, what="the sidecar is synced")
            assert 'xds_certificate_requests_total{result="signed"} 1.0' in plane.get("/metrics")[1]
            assert "certificate expires" in await status(plane)


@pytest.mark.envoy
@pytest.mark.timeout(300)
async def test_sidecar_with_an_expired_token_is_refused(site: Site, tmp_path: Path) -> None:
    site.state.mkdir()
    async with Process(site.environment(), tmp_path / "envoy"):
        with site.serving() as plane:
            async with site.renewing():
                await eventually(lambda: is_synced(plane), timeout=60, what="the sidecar is synced")
            last = (site.files / "token").read_text()
            await eventually(lambda: site.has_expired(last), timeout=120, what="the last token has expired")
        with site.serving() as plane:
            await eventually(lambda: plane.logged("caller refused"), timeout=60)
            assert plane.logged("code=UNAUTHENTICATED")
            assert plane.logged("the token expired at")
            assert await site.certificate()  # its certificate stays active
            async with site.renewing():
                await eventually(lambda: is_synced(plane), timeout=60, what="the sidecar reconnected")
