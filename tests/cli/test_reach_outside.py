"""`xds reach` lists the clients outside the mesh that objects prove."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.callers import APP, CALLERS
from xds.cli import app

STRICT = """
    apiVersion: security.istio.io/v1
    kind: PeerAuthentication
    metadata: {name: default, namespace: shop}
    spec: {mtls: {mode: STRICT}}
"""
CALLER = "api-server (ValidatingWebhookConfiguration web)"
GATEWAY = "gateway (Ingress shop/web)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = (APP, CALLERS["ValidatingWebhookConfiguration"], CALLERS["Ingress"])
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_text(textwrap.dedent(text))
    return tmp_path


def reach(folder: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["reach", "--manifests", str(folder), *words], prog_name="xds")
    return result.exit_code, result.stdout


def rows(folder: Path, *words: str) -> list[tuple[str, int, str]]:
    """Client outside the mesh, port and outcome of each row."""
    _, output = reach(folder, *words, "-o", "json")
    found = json.loads(output)
    return [
        (row.get("outside") or row["client"], row["port"], row["outcome"])
        for row in found
        if row.get("outside") or "(" in str(row.get("client"))
    ]


@pytest.mark.parametrize("words", [(), ("--expand",)])
def test_callers_are_clients(folder: Path, words: tuple[str, ...]) -> None:
    assert rows(folder, *words) == [(GATEWAY, 80, "plaintext"), (CALLER, 443, "plaintext")]
    assert rows(folder, *words, "--only", "fails") == []
    assert rows(folder, *words, "--from", "deploy/web.shop") == []
    (folder / "strict.yaml").write_text(textwrap.dedent(STRICT))
    assert rows(folder, *words) == [(GATEWAY, 80, "fails"), (CALLER, 443, "fails")]


def test_only_certain_callers_make_the_exit_status_1(folder: Path) -> None:
    (folder / "strict.yaml").write_text(textwrap.dedent(STRICT))
    status, output = reach(folder)
    assert status == 1
    assert CALLER in output
    (folder / "1.yaml").unlink()
    status, output = reach(folder)
    assert status == 0
    assert GATEWAY in output
