"""docs/sidecar.md says what there is."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from xds.cli import app
from xds.mesh.sidecar.settings import variables

TEXT = (Path(__file__).parents[2] / "docs/sidecar.md").read_text()


def rows(first: str) -> list[list[str]]:
    """Return the cells of the table whose head begins so."""
    _, _, rest = TEXT.partition(f"| {first} |")
    table = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_every_variable_and_its_default():
    documented = {name.strip("| `"): default for name, default, _ in rows("variable")}

    assert documented == {
        each.name: "must be there" if each.default is None else f"`{each.default}`" if each.default else ""
        for each in variables()
    }


def test_every_flag_of_init():
    told = set(re.findall(r"--[a-z-]+", CliRunner().invoke(app, ["init", "--help"]).output)) - {"--help"}

    assert {flag for cells in rows("flag") for flag in re.findall(r"--[a-z-]+", cells[0])} == told
