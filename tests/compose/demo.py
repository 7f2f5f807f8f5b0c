"""The demo in containers, under its own project name and ports."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/envoy/compose"
IMAGE = "xds:latest"
BUILT = "xds-test:latest"
"""Tag of the image that the tests build, so that an existing IMAGE is kept."""
PROJECT = "xds-test"
PATIENCE = 120.0
"""Time limit for the recovery of killed processes, in seconds."""
CURL = 'curl -s -m 5 -w "response code: %{http_code}\\n" http://$1:8000/headers'


class Docker:
    """The command `docker`, with an engine and Compose v2."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def run(self, *command: str, timeout: float = 600) -> str:
        """Run a command that must succeed, and return its output."""
        done = self.ask(*command, timeout=timeout)
        assert done.returncode == 0, f"docker {' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, *command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command and return its result."""
        return subprocess.run(
            ["docker", *command],
            cwd=EXAMPLE,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def image(self, *command: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command in a temporary container of our image."""
        return self.ask("run", "--rm", *options, BUILT, *command)


class Demo:
    """The demo that `docker compose up` started."""

    def __init__(self, docker: Docker, tls_port: int, admin_port: int) -> None:
        self.docker, self.tls_port, self.admin_port = docker, tls_port, admin_port

    def compose(self, *command: str) -> str:
        return self.docker.run("compose", *command)

    def execute(self, service: str, *command: str) -> str:
        return self.compose("exec", "-T", service, *command)

    def request(self, client: str = "sleep.full", server: str = "httpbin.full") -> str:
        """Send one request as in the Istio task; return its output, also after errors."""
        return self.docker.ask("compose", "exec", "-T", client, "sh", "-c", CURL, "sh", server).stdout

    def containers(self) -> dict[str, str]:
        """Return the containers' ids, by service."""
        listed = self.compose("ps", "-a", "--format", "{{.Service}} {{.ID}}")
        return dict(line.split() for line in listed.splitlines())

    def state(self, service: str) -> dict:
        return json.loads(self.docker.run("inspect", self.containers()[service]))[0]

    def kill(self, service: str) -> None:
        """Crash a service's first process. Docker does not restart a container after `docker kill`."""
        pid = self.state(service)["State"]["Pid"]
        options = ["--pid=host", "--user=0:0", "--entrypoint=sh", "--network=none"]
        done = self.docker.image("-c", f"kill -9 {pid}", options=options)
        assert done.returncode == 0, done.stderr

    def unwell(self) -> dict[str, str]:
        """Return the services that are not healthy, and their states."""
        listed = self.compose("ps", "-a", "--format", "{{.Service}} {{.State}}/{{.Health}}")
        return {
            service: how for service, how in map(str.split, listed.splitlines()) if how != "running/healthy"
        }


def until(check: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Wait until `check` returns something true. Checks call docker, which is slow."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
