"""The commands in pages print what the pages show."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from google.protobuf.json_format import MessageToJson
from typer.testing import CliRunner

from tests.observe.records import response
from xds.cli import app
from xds.cli.manifests import read_mesh
from xds.mesh.inject.policy_review import read_proposal
from xds.mesh.inject.policy_webhook import PolicyReviewer
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.record import Flow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "envoy" / "auto-mtls"
PROOFS = "docs/how-to/prove-who-may-call.md"
ACCESS_PAGE = "docs/how-to/authorize-requests.md"
PAGES = (
    "docs/how-to/find-what-strict-breaks.md",
    "docs/how-to/check-reachability.md",
    "docs/how-to/replay-traffic.md",
    PROOFS,
)
BLOCK = re.compile(r"^( *)```console\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: str) -> Iterator[tuple[str, str]]:
    """Yield each command in the console blocks of a page, and the output that the page shows."""
    for _, block in BLOCK.findall((ROOT / page).read_text()):
        for part in re.split(r"^\$ ", textwrap.dedent(block), flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


CUSTOM = """
{apiVersion: kafka.strimzi.io/v1, kind: Kafka, metadata: {name: events, namespace: full}}
---
{apiVersion: kafka.strimzi.io/v1, kind: Kafka, metadata: {name: logs, namespace: full}}
---
{apiVersion: argoproj.io/v1alpha1, kind: Workflow, metadata: {name: nightly, namespace: full}}
"""
PERMISSIVE = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: full}
spec: {mtls: {mode: PERMISSIVE}}
"""
ACCESS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: httpbin, namespace: full}
spec:
  selector: {matchLabels: {app: httpbin}}
  rules:
  - from: [{source: {serviceAccounts: [sleep]}}]
    to: [{operation: {methods: [GET]}}]
"""
HTTPBIN, DAY, HOUR = Target("full", "httpbin", 8000), 1_796_083_200, 3600
FLOWS = [
    Flow(HTTPBIN, Client("full", "sleep"), TrafficMode.MTLS, DAY, DAY + 24 * HOUR - 60),
    Flow(HTTPBIN, Client("legacy", "sleep"), TrafficMode.PLAINTEXT, DAY, DAY + 22 * HOUR, True),
    Flow(HTTPBIN, Client("", "10.20.0.7"), TrafficMode.PLAINTEXT, DAY, DAY + 23 * HOUR, True),
    Flow(HTTPBIN, Client("legacy", "cron"), TrafficMode.PLAINTEXT, DAY, DAY + 10.1 * HOUR, True),
]
SHOWN = [(page, *shown) for page in PAGES for shown in commands(page)]
# The other commands there need a control plane, or their output is shortened.
SHOWN += [(ACCESS_PAGE, *shown) for shown in commands(ACCESS_PAGE) if "--check" in shown[0]]


@pytest.mark.parametrize(("page", "command", "output"), SHOWN, ids=[command for _, command, _ in SHOWN])
def test_output_in_page_is_real(
    page: str, command: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(EXAMPLES / "workloads", tmp_path / "mesh")
    shutil.copy(EXAMPLES / "steps" / "strict.yaml", tmp_path)
    (tmp_path / "custom.yaml").write_text(CUSTOM)
    (tmp_path / "permissive.yaml").write_text(PERMISSIVE)
    assertions, _, access, _ = YAML.findall((ROOT / PROOFS).read_text())
    (tmp_path / "assertions.yaml").write_text(assertions)
    shutil.copytree(tmp_path / "mesh", tmp_path / "proposal")
    (tmp_path / "proposal" / "httpbin-access.yaml").write_text(access)
    (tmp_path / "httpbin-access.yaml").write_text(access if page == PROOFS else ACCESS)
    [unused] = (each for each in YAML.findall((ROOT / ACCESS_PAGE).read_text()) if "jobs/report" in each)
    (tmp_path / "httpbin.yaml").write_text(unused)
    (tmp_path / "record.json").write_text(MessageToJson(response(DAY, DAY + 24 * HOUR, *FLOWS)))
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)
    if name == "kubectl":
        assert [*review(words[-1])] == output.splitlines()[:-1]
        return
    assert name == "xds", page
    result = CliRunner().invoke(app, words, prog_name="xds")
    assert result.stderr == "" or page == ACCESS_PAGE
    assert [line.rstrip() for line in result.output.splitlines()] == output.splitlines()


def review(file: str) -> Iterator[str]:
    """Yield the warnings that the webhook returns for an object that is applied to the mesh."""
    mesh, _ = read_mesh(["mesh"])
    request = {"uid": "1", "operation": "CREATE", "object": yaml.safe_load(Path(file).read_text())}
    reviewer = PolicyReviewer(lambda: mesh)
    _, response = asyncio.run(reviewer.review(read_proposal(request), "", lambda: True))
    yield from (f"Warning: {warning}" for warning in response["warnings"])


def test_pages_show_commands() -> None:
    assert {page for page, _, _ in SHOWN} == {*PAGES, ACCESS_PAGE}
