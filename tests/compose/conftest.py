"""The demo in containers. Without Docker, its tests skip and say how to get it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests.compose.demo import BUILT, EXAMPLE, PROJECT, Demo, Docker
from tests.compose.environment import REQUIRED, MissingError, base, engine, plugin
from xds.demo.stage import free_ports


@pytest.fixture(scope="session")
def client() -> Iterator[dict[str, str]]:
    """The environment in which `docker compose` is Compose v2; there may be no engine."""
    with tempfile.TemporaryDirectory(prefix="xds-docker-") as folder:
        try:
            environment = plugin.configured(Path(folder))
        except MissingError as missing:
            _lack(missing)
        yield environment


@pytest.fixture(scope="session")
def docker(client: dict[str, str]) -> Iterator[Docker]:
    """An engine that has our image, built from the current Dockerfile."""
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(engine.running(client))
            stack.enter_context(base.provided(environment))
        except MissingError as missing:
            _lack(missing)
        docker = Docker({**environment, "XDS_IMAGE": BUILT})
        stack.callback(docker.ask, "image", "rm", "--force", BUILT)
        docker.run("compose", "build", "--quiet", timeout=1200)
        yield docker


@pytest.fixture(scope="session")
def demo(docker: Docker) -> Iterator[Demo]:
    """The demo, shared by all tests: each leaves it healthy."""
    ports = free_ports(2)
    names = {"XDS_TLS_PORT": str(ports[0]), "XDS_ADMIN_PORT": str(ports[1]), "COMPOSE_PROJECT_NAME": PROJECT}
    demo = Demo(Docker({**docker.environment, **names}), *ports)
    try:
        demo.compose("up", "--detach", "--wait")
        yield demo
    finally:
        print(demo.compose("logs", "--no-color", "--tail=30", "control-plane", "tokens"))
        demo.compose("down", "--volumes", "--timeout=5")
        for name in ("policy.yaml", "destination-rule.yaml"):
            (EXAMPLE / "mesh" / name).unlink(missing_ok=True)


def _lack(missing: MissingError) -> NoReturn:
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set: {missing}")
    pytest.skip(str(missing))
