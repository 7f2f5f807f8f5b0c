"""`xds wait` and `xds problems` against a control plane whose sidecars ACK when the test decides."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from tests.controlplane.rollouts import WITHIN, Plane, running
from tests.policy.world import HTTP, meta, peer, pod, rule, service
from tests.sources.fake_apiserver import FakeApiServer
from xds.cli import app
from xds.mesh.controlplane import objects_service
from xds.mesh.controlplane.absence import Absences, Absent
from xds.mesh.controlplane.problem_times import FoundProblem
from xds.mesh.model.objects import Fact, Problem, Ref, Service, Sidecar
from xds.mesh.sources.report import ReadObject
from xds.mesh.v1 import objects_pb2 as pb
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

POLICY = "PeerAuthentication/shop/default"
RULE = "DestinationRule/shop/rule"
IN_FORCE = "PeerAuthentication shop/default: in force, acked by 3 of 3 sidecars\n"


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    # Without capture_logs, structlog prints to the stdout that CliRunner captures.
    with capture_logs():
        async with running("DISABLE") as plane:
            yield plane


async def xds(*words: object, port: int, command: str = "wait") -> Result:
    arguments = [command, *map(str, words), "--xds-address", f"127.0.0.1:{port}"]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, prog_name="xds")


async def told(plane: Plane, words: tuple[object, ...], *texts: str) -> Result:
    """Run the command until it prints all texts. Its timeout may pass before a busy machine has the state."""
    async with asyncio.timeout(2 * WITHIN):
        while True:
            result = await xds(*words, port=plane.server.port)
            if all(text in result.stderr for text in texts):
                return result


async def test_object_in_force_exits_with_0(plane: Plane):
    result = await xds(POLICY, "--resource-version=1", port=plane.server.port)
    assert (result.exit_code, result.stdout, result.stderr) == (0, IN_FORCE, "")
    result = await xds("peerauthentication/shop/default", port=plane.server.port)
    assert (result.exit_code, result.stdout) == (0, IN_FORCE)
    assert "checked resourceVersion 1; to wait for a change" in result.stderr


async def test_wait_ends_once_the_transition_has_ended(plane: Plane):
    plane.set_mode("STRICT")
    waits = asyncio.create_task(xds(POLICY, port=plane.server.port))
    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)
    async with asyncio.timeout(WITHIN):
        result = await waits
    assert (result.exit_code, result.stdout) == (0, IN_FORCE)
    assert not plane.controller.rollouts.rollout.is_in_progress


async def test_timeout_names_lagging_sidecars_and_transitions(plane: Plane):
    plane.set_mode("STRICT")
    lagging = ("acked by 1 of 3 sidecars", "web-1.shop:8080 waiting for its listener")
    result = await told(plane, (POLICY, "--timeout=1500ms"), *lagging)
    assert (result.exit_code, result.stdout) == (1, "")
    first, *lines = result.stderr.splitlines()
    assert first == "xds: PeerAuthentication shop/default: timed out after 1500ms: acked by 1 of 3 sidecars"
    assert set(lines[:2]) == {"  web-1.shop waiting for LDS", "  one.shop waiting for EDS"}
    assert any(line.startswith("  web-1.shop:8080 waiting for its listener") for line in lines)
    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)


@pytest.mark.parametrize("policy", [peer("shop", None), peer("shop", "DISABLE", name="default", app="other")])
async def test_policy_that_no_longer_decides_waits_for_its_former_ports(plane: Plane, policy: Fact):
    plane.first.hold(LISTENER)
    plane.one.hold(ENDPOINT)
    plane.apply(policy)
    result = await told(plane, (POLICY, "--timeout=1s"), "  web-1.shop:8080 waiting for its listener\n")
    assert (result.exit_code, result.stdout) == (1, "")
    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)
    async with asyncio.timeout(WITHIN):
        assert (await xds(POLICY, port=plane.server.port)).exit_code == 0


async def test_port_without_room_in_the_plan_is_waited_for(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    rollout, key = plane.controller.rollouts.rollout, (Ref("Pod", "shop", "web-1"), 8080)
    monkeypatch.setattr("xds.mesh.rollout.rollout.MAX_PORTS", 0)
    rollout.pending.add(key)
    assert not rollout.has_unplanned_changes
    result = await told(plane, (POLICY, "--timeout=1s"), "  web-1.shop:8080 waiting for the API server")
    assert result.exit_code == 1
    rollout.pending.clear()
    assert (await xds(POLICY, port=plane.server.port)).exit_code == 0


async def test_progress_is_printed_on_a_terminal(plane: Plane):
    plane.set_mode("STRICT")
    terminal, side = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "xds", "wait", POLICY),
            *("--xds-address", f"127.0.0.1:{plane.server.port}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=side,
        )
        printed = ""
        while "web-1.shop waiting for LDS" not in printed:
            printed += (await asyncio.to_thread(os.read, terminal, 4096)).decode()
        assert printed.startswith("xds: PeerAuthentication shop/default: ")
        await plane.first.answer(LISTENER)
        await plane.one.answer(ENDPOINT)
        async with asyncio.timeout(WITHIN):
            out, _ = await process.communicate()
        assert (process.returncode, out.decode()) == (0, IN_FORCE)
    finally:
        os.close(terminal)
        os.close(side)


async def test_rejection_by_all_lagging_sidecars_ends_the_wait(plane: Plane):
    for sidecar in (plane.one, plane.first, plane.second):
        sidecar.hold(CLUSTER)
    plane.apply(rule("shop", "web.shop.svc.cluster.local", "SIMPLE"))
    waits = asyncio.create_task(xds(RULE, "--for=acked", port=plane.server.port))
    await plane.one.answer(CLUSTER, "no such file")
    await plane.first.answer(CLUSTER)
    await plane.second.answer(CLUSTER)
    async with asyncio.timeout(WITHIN):
        result = await waits
    assert result.exit_code == 1
    cluster = "outbound|80||web.shop.svc.cluster.local"
    assert result.stderr == (
        "xds: DestinationRule shop/rule: rejected by 1 sidecars\n"
        f"  one.shop rejected: Error adding/updating cluster(s) {cluster}: no such file\n"
    )


async def test_rule_that_is_held_back_is_not_acked(plane: Plane):
    plane.set_mode("STRICT", rule("shop", "web.shop.svc.cluster.local", "ISTIO_MUTUAL"))
    held = "DestinationRule shop/rule held until its servers accept it"
    result = await told(plane, (RULE, "--for=acked", "--timeout=1s"), held)
    assert result.exit_code == 1
    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)
    for words in (("--for=acked",), ()):
        result = await xds(RULE, "--resource-version=1", *words, port=plane.server.port)
        assert (result.exit_code, result.stderr) == (0, "")


async def test_sidecar_is_in_force_once_its_clients_have_acked(plane: Plane):
    plane.one.hold(LISTENER)
    isolated = {"hosts": (("~", "*"),), "selector": {"app": "one"}}
    plane.apply(Sidecar(meta=meta("Sidecar", "shop", "default"), **isolated))
    result = await told(plane, ("Sidecar/shop/default", "--timeout=1s"), "one.shop waiting for LDS")
    assert result.exit_code == 1
    plane.apply(Sidecar(meta=meta("Sidecar", "third", "default"), hosts=(("~", "*"),)))
    result = await xds("Sidecar/third/default", port=plane.server.port)
    assert result.exit_code == 0
    await plane.one.answer(LISTENER)
    result = await xds("Sidecar/shop/default", port=plane.server.port)
    assert (result.exit_code, result.stdout) == (
        0,
        "Sidecar shop/default: in force, acked by 1 of 1 sidecars\n",
    )


async def test_version_that_is_not_read_is_waited_for(plane: Plane):
    unread = "after 1s: the control plane has read resourceVersion 1, not 10\n"
    result = await told(plane, (POLICY, "--resource-version=10", "--timeout=1s"), unread)
    assert (result.exit_code, result.stdout) == (1, "")
    waits = asyncio.create_task(xds(POLICY, "--resource-version=10", port=plane.server.port))
    # Its content is the same, and it is newer than the one waited for.
    plane.apply(peer("shop", "DISABLE"), version="11")
    async with asyncio.timeout(WITHIN):
        assert (await waits).exit_code == 0


async def test_unread_files_are_waited_for(plane: Plane):
    plane.source.has_versions = plane.source.is_read = False
    result = await told(plane, (POLICY, "--timeout=1s"), "the control plane is reading the files")
    assert result.exit_code == 1
    plane.source.is_read = True
    assert (await xds(POLICY, port=plane.server.port)).stdout == IN_FORCE
    result = await xds("MeshPolicy/default", port=plane.server.port)
    assert (result.exit_code, "does not exist in the files" in result.stderr) == (2, True)
    result = await xds(POLICY, "--resource-version=1", port=plane.server.port)
    assert (result.exit_code, "have no resourceVersion" in result.stderr) == (2, True)


async def test_change_that_is_not_applied_is_waited_for(plane: Plane):
    policy = peer("shop", "PERMISSIVE")
    plane.source.objects[policy.ref] = ReadObject(policy, "2")
    result = await told(plane, (POLICY, "--timeout=1s"), "is applying the change")
    assert result.exit_code == 1


async def test_number_of_waits_is_limited(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(objects_service, "MAX_CONCURRENT_WAITS", 2)
    call = plane.channel.unary_stream(
        f"/{objects_service.SERVICE}/Wait",
        request_serializer=pb.WaitRequest.SerializeToString,
        response_deserializer=pb.WaitResponse.FromString,
    )
    request = pb.WaitRequest(
        kind="PeerAuthentication", namespace="shop", name="default", resource_version="2"
    )
    waits = [call(request) for _ in range(2)]
    for wait in waits:
        assert (await wait.read()).state == pb.WaitResponse.READING
    result = await xds(POLICY, port=plane.server.port)
    assert (result.exit_code, "2 other calls wait for objects: retry when" in result.stderr) == (3, True)
    for wait in waits:
        wait.cancel()
    async with asyncio.timeout(WITHIN):
        while (await xds(POLICY, port=plane.server.port)).exit_code:
            pass


@pytest.mark.parametrize("calls", [1, 5, objects_service.MAX_CONCURRENT_WAITS])
def test_all_waits_share_the_load_of_one(calls: int):
    share = calls * 2.0 / (2.0 + objects_service.pause_after(2.0, calls))
    assert share <= objects_service.MAX_LOAD + 1e-9


async def test_object_that_is_rejected_exits_with_1(plane: Plane):
    ref = Ref("PeerAuthentication", "shop", "default")
    problem = Problem(where=str(ref), what="is wrong", hint="mend it")
    plane.source.objects[ref] = plane.source.objects[ref]._replace(rejection=problem)
    result = await xds(POLICY, port=plane.server.port)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"rejects {ref}: {ref}: is wrong (mend it)" in result.stderr


async def test_rule_that_affects_no_sidecar_is_not_called_in_force(plane: Plane):
    plane.apply(rule("shop", "other.shop.svc.cluster.local", "DISABLE"))
    result = await xds(RULE, "--resource-version=1", port=plane.server.port)
    assert (result.exit_code, result.stdout) == (
        0,
        "DestinationRule shop/rule: affects no connected sidecar (see xds problems)\n",
    )


async def test_sidecars_that_are_not_connected_are_counted(plane: Plane):
    base = plane.controller.mesh.pod("shop", "one")
    assert base
    meta = replace(base.meta, ref=Ref("Pod", "shop", "absent"))
    plane.apply(replace(base, meta=meta, address="10.9.9.9"))
    async with asyncio.timeout(WITHIN):
        while not plane.controller.absences().pods:
            await asyncio.sleep(0.01)
    result = await xds(POLICY, "--resource-version=1", port=plane.server.port)
    assert (result.exit_code, result.stderr) == (
        0,
        "xds: 1 sidecars are not connected and were not checked\n",
    )


@pytest.mark.parametrize("services", [(service("db", "lost", HTTP),), ()])
async def test_policy_that_no_connected_sidecar_enforces_is_not_in_force(
    plane: Plane, services: tuple[Service, ...]
):
    await plane.applied(pod("db", "lost"), *services, peer("lost", "STRICT"))
    detail = "none of the 1 sidecars that should enforce it is connected"
    result = await told(plane, ("PeerAuthentication/lost/default", "--timeout=1s"), detail)
    assert (result.exit_code, result.stdout) == (1, "")


async def test_sidecars_may_be_connected_to_other_replicas(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    absent = Absences((Absent("shop", "absent", None),), may_be_on_other_replica=True)
    monkeypatch.setattr(plane.controller, "absences", lambda: absent)
    result = await xds(POLICY, "--resource-version=1", port=plane.server.port)
    not_checked = "sidecars are not connected to this replica and were not checked"
    assert (result.exit_code, result.stderr) == (
        0,
        f"xds: 1 {not_checked}; other replicas may serve them\n",
    )


async def test_mistyped_name_exits_with_2(plane: Plane):
    result = await xds("PeerAuthentication/shop/defaults", port=plane.server.port)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has not read PeerAuthentication shop/defaults: check the name, or use --kub" in result.stderr
    plane.controller.ready.clear()
    result = await xds("PeerAuthentication/shop/defaults", "--timeout=1s", port=plane.server.port)
    assert (result.exit_code, "timed out" in result.stderr) == (1, True)


async def test_version_is_read_from_the_api_server(plane: Plane, tmp_path: Path):
    async with FakeApiServer(tmp_path) as server:
        server.serve_istio()
        meta = {"name": "default", "namespace": "shop"}
        group = "security.istio.io"
        created = await server.put("peerauthentications", {"metadata": meta}, group)
        await server.put("peerauthentications", {"metadata": {**meta, "name": "other"}}, group)
        created = await server.put("peerauthentications", created, group)
        version = created["metadata"]["resourceVersion"]
        options = ("--kubernetes", "--kubeconfig", server.kubeconfig())
        unread = f"has read resourceVersion 1, not {version}"
        assert (await told(plane, (POLICY, *options, "--timeout=1s"), unread)).exit_code == 1
        result = await xds(RULE, *options, port=plane.server.port)
        assert (result.exit_code, result.stderr) == (
            2,
            "xds: DestinationRule shop/rule does not exist on the API server\n",
        )


async def test_unreachable_control_plane_exits_with_3():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for command, words in (("wait", (POLICY,)), ("problems", ())):
        result = await xds(*words, port=port, command=command)
        assert (result.exit_code, result.stdout) == (3, "")
        assert f"cannot connect to a control plane at 127.0.0.1:{port}" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("Service/shop/web",),
        ("PeerAuthentication/default",),
        ("PeerAuthentication/shop/",),
        ("MeshPolicy/shop/default",),
        (POLICY, "--timeout", "soon"),
        (POLICY, "--timeout", "-1s"),
        (POLICY, "--for", "ever"),
        (POLICY, "--kubernetes", "--resource-version", "1"),
        (POLICY, "--context", "x"),
        (),
    ],
)
def test_wrong_usage_exits_with_2(words: tuple[str, ...]):
    result = CliRunner().invoke(app, ["wait", *words], prog_name="xds")
    assert result.exit_code == 2, result.output


# --- problems -----------------------------------------------------------------------------------------------


async def test_problems_are_listed_with_their_age(plane: Plane):
    port, now = plane.server.port, asyncio.get_running_loop().time()
    result = await xds(port=port, command="problems")
    assert (result.exit_code, result.stdout) == (0, "no problems\n")
    subject = "PeerAuthentication shop/default"
    plane.source.problems = [
        FoundProblem(
            Problem(where=subject, what="is\x1b wrong", hint="mend", subject=subject, served_version="7"),
            now - 90_000,  # Its age has no seconds.
        ),
        FoundProblem(
            Problem(where="m/a.yaml:3", what="Service bank/x: is odd", subject="Service bank/x"), None
        ),
        FoundProblem(Problem(where="ConfigMap xds", what="is ignored", notice=True), now),
    ]
    result = await xds(port=port, command="problems")
    assert result.exit_code == 1
    _, first, second = result.stdout.splitlines()
    assert first.split(maxsplit=2)[:2] == ["PeerAuthentication", "shop/default"]
    assert first.endswith("  (resourceVersion 1)  1d1h  is\\x1b wrong (mend); version 7 stays in use")
    assert second.endswith("  m/a.yaml:3           -     is odd")
    result = await xds("-n", "bank", "-o", "json", port=port, command="problems")
    assert result.exit_code == 1
    assert [each["object"] for each in json.loads(result.stdout)["problems"]] == ["Service bank/x"]
    result = await xds("-n", "none", "-o", "yaml", port=port, command="problems")
    assert (result.exit_code, yaml.safe_load(result.stdout)["problems"]) == (0, [])


async def test_notices_do_not_change_the_exit_status(plane: Plane):
    plane.source.problems = [FoundProblem(Problem(where="m/a.yaml:3", what="is ignored", notice=True), None)]
    assert (await xds(port=plane.server.port, command="problems")).stdout == "no problems\n"
    result = await xds("--notices", port=plane.server.port, command="problems")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].endswith("notice: is ignored")


async def test_many_problems_are_counted(plane: Plane):
    plane.source.problems = [FoundProblem(Problem(where="x", what=f"{n}"), None) for n in range(1005)]
    result = await xds(port=plane.server.port, command="problems")
    assert (len(result.stdout.splitlines()), result.stderr) == (1001, "... and 5 more problems\n")


async def test_problems_are_listed_before_notices(plane: Plane):
    notices = [Problem(where="x", what=f"{n}", notice=True) for n in range(1000)]
    problem = Problem(where="m/a.yaml:3", what="is wrong")
    plane.source.problems = [FoundProblem(each, None) for each in (*notices, problem)]
    result = await xds("--notices", port=plane.server.port, command="problems")
    assert (result.exit_code, result.stderr) == (1, "... and 1 more problems\n")
    assert result.stdout.splitlines()[1].endswith("is wrong")


def test_empty_namespace_is_wrong_usage():
    assert CliRunner().invoke(app, ["problems", "-n", ""], prog_name="xds").exit_code == 2
