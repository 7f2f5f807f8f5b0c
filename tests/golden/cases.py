"""The golden cases and their manifests."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from xds.mesh.model.mesh import Mesh
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


def manifests(case: Path) -> str:
    """Return the manifests of a case, as one text."""
    file, other = case / "in.yaml", extended(case)
    texts = [manifests(other)] if other else []
    return "---\n".join([*texts, file.read_text()] if file.exists() else texts)


def options(case: Path) -> tuple[Path | None, list[str]]:
    """Return the values of `--mesh-config` and `--set` in a case."""
    mesh, assignments = case / "mesh.yaml", case / "set.txt"
    return (
        mesh if mesh.exists() else None,
        assignments.read_text().split() if assignments.exists() else [],
    )


def load(case: Path) -> Mesh:
    """Return the mesh of a case. Its manifests have no problems."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in.yaml").write_text(manifests(case))
        report = Folder(Path(folder), SettingsLoader(*options(case))).load()
    assert [str(problem) for problem in report.problems if not problem.notice] == []
    return Mesh().apply(report.change)
