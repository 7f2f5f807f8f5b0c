"""The steps for the demo in containers, and the comparison of its output."""

import io
import json

import pytest
from rich.console import Console

from xds.demo import tour
from xds.demo.play import FULL_FULL, STEPS, Answer, Expected, Pair
from xds.demo.stage import EXAMPLES
from xds.mesh.model.mesh import Mesh
from xds.mesh.sources.files import Folder


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(Folder(EXAMPLES / "workloads").load().change.applied)


def printed(pair: Pair, expected: Expected) -> str:
    """Return the output of the Istio task's command for the expected answers."""
    lines = [f"{pair}"]
    for answer in sorted(expected.answers(pair), reverse=True):
        if answer.identity:
            lines.append(f"URI={answer.identity}")
        lines.append(f"response code: {answer.code}")
    return "\n".join(lines) + "\n"


def transcript() -> list[str]:
    """Return the output of examples/envoy/compose/play for the expected answers."""
    text = "".join(
        f"step {step.name}\n" + "".join(printed(pair, expected) for pair, expected in step.expected.items())
        for step in STEPS
    )
    return text.splitlines(keepends=True)


def compared(lines: list[str]) -> tuple[int, str]:
    out = Console(file=io.StringIO(), width=200)
    return tour.compare(lines, out), out.file.getvalue()


def test_script_contains_all_steps_in_order(mesh):
    lines = list(tour.script(mesh))
    assert [line for line in lines if line.startswith("step ")] == [f"step {step.name}" for step in STEPS]
    strict = lines.index("step STRICT")
    assert lines[strict + 1 : strict + 4] == [
        "apply policy.yaml strict.yaml",
        "await true applied httpbin.full sleep.full httpbin.partial",
        "request sleep.full httpbin.full 10",
    ]
    assert lines.count("auto false") == 1
    assert "await false drained httpbin.full sleep.full httpbin.partial" in lines
    assert lines[-3:] == ["delete policy.yaml", "delete destination-rule.yaml", "auto true"]


def test_expected_output_matches(mesh):
    status, output = compared(transcript())
    assert status == 0
    assert f"matches the Istio task: {len(STEPS)} steps" in output
    for number, step in enumerate(STEPS, 1):
        assert f"{number}. {step.name}: {step.what}" in output


def test_unexpected_answer_is_named():
    lines = [line.replace("503", "200") for line in transcript()]
    status, output = compared(lines)
    assert status == 1
    assert (
        f"DestinationRule override: {FULL_FULL}: expected 503 without an identity, got 1x 200 without"
        in output
    )


@pytest.mark.parametrize("end", ["step plaintext policy", "step initial check"])
def test_incomplete_output_does_not_match(end):
    lines = transcript()
    status, output = compared(lines[: lines.index(f"{end}\n")])
    assert status == 1
    assert f"{STEPS[-1].name}: was not executed" in output


def test_stale_sidecar_is_named(mesh):
    nothing = json.dumps({"configs": []})
    stats = {"stats": [{"name": "listener_manager.total_filter_chains_draining", "value": 1}]}
    shown = f'"sleep.full"\n{nothing}{json.dumps(stats)}\n'
    assert tour.find_stale(mesh, shown, drained=False).startswith("sleep.full has no Cluster ")
    assert tour.find_stale(mesh, "", drained=True) == ""


def test_draining_sidecar_is_named_if_required(mesh, monkeypatch):
    monkeypatch.setattr(tour, "difference", lambda _expected, _active: "")
    stats = {"stats": [{"name": "listener_manager.total_filter_chains_draining", "value": 1}]}
    shown = f'"sleep.full" {{"configs": []}} {json.dumps(stats)}'
    assert tour.find_stale(mesh, shown, drained=False) == ""
    assert tour.find_stale(mesh, shown, drained=True) == (
        "sleep.full has listener_manager.total_filter_chains_draining"
    )


def test_code_without_a_uri_is_plaintext():
    read = tour.answers("URI=spiffe://a/ns/b/sa/c\nresponse code: 200\nresponse code: 000\nresponse 503\n")
    assert read == {Answer("200", "spiffe://a/ns/b/sa/c"): 1, Answer("000"): 1, Answer("503"): 1}


def test_wrong_usage_exits_with_2(capsys):
    assert tour.main(["nonsense"]) == 2
    assert capsys.readouterr().err.startswith("usage: ")
