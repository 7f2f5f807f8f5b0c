"""The command of an external signer: its limits."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.identity.companies import Company, pem
from tests.support.waiting import process_ended
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
