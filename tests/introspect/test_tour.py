"""The commands of docs/how-to/debug-with-grpcurl.md print the documented output, with real tools."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.introspect import tour
from tests.introspect.grpcurl import GRPCURL, read

STEPS = list(tour.steps(tour.TOUR.read_text()))
WITHIN = 30.0
"""Seconds to repeat a command until the server has processed the proxies' requests."""

Run = Callable[[str], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the request files. The tour writes a file beside them."""
    return shutil.copytree(tour.FOLDER, tmp_path_factory.mktemp("tour") / "grpcurl")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A control plane for the demo's mesh."""
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "xds", "serve", "--manifests", tour.MESH),
                *("--xds-address", "127.0.0.1:0", "--admin-address", "127.0.0.1:0"),
            ],
            stderr=stderr,
        )
    try:
        end = time.monotonic() + 3 * WITHIN
        while 'event="control plane ready"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        port = log.read_text().partition('event="serving xDS"')[2].partition("port=")[2].split()[0]
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def run(address: str, folder: Path) -> Iterator[Run]:
    """Run a command in a shell. A background command runs until the end of the tour."""
    paths = os.pathsep.join((str(GRPCURL.parent), os.environ["PATH"]))
    staying = []

    def run(command: str) -> str:
        shell = ["bash", "-c", command.replace(tour.ADDRESS, address).removesuffix("&")]
        # Other tests may use the default port of `xds status`.
        if command.startswith("xds status"):
            shell[-1] += f" --xds-address {address}"
        options = {"cwd": folder, "env": os.environ | {"PATH": paths, "COLUMNS": "200"}, "text": True}
        if command.endswith("&"):
            staying.append(subprocess.Popen(shell, start_new_session=True, **options))
            return ""
        done = subprocess.run(
            shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False, **options
        )
        return done.stdout.replace(address, tour.ADDRESS)

    yield run
    for process in staying:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"line-{step.line}")
def test_commands_print_the_documented_output(step: tour.Step, run: Run) -> None:
    end = time.monotonic() + WITHIN
    while True:
        output = run(step.command)
        if step.fits(output):
            return
        if time.monotonic() > end:
            pytest.fail(f"{step.command}\n--- printed\n{output}\n--- is to print\n{step.output}")
        time.sleep(0.1)


def test_tour_covers_all_services() -> None:
    commands = " ".join(step.command for step in STEPS)
    for file in tour.FOLDER.glob("*.json"):
        assert f" {file.name}" in commands, file
        assert file.name in (tour.FOLDER / "README.md").read_text()
        assert read(file.read_text()), file
    for what in (
        "list",
        "describe",
        "Aggregated",
        "Clusters",
        "Endpoints",
        "Health",
        "Channelz",
        "ClientStatus",
    ):
        assert what in commands


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a  \n\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n", "", False),
        ("", "", True),
        ("", "a\n", False),
        ("a\n  ...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nd\n", True),
        ("a\n...\nd\n", "a\nb\n", False),
        ("a...c\n", "abbc\n", True),
        ("a...c\n", "abb\nc\n", False),
        ('"versionInfo": "0123456789abcdef"\n', '"versionInfo": "fedcba9876543210"\n', True),
        ('"versionInfo": "0123456789abcdef"\n', '"versionInfo": ""\n', False),
        ('"lastUpdated": "2026-11-24T19:13:39.046Z"\n', '"lastUpdated": "2027-01-01T00:00:00Z"\n', True),
        ("a.c\n", "abc\n", False),
    ],
)
def test_comparison_ignores_variable_parts(shown: str, printed: str, fits: bool) -> None:
    assert tour.Step(0, "", shown).fits(printed) is fits
