"""`xds config` with a real sidecar: what it is served, and the difference to what its Envoy uses."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
import yaml

from tests.support.controlplane import xds, xds_here
from tests.support.local import LocalMesh
from tests.support.manifests import destination_rule
from tests.support.waiting import eventually
from xds.codec import to_dict
from xds.mesh.envoy.translate import translate
from xds.snapshot import CLUSTER

pytestmark = pytest.mark.envoy

HOST = "web.ns.svc.cluster.local"
WEB = f"outbound|80||{HOST}"


@pytest.mark.parametrize("sotw", [True, False], ids=["sotw", "delta"])
async def test_served_configuration_is_printed_and_compared(loopback, tmp_path, sotw):
    async with LocalMesh(loopback, tmp_path, sotw=sotw) as mesh:
        web = mesh.pod("web", "ns")
        mesh.service("web", "ns", {"http": (80, 8080)})
        await mesh.start(web, may_reject=True)
        at = f"--xds-address={mesh.plane.address}"
        envoy = f"--envoy-admin={mesh.sidecar(web).admin.address}"

        table = await xds("config", "web.ns", at, "--type=clusters")
        row = next(line for line in table.splitlines() if WEB in line)
        assert row.split(maxsplit=3)[:2] == ["clusters", WEB]
        assert row.split(maxsplit=3)[3].startswith("Service ns/web (")
        text = await xds("config", "web.ns", at, "-o", "json")
        assert "PRIVATE KEY" not in text
        printed = json.loads(text)
        assert list(printed) == ["clusters", "endpoints", "listeners", "routes", "secrets"]
        facts = mesh.facts()
        pod = facts.pod("ns", "web")
        assert pod
        served = translate(facts, pod).of(CLUSTER).values()
        expected = {resource.name: to_dict(CLUSTER, resource.body) for resource in served}
        assert {cluster["name"]: cluster for cluster in printed["clusters"]} == expected
        assert {secret["name"] for secret in printed["secrets"]} == {"default", "ROOTCA"}

        one = yaml.safe_load(await xds("config", "web", "--type=clusters", "--name", WEB, "-o", "yaml", at))
        assert one == {"clusters": [expected[WEB]]}
        assert await xds("config", "web", "--diff=envoy", envoy, at) == "no differences\n"

        # Envoy uses it already before the control plane has read the ACK.
        await eventually(lambda: is_synced(at), what="the control plane has read the ACKs")

        rule = destination_rule("rule", "ns", HOST, "SIMPLE")
        rule["spec"]["trafficPolicy"]["tls"]["caCertificates"] = "/does/not/exist.pem"
        mesh.apply(rule)

        async def differs() -> str:
            output = await xds("config", "web", "--diff=envoy", envoy, at, may_be_no=True)
            return output if "/does/not/exist.pem" in output else ""

        lines = (await eventually(differs)).splitlines()
        assert f"--- CDS {WEB} (Envoy)" in lines
        assert f"+++ CDS {WEB} (served)" in lines
        assert any(line.startswith("+") and "/does/not/exist.pem" in line for line in lines)
        assert await xds("config", "web", "--type=listeners", "--diff=envoy", envoy, at) == "no differences\n"

        rejected = await eventually(
            lambda: states(at, "rejected"), what="the control plane has read the NACK"
        )
        assert "DestinationRule ns/rule (" in rejected[WEB]


async def states(at: str, state: str) -> dict[str, str]:
    """Return the resources of the sidecar in a state, and what they were made from."""
    rows = [re.split(" {2,}", line) for line in (await xds("config", "web", at)).splitlines()]
    return {row[1]: row[3] for row in rows if row[2] == state}


async def is_synced(at: str) -> bool:
    return not await states(at, "stale")


@pytest.mark.parametrize("sotw", [True, False], ids=["sotw", "delta"])
async def test_update_that_a_sidecar_has_not_answered_is_printed(loopback, tmp_path, sotw):
    async with LocalMesh(loopback, tmp_path, sotw=sotw) as mesh:
        web = mesh.pod("web", "ns")
        mesh.service("web", "ns", {"http": (80, 8080)})
        await mesh.start(web)
        at = f"--xds-address={mesh.plane.address}"
        await eventually(lambda: is_synced(at), what="the sidecar has ACKed all resources")

        async def is_unanswered() -> bool:
            return WEB in await states(at, "stale")

        with mesh.sidecar(web).suspended():
            mesh.pod("web-2", "ns", sidecar=False, labels={"app": "web"})
            await eventually(is_unanswered, what="the endpoint is not ACKed")
        await eventually(lambda: is_synced(at), what="the sidecar has ACKed the endpoint")


ERRORS = [
    (("nobody.ns",), 2, "proxy nobody.ns not found"),
    (("web", "--name=lost"), 2, "web.ns is not served a resource lost"),
    (("web", "--diff=envoy", "--envoy-admin=127.0.0.1:1"), 3, "cannot read Envoy's configuration at "),
    (("web", "--diff=envoy", "--type=secrets"), 2, "--diff envoy cannot compare secrets"),
    (("web", "--xds-address=127.0.0.1:1"), 3, "cannot connect to a control plane"),
]


async def failing(mesh, *words):
    """Return the exit status and the error of an `xds config` that prints nothing."""
    result = await xds_here("config", f"--xds-address={mesh.plane.address}", *words)
    assert result.stdout == "", result.stderr
    return result.exit_code, result.stderr


async def test_errors_have_a_message_and_status(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        await mesh.start(mesh.pod("web", "ns"))
        for words, status, error in ERRORS:
            code, message = await failing(mesh, *words)
            assert code == status, message
            assert error in message


ANSWERS = [
    ("200 OK", "{}", "the response is not a config dump; set --envoy-admin"),
    ("200 OK", "[1]", "the response is not a config dump; set --envoy-admin"),
    ("200 OK", '{"configs": [{"dynamic_listeners": [{"active_state": {}}]}]}', "is not a config dump"),
    ("200 OK", "<html>", "Expecting value"),
    ("403 Forbidden", '{"configs": []}', "HTTP status 403"),
]


async def test_diff_with_a_server_that_is_not_envoy_exits_with_3(loopback, tmp_path):
    answers = iter(ANSWERS)

    async def answer(reader, writer):
        status, body, _ = next(answers)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with LocalMesh(loopback, tmp_path) as mesh:
        await mesh.start(mesh.pod("web", "ns"))
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server:
            for *_, error in ANSWERS:
                code, message = await failing(mesh, "web", "--diff=envoy", f"--envoy-admin={host}:{port}")
                assert code == 3, message
                assert message.startswith(f"xds: cannot read Envoy's configuration at {host}:{port}: ")
                assert error in message
