"""`xds serve` as a process: ports, signals, logs."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse

from xds.snapshot import CLUSTER, SECRET

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {}, namespace: shop, labels: {{security.istio.io/tlsMode: istio}}}}
status: {{podIP: 127.9.0.1}}
"""
BAD = "apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\nspec: {ports: [{port: x}]}\n"
METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
WITHIN = 20.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A running `xds serve`."""

    def __init__(self, folder: Path, *arguments: object, host: str = "127.0.0.1") -> None:
        self.xds, self.admin = free_port(), free_port()
        self.log = folder.parent / f"log-{self.xds}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "xds", "serve", "--manifests", folder),
                    *("--xds-address", f"{host}:{self.xds}", "--admin-address", f"127.0.0.1:{self.admin}"),
                    *map(str, arguments),
                ],
                stderr=log,
                stdout=subprocess.DEVNULL,
            )

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def until(self, what: Callable[[], bool]) -> None:
        """Ask again and again: a process tells nothing of itself but this."""
        end = time.monotonic() + WITHIN
        while not what():
            assert time.monotonic() < end, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)

    def logged(self, words: str) -> bool:
        return words in self.log.read_text()

    def ask(self, pod: str, type_url: str, *names: str) -> DiscoveryResponse:
        """The first response to a sidecar that asks for one type, state of the world."""
        node = Node(id=f"sidecar~127.9.0.1~{pod}~shop.svc.cluster.local")
        request = DiscoveryRequest(node=node, type_url=type_url, resource_names=list(names))

        async def first() -> bytes:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.xds}") as channel:
                call = channel.stream_stream(METHOD)(timeout=WITHIN)
                await call.write(bytes(request))
                return await call.read()

        return DiscoveryResponse.parse(asyncio.run(first()))


@contextmanager
def serving(folder: Path, *arguments: object, host: str = "127.0.0.1") -> Iterator[Process]:
    process = Process(folder, *arguments, host=host)
    try:
        process.until(lambda: process.get("/ready")[0] == 200)
        yield process
    finally:
        process.process.kill()
        process.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/pod.yaml").write_text(POD.format("web"))
    return tmp_path / "m"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_says_that_it_is_ready_and_ends_cleanly(folder: Path, number: int) -> None:
    with serving(folder) as process:
        assert process.get("/healthz") == (200, "ok\n")
        assert process.get("/ready") == (200, "ready\n")
        assert process.ask("web.shop", CLUSTER).resources
        process.process.send_signal(number)
        assert process.process.wait(WITHIN) == 0
        log = process.log.read_text()
        assert "event=stopped" in log.splitlines()[-1]
        assert "Traceback" not in log
        assert log.count("every user of this machine can take any pod's identity") == 1


def test_changes_are_followed_and_problems_logged_once_with_their_line(folder: Path) -> None:
    with serving(folder) as process:
        (folder / "bad.yaml").write_text(BAD)
        process.until(lambda: process.logged("level=warning event=problem"))
        (folder / "more.yaml").write_text(POD.format("more"))
        process.until(lambda: process.logged("applied=1"))
        assert process.ask("more.shop", CLUSTER).resources
        (folder / "bad.yaml").unlink()
        process.until(lambda: process.logged("event=solved"))
        [line] = [line for line in process.log.read_text().splitlines() if "event=problem" in line]
        assert f"where={folder}/bad.yaml:4" in line
        assert (
            "what=\"Service shop/bad: spec.ports[0].port must be a number from 1 to 65535, not 'x'; until"
            in line
        )


LOCK = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: lock, namespace: {}}}
spec: {{mtls: {{mode: STRICT}}}}
"""


def test_a_lock_that_locks_nothing_is_reported_until_it_does(folder: Path) -> None:
    (folder / "lock.yaml").write_text(LOCK.format("shpo"))
    warning = (
        f"{folder}/lock.yaml:2: PeerAuthentication shpo/lock: namespace shpo does not exist (no other object is in it), "
        "so it has no effect (did you mean shop?)"
    )
    with serving(folder) as process:
        assert process.get("/ready") == (200, "ready\n"), "its pods may be about to start"
        process.until(lambda: process.get("/ready") == (200, f"ready\nwarning: {warning}\n"))
        assert process.logged('level=warning event="object has no effect"')
        assert 'xds_problems{severity="problem"} 1.0' in process.get("/metrics")[1]
        command = [sys.executable, "-m", "xds", "status", "--xds-address", f"127.0.0.1:{process.xds}"]
        status = subprocess.run(command, capture_output=True, text=True, check=False)
        assert status.returncode == 1
        assert "web.shop  -     -          not connected (never)" in status.stdout
        assert status.stderr == f"{warning.replace(': Peer', ': warning: Peer', 1)}\n"
        (folder / "lock.yaml").write_text(LOCK.format("shop"))
        process.until(lambda: process.get("/ready") == (200, "ready\n"))
        assert process.logged("event=solved")


def test_the_root_survives_a_restart_and_only_we_can_read_its_key(folder: Path, tmp_path: Path) -> None:
    roots = []
    for _ in range(2):
        with serving(folder, "--state-dir", tmp_path / "state") as process:
            [roots_secret] = process.ask("web.shop", SECRET, "ROOTCA").resources
            roots.append(roots_secret.value)
    assert roots[0] == roots[1]
    keys = [path for path in (tmp_path / "state").iterdir() if "key" in path.name]
    assert [stat.S_IMODE(path.stat().st_mode) for path in keys] == [0o600]


def test_a_state_dir_that_cannot_be_used_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/root-cert.pem").write_text("not a certificate")
    process = Process(folder, "--state-dir", tmp_path / "state")
    assert process.process.wait(WITHIN) == 1
    assert "xds: --state-dir: " in process.log.read_text()


def test_a_port_that_is_taken_is_said(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--xds-address", "--admin-address", "--rest-address"):
            process = Process(folder, option, f"127.0.0.1:{port}")
            assert process.process.wait(WITHIN) == 1
            assert "cannot listen" in process.log.read_text()
            assert "Traceback" not in process.log.read_text()


def test_where_others_could_listen_nobody_gets_a_key(folder: Path) -> None:
    with serving(folder, "--insecure-xds", host="0.0.0.0") as process:
        [secret] = process.ask("web.shop", SECRET, "default", "ROOTCA").resources
        assert b"PRIVATE KEY" not in secret.value
        assert process.logged("xDS is neither encrypted nor authenticated, and others can reach it")
        assert process.logged("proxy gets no certificate")
        assert not process.logged("any pod's identity")
    with serving(folder) as process:
        secrets = process.ask("web.shop", SECRET, "default", "ROOTCA").resources
        assert len(secrets) == 2


def poll(port: int, what: str, pod: str, *names: str) -> tuple[int, bytes]:
    request = {"node": {"id": f"sidecar~127.9.0.1~{pod}~shop.svc.cluster.local"}, "resource_names": names}
    url, headers = f"http://127.0.0.1:{port}/v3/discovery:{what}", {"Content-Type": "application/json"}
    posted = urllib.request.Request(url, json.dumps(request).encode(), headers)
    try:
        with urllib.request.urlopen(posted, timeout=WITHIN) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_who_polls_gets_the_same_as_json(folder: Path) -> None:
    port = free_port()
    with serving(folder, "--rest-address", f"127.0.0.1:{port}", "--max-connection-age", 60) as process:
        status, body = poll(port, "secrets", "web.shop", "ROOTCA")
        assert status == 200
        assert [secret["name"] for secret in json.loads(body)["resources"]] == ["ROOTCA"]
        streamed = process.ask("web.shop", CLUSTER).resources
        status, body = poll(port, "clusters", "web.shop")
        assert len(json.loads(body)["resources"]) == len(streamed) > 0
        status, body = poll(port, "clusters", "other.shop")
        assert (status, b"no configuration for sidecar~127.9.0.1~other.shop" in body) == (503, True)
        status, body = poll(port, "clusters", "shop")
        assert (status, b"POD.NAMESPACE" in body) == (400, True)


def test_where_others_could_poll_nobody_gets_a_key(folder: Path) -> None:
    port = free_port()
    process = Process(folder, "--rest-address", f"0.0.0.0:{port}")
    assert process.process.wait(WITHIN) == 2
    assert f"--rest-address 0.0.0.0:{port} can be reached by others" in process.log.read_text()
    with serving(folder, "--insecure-xds", "--rest-address", f"0.0.0.0:{port}") as process:
        _, body = poll(port, "secrets", "web.shop", "ROOTCA")
        assert [secret["name"] for secret in json.loads(body)["resources"]] == ["ROOTCA"]
        status, body = poll(port, "secrets", "web.shop", "default", "ROOTCA")
        assert (status, b"private keys are not served in plaintext" in body) == (403, True)
        [secret] = process.ask("web.shop", SECRET, "default", "ROOTCA").resources
        assert b"PRIVATE KEY" not in secret.value


def test_logs_cannot_be_forged(folder: Path) -> None:
    (folder / "bad\nlevel=info event=forged.yaml").write_text(BAD)
    with serving(folder) as process:
        process.until(lambda: process.logged("event=problem"))
        assert not [
            line
            for line in process.log.read_text().splitlines()
            if line.startswith("level=info event=forged")
        ]


def test_a_malformed_node_is_told_what_is_expected(folder: Path) -> None:
    with serving(folder) as process, pytest.raises(grpc.RpcError) as refused:
        process.ask("shop", CLUSTER)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "sidecar~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.cluster.local" in refused.value.details()
