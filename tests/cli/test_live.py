"""`xds reach`, `plan` and `describe` on a running control plane: the same answers as from its manifests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import Result

from tests.controlplane.rollouts import WITHIN, Plane, running
from tests.golden.cases import HERE, manifests
from tests.policy.world import peer, pod
from tests.support.controlplane import XDS, ControlPlane, xds_here
from tests.support.processes import started
from tests.support.waiting import eventually
from xds.mesh.controlplane import predictions
from xds.mesh.controlplane.problem_times import FoundProblem
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, MeshConfig, Problem
from xds.mesh.observe.edges import Client, EdgeKey, Reporter, Target, Traffic, TrafficMode

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    # Without capture_logs, structlog prints to the stdout that CliRunner captures.
    with capture_logs():
        async with running("PERMISSIVE") as plane:
            yield plane


async def xds(plane: Plane, *words: object) -> Result:
    return await xds_here(*words, "--xds-address", f"127.0.0.1:{plane.server.port}")


async def test_reach_of_a_running_control_plane(plane: Plane):
    result = await xds(plane, "reach")
    assert result.exit_code == 0, result.output
    clients, server = "shop/one, shop/web-1, shop/web-2", "PeerAuthentication shop/default"
    assert " ".join(result.stdout.splitlines()[1].split()) == (
        f"{clients} web.shop:80 2/2 mtls - auto-mtls {server}"
    )
    await plane.applied(pod("bare", "zoo", sidecar=False), peer("shop", "STRICT"))
    result = await xds(plane, "reach", "--only", "fails", "-o", "json")
    assert result.exit_code == 1
    (hop,) = json.loads(result.stdout)
    assert hop["clients"] == [{"namespace": "zoo", "accounts": [{"name": "bare", "pods": 1}]}]
    assert (hop["endpoints"], hop["ready"], hop["reason"]) == (2, 2, "server-requires-mtls")


async def test_reach_shows_observed_traffic_beside_the_prediction():
    traffic = Traffic()
    with capture_logs():
        async with running("PERMISSIVE", traffic) as plane:
            lines = (await xds(plane, "reach", "--from", "shop/one")).stdout.splitlines()
            assert [line.split()[3:5] for line in lines] == [["OUTCOME", "OBSERVED"], ["mtls", "-"]]
            for mode, requests in ((TrafficMode.MTLS, 1240), (TrafficMode.PLAINTEXT, 3)):
                key = EdgeKey(Client("shop", "one"), Target("shop", "web", 80), mode)
                traffic.add(key, Reporter.CLIENT, ("shop", "one"), requests=requests, now=time.time())
            text = (await xds(plane, "reach", "--from", "shop/one")).stdout
            assert "  mtls     1.2k/min mtls, 3/min plaintext  auto-mtls  " in text
            text = (await xds(plane, "reach", "--from", "one.shop", "--expand")).stdout
            assert text.count("  1.2k/min mtls, 3/min plaintext  ") == 2
            text = (await xds(plane, "explain", "one.shop", "web.shop")).stdout
            assert "1.2k/min mtls from shop/one, last " in text
            assert "3/min plaintext from shop/one, last " in text
            (hop,) = json.loads((await xds(plane, "reach", "--from", "shop/one", "-o", "json")).stdout)
            rates = {each["mode"]: each["requestsPerMinute"] for each in hop["observed"]["modes"]}
            assert rates == {"MTLS": 1240, "PLAINTEXT": 3}
            plane.controller.change(Change(config=MeshConfig(observe=False)))
            await eventually(lambda: not plane.controller.mesh.config.observe)
            assert "OBSERVED" not in (await xds(plane, "reach")).stdout
            (hop,) = json.loads((await xds(plane, "reach", "--from", "shop/one", "-o", "json")).stdout)
            assert "observed" not in hop


async def test_each_client_and_endpoint_of_a_running_control_plane(plane: Plane):
    result = await xds(plane, "reach", "--expand", "--from", "one.shop", "-o", "json")
    assert result.exit_code == 0
    assert sorted(item["endpoint"] for item in json.loads(result.stdout)) == ["web-1.shop", "web-2.shop"]
    result = await xds(plane, "reach", "-o", "wide", "--from", "shop/one")
    assert "2/2 (web-1.shop, web-2.shop)" in result.stdout or "2/2 (web-2.shop, web-1.shop)" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reach", "--from", "two.shop"), "pod two.shop not found (POD.NAMESPACE); did you mean "),
        (
            ("reach", "--to", "wep.shop"),
            "service wep.shop not found (SERVICE.NAMESPACE); did you mean web.shop?",
        ),
        (
            ("reach", "-n", "nowhere"),
            "no Service with a TCP port in namespace nowhere of the control plane's mesh",
        ),
        (("plan", "--delete", "Pod/shop/two"), "object Pod/shop/two not found (KIND/NS/NAME); did you mean"),
        (("describe", "pod", "web-3.shop"), "pod web-3.shop not found (POD.NAMESPACE); did you mean"),
        (("reach", "--set", "values.global.mtls.auto=false"), "--set requires --manifests or --kubernetes"),
    ],
)
async def test_wrong_names_get_suggestions(plane: Plane, words: tuple[str, ...], message: str):
    result = await xds(plane, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


async def test_strict_fails_for_a_problem_of_an_object(plane: Plane):
    assert (await xds(plane, "reach", "--strict")).exit_code == 0
    problem = Problem(
        where="PeerAuthentication shop/typo", what="selects no pod", subject="PeerAuthentication shop/typo"
    )
    plane.source.problems = [FoundProblem(problem, None)]
    result = await xds(plane, "reach", "--strict")
    assert (result.exit_code, result.stderr) == (1, "PeerAuthentication shop/typo: problem: selects no pod\n")


async def test_plan_for_a_running_control_plane(plane: Plane, tmp_path: Path):
    bare = pod("bare", "zoo", sidecar=False)
    await plane.applied(bare)
    await eventually(lambda: plane.controller.mesh.get(bare.ref))
    strict = tmp_path / "strict.yaml"
    strict.write_text(STRICT.replace("istio-system", "shop"))
    result = await xds(plane, "plan", "-f", strict)
    assert result.exit_code == 1, result.output
    row = result.stdout.splitlines()[1]
    assert row.startswith("breaks  zoo/bare")
    assert "add a sidecar to zoo/bare, or use PERMISSIVE in PeerAuthentication shop/default" in result.stdout
    strict.write_text(STRICT.replace(", namespace: istio-system", ""))
    assert (await xds(plane, "plan", "-f", strict)).exit_code == 0
    result = await xds(plane, "plan", "-f", strict, "--default-namespace", "shop")
    assert result.stdout.splitlines()[1] == row
    strict.write_text("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web}}")
    result = await xds(plane, "plan", "-f", strict, "--ignore-kind", "VirtualService")
    assert result.stderr == f"{strict}: notice: ignored: 1 VirtualService\n"
    # Nothing was applied.
    assert (await xds(plane, "reach")).exit_code == 0
    result = await xds(plane, "plan", "--delete", "PeerAuthentication/shop/default")
    assert result.exit_code == 0
    assert result.stdout.startswith("no connection changes\nNot considered: clients outside the mesh")


async def test_invalid_objects_are_not_planned(plane: Plane, tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(STRICT.replace("STRICT", "STRIKT"))
    result = await xds(plane, "plan", "-f", broken)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{broken}:5: problem: " in result.stderr
    assert "cannot plan the change: repair the problems of its objects first" in result.stderr


async def test_description_of_a_pod_contains_the_state_of_its_sidecar(plane: Plane):
    await plane.applied(pod("bare", "zoo", sidecar=False), peer("shop", "STRICT"))

    async def is_synced() -> Any:
        result = await xds(plane, "describe", "pod", "web-1.shop")
        assert result.exit_code == 1, result.output
        return "Sidecar:   web-1.shop: synced, has ACKed generation " in result.stdout and result.stdout

    text = await eventually(is_synced)
    assert "Unreachable for:  zoo/bare: the client sends plaintext" in text
    document = json.loads((await xds(plane, "describe", "pod", "bare.zoo", "-o", "json")).stdout)
    assert (document["sidecar"], "proxy" in document) == (False, False)


async def test_watch_prints_what_changes(plane: Plane):
    arguments = ("reach", "--watch", "-o", "json", f"--xds-address=127.0.0.1:{plane.server.port}")
    async with started(XDS, *arguments) as process:
        assert process.stdout
        async with asyncio.timeout(2 * WITHIN):
            first = json.loads(await process.stdout.readline())
            assert (first["outcome"], first["service"]) == ("mtls", "web.shop")
            plane.controller.change(Change(applied=(pod("bare", "zoo", sidecar=False),)))
            second = json.loads(await process.stdout.readline())
            assert (second["outcome"], second["clients"][0]["namespace"]) == ("plaintext", "zoo")


async def test_watch_survives_the_last_pod_of_an_account(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    looked: list[Mesh] = []
    reach = predictions.reach
    monkeypatch.setattr(predictions, "reach", lambda mesh, *more: looked.append(mesh) or reach(mesh, *more))
    arguments = (
        "reach",
        "--watch",
        "--from=shop/one",
        "-o",
        "json",
        f"--xds-address=127.0.0.1:{plane.server.port}",
    )
    one = pod("one", "shop")
    async with started(XDS, *arguments) as process:
        assert process.stdout
        async with asyncio.timeout(2 * WITHIN):
            first = await process.stdout.readline()
            plane.controller.change(Change(removed=(one.ref,)))
            await eventually(lambda: looked[-1].get(one.ref) is None, what="a round without the pod")
            plane.controller.change(Change(applied=(one,)))
            assert await process.stdout.readline() == first
            assert process.returncode is None


@pytest.mark.parametrize("case", ["base", "destination-rule", "peer-authentication"])
async def test_answers_are_the_same_as_from_manifests(case: str, tmp_path: Path):
    folder = tmp_path / "mesh"
    folder.mkdir()
    (folder / "in.yaml").write_text(manifests(HERE / case))
    strict = tmp_path / "strict.yaml"
    strict.write_text(STRICT)
    # Manifests have no observed traffic.
    async with ControlPlane(folder, tmp_path, "--observe=false") as plane:
        live, offline = f"--xds-address={plane.address}", f"--manifests={folder}"
        for words in (
            ("reach",),
            ("reach", "-o", "json"),
            ("reach", "-o", "wide"),
            ("reach", "--expand", "-o", "yaml"),
            ("plan", "-f", strict),
            ("plan", "-f", strict, "-o", "json"),
            ("plan", "-f", strict, "-o", "markdown"),
        ):
            results = [await xds_here(*words, source) for source in (offline, live)]
            assert results[0].stdout, words
            assert len({(result.exit_code, result.stdout) for result in results}) == 1, words
