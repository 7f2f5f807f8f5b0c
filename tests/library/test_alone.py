"""Each extra requires the packages that its modules import, and the library alone requires few.

The tests run programs in this environment, and hide the packages that the extra does not require.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.library import alone
from xds.__main__ import MODULES
from xds.conformance import store_adapter
from xds.server import XdsServer
from xds.store import Store

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
HIDE = "import runpy, sys; sys.modules.update(dict.fromkeys(HIDDEN))"
MESH = """
import importlib, pkgutil, xds.cli, xds.demo, xds.mesh
for package in xds.cli, xds.demo, xds.mesh:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name not in ("xds.demo.httpbin", "xds.mesh.controlplane.tracing"):
            importlib.import_module(module.name)
"""
"""Imports the modules of the extra `mesh`: all except for those of `demo` and `otel`."""


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Return the names of the packages that a package requires, directly and indirectly, and its own."""
    unvisited, visited = {(normalized(name), extras)}, set()
    while unvisited:
        visited.add(current := unvisited.pop())
        for text in importlib.metadata.requires(current[0]) or ():
            requirement = Requirement(text)
            if not requirement.marker or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *current[1])
            ):
                unvisited |= {(normalized(requirement.name), frozenset(requirement.extras))} - visited
    return {package for package, _ in visited}


def script(name: str, *words: str) -> str:
    """Return a program that runs an installed script."""
    return f"sys.argv = {[str(SCRIPTS / name), *words]}; runpy.run_path(sys.argv[0], run_name='__main__')"


def run(program: str, extra: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program that can import only what the project requires, with an extra."""
    visible = required("xds-mesh", frozenset({extra} - {""}))
    hidden = {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not visible.intersection(map(normalized, packages))
    }
    command = [sys.executable, "-c", f"HIDDEN = {hidden}\n{HIDE}\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_library_serves_with_what_it_requires():
    done = run(f"runpy.run_path({alone.__file__!r}, run_name='__main__')")
    assert done.stdout.endswith("received cluster cluster listener routes\n"), done.stderr


def test_program_covers_the_library():
    names = set(alone.modules())
    assert names >= {"xds.snapshot", "xds.conformance.runner", "xds.server.metrics", "xds.testing.envoy"}
    assert not {name for name in names if name.startswith(("xds.cli", "xds.mesh", "xds.demo"))}


@pytest.mark.parametrize(
    ("extra", "program"),
    [("rest", "import xds.server.rest"), ("testing", "import aiohttp, xds.pytest_plugin"), ("mesh", MESH)],
)
def test_extra_requires_what_its_modules_import(extra, program):
    done = run(program, extra)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["aiohttp", "kubernetes", "rich", "typer"])
def test_library_does_not_require(module):
    assert f"import of {module} halted" in run(f"import {module}").stderr


async def test_conformance_needs_only_its_extra():
    store = Store()
    async with XdsServer(store, "127.0.0.1:0", added=[store_adapter(store)]) as server:
        command = ["xds-conformance", f"127.0.0.1:{server.port}", "--variant=delta-ads", "--rule=R4"]
        table = await asyncio.to_thread(run, script(*command), "conformance")
        document = await asyncio.to_thread(run, script(*command, "--output=yaml"), "conformance")
    assert (table.returncode, table.stderr) == (0, "")
    assert re.fullmatch(r"[1-9]\d* pass, 0 fail, 0 differ, 0 not applicable", table.stdout.splitlines()[-1])
    assert (document.returncode, document.stderr) == (0, "")
    assert yaml.safe_load(document.stdout)


@pytest.mark.parametrize(
    ("program", "extra"),
    [
        ("runpy.run_module('xds', run_name='__main__', alter_sys=True)", "mesh"),
        (script("xds"), "mesh"),
        (script("xds", "conformance"), "conformance"),
        (script("xds-conformance"), "conformance"),
    ],
)
def test_command_names_the_missing_packages(program, extra):
    done = run(program)
    assert (done.returncode, done.stdout) == (2, "")
    message = f"xds: {', '.join(MODULES[extra])} are not installed: pip install 'xds-mesh[{extra}]'\n"
    assert done.stderr == message


@pytest.mark.parametrize(
    ("extra", "contained"), [("conformance", ["conformance"]), ("mesh", ["conformance", "mesh", "rest"])]
)
def test_command_looks_for_all_packages_of_the_extra(extra, contained):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {normalized(Requirement(text).name) for name in contained for text in extras[name]}
    modules = importlib.metadata.packages_distributions()
    found = {normalized(name) for module in MODULES[extra] for name in modules[module]}
    assert found == packages - {"xds-mesh"}


def test_command_reports_a_package_with_the_same_name(tmp_path):
    """xds-protos replaces xds/__init__.py by an empty file."""
    (tmp_path / "xds").mkdir()
    for path in (ROOT / "xds").iterdir():
        if path.name != "__init__.py":
            (tmp_path / "xds" / path.name).symlink_to(path)
    (tmp_path / "xds" / "__init__.py").touch()
    command = [sys.executable, "-P", "-m", "xds", "--version"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("xds ")
    message = "xds: another package has replaced xds/__init__.py, probably xds-protos: "
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
