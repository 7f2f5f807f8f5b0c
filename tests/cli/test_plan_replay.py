"""`xds plan --replay`: recorded traffic through a change, as a table, JSON and Markdown; exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson
from typer.testing import Result

from tests.cli.commands import write_folder, xds
from tests.cli.test_plan import MESH, POLICY
from tests.observe.records import response
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.record import Flow
from xds.mesh.v1 import traffic_pb2

MIDNIGHT, HOUR = 1_764_547_200, 3600
WEB = Target("shop", "web", 80)
OLD = Flow(WEB, Client("zoo", "default"), TrafficMode.PLAINTEXT, MIDNIGHT, MIDNIGHT + 60, True)
ADDRESS = Flow(WEB, Client("", "192.0.2.1"), TrafficMode.PLAINTEXT, MIDNIGHT, MIDNIGHT + HOUR, True)
MTLS = Flow(WEB, Client("shop", "default"), TrafficMode.MTLS, MIDNIGHT, MIDNIGHT + HOUR)
GONE = Flow(WEB, Client("shop", "gone"), TrafficMode.MTLS, MIDNIGHT, MIDNIGHT + HOUR)
STRICT, NO_POD = (
    "fails (server-requires-mtls) PeerAuthentication shop/default",
    "the client has no pod before or after the change",
)
PERIOD = "from 2025-12-01 00:00 UTC to 2025-12-01 20:00 UTC"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "strict.yaml").write_text(POLICY)
    return write_folder(tmp_path, all=MESH)


def record(*flows: Flow, since: int = MIDNIGHT, until: int = MIDNIGHT + 20 * HOUR, **more: object) -> str:
    return MessageToJson(response(since, until, *flows, **more))


def replay(folder: Path, *records: str, words: tuple[str, ...] = (), stdin: str = "") -> Result:
    paths = []
    for index, text in enumerate(records):
        path = folder.parent / f"record-{index}.json"
        path.write_text(text)
        paths += ["--replay", path]
    return xds(
        "plan", "--manifests", folder, "-f", folder.parent / "strict.yaml", *paths, *words, stdin=stdin
    )


def test_table_names_recorded_traffic_that_breaks(folder: Path) -> None:
    result = replay(folder, record(OLD, MTLS), record(ADDRESS, MTLS, GONE))
    assert (result.exit_code, result.stderr) == (1, "")
    titles, *lines = result.stdout.splitlines()
    assert titles.split() == ["EFFECT", "CLIENTS", "TARGET", "BEFORE", "AFTER", "DECIDED", "BY", "SEEN"]
    assert [" ".join(line.split()) for line in lines] == [
        f"breaks 192.0.2.1, zoo/default web.shop:80 plaintext {STRICT} 2025-12-01 01:00 UTC",
        f"not known shop/gone web.shop:80 mtls {NO_POD} 2025-12-01 01:00 UTC",
        "",
        f"not safe: of 4 recorded flows {PERIOD}, break: 2, not known: 1",
        "all connections, used or not: breaks: 1, may break: 1",
    ]


def test_safe_exits_with_0_although_unused_connections_break(folder: Path) -> None:
    result = replay(folder, record(MTLS))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"safe: of 1 recorded flow {PERIOD}, none breaks\n"
        "all connections, used or not: breaks: 1, may break: 1\n"
    )


def test_gap_between_files_is_never_safe(folder: Path) -> None:
    later = record(MTLS, since=MIDNIGHT + 21 * HOUR, until=MIDNIGHT + 22 * HOUR)
    result = replay(folder, record(MTLS), later)
    gap = "nothing was recorded from 2025-12-01 20:00 UTC to 2025-12-01 21:00 UTC"
    assert (result.exit_code, result.stderr) == (1, f"xds: {gap}\n")
    assert result.stdout.startswith("not known to be safe: of 1 recorded flow from")
    assert gap in result.stdout


def test_json_has_each_flow(folder: Path) -> None:
    result = replay(folder, record(OLD, ADDRESS, GONE), words=("-o", "json"))
    assert result.exit_code == 1
    found = json.loads(result.stdout)["replay"]
    [change], [unknown] = found["changes"], found["unknown"]
    assert [each["client"] for each in change["flows"]] == ["192.0.2.1", "default"]
    assert (change["effect"], change["after"]["decidedBy"]) == ("breaks", ["PeerAuthentication shop/default"])
    assert (unknown["flows"][0]["client"], unknown["reason"]) == (
        "gone",
        NO_POD,
    )
    assert (found["flows"], found["safe"], found["gaps"]) == ("3", False, [])


def test_markdown_is_for_a_pull_request(folder: Path) -> None:
    missing = [traffic_pb2.MissingReplica(replica="b", reason="gone")]
    result = replay(folder, record(OLD, missing_replicas=missing), words=("-o", "markdown"))
    assert (result.exit_code, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert lines[2] == f"**not safe: of 1 recorded flow {PERIOD}, break: 1**"
    assert lines[6].startswith(
        "| breaks | zoo/default | web.shop:80 | plaintext | fails (server-requires-mtls)"
    )
    assert lines[-1] == "- the traffic of replica b is missing: gone"


def test_connections_that_become_possible_are_counted(folder: Path) -> None:
    (folder / "strict.yaml").write_text(POLICY)
    words = ("plan", "--manifests", folder, "--delete", "PeerAuthentication/shop/default")
    (folder.parent / "record.json").write_text(record(MTLS))
    result = xds(*words, "--replay", folder.parent / "record.json")
    assert result.exit_code == 0
    pairs = ["zoo/default -> web.shop:80", "clients outside the mesh -> web.shop:80"]
    assert result.stdout.splitlines()[1] == f"becomes possible, never used (2): {', '.join(pairs)}"
    piped = xds(*words, "--replay", "-", stdin=record(OLD))
    assert piped.exit_code == 0
    assert "recorded flows that fail without the change too: 1\n" in piped.stdout
    assert "becomes possible, never used (1): clients outside the mesh -> web.shop:80\n" in piped.stdout


WRONG = {
    "no file": (("--replay", "/none"), "", "xds: /none: No such file or directory"),
    "no record": (
        ("--replay", "-"),
        "{}",
        "xds: -: is not the output of xds observe -o json: it has no time",
    ),
    "not text": (("--replay", "-"), "[", "xds: -: is not the output of xds observe -o json: "),
    "twice": (
        ("--replay", "-", "-f", "-"),
        "",
        "xds: stdin (-) can be only one of --manifests, -f and --replay",
    ),
}


@pytest.mark.parametrize(("words", "stdin", "message"), WRONG.values(), ids=WRONG)
def test_wrong_use_exits_with_2(folder: Path, words: tuple[str, ...], stdin: str, message: str) -> None:
    result = replay(folder, words=words, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize("names", [("record.json",), ("-",), ("7d", "1d"), ("7d", "record.json")])
def test_control_plane_replays_no_files(folder: Path, names: tuple[str, ...]) -> None:
    options = [option for name in names for option in ("--replay", name)]
    result = xds("plan", "-f", folder.parent / "strict.yaml", *options, stdin=record(MTLS))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--replay FILE requires the mesh before the change: add --manifests or --kube" in result.stderr


def test_manifests_have_observed_nothing(folder: Path) -> None:
    result = replay(folder, words=("--replay", "7d"))
    assert (result.exit_code, result.stderr) == (
        2,
        "xds: --replay 7d requires a running control plane: omit --manifests and --kubernetes\n",
    )
