"""An external signer, here the openssl command, signs sidecars' certificates with a key of its own."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.identity.companies import Company, key_pem, pem
from tests.support import manifests
from tests.support.local import LocalMesh
from tests.support.loopback import Loopback
from tests.support.switchover import PATIENCE, World, running
from tests.support.waiting import eventually
from xds.mesh.controlplane import signing
from xds.mesh.controlplane.signing import ExternalIssuer
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.rotation import Authorities

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed"),
]


def store(directory: Path, ca: Company) -> None:
    (directory / "ca.pem").write_bytes(pem(ca))
    (directory / "ca-key.pem").write_bytes(key_pem(ca))


async def test_serve_has_a_command_sign_certificates(loopback: Loopback, tmp_path: Path) -> None:
    root = Company.root("Root", datetime.now(UTC))
    store(tmp_path, root)
    files = f"-CA {tmp_path}/ca.pem -CAkey {tmp_path}/ca-key.pem"
    async with LocalMesh(loopback, tmp_path) as mesh:
        await mesh.plane.stop()
        mesh.plane._options = (
            f"--signer-command=openssl x509 -req {files} -copy_extensions copy -days 1",
            f"--signer-roots={tmp_path}/ca.pem",
        )
        await mesh.plane.start()
        client, server = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        await mesh.serve(server, http=(8080,))
        mesh.service("web", "ns", {"http": (80, 8080)})
        mesh.apply(manifests.peer_authentication("ns", "STRICT"))
        await mesh.start(client, server)
        answer = await client.client.get("http://web.ns:80/headers")
        assert answer.identity == "spiffe://cluster.local/ns/ns/sa/client"
        certificates = (await mesh.sidecar(client).admin.json("/certs"))["certificates"]
        serials = {int(each["serial_number"], 16) for entry in certificates for each in entry["ca_cert"]}
        assert serials == {root.certificate.serial_number}


async def test_signer_failures_renewals_and_new_roots_fail_no_request(
    loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "POLL_INTERVAL", 0.1)
    monkeypatch.setattr(signing, "MAX_RETRY_DELAY", 1.0)
    started = datetime.now(UTC)
    offset = timedelta()

    def now() -> datetime:
        return datetime.now(UTC) + offset

    # OpenSSL backdates no certificate, so the CAs are valid from now on.
    root, other = (Company.root(name, started) for name in ("Root", "Other"))
    issuing = root.subsidiary("Issuing", pathlen=0)
    store(tmp_path, issuing)
    sign = "openssl x509 -req -CA ca.pem -CAkey ca-key.pem -copy_extensions copy -days 2"
    command = ("sh", "-c", f"cd {tmp_path} && {sign} && cat ca.pem")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(pem(root))
    external = ExternalIssuer(command, roots, now)
    own = Authorities(authority=Authority.create(PrivateKey.generate(), "cluster.local", started))

    async with running(loopback, tmp_path, own, external=external, now=now) as world:

        async def renew(after: timedelta) -> dict[str, set[str]]:
            """Let time pass, so that all certificates are due."""
            nonlocal offset
            before = await world.shown()
            offset += after
            world.plane.controller.certificates._changed.set()
            return before

        await world.until_trusted(pem(root))
        await world.until_issued_by(issuing, {pod.name: set() for pod in world.sidecars})
        await world.more()

        (tmp_path / "ca-key.pem").unlink()
        before = await renew(timedelta(hours=25))
        await eventually(lambda: len(problems(world)) == 4, timeout=PATIENCE, what="the signer fails")
        assert "ended with status 1: " in problems(world)[0]
        await world.more()
        assert await world.shown() == before
        store(tmp_path, issuing)
        await world.until_issued_by(issuing, before)
        assert problems(world) == []
        await world.more()

        roots.write_bytes(pem(root) + pem(other))
        await world.until_trusted(pem(root), pem(other))
        issuing = other.subsidiary("Issuing 2")
        store(tmp_path, issuing)
        await world.until_issued_by(issuing, await renew(timedelta(hours=12)))
        print(await world.check(), "requests")


def problems(world: World) -> list[str]:
    controller = world.plane.controller
    streams = [stream for found in controller.connections.streams.values() for stream in found]
    return sorted(filter(None, map(controller.problem_of, streams)))
