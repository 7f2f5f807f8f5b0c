"""`xds serve` on IPv6 addresses, and commands that connect to them."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.cli.commands import write_folder
from tests.cli.serve_process import POD, TIMEOUT, serving


def run(*arguments: object) -> str:
    """Run a command, and return its output, whatever its exit status."""
    command = [sys.executable, "-m", "xds", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT).stdout


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        return str(response.read().decode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, pod=POD.format("web"))


def test_loopback_of_ipv6_is_not_exposed(folder: Path) -> None:
    with serving(folder, host="[::1]") as process:
        assert process.logged(f'event="serving xDS" address=[::1]:{process.xds}')
        assert "web.shop" in run("status", "--xds-address", f"[::1]:{process.xds}")


def test_admin_server_listens_on_both_versions(folder: Path) -> None:
    with serving(folder, host="[::1]", admin_host="[::]") as process:
        for host in ("127.0.0.1", "[::1]"):
            assert get(f"http://{host}:{process.admin}/ready") == "ready\n"
            # The page is for clients on this machine, by either address.
            assert "<html" in get(f"http://{host}:{process.admin}/")


def test_certificate_is_valid_for_ipv6_addresses(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with serving(folder, "--state-dir", state, "--xds-tls-address", "[::]:0") as process:
        [line] = [line for line in process.log.read_text().splitlines() if "serving xDS over TLS" in line]
        port = int(line.rpartition("port=")[2])
        context = ssl.create_default_context(cafile=state / "root-cert.pem")
        for host in ("::1", "127.0.0.1", "localhost"):
            with (
                socket.create_connection((host, port), timeout=TIMEOUT) as connection,
                context.wrap_socket(connection, server_hostname=host) as tls,
            ):
                assert tls.version() == "TLSv1.3"
