"""The image: its content, its user, and each role in a container."""

from __future__ import annotations

import json
import re
import tarfile
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import yaml

from tests.compose.demo import BUILT, IMAGE, ROOT, Docker, until
from tests.compose.environment.base import NAME

pytestmark = pytest.mark.timeout(1800)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RESTRICTED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=65532:65532"]
"""Options like the Pod Security profile `restricted` and the control plane's Deployment."""
ALONE = [
    "--env=POD_NAME=web",
    "--env=POD_NAMESPACE=shop",
    "--env=INSTANCE_IP=127.0.0.1",
    "--env=XDS_ROOT_FILE=",
]
"""A sidecar that starts without a control plane."""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{20}")
UNWANTED = {".git", ".cache", ".venv", ".ci", "token-key", "root-key.pem"}
"""Files that a checkout may have beside the package."""


@pytest.fixture(scope="module")
def image(docker: Docker) -> dict:
    return json.loads(docker.run("image", "inspect", BUILT))[0]


def test_image_has_labels_and_an_unprivileged_user(image: dict) -> None:
    config = image["Config"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()
    }
    assert labels["title"] == "xds"
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert config["User"] == "1337:1337"  # a number, so that Kubernetes can verify runAsNonRoot
    assert config["Entrypoint"] == ["xds"]
    assert config["Healthcheck"]


def test_image_has_the_constrained_packages_and_is_small(docker: Docker, image: dict) -> None:
    listed = (
        "from importlib.metadata import distributions as d; print(*(f'{i.name}=={i.version}' for i in d()))"
    )
    done = docker.image("-c", listed, options=["--entrypoint=python"])
    pinned = [line.partition(";")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found, wanted = (
        {name.lower().replace("_", "-") for name in names} for names in (done.stdout.split(), pinned)
    )
    assert found - wanted == {f"{PROJECT['name']}=={PROJECT['version']}"}
    base = json.loads(docker.run("image", "inspect", NAME))[0]
    added = (image["Size"] - base["Size"]) / 1e6
    print(f"{added:.0f} MB more than {NAME}")
    assert added < 360


def test_image_has_no_build_tools(docker: Docker) -> None:
    unwanted = (
        "ls -d /src /opt/build /opt/xds/bin/pip /root/.cache /var/lib/apt/lists/*; command -v gcc make git"
    )
    # Only root can read root's folder.
    done = docker.image("-c", f"{unwanted}; echo looked", options=["--entrypoint=sh", "--user=0:0"])
    assert done.stdout == "looked\n"


def test_layers_have_no_secrets_or_foreign_files(docker: Docker, tmp_path: Path) -> None:
    archive, folder = tmp_path / "image.tar", tmp_path / "image"
    docker.run("save", "--output", str(archive), BUILT)
    with tarfile.open(archive) as saved:
        saved.extractall(folder, filter="data")
    (manifest,) = json.loads((folder / "manifest.json").read_text())
    files = 0
    for name in manifest["Layers"]:
        with tarfile.open(folder / name) as layer:
            for member in layer:
                path = PurePosixPath(member.name)
                assert not UNWANTED & {*path.parts}, path
                if member.isfile() and not path.is_relative_to("usr"):
                    files += 1
                    content = layer.extractfile(member).read()  # type: ignore[union-attr] -- it is a file
                    assert not PRIVATE_KEY.search(content), path
    assert files > 1000
    configured = (folder / manifest["Config"]).read_text()
    assert not re.search(r"(?i)(password|secret|token|authorization)[=:]", configured)


def test_image_has_the_commands_of_the_manifests(docker: Docker) -> None:
    files = (ROOT / "xds/mesh/kube/install").glob("*.yaml")
    objects = [each for file in files for each in yaml.safe_load_all(file.read_text()) if each]
    templates = [
        each["spec"]["template"]["spec"] for each in objects if each["kind"] in {"Deployment", "Job"}
    ]
    containers = [container for template in templates for container in template["containers"]]
    assert {container["image"] for container in containers} == {IMAGE}
    roles = {container["args"][0] for container in containers}
    for role in roles | {"conformance", "init", "proxy", "token"}:
        done = docker.image(role, "--help", options=RESTRICTED)
        assert f"xds {role} [OPTIONS]" in done.stdout, done.stderr
    # Commands that they call by name: preStop is `xds proxy --drain`.
    assert "POD_NAME" in docker.image("xds", "proxy", "--drain", options=["--entrypoint="]).stderr


def test_interception_setup_is_idempotent_and_reversible(docker: Docker) -> None:
    script = """
    xds init && iptables-save -t nat | grep -v '^#' > /tmp/once
    xds init && iptables-save -t nat | grep -v '^#' > /tmp/twice
    grep -c -- '--to-ports 15006' /tmp/once; diff /tmp/once /tmp/twice && echo same
    xds init --undo; iptables-save -t nat | grep -c ISTIO
    """
    rights = ["--user=0:0", "--cap-drop=ALL", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW"]
    done = docker.image("-c", script, options=[*rights, "--tmpfs=/tmp", "--entrypoint=sh"])
    assert done.stdout.split() == ["1", "same", "0"], done.stderr
    refused = docker.image("init")
    assert (refused.returncode, refused.stderr) == (
        1,
        "xds: must run as root (securityContext.runAsUser: 0)\n",
    )


@pytest.mark.parametrize(("signal", "status"), [("TERM", 0), ("KILL", 137)])
def test_sidecar_process_is_envoy(docker: Docker, signal: str, status: int) -> None:
    name = docker.run("run", "--detach", *ALONE, *RESTRICTED, "--user=1337:1337", BUILT, "proxy").strip()
    try:
        # Process 1 ignores SIGTERM until it has a handler.
        admin = ("exec", name, "curl", "-fs", "http://127.0.0.1:15000/server_info")
        until(lambda: docker.ask(*admin).returncode == 0, "Envoy answers")
        assert docker.run("exec", name, "cat", "/proc/1/comm") == "envoy\n"
        docker.run("kill", "--signal", signal, name)
        assert docker.run("wait", name, timeout=60).strip() == str(status)
    finally:
        docker.run("rm", "--force", name)


def test_sidecar_that_cannot_start_exits_with_the_reason(docker: Docker) -> None:
    done = docker.image("proxy")
    assert done.returncode == 1
    assert "POD_NAME: problem: is not set" in done.stderr


def test_control_plane_becomes_healthy(docker: Docker) -> None:
    options = ["--detach", *RESTRICTED, "--tmpfs=/mesh", "--health-interval=1s"]
    name = docker.run("run", *options, BUILT, "serve", "--manifests=/mesh").strip()
    try:
        health = ("inspect", "--format={{.State.Health.Status}}", name)
        until(lambda: docker.run(*health) == "healthy\n", "the control plane is healthy")
        docker.run("stop", "--time=20", name)
        assert docker.run("inspect", "--format={{.State.ExitCode}}", name) == "0\n"
    finally:
        docker.run("rm", "--force", name)
