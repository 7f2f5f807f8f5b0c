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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--signer-command=cat"], "--signer-command and --signer-roots require each other"),
        (["--signer-roots=ROOTS"], "--signer-command and --signer-roots require each other"),
        (["--signer-command=cat 'x", "--signer-roots=ROOTS"], "--signer-command: No closing quotation"),
        (["--signer-command= ", "--signer-roots=ROOTS"], "--signer-command is empty"),
        (["--signer-command=no-such x", "--signer-roots=ROOTS"], "no-such is not an executable file in PATH"),
        (["--signer-command=cat", "--signer-roots=missing.pem"], "missing.pem: No such file or directory"),
        (["--signer-command=cat", "--signer-roots=ROOTS"], "ROOTS: this is not a PEM certificate"),
        (
            ["--signer-command=cat", "--signer-roots=ROOTS", "--sds=unix:///run/a.sock"],
            "--signer-command cannot be combined with --sds",
        ),
    ],
)
def test_invalid_signer_is_an_error(tmp_path: Path, options: list[str], said: str) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_text("nothing")
    options = [option.replace("ROOTS", str(roots)) for option in options]
    status, output = run("serve", f"--manifests={tmp_path}", *options)
    assert status == 2
    assert said.replace("ROOTS", "") in output.replace(str(roots), "")
