"""The plugin works in an environment of its own: another directory, without this project's conftest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
MESSAGES = """
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
import pytest
from xds.resources import CLUSTER

"""


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(MESSAGES + test)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options, "-p", "xds.pytest_plugin")


def test_plugin_is_loaded_only_on_request(pytester):
    pytester.makepyfile("def test_nothing(xds_store): pass")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'xds_store' not found"])


def test_fixtures_need_no_other_configuration(pytester):
    test = """
@pytest.mark.asyncio
async def test_cluster(xds_server, xds_store, envoy_client):
    assert xds_server.store is xds_store
    xds_store.set(Cluster(name="web"))
    client = await envoy_client()
    await client.wait_for(lambda: "web" in client.clusters)
    assert client.conversation[1:3] == ["> CDS", "< CDS web"]
"""
    run(pytester, test).assert_outcomes(passed=1)


def test_failure_prints_the_conversation(pytester):
    test = """
import asyncio

@pytest.mark.asyncio
async def test_cluster(xds_store, envoy_client):
    xds_store.set(Cluster(name="web"))
    client = await envoy_client(node="edge-1", timeout=0.3)
    while "web" not in client.clusters:
        await asyncio.sleep(0.01)
    await client.wait_for(lambda: "other" in client.clusters, "the other cluster")

@pytest.mark.asyncio
async def test_assertion(xds_store, envoy_client):
    xds_store.set(Cluster(name="web"))
    client = await envoy_client(node="edge-1")
    await client.wait_for(lambda: "web" in client.clusters)
    assert "other" in client.clusters
"""
    result = run(pytester, test)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: edge-1: not within 0.3 s: the other cluster",
            "*-- stream of edge-1 (delta)",
            "*> CDS",
            "*< CDS web",
            "*Conversation of EnvoyClient edge-1*",
            "has: web (CDS)",
            "*assert 'other' in*",
            "*Conversation of xDS server*",
            "-- stream of edge-1 (delta)",
            "*Conversation of EnvoyClient edge-1*",
        ]
    )


def test_unequal_snapshots_are_explained_by_their_difference(pytester):
    test = """
from xds.builders import certificate, cluster
from xds.snapshot import ResourceSet, Snapshot
from xds.resources import resource
from xds.store import Store

def snapshot(*messages):
    store = Store()
    store.set(*messages)
    return store.view("n")

OLD = cluster("web", ["10.0.0.1:80"])
NEW = cluster("web", ["10.0.0.1:81"])

def test_snapshots():
    old, new = (certificate("s", b"chain", key) for key in (b"old-key", b"new-key"))
    assert snapshot(OLD, cluster("same"), old) == snapshot(NEW, cluster("same"), new)

def test_sets():
    assert snapshot(OLD).of(CLUSTER) == snapshot(OLD, cluster("more")).of(CLUSTER)

def test_resources():
    assert resource(OLD) == resource(NEW)

def test_labels():
    assert ResourceSet(label="a") == ResourceSet(label="b")

def test_others():
    assert Snapshot() == 1

def test_equal():
    assert snapshot(OLD) != snapshot(NEW)
    assert snapshot(OLD) == snapshot(OLD)
"""
    result = run(pytester, test)
    result.assert_outcomes(failed=5, passed=1)
    result.stdout.fnmatch_lines(
        [
            "E*assert Snapshot == Snapshot",
            "E*CDS web: load_assignment*socket_address.port_value: 80 -> 81",
            "E*SDS s: only redacted secrets differ",
            "E*assert ResourceSet == ResourceSet",
            "E*CDS more: only in the right one",
            "E*assert Resource == Resource",
            "E*CDS web: load_assignment*socket_address.port_value: 80 -> 81",
            "E*assert ResourceSet == ResourceSet",
            "E*no resource differs, but <ResourceSet *+a: >",
            "E*is not <ResourceSet *+b: >",
            "E*assert Snapshot(*) == 1",
        ]
    )
    assert "CDS same" not in result.stdout.str()


def test_passing_tests_print_no_conversation(pytester):
    test = """
@pytest.mark.asyncio
async def test_nothing(envoy_client):
    await envoy_client()
"""
    assert "Conversation of" not in run(pytester, test, "-rA").stdout.str()


def test_without_pytest_asyncio_the_fixtures_say_so(pytester):
    pytester.makepyfile(
        hidden="""
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "pytest_asyncio" else find_spec(name, *more)
"""
    )
    test = "def test_nothing(xds_server): pass"
    result = run(pytester, test, "-p", "hidden", "-p", "no:asyncio")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*xds_server needs pytest-asyncio: pip install 'xds-mesh?testing?'*"])


@pytest.mark.parametrize("required", [False, True])
def test_missing_envoy_is_reported(pytester, monkeypatch, required):
    if required:
        monkeypatch.setenv("XDS_REQUIRE_ENVOY", "1")
    else:
        monkeypatch.delenv("XDS_REQUIRE_ENVOY", raising=False)
    test = """
import xds.validation
@pytest.fixture(autouse=True)
def missing(monkeypatch):
    def find_envoy():
        raise xds.validation.EnvoyNotFoundError("Envoy is not found")
    monkeypatch.setattr(xds.validation, "find_envoy", find_envoy)

@pytest.mark.asyncio
async def test_nothing(real_envoy): pass
"""
    result = run(pytester, test, "-rs")
    result.assert_outcomes(**({"errors": 1} if required else {"skipped": 1}))
    result.stdout.fnmatch_lines(["*Envoy is not found; the extra xds-mesh?testing? contains it*"])


def test_plugin_alone_imports_only_pytest():
    program = "import sys, xds.pytest_plugin; print(*(m for m in sys.modules if m.split('.')[0] in BAD))"
    bad = {"grpc", "aiohttp", "betterproto2", "envoy_data_plane", "structlog", "google"}
    result = subprocess.run(
        [sys.executable, "-c", f"BAD = {bad}; {program}"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


def test_documented_tests_pass(pytester):
    """With the files of the page, and without a warning."""
    text = (ROOT / "docs" / "how-to" / "test-a-control-plane.md").read_text()
    blocks = re.findall(
        r'^```(?:python|ini)(?: title="([\w.]+)")?\n(.*?)^```$', text, re.MULTILINE | re.DOTALL
    )
    files = {name: block for name, block in blocks if name}
    assert files.keys() == {"pytest.ini", "conftest.py", "blue_green.py", "test_blue_green.py"}
    files["test_blue_green.py"] += "".join(block for name, block in blocks if not name)
    for name, content in files.items():
        (pytester.path / name).write_text(content)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rs")
    count = files["test_blue_green.py"].count("async def test_")
    assert count > 3
    variants = 1  # One test runs in both variants.
    result.assert_outcomes(passed=count + variants, warnings=0)


def test_builders_can_be_imported_if_warnings_are_errors(pytester):
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n")
    test = "def test_import(): import xds.builders"
    run(pytester, test).assert_outcomes(passed=1)
