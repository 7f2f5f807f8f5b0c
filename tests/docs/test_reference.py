"""docs/reference/ is complete: what is generated from the code, and what is written by hand."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from docs import hooks
from xds import pytest_plugin
from xds.cli import app
from xds.mesh.envoy.scrape import SUCCESS
from xds.server import Limits

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
KEY = re.compile(
    r"(?:\w+\.)?(?:sidecar\.istio\.io|sidecar\.xds|security\.istio\.io|alpha\.istio\.io)/([\w-]+)"
)
"""A label or annotation, except for versions of API groups."""


@pytest.mark.parametrize("name", hooks.GENERATORS)
def test_generated_part_is_used_once_and_not_empty(name):
    marks = [page.name for page in REFERENCE.glob("*.md") if f"<!-- generate: {name} -->" in page.read_text()]
    assert len(marks) == 1
    assert len(hooks.GENERATORS[name]().splitlines()) > 10


def test_every_command_has_its_help():
    listed = CliRunner().invoke(app, ["--help"]).output.partition("Commands:")[2]
    names = re.findall(r"^  (\S+)  ", listed, re.MULTILINE)
    assert len(names) > 10
    assert re.findall(r"^## xds (\S+)$", hooks.commands(), re.MULTILINE) == names


def test_exit_statuses_of_every_command_are_listed():
    listed = CliRunner().invoke(app, ["--help"]).output.partition("Commands:")[2]
    names = re.findall(r"^  (\S+)  ", listed, re.MULTILINE)
    table = (REFERENCE / "cli.md").read_text().partition("## Exit statuses")[2]
    rows = "".join(re.findall(r"^\| (`.+?) \|", table, re.MULTILINE))
    assert [name for name in names if f"`{name}`" not in rows] == []


def test_services_have_their_fields_and_comments():
    text = hooks.services()
    services = ("Objects", "Policies", "Proxies", "Replicas", "Reports", "Rollouts", "Traffic")
    names = ["istio.v1.auth.IstioCertificateService", *(f"xds.mesh.v1.{name}" for name in services)]
    assert re.findall(r"^## (\S+)$", text, re.MULTILINE) == names
    assert re.search(r"^\| `time` \| `Timestamp` \| \w.+ \|$", text, re.MULTILINE)


def test_labels_and_annotations_are_listed():
    text = (REFERENCE / "annotations.md").read_text()
    keys = {
        match[1]
        for file in (ROOT / "xds").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if (match := KEY.fullmatch(node.value)) and not re.fullmatch(r"v\d\w*", match[1])
    }
    assert len(keys) > 10
    assert not {key for key in keys if not re.search(rf"[/`]{key}`", text)}


def test_mesh_settings_are_listed(tmp_path):
    """The error for an unknown key names all known ones."""
    result = CliRunner().invoke(app, ["reach", "--manifests", str(tmp_path), "--set", "unknown=1"])
    known = re.findall(r"[\w.]+", result.output.partition("known: ")[2])
    assert len(known) > 10
    text = (REFERENCE / "mesh-settings.md").read_text()
    keys = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    listed = {key if key.startswith("values.") else f"meshConfig.{key.split('.')[0]}" for key in keys}
    others = {"meshConfig.profile", "meshConfig.meshConfig", "meshConfig.true", "meshConfig.false"}
    assert listed - others == set(known)


def test_limits_of_clients_are_listed():
    text = (REFERENCE / "limits.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+(?: MiB)?) \|", text, re.MULTILINE))
    sizes = {name: int(value.replace(",", "").removesuffix(" MiB")) for name, value in rows.items()}
    limits = {name: size * 1024 * 1024 if "MiB" in rows[name] else size for name, size in sizes.items()}
    assert limits == {field.name: field.default for field in fields(Limits)}


def test_alerts_name_existing_metrics():
    rules = yaml.safe_load((ROOT / "examples" / "prometheus" / "alerts.yaml").read_text())
    used = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for rule in rules["groups"][0]["rules"]
        for name in re.findall(r"\bxds_\w+", rule["expr"])
    }
    assert len(used) > 5
    assert used <= {metric.name for metric in hooks.metrics()} | {SUCCESS}


def test_metrics_in_pages_exist():
    known = {metric.name for metric in hooks.metrics()} | {SUCCESS}
    text = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md") if "adr" not in page.parts)
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"`(xds_[a-z_]+)(?:`|\{)", text)}
    fixtures = {name for name in vars(pytest_plugin) if name.startswith("xds_")}
    assert used <= known | fixtures
