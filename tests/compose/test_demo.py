"""The demo in containers: it plays Istio's task, loses nothing when the control plane is away, and heals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.compose.demo import CURL, EXAMPLE, PATIENCE, PROJECT, Demo, until
from xds.demo.play import STEPS

pytestmark = pytest.mark.timeout(1800)

POD = "httpbin.full"
ROOT_CERTIFICATE = "/var/lib/xds/root-cert.pem"
MUTUAL = "spiffe://cluster.local/ns/full/sa/sleep"


def test_the_play_matches_the_page(demo: Demo) -> None:
    played = subprocess.run(
        [EXAMPLE / "play"],
        env=demo.docker.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    print(played.stdout)
    assert played.returncode == 0, played.stderr
    assert [
        f"{number}. {step.name}: {step.what}" in played.stdout for number, step in enumerate(STEPS, 1)
    ] == [True] * len(STEPS)
    assert f"matches the page: {len(STEPS)} steps" in played.stdout
    assert not [*(EXAMPLE / "mesh").glob("policy*"), *(EXAMPLE / "mesh").glob("destination-rule*")]


def test_sidecars_say_what_the_locks_of_the_play_ended(demo: Demo) -> None:
    def said() -> str:
        return demo.docker.ask("compose", "exec", "-T", "control-plane", "xds", "status", "--rollout").stdout

    until(lambda: "still drain" not in (told := said()) and "Locked since" in told, "all have drained")
    assert "plaintext connections or responses.\n" in said()  # And none could not be asked.


def test_a_control_plane_that_restarts_costs_no_request(demo: Demo) -> None:
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
def test_whatever_of_a_pod_is_killed_heals(demo: Demo, pod: str, part: str) -> None:
    service = f"{pod}{part}"
    killed = demo.state(service)["State"]["StartedAt"]
    demo.kill(service)
    until(lambda: demo.state(service)["State"]["StartedAt"] != killed, f"{service} is started again")
    until(lambda: all(MUTUAL in demo.request() for _ in range(3)), "requests are sent with mutual TLS again")
    until(lambda: not demo.unwell(), f"all are well, not {demo.unwell()}")
    assert intercepted(demo, "httpbin.full")
    assert intercepted(demo, "sleep.full")


def test_a_pod_without_a_sidecar_heals_too(demo: Demo) -> None:
    demo.kill("httpbin.legacy-pod")
    until(lambda: "200" in demo.request("sleep.legacy", "httpbin.legacy"), "it answers again")
    until(lambda: not demo.unwell(), "all are well")


def test_tokens_come_back_and_only_a_sidecar_can_read_its_own(demo: Demo) -> None:
    demo.kill("tokens")
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


def test_the_root_survives_that_all_is_taken_down(demo: Demo) -> None:
    before = demo.execute("control-plane", "cat", ROOT_CERTIFICATE)
    demo.compose("down", "--timeout=5")
    demo.compose("up", "--detach", "--wait")
    assert demo.execute("control-plane", "cat", ROOT_CERTIFICATE) == before
    assert MUTUAL in demo.request()


def test_ports_of_this_machine_show_health_metrics_and_xds_to_who_proves_who_it_is(
    demo: Demo, tmp_path: Path
) -> None:
    with urlopen(f"http://127.0.0.1:{demo.admin_port}/metrics") as answer:
        assert b"\nxds_" in answer.read()
    roots = tmp_path / "roots.pem"
    roots.write_text(demo.execute("control-plane", "cat", ROOT_CERTIFICATE))
    issue = ("xds", "token", "--state-dir=/var/lib/xds")
    admin = demo.execute("control-plane", *issue, "--service-account=ops/admin").strip()
    sidecar = demo.execute("control-plane", *issue, "--manifests=/mesh", "sleep.full").strip()
    assert "xds.mesh.v1.Proxies" in grpcurl(demo, roots, admin, "list").stdout
    assert "PermissionDenied" in grpcurl(demo, roots, sidecar, "list").stderr
    assert "Unauthenticated" in grpcurl(demo, roots, "", "list").stderr
    asked = (EXAMPLE / "endpoints.json").read_text()
    method = "envoy.service.endpoint.v3.EndpointDiscoveryService/FetchEndpoints"
    told = grpcurl(demo, roots, sidecar, method, reflected_to=admin, data=asked)
    assert '"tlsMode":"istio"' in told.stdout, told.stderr


def test_taken_down_with_its_volumes_nothing_is_left(demo: Demo) -> None:
    demo.compose("down", "--volumes", "--timeout=5")
    mine = f"--filter=label=com.docker.compose.project={PROJECT}"
    for listing in (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q")):
        assert demo.docker.run(*listing, mine) == ""
    played = subprocess.run(
        [EXAMPLE / "play"], env=demo.docker.environment, capture_output=True, text=True, check=False
    )
    assert (played.returncode, played.stdout) == (2, "")
    assert "play: the demo does not run: docker compose up" in played.stderr


@contextmanager
def traffic(demo: Demo) -> Iterator[list[str]]:
    """Send requests from sleep.full without a pause; afterwards the list has their codes."""
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
    """Return how many sidecars have all that they should."""
    done = demo.docker.ask("compose", "exec", "-T", "control-plane", "xds", "status")
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    return len({line[0] for line in lines}) if all(line[3] == "synced" for line in lines) else 0


def intercepted(demo: Demo, pod: str) -> bool:
    """Whether the rules are in the network that the pod has now."""
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
