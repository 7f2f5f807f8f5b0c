"""`xds new`: the mesh that it writes runs, and starts and stops as a whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import xds
from tests.support.loopback import Loopback, free_port
from tests.support.waiting import eventually

FILES = ["README.md", "app.py", "mesh/shop.yaml", "run.sh", "strict.yaml"]
IDENTITY = "spiffe://cluster.local/ns/shop/sa/frontend"


def test_new_mesh_has_no_problems(tmp_path: Path) -> None:
    result = xds("new", tmp_path / "a/b")
    assert result.exit_code == 0
    created = [
        str(path.relative_to(tmp_path / "a/b")) for path in (tmp_path / "a/b").rglob("*") if path.is_file()
    ]
    assert sorted(created) == FILES
    assert os.access(tmp_path / "a/b/run.sh", os.X_OK)
    manifests = ("-f", tmp_path / "a/b/mesh", "-f", tmp_path / "a/b/strict.yaml")
    assert xds("validate", *manifests, "--mesh").stdout == "no problems found\n"
    result = xds("bootstrap", "backend-0.shop", "--manifests", tmp_path / "a/b/mesh")
    assert (result.exit_code, result.stderr) == (0, "")


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = xds("new", tmp_path)
    assert (result.exit_code, result.stderr) == (2, f"xds: {tmp_path} is not empty: choose another folder\n")
    result = xds("new", tmp_path / "mine")
    assert (result.exit_code, result.stderr) == (1, f"xds: {tmp_path}/mine: Not a directory\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture
def block() -> Iterator[str]:
    with Loopback() as addresses:
        yield addresses.address().rpartition(".")[0]


def environment() -> dict[str, str]:
    """Return the environment of run.sh, with other ports of the control plane at each call."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDS_ADDRESS": f"127.0.0.1:{free_port()}",
        "ADMIN_ADDRESS": f"127.0.0.1:{free_port()}",
    }


@pytest.fixture
def mesh(tmp_path: Path, block: str) -> Iterator[subprocess.Popen[bytes]]:
    """The new mesh, running on addresses of the test."""
    pytest.importorskip("envoy", reason="the extra `demo` is not installed")
    assert xds("new", tmp_path / "new").exit_code == 0
    for path in (tmp_path / "new").rglob("*"):
        if path.is_file():
            path.write_text(path.read_text().replace("127.31.0.", f"{block}."))
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [tmp_path / "new/run.sh"], env=environment(), stdout=output, stderr=output, start_new_session=True
        )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def get(address: str) -> Any:
    """Return the response of a pod, or None if the connection fails."""
    command = ["curl", "--silent", "--max-time", "30", f"http://{address}:8080"]
    result = subprocess.run(command, capture_output=True, check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


@pytest.mark.timeout(300)
@pytest.mark.envoy
async def test_new_mesh_runs(mesh: subprocess.Popen[bytes], tmp_path: Path, block: str) -> None:
    frontend, backend = f"{block}.1", f"{block}.2"

    def is_ready() -> bool:
        output = (tmp_path / "output").read_text()
        assert mesh.poll() is None, output
        return f"ready: curl http://{frontend}:8080\npage:  http://" in output

    await eventually(is_ready, timeout=90)
    await eventually(lambda: (get(frontend) or {}).get("calls") == {"service": "backend", "caller": IDENTITY})
    assert get(backend) == {"service": "backend", "caller": "unknown (plaintext)"}
    (tmp_path / "new/strict.yaml").rename(tmp_path / "new/mesh/strict.yaml")
    await eventually(lambda: get(backend) is None)
    assert get(frontend)["calls"]["caller"] == IDENTITY

    log = (tmp_path / "new/run/control-plane.log").read_text()
    page = (tmp_path / "output").read_text().partition("page:  ")[2].strip()
    assert f"page={page}\n" in log
    with urllib.request.urlopen(page, timeout=30) as response:
        assert response.status == 200
    second = subprocess.run(
        [tmp_path / "new/run.sh"], env=environment(), capture_output=True, text=True, check=False
    )
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.startswith(f"{frontend}:8080 is in use: stop what listens there")
    assert (tmp_path / "new/run/control-plane.log").read_text().startswith(log)
    mesh.terminate()
    assert mesh.wait(timeout=60) == 128 + signal.SIGTERM

    def has_ended() -> bool:
        try:
            os.killpg(mesh.pid, 0)
        except ProcessLookupError:
            return True
        return False

    await eventually(has_ended)
