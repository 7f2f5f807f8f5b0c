"""The golden cases and their manifests."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Fact
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader

HERE = Path(__file__).parent
BASE = HERE / "base"
CASES = [
    pytest.param(case, id=case.name)
    for case in sorted(
        {path.parent for name in ("in.yaml", "extends.txt") for path in HERE.glob(f"*/{name}")}
    )
]


def extended(case: Path) -> Path | None:
    """Return the case to whose manifests a case adds its own."""
    file = case / "extends.txt"
    return HERE / file.read_text().strip() if file.exists() else None


def files(case: Path) -> list[Path]:
    """Return the manifest files of a case, and of those that it extends."""
    file, other = case / "in.yaml", extended(case)
    return [*(files(other) if other else ()), *([file] if file.exists() else ())]


def manifests(case: Path) -> str:
    """Return the manifests of a case, as one text."""
    return "---\n".join(file.read_text() for file in files(case))


def options(case: Path) -> tuple[Path | None, list[str]]:
    """Return the values of `--mesh-config` and `--set` in a case."""
    mesh, assignments = case / "mesh.yaml", case / "set.txt"
    return (
        mesh if mesh.exists() else None,
        assignments.read_text().split() if assignments.exists() else [],
    )


def load(case: Path) -> Mesh:
    """Return the mesh of a case. Its manifests have no problems.

    The objects' places are `CASE.yaml:LINE`, for line LINE of `CASE/in.yaml`.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file in files(case):
            Path(folder, f"{file.parent.name}.yaml").write_text(file.read_text())
        report = Folder(Path(folder), SettingsLoader(*options(case))).load()
    assert [str(problem) for problem in report.problems if not problem.notice] == []
    applied = tuple(_placed(fact, f"{folder}/") for fact in report.change.applied)
    return Mesh().apply(replace(report.change, applied=applied))


def _placed(fact: Fact, folder: str) -> Fact:
    return replace(fact, meta=replace(fact.meta, origin=fact.meta.origin.removeprefix(folder)))
