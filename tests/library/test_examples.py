"""The programs of examples/library, with gRPC's own xDS client and a real Envoy."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest
import yaml

from tests.library.programs import EXAMPLES, TIMEOUT, Program, running
from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.loopback import free_port


async def test_grpc_finds_the_backend_of_the_api_listener():
    async with running("api_listener.py", "127.0.0.1:0") as server:
        port = (await server.wait_for(r"serving xds:///svc on 127\.0\.0\.1:(\d+)"))[1]
        async with running("client.py", f"127.0.0.1:{port}") as client:
            await client.wait_for("^xds:///svc is SERVING$")
            for name in ("svc", "svc-routes", "backends", "backends"):
                await server.wait_for(f"^client-1 ACKed {name}$")
            assert await client.process.wait() == 0


async def bootstrap(program: Program) -> dict[str, Any]:
    """Return the bootstrap of the example, for the port at which a program waits for an Envoy."""
    port = (await program.wait_for(r"waiting for an Envoy on 127\.0\.0\.1:(\d+)"))[1]
    made = yaml.safe_load((EXAMPLES / "envoy.yaml").read_text())
    made["admin"]["address"]["socket_address"]["port_value"] = free_port()
    (xds,) = made["static_resources"]["clusters"]
    (endpoint,) = xds["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"]["socket_address"]["port_value"] = int(port)
    return made


@pytest.mark.envoy
async def test_front_proxy_balances_over_both_apps(tmp_path):
    port = free_port()
    async with (
        running("front_proxy.py", "127.0.0.1:0", str(port)) as program,
        EnvoyProcess("envoy-1", await bootstrap(program), tmp_path),
    ):
        for resource in (
            "Cluster apps",
            "ClusterLoadAssignment apps",
            "Listener http",
            "RouteConfiguration routes",
        ):
            await program.wait_for(f"^envoy-1 ACKed {resource}$")
        answers = {answer.text for answer in await Client().gets(f"http://127.0.0.1:{port}/", 20)}
        assert answers == {"a\n", "b\n"}


@pytest.mark.envoy
async def test_envoy_gets_a_route_every_second(tmp_path):
    async with (
        running("route_every_second.py", "127.0.0.1:0", "0") as program,
        EnvoyProcess("envoy-1", await bootstrap(program), tmp_path) as envoy,
    ):
        await program.wait_for("^envoy-1 subscribed to routes$")
        client = Client()
        for number in (1, 2, 3):
            await program.wait_for(f"^added /{number}: ACKed$")
            (listener,) = (await envoy.admin.json("/listeners?format=json"))["listener_statuses"]
            at = listener["local_address"]["socket_address"]["port_value"]
            answer = await client.get(f"http://127.0.0.1:{at}/{number}")
            assert (answer.code, answer.text) == ("200", f"this is route {number}\n")
        assert (await client.get(f"http://127.0.0.1:{at}/99")).code == "404"


@pytest.mark.parametrize("name", ["api_listener.py", "front_proxy.py", "route_every_second.py"])
async def test_they_end_quietly_when_they_are_interrupted(name):
    async with running(name, "127.0.0.1:0") as program:
        await program.wait_for(r"on 127\.0\.0\.1:\d+")
        program.process.send_signal(signal.SIGINT)
        rest, _ = await asyncio.wait_for(program.process.communicate(), TIMEOUT)
        assert (program.process.returncode, rest.decode()) == (0, "")


def test_the_envoy_of_the_example_asks_where_the_programs_serve():
    """The address in the file, in the programs and in their documentation is the same."""
    for name in ("api_listener.py", "client.py", "front_proxy.py", "route_every_second.py"):
        assert "127.0.0.1:18000" in (EXAMPLES / name).read_text()
    text = (EXAMPLES / "envoy.yaml").read_text()
    assert "address: 127.0.0.1, port_value: 18000" in text
