"""`xds serve --manifests` as a process: ports, signals, logs."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest

from tests.cli.commands import write_folder, xds
from tests.cli.serve_process import POD, TIMEOUT, ServeProcess, serving
from tests.support.loopback import free_port
from xds.mesh.controlplane.problem_times import SETTLE_TIME
from xds.snapshot import CLUSTER, SECRET

BAD = "apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\nspec: {ports: [{port: x}]}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, pod=POD.format("web"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_becomes_ready_and_stops_cleanly(folder: Path, number: int) -> None:
    with serving(folder) as process:
        assert process.get("/healthz") == (200, "ok\n")
        assert process.get("/ready") == (200, "ready\n")
        assert process.fetch("web.shop", CLUSTER).resources
        process.process.send_signal(number)
        assert process.process.wait(TIMEOUT) == 0
        log = process.log.read_text()
        assert 'event="control plane stopped"' in log.splitlines()[-1]
        assert "Traceback" not in log
        assert log.count("any local user can impersonate any workload") == 1


def test_changes_are_applied_and_problems_logged_once(folder: Path) -> None:
    with serving(folder) as process:
        (folder / "bad.yaml").write_text(BAD)
        process.wait_for(lambda: process.logged('level=warning event="problem found"'))
        (folder / "more.yaml").write_text(POD.format("more"))
        process.wait_for(lambda: process.logged("applied=1"))
        assert process.fetch("more.shop", CLUSTER).resources
        (folder / "bad.yaml").unlink()
        process.wait_for(lambda: process.logged('event="problem solved"'))
        [line] = [line for line in process.log.read_text().splitlines() if 'event="problem found"' in line]
        assert f"where={folder}/bad.yaml:4" in line
        assert (
            "what=\"Service shop/bad: spec.ports[0].port must be a number from 1 to 65535, not 'x'; until"
            in line
        )


STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: strict, namespace: {}}}
spec: {{mtls: {{mode: STRICT}}}}
"""


def test_several_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "pod.yaml").write_text(POD.format("other"))
    with serving(folder, "--manifests", other) as process:
        assert process.fetch("web.shop", CLUSTER).resources
        assert process.fetch("other.shop", CLUSTER).resources
        (other / "more.yaml").write_text(POD.format("more"))
        process.wait_for(lambda: process.logged("applied=1"))
        assert process.fetch("more.shop", CLUSTER).resources


def test_workloads_are_ignored(folder: Path) -> None:
    (folder / "web.yaml").write_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n"
        "spec: {template: {spec: {containers: [{name: web, image: web}]}}}\n"
    )
    with serving(folder) as process:
        assert process.logged("Deployment web is ignored")
        assert process.logged("applied=1")


def logged_at(process: ServeProcess, event: str) -> datetime:
    """Return when an event was logged first."""
    found = re.search(rf'^timestamp=(\S+) .*event="{event}"', process.log.read_text(), re.MULTILINE)
    assert found
    return datetime.fromisoformat(found.group(1))


def test_policy_without_effect_is_reported_until_fixed(folder: Path) -> None:
    (folder / "strict.yaml").write_text(STRICT.format("shpo"))
    warning = (
        f"{folder}/strict.yaml:2: PeerAuthentication shpo/strict: namespace shpo does not exist (it "
        f"contains only policies), "
        "so it has no effect (did you mean shop?)"
    )
    with serving(folder) as process:
        listed = xds("problems", "--xds-address", f"127.0.0.1:{process.xds}", "-o", "json")
        [problem] = json.loads(listed.stdout)["problems"]
        assert problem["object"] == "PeerAuthentication shpo/strict"
        assert not process.logged("object has no effect"), "xds problems does not wait"
        process.wait_for(lambda: process.get("/ready") == (200, f"ready\nwarning: {warning}\n"))
        assert process.logged('level=warning event="object has no effect"')
        waited = logged_at(process, "object has no effect") - logged_at(process, "objects changed")
        assert waited >= timedelta(seconds=SETTLE_TIME), "its pods may start soon"
        assert 'xds_problems{severity="problem"} 1.0' in process.get("/metrics")[1]
        command = [sys.executable, "-m", "xds", "status", "--xds-address", f"127.0.0.1:{process.xds}"]
        status = subprocess.run(command, capture_output=True, text=True, check=False)
        assert status.returncode == 1
        row = status.stdout.splitlines()[1]
        assert row.split(maxsplit=8) == ["web.shop", *"-------", "not connected (never)"]
        assert status.stderr == f"{warning.replace(': Peer', ': problem: Peer', 1)}\n"
        (folder / "strict.yaml").write_text(STRICT.format("shop"))
        process.wait_for(lambda: process.get("/ready") == (200, "ready\n"))
        assert process.logged('event="problem solved"')


def test_root_survives_a_restart_and_its_key_is_private(folder: Path, tmp_path: Path) -> None:
    roots = []
    for _ in range(2):
        with serving(folder, "--state-dir", tmp_path / "state") as process:
            [roots_secret] = process.fetch("web.shop", SECRET, "ROOTCA").resources
            roots.append(roots_secret.value)
    assert roots[0] == roots[1]
    keys = [path for path in (tmp_path / "state").iterdir() if "key" in path.name]
    assert [stat.S_IMODE(path.stat().st_mode) for path in keys] == [0o600]


def test_unusable_state_dir_exits_with_1(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/root-cert.pem").write_text("not a certificate")
    process = ServeProcess(folder, "--state-dir", tmp_path / "state")
    assert process.process.wait(TIMEOUT) == 1
    assert "xds: --state-dir: " in process.log.read_text()


def test_port_in_use_exits_with_1(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--xds-address", "--admin-address", "--rest-address"):
            process = ServeProcess(folder, option, f"127.0.0.1:{port}")
            assert process.process.wait(TIMEOUT) == 1
            assert "cannot listen" in process.log.read_text()
            assert "Traceback" not in process.log.read_text()


def test_exposed_plaintext_xds_serves_no_private_keys(folder: Path) -> None:
    with serving(folder, "--insecure-xds", host="0.0.0.0") as process:
        [secret] = process.fetch("web.shop", SECRET, "default", "ROOTCA").resources
        assert b"PRIVATE KEY" not in secret.value
        assert process.logged("plaintext xDS is reachable from other machines")
        assert process.logged("proxy gets no certificate")
        assert not process.logged("serves private keys")
    with serving(folder) as process:
        secrets = process.fetch("web.shop", SECRET, "default", "ROOTCA").resources
        assert len(secrets) == 2


def poll(port: int, what: str, pod: str, *names: str) -> tuple[int, bytes]:
    request = {"node": {"id": f"sidecar~127.9.0.1~{pod}~shop.svc.cluster.local"}, "resource_names": names}
    url, headers = f"http://127.0.0.1:{port}/v3/discovery:{what}", {"Content-Type": "application/json"}
    posted = urllib.request.Request(url, json.dumps(request).encode(), headers)
    try:
        with urllib.request.urlopen(posted, timeout=TIMEOUT) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def poll_known(port: int, what: str, pod: str, *names: str) -> tuple[int, bytes]:
    """Poll again while a busy control plane has not computed the first snapshot of a known pod in time."""
    while (answer := poll(port, what, pod, *names))[0] == 503:
        pass
    return answer


def test_rest_serves_the_same_resources_as_json(folder: Path) -> None:
    port = free_port()
    with serving(folder, "--rest-address", f"127.0.0.1:{port}", "--max-connection-age", 60) as process:
        status, body = poll_known(port, "secrets", "web.shop", "ROOTCA")
        assert status == 200
        assert [secret["name"] for secret in json.loads(body)["resources"]] == ["ROOTCA"]
        streamed = process.fetch("web.shop", CLUSTER).resources
        status, body = poll_known(port, "clusters", "web.shop")
        assert len(json.loads(body)["resources"]) == len(streamed) > 0
        status, body = poll(port, "clusters", "other.shop")
        assert (status, b"no configuration for sidecar~127.9.0.1~other.shop" in body) == (503, True)
        status, body = poll(port, "clusters", "shop")
        assert (status, b"POD.NAMESPACE" in body) == (400, True)


def test_exposed_rest_serves_no_private_keys(folder: Path) -> None:
    port = free_port()
    process = ServeProcess(folder, "--rest-address", f"0.0.0.0:{port}")
    assert process.process.wait(TIMEOUT) == 2
    assert f"--rest-address 0.0.0.0:{port} is reachable from other machines" in process.log.read_text()
    with serving(folder, "--insecure-xds", "--rest-address", f"0.0.0.0:{port}") as process:
        _, body = poll_known(port, "secrets", "web.shop", "ROOTCA")
        assert [secret["name"] for secret in json.loads(body)["resources"]] == ["ROOTCA"]
        status, body = poll(port, "secrets", "web.shop", "default", "ROOTCA")
        assert (status, b"are served only over TLS" in body) == (403, True)
        [secret] = process.fetch("web.shop", SECRET, "default", "ROOTCA").resources
        assert b"PRIVATE KEY" not in secret.value


def test_file_names_cannot_inject_log_lines(folder: Path) -> None:
    (folder / "bad\nlevel=info event=forged.yaml").write_text(BAD)
    with serving(folder) as process:
        process.wait_for(lambda: process.logged('event="problem found"'))
        assert not [
            line
            for line in process.log.read_text().splitlines()
            if line.startswith("level=info event=forged")
        ]


def test_malformed_node_id_is_rejected_with_a_hint(folder: Path) -> None:
    with serving(folder) as process, pytest.raises(grpc.RpcError) as refused:
        process.fetch("shop", CLUSTER)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "sidecar~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.cluster.local" in refused.value.details()
