"""Kustomizations are built with the user's own program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.waiting import process_ended
from xds.mesh.sources import kustomize
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


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace kustomize by a shell script."""

    def write(script: str) -> None:
        (tmp_path / "bin").mkdir()
        path = tmp_path / "bin/kustomize"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    return write


@needs_kustomize
def test_overlay_is_built(overlay: Path) -> None:
    name, text = build(overlay)
    assert name.endswith(str(overlay))
    assert "name: prod-web" in text


@needs_kustomize
def test_error_of_the_program_is_shown(overlay: Path) -> None:
    (overlay / "kustomization.yml").write_text("resources: [../missing]\n")
    with pytest.raises(KustomizeError, match=r"failed with status 1:\n  \| .*missing"):
        build(overlay)


def test_missing_program_says_what_to_do(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KustomizeError, match=rf"kustomize build {overlay} \| xds COMMAND --manifests -"):
        build(overlay)


def test_program_cannot_ask_for_input(overlay: Path, program: Callable[[str], None]) -> None:
    program('read answer; test -t 0 || (: < /dev/tty) 2>/dev/null || echo "# $answer $GIT_TERMINAL_PROMPT"')
    assert build(overlay).text == "#  0\n"


async def test_program_that_hangs_is_stopped_with_its_children(
    overlay: Path, tmp_path: Path, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    program(f"sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; wait")
    for timeout in (0.2, 3.0, 30.0):  # On a busy machine, the program may be stopped before it has a child.
        monkeypatch.setattr(kustomize, "TIMEOUT", timeout)
        message = rf"has not finished after {timeout:.0f} s: .* clone that first"
        with pytest.raises(KustomizeError, match=message):
            build(overlay)
        if pid.exists():
            break
    await process_ended(int(pid.read_text()))


def test_output_is_limited(
    overlay: Path, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kustomize, "MAX_FILE_SIZE", 2**20)
    program("head -c 1048577 /dev/zero")
    with pytest.raises(KustomizeError, match=r"its output is larger than 1 MiB"):
        build(overlay)


def test_errors_are_no_commands(overlay: Path, program: Callable[[str], None]) -> None:
    program(r"printf '::error::x\n##[error]y\n\033[2Jz\n' >&2; exit 3")
    with pytest.raises(KustomizeError) as caught:
        build(overlay)
    assert str(caught.value).splitlines()[1:] == ["  | ::error::x", "  | # #[error]y", r"  | \x1b[2Jz"]


@pytest.mark.parametrize("name", ["--help", "github.com/org/repo"])
def test_folder_is_neither_an_option_nor_an_address(
    name: str, tmp_path: Path, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program('echo "# $2"')
    assert build(Path(name)) == (f"kustomize build {name}", f"# {tmp_path}/{name}\n")
