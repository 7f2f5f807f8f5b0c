"""Compose v2: the installed one, or else one built with Go into .cache/. Some distributions have only v1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.compose.environment import MissingError
from tests.kubernetes.environment.go_programs import BuildError, GoProgram

_MODULE = "github.com/docker/compose/v2"
COMPOSE = GoProgram("docker-compose", _MODULE, "v2.40.3", "cmd", f"{_MODULE}/internal.Version")
HOW = (
    "on Debian 13, Ubuntu 24.04 and newer `apt-get install docker-compose-v2` or `docker-compose`, "
    "or install Go 1.24 or newer, with which the tests build it in two minutes"
)


def configured(folder: Path) -> dict[str, str]:
    """Return the environment in which `docker compose` is Compose v2.

    Args:
        folder: where to put Docker's configuration. The user's is not read, because it may contain
            credentials.

    Raises:
        MissingError: Compose v2 is not installed and cannot be built.
    """
    environment = {**os.environ, "DOCKER_CONFIG": str(folder)}
    if not shutil.which("docker"):
        raise MissingError(
            "needs the command docker (Debian: apt-get install docker.io, and docker-cli where there is such "
            "a package)"
        )
    if _version(environment) < 2:
        plugin = folder / "cli-plugins/docker-compose"
        plugin.parent.mkdir()
        plugin.symlink_to(_built())
        assert _version(environment) >= 2
    return environment


def _version(environment: dict[str, str]) -> int:
    command = ["docker", "compose", "version", "--format=json"]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if asked.returncode:
        return 0
    version: str = json.loads(asked.stdout)["version"]
    # A build without a version prints `dev`, which is not comparable.
    major = version.lstrip("v").split(".")[0]
    return int(major) if major.isdecimal() else 0


def _built() -> Path:
    """Return the built plugin, or build it."""
    try:
        return COMPOSE.build()
    except BuildError as error:
        raise MissingError(f"needs Compose v2: {HOW}; {error}") from error
