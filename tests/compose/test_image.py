"""The image: what is in it and what is not, who runs it, and that each role does in it what it should."""

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
"""As the profile `restricted` of Pod Security has it, and the control plane's Deployment."""
ALONE = [
    "--env=POD_NAME=web",
    "--env=POD_NAMESPACE=shop",
    "--env=INSTANCE_IP=127.0.0.1",
    "--env=XDS_ROOT_FILE=",
]
"""A sidecar that finds no control plane, and starts nevertheless."""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{20}")
UNWANTED = {".git", ".cache", ".venv", ".ci", "token-key", "root-key.pem"}
"""Names of what a checkout has, or may have, beside the package."""


@pytest.fixture(scope="module")
def image(docker: Docker) -> dict:
    return json.loads(docker.run("image", "inspect", BUILT))[0]


def test_it_says_what_it_is_and_is_nobody_special(image: dict) -> None:
    config = image["Config"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()
    }
    assert labels["title"] == "xds"
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert config["User"] == "1337:1337"  # a number: Kubernetes can tell that it is not root
    assert config["Entrypoint"] == ["xds"]
    assert config["Healthcheck"]


def test_it_is_what_constraints_say_and_not_much(docker: Docker, image: dict) -> None:
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


def test_what_it_was_built_with_is_not_in_it(docker: Docker) -> None:
    unwanted = (
        "ls -d /src /opt/build /opt/xds/bin/pip /root/.cache /var/lib/apt/lists/*; command -v gcc make git"
    )
    # Only root can look into root's folder.
    done = docker.image("-c", f"{unwanted}; echo looked", options=["--entrypoint=sh", "--user=0:0"])
    assert done.stdout == "looked\n"


def test_no_layer_has_a_secret_or_what_is_not_of_the_package(docker: Docker, tmp_path: Path) -> None:
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


def test_what_our_manifests_run_is_in_it(docker: Docker) -> None:
    files = (ROOT / "xds/mesh/kube/install").glob("*.yaml")
    objects = [each for file in files for each in yaml.safe_load_all(file.read_text()) if each]
    templates = [
        each["spec"]["template"]["spec"] for each in objects if each["kind"] in {"Deployment", "Job"}
    ]
    containers = [container for template in templates for container in template["containers"]]
    assert {container["image"] for container in containers} == {IMAGE}
    for role in {container["args"][0] for container in containers} | {"init", "proxy", "token"}:
        done = docker.image(role, "--help", options=RESTRICTED)
        assert f"xds {role} [OPTIONS]" in done.stdout, done.stderr
    # What they call by name: preStop is `xds proxy --drain`.
    assert "POD_NAME" in docker.image("xds", "proxy", "--drain", options=["--entrypoint="]).stderr


def test_interception_is_set_up_once_however_often_and_taken_away(docker: Docker) -> None:
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
def test_a_sidecar_is_envoy_itself_to_signals_and_exit_status(
    docker: Docker, signal: str, status: int
) -> None:
    name = docker.run("run", "--detach", *ALONE, *RESTRICTED, "--user=1337:1337", BUILT, "proxy").strip()
    try:
        # Before it has a handler, a first process does not hear SIGTERM at all.
        admin = ("exec", name, "curl", "-fs", "http://127.0.0.1:15000/server_info")
        until(lambda: docker.ask(*admin).returncode == 0, "Envoy answers")
        assert docker.run("exec", name, "cat", "/proc/1/comm") == "envoy\n"
        docker.run("kill", "--signal", signal, name)
        assert docker.run("wait", name, timeout=60).strip() == str(status)
    finally:
        docker.run("rm", "--force", name)


def test_a_sidecar_that_cannot_start_says_why_and_ends(docker: Docker) -> None:
    done = docker.image("proxy")
    assert done.returncode == 1
    assert "POD_NAME: problem: is not set" in done.stderr


def test_the_control_plane_is_healthy_once_it_serves(docker: Docker) -> None:
    options = ["--detach", *RESTRICTED, "--tmpfs=/mesh", "--health-interval=1s"]
    name = docker.run("run", *options, BUILT, "serve", "--manifests=/mesh").strip()
    try:
        health = ("inspect", "--format={{.State.Health.Status}}", name)
        until(lambda: docker.run(*health) == "healthy\n", "the control plane is healthy")
        docker.run("stop", "--time=20", name)
        assert docker.run("inspect", "--format={{.State.ExitCode}}", name) == "0\n"
    finally:
        docker.run("rm", "--force", name)
