"""How commands choose between a control plane on this machine and one in a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.serve_process import serving
from tests.support.loopback import free_port

PROGRAM = """
import sys
from xds.cli import client_options, main
from xds.cli.options import Address
client_options.XDS_ADDRESS = Address("127.0.0.1", {port})
try:
    main()
finally:
    print(sorted({{"aiohttp", "kubernetes"}} & sys.modules.keys()), file=sys.stderr)
"""
"""The program with another default port. It prints the slow modules that it has imported."""


def run(port: int, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(port=port), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": "/nonexistent", **env},
        check=False,
    )


def kubeconfig(folder: Path, context: str = "test") -> Path:
    """Write a kubeconfig with an API server that nothing listens on."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": context,
    }
    path = folder / "kubeconfig.json"
    path.write_text(json.dumps(document))
    return path


def test_control_plane_on_this_machine_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "mesh").mkdir()
    config = str(kubeconfig(tmp_path))
    with serving(tmp_path / "mesh") as process:
        result = run(process.xds, "problems", KUBECONFIG=config)
        assert (result.returncode, result.stdout, result.stderr) == (0, "no problems\n", "[]\n")
        result = run(process.xds, "problems", f"--kubeconfig={config}")
        assert result.returncode == 3
        assert "xds: no control plane found: the API server at http://127.0.0.1:" in result.stderr
        address = f"127.0.0.1:{process.xds}"
        assert run(free_port(), "problems", KUBECONFIG=config, XDS_ADDRESS=address).returncode == 0
        result = run(free_port(), "problems", f"--kubeconfig={config}", XDS_ADDRESS=address)
        assert result.returncode == 3


def test_without_a_kubeconfig_only_this_machine_is_tried() -> None:
    port = free_port()
    result = run(port, "status")
    assert result.returncode == 3
    assert result.stderr == (
        f"xds: cannot connect to a control plane at 127.0.0.1:{port}: start `xds serve`, or set "
        "--xds-address to its xDS address, or --context to find it in a cluster (connection refused)\n[]\n"
    )


def test_error_names_all_places_that_were_tried(tmp_path: Path) -> None:
    port = free_port()
    result = run(port, "status", KUBECONFIG=str(kubeconfig(tmp_path)))
    assert result.returncode == 3
    assert (
        f"no control plane found: nothing listens on 127.0.0.1:{port}, and the API server at" in result.stderr
    )
    assert "(start `xds serve`, or set --xds-address, --context or --xds-namespace)" in result.stderr
    result = run(port, "status", KUBECONFIG=str(kubeconfig(tmp_path, context="")))
    assert result.returncode == 3
    assert f"no control plane found: nothing listens on 127.0.0.1:{port}, and " in result.stderr
    assert "kubeconfig.json: Invalid kube-config file" in result.stderr


CONFLICT = "cannot be combined with --kubeconfig, --context or --xds-namespace"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "--xds-address=127.0.0.1:1", "--context=x"), f"--xds-address {CONFLICT}"),
        (("reach", "--xds-address=127.0.0.1:1", "--xds-namespace=x"), f"--xds-address {CONFLICT}"),
        (("dashboard", "--admin-address=127.0.0.1:1", "--context=x"), f"--admin-address {CONFLICT}"),
        (("status", "--context=nowhere"), "there is no kubeconfig at /nonexistent/.kube/config"),
        (
            ("status", "--context=x", f"--ca-file={__file__}"),
            "be used with a port-forward: set --xds-address",
        ),
        (
            ("check", f"--ca-file={__file__}"),
            "be used with a port-forward: set --xds-address",
        ),
        (("explain", "a.b", "c.d", "--mesh-config-map=x"), "--mesh-config-map requires --kubernetes"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], message: str) -> None:
    result = run(free_port(), *arguments)
    assert result.returncode == 2
    assert message in result.stderr
