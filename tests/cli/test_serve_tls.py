"""`xds serve` and `xds status` over TLS with client certificates. Tokens: test_serve_tokens.py."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse

from tests.cli.commands import write_folder
from tests.cli.serve_process import POD, TIMEOUT, ServeProcess, serving
from tests.support.loopback import free_port
from xds.mesh.identity.state_dir import load_or_create_root
from xds.snapshot import SECRET

ADMIN = "ops/admin"
FETCH = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets"


class ClientFiles(NamedTuple):
    """TokenFiles of a client."""

    certificate: Path
    key: Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, pod=POD.format("web"))


def issue(tmp_path: Path, namespace: str, account: str) -> ClientFiles:
    """Return a certificate that the control plane's CA issued."""
    now = datetime.now(UTC)
    ca = load_or_create_root(tmp_path / "state", "cluster.local", now)
    leaf = ca.issue(f"spiffe://cluster.local/ns/{namespace}/sa/{account}", now)
    files = ClientFiles(tmp_path / f"{account}.pem", tmp_path / f"{account}-key.pem")
    files.certificate.write_bytes(leaf.chain)
    files.key.write_bytes(leaf.key.to_pem())
    return files


EXPIRING = """
from datetime import timedelta
from xds.cli import main
from xds.mesh.controlplane import standalone
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey

def load(state_dir, trust_domain, now):
    return Authority.create(PrivateKey.generate(), trust_domain, now - timedelta(1), timedelta(1))

standalone.load_or_create_root = load
main()
"""
"""The program with a CA that expires when it has been read."""


def test_ca_that_expires_during_the_start_is_an_error(folder: Path, tmp_path: Path) -> None:
    addresses = (
        *("--xds-address", f"127.0.0.1:{free_port()}", "--admin-address", f"127.0.0.1:{free_port()}"),
        *("--xds-tls-address", f"127.0.0.1:{free_port()}", "--state-dir", str(tmp_path / "state")),
    )
    (tmp_path / "state").mkdir(mode=0o700)
    run = subprocess.run(
        [sys.executable, "-c", EXPIRING, "serve", "--manifests", str(folder), *addresses],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(
        "xds: cannot issue the server certificate: the root certificate expired at "
    )
    assert "Traceback" not in run.stderr


def fetch(
    port: int, roots: Path, files: ClientFiles, name: str = "ROOTCA", pod: str = "web.shop"
) -> list[str]:
    """Request a secret of a pod; return the answer."""
    node = Node(id=f"sidecar~127.9.0.1~{pod}~shop.svc.cluster.local")
    request = bytes(DiscoveryRequest(node=node, type_url=SECRET, resource_names=[name]))
    credentials = grpc.ssl_channel_credentials(
        roots.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
    )
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        call = channel.unary_unary(FETCH)
        while True:
            try:
                answer = DiscoveryResponse.parse(call(request, timeout=TIMEOUT))
                break
            except grpc.RpcError as error:
                if (
                    "yet; ask again" not in error.details()
                ):  # Otherwise the request came before the pod's first snapshot.
                    raise
    return [each.value.decode(errors="replace") for each in answer.resources]


def status(port: int, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xds", "status", "-o", "json", f"--xds-address=localhost:{port}"]
    return subprocess.run(
        [*command, *map(str, options)], capture_output=True, text=True, timeout=60, check=False
    )


def test_certificate_gets_configuration_and_admin_gets_status(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    options = ("--state-dir", tmp_path / "state", "--xds-mtls-address", f"127.0.0.1:{port}")
    with serving(folder, *options, "--admin-identity", ADMIN) as process:
        roots = tmp_path / "state/root-cert.pem"
        web, other, admin = (
            issue(tmp_path, *account)
            for account in (("shop", "default"), ("shop", "other"), ADMIN.split("/"))
        )
        assert "BEGIN CERTIFICATE" in fetch(port, roots, web)[0]
        with pytest.raises(grpc.RpcError, match="a certificate cannot be used to renew itself"):
            fetch(port, roots, web, "default")
        with pytest.raises(grpc.RpcError, match="may not act for pod shop/web"):
            fetch(port, roots, other)
        assert process.logged("may not act for pod shop/web")

        def query(files: ClientFiles) -> subprocess.CompletedProcess[str]:
            return status(
                port, f"--ca-file={roots}", f"--cert-file={files.certificate}", f"--key-file={files.key}"
            )

        seen = query(admin)
        found = json.loads(seen.stdout)
        assert (seen.returncode, found["notConnected"]["pods"][0]["pod"]) == (1, "web"), seen.stderr
        refused = query(web)
        assert refused.returncode == 3
        assert (
            f"localhost:{port} denied the request (service account shop/default is not an admin"
            in refused.stderr
        )
        log = process.log.read_text()
        assert "PRIVATE KEY" not in log
        assert log.count("any local user can impersonate any workload") == 1


def test_failed_handshakes_are_not_logged_by_grpc(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    options = ("--state-dir", tmp_path / "state", "--xds-mtls-address", f"127.0.0.1:{port}")
    with serving(folder, *options) as process:
        context = ssl.create_default_context()  # does not trust the control plane's root
        with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", port)) as connection:
            context.wrap_socket(connection, server_hostname="localhost")
        shown = issue(tmp_path, "shop", "default")
        assert fetch(port, tmp_path / "state/root-cert.pem", shown)
        assert "Handshake failed" not in process.log.read_text()


def test_plaintext_has_no_keys_if_tls_is_exposed(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    with serving(
        folder, "--state-dir", tmp_path / "state", "--xds-mtls-address", f"0.0.0.0:{port}"
    ) as process:
        [roots] = process.fetch("web.shop", SECRET, "default", "ROOTCA").resources
        assert b"PRIVATE KEY" not in roots.value
        files = issue(tmp_path, "shop", "default")
        assert fetch(port, tmp_path / "state/root-cert.pem", files)
        assert not process.logged("serves private keys")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tls-name", "xds.example"), "--tls-name requires --xds-tls-address"),
        (("--admin-identity", "a/b"), "--admin-identity requires --xds-tls-address"),
        (("--xds-tls-address", "127.0.0.1"), "is not HOST:PORT"),
        (
            ("--xds-tls-address", "127.0.0.1:0", "--admin-identity", "root"),
            "is neither NAMESPACE/SERVICE_ACCOUNT",
        ),
        (
            ("--xds-mtls-address", "127.0.0.1:0", "--tls-name", "not a name"),
            "'not a name' is neither a lower-case DNS name",
        ),
        (("--xds-mtls-address", "Local_host:0"), "--xds-mtls-address: 'Local_host' is neither a lower-case"),
        (
            ("--xds-tls-address", "127.0.0.1:0"),
            "--xds-tls-address requires --state-dir, which contains the key",
        ),
    ],
)
def test_invalid_options_exit_with_2(folder: Path, options: tuple[str, ...], message: str) -> None:
    process = ServeProcess(folder, *options)
    assert process.process.wait(TIMEOUT) == 2
    assert message in " ".join(process.log.read_text().replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--token-file", __file__), "add --ca-file to verify the control plane"),
        (
            ("--ca-file", __file__, "--cert-file", __file__),
            "--cert-file and --key-file must be used together",
        ),
    ],
)
def test_status_rejects_incomplete_credentials(options: tuple[str, ...], message: str) -> None:
    result = status(1, *options)
    assert (result.returncode, message in result.stderr) == (2, True)
