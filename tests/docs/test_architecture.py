"""docs/architecture.md describes the packages that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/architecture.md").read_text()


def packages(folder: Path, prefix: str = "") -> set[str]:
    """Return the packages in a folder, and those of the mesh."""
    names = {path.parent.name for path in folder.glob("*/__init__.py")}
    inner = packages(folder / "mesh", "mesh/") if "mesh" in names else set()
    return {f"{prefix}{name}" for name in names} | inner


def test_tree_is_that_of_the_package():
    tree = re.search(r"```\nxds/\n(.*?)```", TEXT, flags=re.DOTALL)
    assert tree
    parent, named = "", set()
    for indent, name in re.findall(r"^( +)(\w+)/  ", tree[1], flags=re.MULTILINE):
        if len(indent) == 2:
            parent = name
        named.add(name if len(indent) == 2 else f"{parent}/{name}")
    assert named == packages(ROOT / "xds")


def test_every_module_that_it_names_exists():
    row = re.compile(r"^\| `([\w/]+)` \| (.*) \|$", flags=re.MULTILINE)
    modules = {
        f"{folder}/{name}" for folder, text in row.findall(TEXT) for name in re.findall(r"`(\w+\.py)`", text)
    }
    modules |= set(re.findall(r"`((?:mesh|protocol|server)/[\w/]+\.py)`", TEXT))
    modules |= {f"{name}.py" for name in ("resources", "snapshot")}
    assert len(modules) > 15
    missing = {module for module in modules if not (ROOT / "xds" / module).is_file()}
    assert not missing
