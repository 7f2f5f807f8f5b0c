"""`xds proxy` executes Envoy with a bootstrap made from the environment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sidecar.pods import command, environment
from tests.support.cluster import Cluster, ClusterPod
from tests.support.processes import run
from tests.support.waiting import eventually
from xds.codec import to_json_dict
from xds.mesh.sidecar import running as starting
from xds.mesh.sidecar.environment import read

PROBES = {
    "/app-health/web/livez": {"httpGet": {"port": 8080}},
    "/app-health/web/readyz": {"tcpSocket": {"port": 80}},
}
POD = {"POD_NAME": "web-0", "POD_NAMESPACE": "shop", "INSTANCE_IP": "10.1.2.3"}


async def proxy(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run `xds proxy` with exactly this environment until it exits."""
    assignments = (f"{name}={value}" for name, value in variables.items())
    command = ("env", "-i", *assignments, sys.executable, "-m", "xds", "proxy", *arguments)
    return await run(*command, cwd="/")


class TestDryRun:
    async def bootstrap(self, **variables: str) -> dict[str, Any]:
        status, out, err = await proxy("--dry-run", **POD, **variables)
        assert (status, err) == (0, "")
        return json.loads(out)  # type: ignore[no-any-return]

    async def test_dry_run_prints_the_bootstrap(self, tmp_path):
        (tmp_path / "labels").write_text('app="web"\nsecurity.istio.io/tlsMode="istio"\n')

        printed = await self.bootstrap(
            SERVICE_ACCOUNT="keeper",
            XDS_LABELS_FILE=str(tmp_path / "labels"),
            XDS_ADDRESS="xds.elsewhere.svc:15012",
            XDS_APP_PROBES=json.dumps(PROBES),
        )

        assert printed["node"] == {
            "id": "sidecar~10.1.2.3~web-0.shop~shop.svc.cluster.local",
            "cluster": "web.shop",
            "metadata": {"NAME": "web-0", "NAMESPACE": "shop", "SERVICE_ACCOUNT": "keeper"},
        }
        (service,) = printed["dynamic_resources"]["ads_config"]["grpc_services"]
        assert service["google_grpc"]["target_uri"] == "xds.elsewhere.svc:15012"
        assert "/var/run/secrets/tokens/xds-token" in json.dumps(service)
        listeners = printed["static_resources"]["listeners"]
        sockets = {each["name"]: each["address"]["socket_address"] for each in listeners if "address" in each}
        assert sockets == {
            "health": {"address": "0.0.0.0", "port_value": 15021},
            "metrics": {"address": "0.0.0.0", "port_value": 15090},
            "probes": {"address": "0.0.0.0", "port_value": 15020},
        }

    async def test_without_probes_there_is_no_probe_listener(self):
        printed = await self.bootstrap()

        listeners = printed["static_resources"]["listeners"]
        assert {listener["name"] for listener in listeners} == {"health", "metrics", "xds-reports"}

    async def test_metrics_are_served_beside_probes(self):
        printed = await self.bootstrap(XDS_APP_METRICS='{"port": 9090, "scheme": "HTTPS", "later": 1}')

        resources = printed["static_resources"]
        listeners = {listener["name"]: listener for listener in resources["listeners"]}
        socket = listeners["probes"]["address"]["socket_address"]
        assert socket == {"address": "0.0.0.0", "port_value": 15020}
        assert "internal_listener" in listeners["merged-metrics"]
        (app,) = (
            cluster for cluster in resources["clusters"] if cluster["name"] == "probe|/stats/prometheus"
        )
        assert app["transport_socket"]["name"] == "envoy.transport_sockets.tls"

    @pytest.mark.parametrize(
        ("metrics", "message"),
        [
            ("{", "is not JSON"),
            ("8080", "must be a mapping, not 8080"),
            ("{}", "port is required"),
            ('{"port": 80, "scheme": "ftp"}', "scheme must be HTTP or HTTPS, not FTP"),
        ],
    )
    async def test_invalid_metrics_are_named(self, metrics, message):
        status, _, err = await proxy("--dry-run", **POD, XDS_APP_METRICS=metrics)
        assert (status, err.count("\n")) == (1, 1)
        assert err.startswith(f"XDS_APP_METRICS: problem: {message}")

    async def test_mode_none_listens_on_the_pod_address(self):
        printed = await self.bootstrap(XDS_INTERCEPTION_MODE="NONE", XDS_APP_PROBES=json.dumps(PROBES))

        resources = printed["static_resources"]
        addresses = [each["address"] for each in resources["listeners"] if "address" in each]
        sockets = {address["socket_address"]["address"] for address in addresses}
        assert sockets == {"10.1.2.3"}
        (web,) = (
            cluster for cluster in resources["clusters"] if cluster["name"] == "probe|/app-health/web/livez"
        )
        assert "upstream_bind_config" not in web
        assert '"address": "127.0.0.1"' in json.dumps(web)

    async def test_own_key_adds_the_cluster_and_the_feature(self):
        printed = await self.bootstrap(XDS_KEY_DIR="/run/xds/key/")

        (cluster,) = (
            cluster
            for cluster in printed["static_resources"]["clusters"]
            if cluster["name"] == "xds-own-certificate"
        )
        assert '"pipe": {"path": "/run/xds/key/sds.sock"}' in json.dumps(cluster)
        assert printed["node"]["client_features"] == ["xds-mesh.own-key"]

    async def test_own_key_is_not_used_with_another_sds_server(self):
        printed = await self.bootstrap(XDS_KEY_DIR="/run/xds/key", XDS_SDS="unix:///run/spire.sock")
        assert "client_features" not in printed["node"]


class TestErrors:
    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            ({"XDS_KEY_DIR": "run/xds"}, "must be an absolute path, not 'run/xds'"),
            ({"XDS_KEY_DIR": "/" + "x" * 99}, "must have at most 98 bytes, as the path of a socket"),
            (
                {"XDS_KEY_DIR": "/run/xds", "XDS_ROOT_FILE": ""},
                "requires XDS_ROOT_FILE: certificates are issued over TLS only",
            ),
        ],
    )
    async def test_unusable_key_directory_is_an_error(self, variables, message):
        status, out, err = await proxy("--dry-run", **POD, **variables)
        assert (status, out, err) == (1, "", f"XDS_KEY_DIR: problem: {message}\n")

    @pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
    async def test_key_directory_must_be_private(self, tmp_path, kind):
        directory, target = tmp_path / "key", tmp_path / "target"
        target.mkdir(mode=0o700)
        for name in ("token", "roots.pem"):
            (tmp_path / name).write_text("x")
        if kind == "open to others":
            directory.mkdir(mode=0o755)
        elif kind == "a link":
            directory.symlink_to(target)
        else:
            directory.touch(mode=0o600)
        files = {"XDS_TOKEN_FILE": str(tmp_path / "token"), "XDS_ROOT_FILE": str(tmp_path / "roots.pem")}
        status, out, err = await proxy(**POD, **files, XDS_KEY_DIR=str(directory))
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("xds: XDS_KEY_DIR: ")
        assert str(directory) in err

    async def test_all_errors_are_reported_together(self):
        status, out, err = await proxy(
            POD_NAME="web-0",
            INSTANCE_IP="",
            XDS_ADDRESS="nowhere",
            XDS_INTERCEPTION_MODE="TPROXY",
            XDS_CONCURRENCY="many",
            XDS_LOG_LEVEL="loud",
            XDS_SDS="/run/spire.sock",
            XDS_APP_PROBES='{"/a": {"httpGet": {"port": "http"}, "tcpSocket": {}}, '
            '"b": {}, "/c": {"grpc": {}}}',
        )

        assert (status, out) == (1, "")
        assert err.splitlines() == [
            "POD_NAMESPACE: problem: is not set (Namespace of the pod (metadata.namespace).)",
            "XDS_INTERCEPTION_MODE: problem: must be one of REDIRECT, NONE, not 'TPROXY'",
            "INSTANCE_IP: problem: is empty (IP address of the pod (status.podIP).)",
            "XDS_ADDRESS: problem: must be HOST:PORT, not 'nowhere' (write xds.istio-system.svc:15012)",
            "XDS_SDS: problem: must be unix:///PATH, not '/run/spire.sock'",
            "XDS_CONCURRENCY: problem: must be a number from 0 to 1024, not 'many'",
            (
                "XDS_LOG_LEVEL: problem: must be one of trace, debug, info, warning, error, critical, off, "
                "not 'loud'"
            ),
            'XDS_APP_PROBES: problem: ["/a"] must have exactly one of httpGet, tcpSocket, grpc',
            "XDS_APP_PROBES: problem: b must be a path (write /b)",
            'XDS_APP_PROBES: problem: ["/c"].grpc.port is required',
        ]

    @pytest.mark.parametrize(
        ("probes", "message"),
        [
            ("{", "is not JSON"),
            ("[]", "must be a mapping, not a list"),
            ('{"/a": {"httpGet": {"port": 99999}}}', "port must be a number from 1 to 65535, not 99999"),
            ('{"/a": {"httpGet": {"port": 1, "scheme": "FTP"}}}', "scheme must be HTTP or HTTPS, not FTP"),
            (
                '{"/a": {"httpGet": {"port": 1}, "timeoutSeconds": 0}}',
                "timeoutSeconds must be a number from 1",
            ),
            ('{"/a": {"httpGet": {"port": 1, "httpHeaders": [{"value": "x"}]}}}', "name is required"),
            (
                '{"/a": {"httpGet": {"port": 1, "httpHeaders": [{"name": ":path"}]}}}',
                "must contain only letters, digits and -",
            ),
            (
                '{"/a": {"httpGet": {"port": 1, "httpHeaders": [{"name": "x", "value": "a\\nb"}]}}}',
                "value has characters that are not allowed in a header",
            ),
        ],
    )
    async def test_invalid_probe_is_named(self, probes, message):
        status, _, err = await proxy("--dry-run", **POD, XDS_APP_PROBES=probes)

        assert status == 1
        assert "XDS_APP_PROBES" in err
        assert message in err

    async def test_missing_envoy_is_an_error(self):
        status, _, err = await proxy("--envoy", "/nowhere/envoy", **POD, XDS_ROOT_FILE="")

        assert (status, err) == (1, "xds: /nowhere/envoy is not found, or not executable\n")

    async def test_invalid_envoy_binary_is_an_error(self, tmp_path):
        (tmp_path / "envoy").write_bytes(b"\x7fELF no")
        (tmp_path / "envoy").chmod(0o755)

        status, _, err = await proxy(**POD, XDS_ROOT_FILE="", XDS_ENVOY=str(tmp_path / "envoy"))

        assert (status, err) == (1, f"xds: cannot execute {tmp_path}/envoy: Exec format error\n")

    async def test_too_many_probes_are_an_error(self):
        probes = {f"/app-health/{number}/livez": {"httpGet": {"port": 8080}} for number in range(500)}

        status, _, err = await proxy(**POD, XDS_ROOT_FILE="", XDS_APP_PROBES=json.dumps(probes))

        assert status == 1
        assert "more than 131071: this pod has too many probes" in err

    async def test_drain_without_a_sidecar_is_an_error(self):
        # No sidecar has its admin interface at this address, which `Loopback` gives to no pod.
        nowhere = {"INSTANCE_IP": "127.63.98.97", "XDS_INTERCEPTION_MODE": "NONE"}
        status, _, err = await proxy("--drain", **POD | nowhere)

        assert status == 1
        assert "no response from the sidecar at 127.63.98.97:15000: [Errno 111] Connection refused" in err


def write(file: Path, text: str) -> None:
    """Create a file at once: a file that is empty for a moment is another reason to wait."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


class TestWaiting:
    async def test_wait_times_out_and_names_missing_files(self, tmp_path):
        (tmp_path / "root").touch()
        status, _, err = await proxy(
            **POD,
            XDS_TOKEN_FILE=str(tmp_path / "token"),
            XDS_ROOT_FILE=str(tmp_path / "root"),
            XDS_WAIT_SECONDS="1",
            XDS_SDS=f"unix://{tmp_path}/root",
        )

        missing = (
            f"the service account token {tmp_path}/token does not exist yet and "
            f"the root certificate {tmp_path}/root is empty and "
            f"the SDS socket {tmp_path}/root does not exist yet"
        )
        assert status == 1
        assert err.splitlines() == [f"xds: waiting: {missing}", f"xds: {missing}, after 1 s"]

    async def test_wait_ends_when_all_files_exist(self, tmp_path):
        token, root = tmp_path / "token", tmp_path / "root"
        variables = POD | {
            "XDS_TOKEN_FILE": str(token),
            "XDS_ROOT_FILE": str(root),
            "XDS_SDS": f"unix://{tmp_path}/sds",
            "XDS_ENVOY": "/bin/echo",
        }
        served = socket.socket(socket.AF_UNIX)
        served.bind(str(tmp_path / "sds"))
        served.close()
        process = await asyncio.create_subprocess_exec(
            "env", "-i", *(f"{name}={value}" for name, value in variables.items()),
            sys.executable, "-m", "xds", "proxy",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd="/",
        )  # fmt: skip
        assert process.stderr
        async with asyncio.timeout(60):
            assert (await process.stderr.readline()).decode() == (
                f"xds: waiting: the service account token {token} does not exist yet and "
                f"the root certificate {root} does not exist yet\n"
            )
            write(token, "secret of the token")
            line = (await process.stderr.readline()).decode()
            assert line == f"xds: waiting: the root certificate {root} does not exist yet\n"
            write(root, "PEM")
            out, err = await process.communicate()

        assert (process.returncode, err) == (0, b"")
        words = out.decode().split()
        assert words[0] == "--config-yaml"
        assert " ".join(words[-9:]) == (
            "--concurrency 2 --log-level warning --drain-strategy immediate --drain-time-s 5 "
            "--disable-hot-restart"
        )
        assert b"secret of the token" not in out


@asynccontextmanager
async def running(
    pod: ClusterPod, variables: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *pod.place.command(*command(variables)), stdout=file, stderr=file, cwd="/"
        )
    try:
        await eventually(lambda: is_live(pod), timeout=60, what="Envoy answers")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def is_live(pod: ClusterPod) -> bool:
    return (await pod.client.get("http://127.0.0.1:15000/server_info")).ok


@pytest.mark.netns
@pytest.mark.envoy
class TestProcess:
    async def test_process_becomes_envoy(self, cluster: Cluster, tmp_path):
        pod = cluster.pod("web", "ns", sidecar=True)

        async with running(pod, environment(pod), tmp_path / "log") as process:
            assert Path(f"/proc/{process.pid}/exe").readlink().name == "envoy"
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert "\nUid:\t1337\t1337\t1337\t1337\n" in status
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 60) == 0

    async def test_envoy_is_not_ready_without_configuration(self, cluster: Cluster, tmp_path):
        """With Envoy's default of 30 s, a pod would become ready although it refuses everything."""
        pod = cluster.pod("web", "ns", sidecar=True)

        async with running(pod, environment(pod), tmp_path / "log"):
            sources = ("cluster_manager.cds", "listener_manager.lds")
            stats = (await pod.client.get("http://127.0.0.1:15000/stats")).text
            assert [f"{source}.init_fetch_timeout: 0" in stats for source in sources] == [True, True]
            ready = await pod.client.get("http://127.0.0.1:15000/ready")
            assert (ready.code, ready.text.strip()) == ("503", "PRE_INITIALIZING")
            dump = (await pod.client.get("http://127.0.0.1:15000/config_dump")).text
            assert dump.count('"initial_fetch_timeout": "0s"') == len(sources)

    async def test_read_only_file_system_is_sufficient(self, cluster: Cluster, tmp_path):
        pod = cluster.pod("web", "ns", sidecar=True)
        # All mounts become read-only, in the process's own mount namespace.
        script = (
            'while read -r _ where _; do mount -o remount,bind,ro "$where" 2>/dev/null; done < '
            '/proc/self/mounts;! touch /tmp/x 2>/dev/null || exit 9; exec "$@"'
        )
        argv = ["unshare", "--mount", "sh", "-c", script, "sh", *command(environment(pod))]
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *pod.place.command(*argv), stdout=log, stderr=log, cwd="/"
            )
        try:
            await eventually(lambda: is_live(pod), timeout=60, what=(tmp_path / "log").read_text())
            assert process.returncode is None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def test_rejected_bootstrap_exits_with_the_error_of_envoy(self, cluster: Cluster):
        pod = cluster.pod("web", "ns", sidecar=True)
        # Envoy accepts no files below /proc.
        variables = environment(pod, XDS_ROOT_FILE="/proc/version", XDS_TOKEN_FILE="/etc/hostname")

        status, _, err = await run(*pod.place.command(*command(variables)), cwd="/")

        assert status == 1
        assert "Invalid path: /proc/version" in err


@pytest.mark.parametrize(
    ("content", "sds", "kept"), [("key", "", True), ("", "", False), ("key", "unix:///run/spire.sock", False)]
)
def test_kubelet_keeps_the_certificate_if_the_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, sds: str, kept: bool
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(content)
    monkeypatch.setattr(starting, "CREDENTIAL_BUNDLE", str(bundle))
    sidecar, problems = read(POD | {"XDS_KEY_DIR": "/run/xds/key", "XDS_SDS": sds})
    assert not problems
    used = starting.with_pod_certificate(sidecar)
    assert used.has_pod_certificate == kept
    features = to_json_dict(used.bootstrap())["node"].get("client_features", [])
    assert ("xds-mesh.pod-certificate" in features) == kept
    assert ("xds-mesh.own-key" in features) == (not kept and not sds)
