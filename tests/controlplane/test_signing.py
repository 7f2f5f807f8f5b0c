"""The command of an external signer: its limits, its roots, and which keys it signs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from tests.controlplane.sidecar import Sidecar
from tests.controlplane.world import pod, running, service
from tests.identity.companies import Company, pem
from tests.support.waiting import eventually, process_ended
from xds.mesh.controlplane import signing
from xds.mesh.controlplane.signing import ExternalIssuer, SignerError

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    path = tmp_path / "roots.pem"
    path.write_bytes(pem(Company.root("Root", NOW)))
    return path


def issuer(roots: Path, script: str) -> ExternalIssuer:
    return ExternalIssuer(("sh", "-c", script), roots, lambda: NOW)


async def test_command_is_ended_with_the_commands_it_started(
    roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, timeout = tmp_path / "pid", 1.0
    while not (pid.exists() and pid.read_text()):  # A busy machine needs longer to start the commands.
        monkeypatch.setattr(signing, "TIMEOUT", timeout)
        with pytest.raises(SignerError, match="sh did not end within"):
            await issuer(roots, f"sleep 600 & echo $! >{pid}; wait")._sign(b"request")
        timeout *= 4
    await process_ended(int(pid.read_text()))


@pytest.mark.parametrize("stream", ["1", "2"])
async def test_endless_output_is_not_read(roots: Path, stream: str) -> None:
    with pytest.raises(SignerError, match="sh wrote more than 65,536 bytes"):
        await issuer(roots, f"yes >&{stream}")._sign(b"request")


async def test_failure_is_reported_with_its_reason(roots: Path) -> None:
    with pytest.raises(SignerError, match="sh ended with status 3: no key"):
        await issuer(roots, "cat >/dev/null; echo no key >&2; exit 3")._sign(b"request")
    assert await issuer(roots, "cat")._sign(b"request") == b"request"


async def test_roots_are_read_again(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "POLL_INTERVAL", 0.01)
    signer, changes = issuer(roots, "cat"), list[bytes]()
    following = asyncio.create_task(signer.run(lambda: changes.append(signer.roots_pem)))
    first, second = signer.roots_pem, pem(Company.root("Other", NOW))
    try:
        roots.write_bytes(b"nothing")
        with structlog.testing.capture_logs() as logs:
            await eventually(lambda: bool(logs), what="the file is reported")
        assert (changes, signer.roots_pem) == ([], first)
        new = roots.with_name("new.pem")
        new.write_bytes(first + second)
        new.replace(roots)
        await eventually(lambda: bool(changes), what="the new root is trusted")
        assert changes == [first + second]
    finally:
        following.cancel()


async def test_control_plane_makes_no_key_for_a_signer(roots: Path) -> None:
    async with (
        running(pod("web"), service("web"), external=issuer(roots, "cat")) as controller,
        Sidecar(controller, "web", "shop") as web,
    ):
        await web.wait_for(lambda: "ROOTCA" in web.secrets)
        assert set(web.secrets) == {"ROOTCA"}
        (stream,) = next(iter(controller.connections.streams.values()))
        assert "start Envoy with xds proxy and XDS_KEY_DIR" in controller.problem_of(stream)
