"""Invalid options for certificates and the CA."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from xds.cli import app

EMPTY_KUBECONFIG = "apiVersion: v1\nkind: Config\ncurrent-context: ''\n"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("path", ["/run/agent.sock", "unix:agent.sock", "unix:///", "http:///run/agent.sock"])
def test_sds_must_be_the_path_of_a_socket(tmp_path: Path, path: str) -> None:
    status, output = run("serve", f"--manifests={tmp_path}", f"--sds={path}")
    assert status == 2
    assert "is not unix:///PATH with the path of a socket" in output


def test_state_dir_is_rejected_with_kubernetes(tmp_path: Path) -> None:
    status, output = run("serve", "--kubernetes", f"--state-dir={tmp_path}")
    assert status == 2
    assert (
        "--state-dir requires --manifests; with --kubernetes the CA is in a Secret (xds-ca-secret)" in output
    )


def test_rotate_root_requires_a_cluster(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(EMPTY_KUBECONFIG)
    status, output = run("rotate-root", f"--kubeconfig={config}")
    assert status in {2, 3}
    assert output.startswith("xds: ")
