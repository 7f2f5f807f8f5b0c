"""compose.yaml as Compose reads it, without an engine."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.compose.demo import EXAMPLE, IMAGE, until

pytestmark = pytest.mark.timeout(1800)  # Compose may have to be built first


@pytest.fixture(scope="module")
def config(client: dict[str, str]) -> dict:
    command = ["docker", "compose", "--profile=*", "config", "--format=json"]
    done = subprocess.run(command, cwd=EXAMPLE, env=client, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_containers_share_the_image_and_have_minimal_rights(config: dict) -> None:
    for name, service in config["services"].items():
        if name not in {"grpcurl", "prometheus", "grafana"}:
            assert (service["image"], service["pull_policy"]) == (IMAGE, "never")
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"], name
        assert not service.get("privileged")
        assert service.get("cap_add", []) == (["NET_ADMIN", "NET_RAW"] if name.endswith("-init") else []), (
            name
        )
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ())), name


def test_services_have_restart_policies_and_health_checks(config: dict) -> None:
    for name, service in config["services"].items():
        if not service.get("profiles"):
            assert service["restart"] == "always", name
            assert service["healthcheck"]["test"], name


def test_ports_are_published_on_loopback_only(config: dict) -> None:
    published = {
        name: [(port["host_ip"], port["target"]) for port in service["ports"]]
        for name, service in config["services"].items()
        if "ports" in service
    }
    assert published == {
        "control-plane": [("127.0.0.1", 15012), ("127.0.0.1", 15014)],
        "grafana": [("127.0.0.1", 3000)],
    }


def test_prometheus_scrapes_every_sidecar(config: dict) -> None:
    settings = yaml.safe_load((EXAMPLE / "monitoring/prometheus.yml").read_text())
    (sidecars,) = (job for job in settings["scrape_configs"] if job["job_name"] == "sidecars")
    scraped = {
        (entry["labels"]["pod"], target)
        for entry in sidecars["static_configs"]
        for target in entry["targets"]
    }
    services = config["services"]
    names = [name.removesuffix("-sidecar") for name in services if name.endswith("-sidecar")]
    addresses = {name: services[f"{name}-pod"]["networks"]["mesh"]["ipv4_address"] for name in names}
    assert scraped == {(name, f"{address}:15090") for name, address in addresses.items()}


def test_monitoring_mounts_files_that_exist(config: dict) -> None:
    for name in ("prometheus", "grafana"):
        for volume in config["services"][name]["volumes"]:
            assert Path(volume["source"]).is_file(), volume


def test_pods_have_the_addresses_of_their_manifests(config: dict) -> None:
    objects = [
        each for file in (EXAMPLE / "mesh").glob("*.yaml") for each in yaml.safe_load_all(file.read_text())
    ]
    pods = {f"{o['metadata']['name']}.{o['metadata']['namespace']}": o for o in objects if o["kind"] == "Pod"}
    services = config["services"]
    (subnet,) = config["networks"]["mesh"]["ipam"]["config"]
    for name, pod in pods.items():
        network = services[f"{name}-pod"]["networks"]["mesh"]
        assert network["ipv4_address"] == pod["status"]["podIP"]
        assert ipaddress.ip_address(network["ipv4_address"]) in ipaddress.ip_network(subnet["subnet"])
        assert network["aliases"] == [f"{pod['metadata']['labels']['app']}.{pod['metadata']['namespace']}"]
        members = {
            each for each, service in services.items() if service.get("network_mode") == f"service:{name}-pod"
        }
        if "security.istio.io/tlsMode" in pod["metadata"]["labels"]:
            assert members == {name, f"{name}-init", f"{name}-sidecar"}
            environment = services[f"{name}-sidecar"]["environment"]
            assert (environment["POD_NAME"], environment["POD_NAMESPACE"]) == tuple(name.split("."))
            assert (environment["INSTANCE_IP"], environment["SERVICE_ACCOUNT"]) == (
                pod["status"]["podIP"],
                pod["spec"]["serviceAccountName"],
            )
        else:
            assert members == {name}


def test_token_is_mounted_by_its_sidecar_and_its_writer(config: dict) -> None:
    mounted: dict[str, set[str]] = {}
    for name, service in config["services"].items():
        for volume in service.get("volumes", ()):
            if volume["type"] == "volume" and volume["source"] != "pods":
                mounted.setdefault(volume["source"], set()).add(name)
    pods = ("httpbin.full", "sleep.full", "httpbin.partial")
    # Only the services that need the signing keys mount them.
    assert mounted == {
        "state": {"control-plane", "tokens"},
        **{f"token-{pod}": {"tokens", f"{pod}-sidecar"} for pod in pods},
    }


@pytest.mark.netns
def test_recreated_network_is_not_mistaken_for_the_old_one(tmp_path: Path) -> None:
    """The kernel reuses a deleted network's number: the application would run without its rules."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    script, stub = tmp_path / "pod.sh", tmp_path / "xds"
    script.write_text((EXAMPLE / "pod.sh").read_text().replace("/pods/", f"{tmp_path}/"))
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    name = f"xds-pod-{os.getpid()}"

    def state_files() -> list[Path]:
        return [*tmp_path.glob("*.intercept")]

    def numbered(pod: list[str]) -> str:
        return subprocess.check_output([*pod[:4], "readlink", "/proc/self/ns/net"], text=True)

    @contextmanager
    def network() -> Iterator[list[str]]:
        subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            link = [
                "ip",
                "link",
                "add",
                "eth0",
                "netns",
                name,
                "type",
                "veth",
                "peer",
                "name",
                f"v{os.getpid()}",
            ]
            subprocess.run(link, check=True)
            yield ["ip", "netns", "exec", name, "sh", str(script)]
        finally:
            subprocess.run(["ip", "netns", "delete", name], check=True)
            # The kernel removes the other end a moment later.
            until(lambda: not Path(f"/sys/class/net/v{os.getpid()}").exists(), "the link is gone")

    state_of: dict[str, str] = {}
    """Network number -> recorded state of a deleted network."""
    for _ in range(50):
        with network() as pod:
            number = numbered(pod)
            file = next(iter(state_files()), None)
            if file and number in state_of:
                file.write_text(state_of[number])
                assert subprocess.run([*pod, "is", "intercept"], env=environment, check=False).returncode != 0
                return
            if file:
                file.unlink()
            running = subprocess.Popen([*pod, "intercept"], env=environment, start_new_session=True)
            try:
                until(lambda: bool(state_files()), "the interception is recorded")
                assert subprocess.run([*pod, "is", "intercept"], env=environment, check=False).returncode == 0
            finally:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
            state_of[number] = state_files()[0].read_text()
            # Without its link, the check has to stop the processes that are left in the network.
            subprocess.run(["ip", "-n", name, "link", "delete", "eth0"], check=True)
            left = [*pod, "check", "intercept", "true"]
            done = subprocess.run(
                ["unshare", "--pid", "--fork", "sh", "-c", 'trap "exit 7" TERM; "$@"; exit 0', "sh", *left],
                env=environment,
                check=False,
            )
            assert done.returncode == 7
    pytest.skip("the kernel gave every network another number")
