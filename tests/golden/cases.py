"""The golden cases, and how one is read."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from xds.mesh.model.mesh import Mesh
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader

HERE = Path(__file__).parent
CASES = [pytest.param(path.parent, id=path.parent.name) for path in sorted(HERE.glob("*/in.yaml"))]


def options(case: Path) -> tuple[Path | None, list[str]]:
    """What `--mesh-config` and `--set` are in a case."""
    mesh, assignments = case / "mesh.yaml", case / "set.txt"
    return (
        mesh if mesh.exists() else None,
        assignments.read_text().split() if assignments.exists() else [],
    )


def load(case: Path) -> Mesh:
    """The mesh that a case describes, which must have no problem."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(case / "in.yaml", folder)
        report = Folder(Path(folder), SettingsLoader(*options(case))).load()
    assert [str(problem) for problem in report.problems if not problem.notice] == []
    return Mesh().apply(report.change)
