"""Kustomizations are built with the user's own program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from xds.mesh.sources.kustomize import KustomizeError, build, is_kustomization

ACCOUNT = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: shop}\n"

needs_kustomize = pytest.mark.skipif(
    not (shutil.which("kustomize") or shutil.which("kubectl")), reason="needs kustomize or kubectl"
)


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/kustomization.yaml").write_text("resources: [account.yaml]\n")
    (tmp_path / "base/account.yaml").write_text(ACCOUNT)
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod/kustomization.yml").write_text("resources: [../base]\nnamePrefix: prod-\n")
    return tmp_path / "prod"


def test_kustomization_is_recognized_by_its_file(overlay: Path, tmp_path: Path) -> None:
    assert is_kustomization(overlay)
    assert is_kustomization(tmp_path / "base")
    assert not is_kustomization(tmp_path)
    assert not is_kustomization(overlay / "kustomization.yml")


@needs_kustomize
def test_overlay_is_built(overlay: Path) -> None:
    name, text = build(overlay)
    assert name.endswith(str(overlay))
    assert "name: prod-web" in text


@needs_kustomize
def test_error_of_the_program_is_shown(overlay: Path) -> None:
    (overlay / "kustomization.yml").write_text("resources: [../missing]\n")
    with pytest.raises(KustomizeError, match=r"failed with status 1: .*missing"):
        build(overlay)


def test_missing_program_says_what_to_do(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KustomizeError, match=rf"kustomize build {overlay} \| xds COMMAND --manifests -"):
        build(overlay)
