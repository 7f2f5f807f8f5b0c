"""`xds plan --observed`, `xds plan --replay` and `xds observe` of a running control plane."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from tests.cli import commands
from tests.controlplane.rollouts import Plane, running
from tests.support.waiting import eventually
from xds.cli import app
from xds.mesh.model.objects import Change, MeshConfig
from xds.mesh.observe.edges import Client, EdgeKey, Reporter, Target, TrafficMode

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
DAY = 86400.0


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    # Without capture_logs, structlog prints to the stdout that CliRunner captures.
    with capture_logs():
        async with running("PERMISSIVE") as plane:
            yield plane


@pytest.fixture
def strict(tmp_path: Path) -> Path:
    path = tmp_path / "strict.yaml"
    path.write_text(STRICT)
    return path


async def plan(plane: Plane, strict: Path, *words: str) -> Result:
    return await xds(plane, "plan", "-f", str(strict), *words)


def observe_since(plane: Plane, seconds: float) -> None:
    plane.reports._started = plane.controller.observe_since = time.time() - seconds


def send_plaintext(plane: Plane, seconds_ago: float) -> None:
    send(plane, Client("legacy", "cron"), TrafficMode.PLAINTEXT, seconds_ago)


def send(plane: Plane, client: Client, mode: TrafficMode, seconds_ago: float) -> None:
    edge, now = EdgeKey(client, Target("shop", "web", 80), mode), time.time() - seconds_ago
    plane.reports.traffic.add(edge, Reporter.SERVER, ("shop", "web-1"), requests=1, now=now)


async def xds(plane: Plane, *words: str) -> Result:
    arguments = [*words, "--xds-address", f"127.0.0.1:{plane.server.port}"]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, prog_name="xds")


async def test_client_that_sent_plaintext_is_named(plane: Plane, strict: Path):
    observe_since(plane, 8 * DAY)
    send_plaintext(plane, 3 * DAY)
    result = await plan(plane, strict, "--observed", "7d")
    assert (result.exit_code, result.stderr) == (1, "")
    assert [line.split() for line in result.stdout.splitlines()[2:4]] == [
        ["CLIENT", "TARGET", "MODE", "FIRST", "SEEN", "LAST", "SEEN"],
        ["legacy/cron", "web.shop:80", "plaintext", "3d", "ago", "3d", "ago"],
    ]
    assert result.stdout.endswith("not safe to lock: plaintext traffic of legacy/cron was observed\n")

    result = await plan(plane, strict, "--observed", "2d", "-o", "markdown")
    assert result.exit_code == 0, result.output
    assert "**safe to lock: no plaintext traffic was observed for 2 days**" in result.stdout
    result = await plan(plane, strict, "--observed", "7d", "-o", "json")
    observation = json.loads(result.stdout)["observation"]
    assert (result.exit_code, observation["safe"], observation["plaintext"][0]["client"]) == (
        1,
        False,
        "cron",
    )
    assert observation["requested"] == "604800s"
    result = await plan(plane, strict, "--observed", "7d", "-o", "markdown")
    assert "| legacy/cron | web.shop:80 | plaintext | 3d ago | 3d ago |" in result.stdout


async def test_clients_that_are_no_pods_are_explained(plane: Plane, strict: Path):
    observe_since(plane, 8 * DAY)
    addresses = ("127.0.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")
    now = time.time()
    for client in (*(Client("", address) for address in addresses), Client("legacy", "cron")):
        edge = EdgeKey(client, Target("shop", "web", 80), TrafficMode.PLAINTEXT)
        plane.reports.traffic.add(edge, Reporter.SERVER, ("shop", "web-1"), requests=1, now=now)
    notes = [
        "127.0.0.1: a process in the server's own pod or on its machine, such as a port-forward",
        "192.0.2.1, 192.0.2.2, 192.0.2.3 and 1 more: no pod: a node, or a client outside the mesh",
    ]
    planned = await plan(plane, strict, "--observed", "7d")
    assert sorted(planned.stderr.splitlines()) == notes
    observed = await xds(plane, "observe")
    assert (observed.exit_code, sorted(observed.stderr.splitlines())) == (0, notes)


async def test_short_observation_is_not_safe(plane: Plane, strict: Path):
    observe_since(plane, 3 * 3600)
    result = await plan(plane, strict, "--observed", "7d")
    assert (result.exit_code, result.stderr) == (1, "xds: observed for only 3h of 7d\n")
    assert "not known to be safe: observed for only 3h of 7d" in result.stdout
    assert (await plan(plane, strict, "--observed", "2h")).exit_code == 0
    assert (await plan(plane, strict)).exit_code == 0


async def test_dropped_reports_are_not_safe(plane: Plane, strict: Path):
    observe_since(plane, 8 * DAY)
    plane.reports.last_dropped = time.time() - 3600
    result = await plan(plane, strict, "--observed", "2h")
    assert (result.exit_code, result.stderr) == (
        1, "xds: reports of sidecars were dropped, the last 1h ago\n"
    )  # fmt: skip
    assert (await plan(plane, strict, "--observed", "30m")).exit_code == 0


async def test_disabled_observation_is_an_error_and_starts_anew(plane: Plane, strict: Path):
    observe_since(plane, 8 * DAY)

    async def apply(*, observe: bool) -> None:
        plane.controller.change(Change(config=MeshConfig(observe=observe)))
        await eventually(lambda: plane.controller.mesh.config.observe is observe)

    await apply(observe=False)
    result = await plan(plane, strict, "--observed", "1h")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "observation is disabled: start xds serve with --observe=true" in result.stderr
    await apply(observe=True)
    result = await plan(plane, strict, "--observed", "1h")
    assert result.exit_code == 1
    assert "observed for only " in result.stderr


@pytest.mark.parametrize("text", ["7 days", "soon", "0", "100ms"])
async def test_invalid_duration_is_wrong_usage(plane: Plane, strict: Path, text: str):
    result = await plan(plane, strict, "--observed", text)
    assert (result.exit_code, "--observed" in result.stderr) == (2, True)


def test_manifests_have_no_observed_traffic(tmp_path: Path, strict: Path):
    folder = commands.write_folder(tmp_path, all=commands.WEB)
    result = commands.xds("plan", "--manifests", folder, "-f", strict, "--observed", "7d")
    assert result.exit_code == 2
    assert "--observed requires a running control plane" in result.stderr


async def test_replay_of_what_the_control_plane_has_observed(plane: Plane, strict: Path):
    observe_since(plane, 8 * DAY)
    send(plane, Client("shop", "web"), TrafficMode.MTLS, 6 * DAY)
    send_plaintext(plane, 3 * DAY)
    result = await plan(plane, strict, "--replay", "7d", "-o", "json")
    found = json.loads(result.stdout)["replay"]
    assert (result.exit_code, found["flows"], found["safe"]) == (1, "2", False)
    result = await plan(plane, strict, "--replay", "2d", "-o", "json")
    found = json.loads(result.stdout)["replay"]
    assert (found["flows"], "no traffic was recorded" in found["gaps"]) == ("0", True)


async def test_short_observation_is_not_safe_to_replay(plane: Plane, strict: Path):
    observe_since(plane, 3 * 3600)
    for requested, expected in (
        ("7d", ["observed for only 3h of 7d"]),
        ("2h", []),
        ("30d", ["traffic is remembered for only 7d"]),
    ):
        result = await plan(plane, strict, "--replay", requested, "-o", "json")
        gaps = [gap for gap in json.loads(result.stdout)["replay"]["gaps"] if " for only " in gap]
        assert gaps == expected


async def test_traffic_of_a_period(plane: Plane):
    observe_since(plane, 8 * DAY)
    send(plane, Client("shop", "web"), TrafficMode.MTLS, 6 * DAY)
    send_plaintext(plane, 3600)

    async def clients(*words: str) -> list[str]:
        return [line.split()[0] for line in (await xds(plane, "observe", *words)).stdout.splitlines()[1:]]

    assert await clients() == ["legacy/cron"]
    assert await clients("--since", "7d") == ["legacy/cron", "shop/web"]
    assert await clients("--since", "7d", "-n", "legacy") == ["legacy/cron"]
    assert await clients("--since", "7d", "--plaintext") == ["legacy/cron"]
    assert await clients("--since", "1m") == []
    assert (await xds(plane, "observe", "--since", "1m")).stdout == "no traffic was reported in the last 1m\n"
    for words, message in (
        (("--since", "8d"), "xds: --since: traffic is remembered for only 7d\n"),
        (("--denied", "--since", "25h"), "xds: --since: denied requests are remembered for only 1d\n"),
    ):
        result = await xds(plane, "observe", *words)
        assert (result.exit_code, result.stderr) == (2, message)
