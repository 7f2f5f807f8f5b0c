"""`xds status --rollout` against a control plane whose sidecars ACK when the test decides."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from tests.controlplane.rollouts import WITHIN, Plane, running
from tests.policy.world import rule
from tests.server.proxies import OneForAll
from tests.support.processes import started
from xds.cli import app
from xds.cli.rollout_output import FINISHED, NO_TRANSITIONS
from xds.server import XdsServer
from xds.snapshot import ENDPOINT, LISTENER

TCP = "Open TCP connections keep their mode until they close."
OPEN = "still accepts plaintext"


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    # Without capture_logs, structlog prints to the stdout that CliRunner captures.
    with capture_logs():
        async with running("DISABLE") as plane:
            yield plane


async def xds(*words: object, port: int) -> Result:
    arguments = ["status", "--rollout", *map(str, words), "--xds-address", f"127.0.0.1:{port}"]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, prog_name="xds")


async def until(pattern: str, *words: object, port: int) -> Result:
    """Run the command until the first line matches."""
    async with asyncio.timeout(WITHIN):
        while not re.fullmatch(pattern, (result := await xds(*words, port=port)).stdout.splitlines()[0]):
            await asyncio.sleep(0.01)
    return result


async def test_no_transitions_exits_with_0(plane: Plane):
    result = await xds(port=plane.server.port)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{NO_TRANSITIONS}\n", "")


async def test_one_line_per_service_then_notes(plane: Plane):
    port = plane.server.port
    plane.set_mode("STRICT", rule("shop", "web.shop.svc.cluster.local", "ISTIO_MUTUAL"))
    result = await until(
        rf"web\.shop: 0/2 endpoints mTLS, web-1 waiting for its listener \(\d+s; {OPEN}\), web-2 .+",
        port=port,
    )
    assert result.exit_code == 1
    _, held, blank, *notes = result.stdout.splitlines()
    assert re.fullmatch(r"DestinationRule shop/rule held until its servers accept it \(\d+s\)", held)
    assert (blank, notes[0]) == ("", TCP)
    assert "closes the remaining plaintext connections after the drain time" in notes[1]
    assert len(notes) == 2
    assert (await xds("-n", "shop", port=port)).exit_code == 1
    assert (await xds("-n", "elsewhere", port=port)).stdout == f"{NO_TRANSITIONS}\n"

    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)
    result = await until(NO_TRANSITIONS, port=port)
    assert result.exit_code == 0
    disabled = "Ports that stopped accepting plaintext since the control plane started: 2."
    _, blank, title, finished, *rest = result.stdout.splitlines()
    assert (blank, title) == ("", FINISHED)
    assert re.fullmatch(r"web\.shop: 2 endpoints from DISABLE to STRICT in .+, \d+s ago", finished)
    assert rest == ["", disabled]
    assert FINISHED not in (await xds("-n", "elsewhere", port=port)).stdout


async def test_transition_to_plaintext_has_no_lock_note(plane: Plane):
    plane.set_mode("PERMISSIVE")
    result = await until(
        r"web\.shop: 0/2 endpoints mTLS, web-1 waiting for its listener .+", port=plane.server.port
    )
    assert result.stdout.splitlines()[1:] == ["", TCP]


async def test_json_is_the_service_response(plane: Plane):
    plane.set_mode("STRICT")
    await until(r"web\.shop: .*", port=plane.server.port)
    result = await xds("-o", "json", port=plane.server.port)
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["plaintextDisabled"], answer["rules"]) == (0, [])
    [service] = answer["services"]
    waiting = service["waiting"][0]
    assert (waiting["pod"], waiting["waitingFor"], waiting["acceptsPlaintext"]) == ("web-1", "LISTENER", True)
    assert waiting["skipped"] is False


@pytest.mark.parametrize("output", ["table", "json"])
async def test_watch_prints_changes_until_ctrl_c(plane: Plane, output: str):
    command = ("status", "--rollout", "-w", "-o", output, "--xds-address", f"127.0.0.1:{plane.server.port}")
    lines: list[str] = []
    async with started(
        *(sys.executable, "-u", "-m", "xds", *command), stderr=asyncio.subprocess.PIPE
    ) as process:

        async def heard(part: str) -> None:
            while not lines or part not in lines[-1]:
                line = await process.stdout.readline()  # type: ignore[union-attr]
                assert line, lines
                lines.append(line.decode().rstrip("\n"))

        async with asyncio.timeout(3 * WITHIN):
            await heard(NO_TRANSITIONS if output == "table" else '"services": []')
            plane.set_mode("STRICT")
            await heard("web-2 waiting for one.shop")
            await plane.first.answer(LISTENER)
            await plane.one.answer(ENDPOINT)
            if output == "json":
                await heard('"services": []')
                assert all(json.loads(line)["time"] for line in lines)
            else:
                await heard("web.shop: done")
                await heard(NO_TRANSITIONS)
                assert lines.count(TCP) == 1
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
            assert (process.returncode, errors) == (0, b"")


async def test_server_without_the_service_exits_with_3():
    server = XdsServer(OneForAll(), "127.0.0.1:0", grace=0.2)
    await server.start()
    try:
        result = await xds(port=server.port)
        assert result.exit_code == 3
        assert (
            f"the server at 127.0.0.1:{server.port} does not implement xds.mesh.v1.Rollouts" in result.stderr
        )
    finally:
        await server.stop()


def test_rollout_rejects_a_proxy():
    result = CliRunner().invoke(app, ["status", "--rollout", "web-1.shop"], prog_name="xds")
    assert result.exit_code == 2
    assert "--rollout cannot be combined with PROXY" in result.stderr
