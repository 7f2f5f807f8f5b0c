"""Files in, files out: `cases/NAME` gives `cases/NAME.out`, and messages in `cases/NAME.err`.

`make golden` writes these files. Read their diff before you commit it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from xds.cli import app
from xds.mesh.inject import find_templates
from xds.mesh.sources.documents import Document, join_surrogates, read_documents

CASES = sorted(
    path for path in (Path(__file__).parent / "cases").iterdir() if path.suffix in {".yaml", ".json"}
)
SAMPLES = Path("examples/envoy/kubernetes/samples")


def injected(text: str, *options: str):
    return CliRunner().invoke(app, ["inject", "-f", "-", *options], input=text.encode())


def values(text: str) -> list[object]:
    documents = list(read_documents(text, ""))
    assert all(isinstance(document, Document) and not document.flaws for document in documents)
    return [document.value for document in documents]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_output_matches_the_golden_file(case: Path, request: pytest.FixtureRequest) -> None:
    result = injected(case.read_text())
    assert result.exit_code == 0, result.output
    for suffix, text in ((".out", result.stdout), (".err", result.stderr)):
        expected = case.with_name(case.name + suffix)
        if request.config.getoption("--golden"):
            expected.write_text(text)
        assert expected.read_text() == text, f"{expected}: run `make golden` and read the diff"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_injection_is_idempotent(case: Path) -> None:
    once = injected(case.read_text()).stdout
    twice = injected(once)
    assert twice.stdout == once
    assert "refused" not in twice.stderr


def lines_are_kept(before: str, after: str) -> bool:
    """Whether another text contains all lines of one text in order."""
    remaining = iter(after.splitlines())
    return all(line in remaining for line in before.splitlines())


def test_injection_only_adds_lines() -> None:
    before = (SAMPLES / "httpbin/httpbin.yaml").read_text()
    after = injected(before).stdout
    assert lines_are_kept(before, after)
    service, *_ = [value for value in values(after) if value["kind"] == "Service"]
    assert service in values(before)


def test_file_without_injection_keeps_its_bytes() -> None:
    text = (Path(__file__).parent / "cases/left.yaml").read_text()
    assert injected(text).stdout == text


def test_json_stays_json() -> None:
    text = (Path(__file__).parent / "cases/list.json").read_text()
    after = json.loads(injected(text).stdout)
    before = json.loads(text)
    assert (
        after["items"][0]["metadata"]["annotations"]["says"]
        == before["items"][0]["metadata"]["annotations"]["says"]
    )
    assert [c["name"] for c in after["items"][0]["spec"]["initContainers"]] == ["xds-init", "xds-proxy"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.suffix == ".yaml"], ids=lambda case: case.stem
)
def test_output_means_the_same_to_pyyaml(case: Path) -> None:
    """No addition is an ambiguous plain scalar, which PyYAML and kubectl would interpret differently."""
    text = injected(case.read_text()).stdout
    ours = [template for value in values(text) for template in find_templates(value)]
    theirs = [template for value in yaml.safe_load_all(text) for template in find_templates(value)]
    assert ours == theirs


def test_surrogate_pair_is_one_character() -> None:
    assert values(join_surrogates('{"a": "\\ud83d\\ude00"}')) == [{"a": "😀"}]
