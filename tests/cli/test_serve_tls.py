"""`xds serve` and `xds status` over TLS, as processes, with client certificates; tokens are in test_serve_tokens.py."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse

from tests.cli.test_serve import POD, WITHIN, Process, free_port, serving
from xds.mesh.identity.state_dir import load_or_create_root
from xds.snapshot import SECRET

ADMIN = "ops/admin"
FETCH = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets"


class Shown(NamedTuple):
    """Files of a client."""

    certificate: Path
    key: Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/pod.yaml").write_text(POD.format("web"))
    return tmp_path / "m"


def issued(tmp_path: Path, namespace: str, account: str) -> Shown:
    """A certificate of the CA that serves."""
    now = datetime.now(UTC)
    ca = load_or_create_root(tmp_path / "state", "cluster.local", now)
    leaf = ca.issue(f"spiffe://cluster.local/ns/{namespace}/sa/{account}", now)
    shown = Shown(tmp_path / f"{account}.pem", tmp_path / f"{account}-key.pem")
    shown.certificate.write_bytes(leaf.chain)
    shown.key.write_bytes(leaf.key.to_pem())
    return shown


def fetch(port: int, roots: Path, shown: Shown, pod: str = "web.shop") -> list[str]:
    """Ask for a pod's key; return what came."""
    node = Node(id=f"sidecar~127.9.0.1~{pod}~shop.svc.cluster.local")
    request = bytes(DiscoveryRequest(node=node, type_url=SECRET, resource_names=["default"]))
    credentials = grpc.ssl_channel_credentials(
        roots.read_bytes(), shown.key.read_bytes(), shown.certificate.read_bytes()
    )
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        call = channel.unary_unary(FETCH)
        while True:
            try:
                answer = DiscoveryResponse.parse(call(request, timeout=WITHIN))
                break
            except grpc.RpcError as error:
                if "yet; ask again" not in error.details():  # Else it came before its pod's first snapshot.
                    raise
    return [each.value.decode(errors="replace") for each in answer.resources]


def status(port: int, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xds", "status", "-o", "json", f"--xds-address=localhost:{port}"]
    return subprocess.run(
        [*command, *map(str, options)], capture_output=True, text=True, timeout=60, check=False
    )


def test_who_shows_a_certificate_gets_its_own_key_and_admins_may_look(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    options = ("--state-dir", tmp_path / "state", "--xds-mtls-address", f"127.0.0.1:{port}")
    with serving(folder, *options, "--admin-identity", ADMIN) as process:
        roots = tmp_path / "state/root-cert.pem"
        web, other, admin = (
            issued(tmp_path, *who) for who in (("shop", "default"), ("shop", "other"), ADMIN.split("/"))
        )
        [secret] = fetch(port, roots, web)
        assert "PRIVATE KEY" in secret
        with pytest.raises(grpc.RpcError, match="may not act for pod shop/web"):
            fetch(port, roots, other)
        assert process.logged("may not act for pod shop/web")

        def asked(shown: Shown) -> subprocess.CompletedProcess[str]:
            return status(
                port, f"--ca-file={roots}", f"--cert-file={shown.certificate}", f"--key-file={shown.key}"
            )

        seen = asked(admin)
        found = json.loads(seen.stdout)
        assert (seen.returncode, found["notConnected"]["pods"][0]["pod"]) == (1, "web"), seen.stderr
        refused = asked(web)
        assert refused.returncode == 3
        assert (
            f"localhost:{port} does not let us ask (service account shop/default is not an admin"
            in refused.stderr
        )
        log = process.log.read_text()
        assert "PRIVATE KEY" not in log
        assert log.count("every user of this machine can take any pod's identity") == 1


def test_where_others_could_connect_over_tls_plaintext_has_no_keys(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    with serving(
        folder, "--state-dir", tmp_path / "state", "--xds-mtls-address", f"0.0.0.0:{port}"
    ) as process:
        [roots] = process.ask("web.shop", SECRET, "default", "ROOTCA").resources
        assert b"PRIVATE KEY" not in roots.value
        shown = issued(tmp_path, "shop", "default")
        [secret] = fetch(port, tmp_path / "state/root-cert.pem", shown)
        assert "PRIVATE KEY" in secret
        assert not process.logged("any pod's identity")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tls-name", "xds.example"), "--tls-name is for --xds-tls-address"),
        (("--admin-identity", "a/b"), "--admin-identity is for --xds-tls-address"),
        (("--xds-tls-address", "127.0.0.1"), "is not HOST:PORT"),
        (
            ("--xds-tls-address", "127.0.0.1:0", "--admin-identity", "root"),
            "is neither NAMESPACE/SERVICE_ACCOUNT",
        ),
        (
            ("--xds-mtls-address", "127.0.0.1:0", "--tls-name", "not a name"),
            "'not a name' is neither a lower-case DNS name",
        ),
        (("--xds-tls-address", "127.0.0.1:0"), "takes the tokens of `xds token`: say with --state-dir where"),
    ],
)
def test_what_cannot_be_meant_is_said(folder: Path, options: tuple[str, ...], said: str) -> None:
    process = Process(folder, *options)
    assert process.process.wait(WITHIN) == 2
    assert said in " ".join(process.log.read_text().replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--token-file", __file__), "say with --ca-file how the control plane is verified"),
        (("--ca-file", __file__, "--cert-file", __file__), "--cert-file and --key-file go together"),
    ],
)
def test_a_credential_that_cannot_be_shown_is_said(options: tuple[str, ...], said: str) -> None:
    asked = status(1, *options)
    assert (asked.returncode, said in asked.stderr) == (2, True)
