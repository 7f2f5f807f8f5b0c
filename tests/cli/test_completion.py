"""Completion of commands, options and names by real shells."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from subprocess import PIPE
from typing import Self

import pytest

from tests.cli.commands import WEB, write_folder
from tests.cli.serve_process import serving
from tests.support.loopback import free_port

pytestmark = pytest.mark.timeout(400)  # A test starts up to ten processes.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, all=WEB)


def environment() -> dict[str, str]:
    """Return this environment, in which `xds` is the program of this Python."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@cache
def bash_script() -> str:
    command = ("xds", "completion", "bash")
    return subprocess.run(command, env=environment(), stdout=PIPE, text=True, check=True).stdout


def complete(*words: object, stdin: str = "") -> list[str]:
    """Return what a real bash completes for the last word of a command line."""
    line = ["xds", *map(str, words)]
    script = (
        f"{bash_script()}\n"
        f"COMP_WORDS=({' '.join(repr(word) for word in line)}); COMP_CWORD={len(line) - 1}\n"
        "complete -p xds >/dev/null && _xds_completion xds\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "--norc", "-c", script],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert result.stderr == ""
    return result.stdout.split()


@pytest.fixture
def bash() -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")


@pytest.mark.usefixtures("bash")
def test_bash_completes_commands_and_options() -> None:
    assert complete("sta") == ["status"]
    assert complete("rea") == ["reach"]
    assert {"serve", "status", "version"} <= set(complete(""))
    assert complete("reach", "--manif") == ["--manifests"]
    assert complete("completion", "z") == ["zsh"]


@pytest.mark.usefixtures("bash")
def test_bash_completes_names_from_manifests(folder: Path) -> None:
    assert complete("reach", "--manifests", folder, "--from", "") == [
        "web-1.shop",
        "web-2.shop",
        "web-10.shop",
    ]
    assert complete("reach", "--manifests", folder, "--from", "web-1") == ["web-1.shop", "web-10.shop"]
    assert complete("reach", "--manifests", folder, "--to", "w") == ["web.shop"]
    assert complete("translate", "--manifests", folder, "web-2") == ["web-2.shop"]


@pytest.mark.usefixtures("bash")
def test_completion_reads_no_stdin_and_builds_no_kustomization(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kustomize").write_text(f"#!/bin/sh\ncat {folder}/all.yaml\n")
    (tmp_path / "kustomize").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "k").mkdir()
    (tmp_path / "k/kustomization.yaml").touch()
    manifests = (folder / "all.yaml").read_text()
    assert complete("reach", "--manifests", "-", "--from", "web", stdin=manifests) == []
    assert complete("reach", "--manifests", tmp_path / "k", "--from", "web") == []
    names = complete("reach", "--manifests", "-", "--manifests", folder, "--from", "web-2", stdin="{")
    assert names == ["web-2.shop"]


@pytest.mark.usefixtures("bash")
def test_bash_completes_options_with_an_equals_sign(folder: Path) -> None:
    """Bash passes --option=value as three words."""
    where = ("--manifests", "=", folder)
    assert complete("reach", *where, "--from", "web-2") == ["web-2.shop"]
    assert complete("reach", *where, "--from", "=", "web-2") == ["web-2.shop"]
    assert complete("reach", *where, "--from", "=") == ["web-1.shop", "web-2.shop", "web-10.shop"]


@pytest.mark.usefixtures("bash")
def test_bash_completes_sidecars_of_a_control_plane(folder: Path) -> None:
    with serving(folder) as process:
        words = ("status", "--xds-address", f"127.0.0.1:{process.xds}")
        # Completion gives up after two seconds.
        process.wait_for(lambda: complete(*words, "web-2") == ["web-2.shop"])
        process.wait_for(lambda: complete(*words, "-n", "") == ["shop"])


@pytest.mark.usefixtures("bash")
def test_completion_without_a_control_plane_is_empty_and_silent(tmp_path: Path) -> None:
    assert complete("status", "--xds-address", f"127.0.0.1:{free_port()}", "we") == []
    assert complete("status", "--xds-address", "nonsense", "we") == []
    (tmp_path / "m.yaml").write_text("{")
    assert complete("reach", "--manifests", tmp_path, "--from", "we") == []


# --- interactive shells ---

PROMPT = "READY> "
PATIENCE = 60.0
"""Seconds for a shell to start, or to complete and run one line."""


def bash_command(directory: Path, output: Path) -> Sequence[str]:
    rc = directory / "bashrc"
    rc.write_text(
        f"PS1='{PROMPT}'\nsource <(xds completion bash)\nxds() {{ printf '%s\\n' \"$*\" >>'{output}'; }}\n"
    )
    return "bash", "--noprofile", "--rcfile", str(rc), "-i"


def zsh_command(directory: Path, output: Path) -> Sequence[str]:
    (directory / ".zshrc").write_text(
        f"PS1='{PROMPT}'\nautoload -Uz compinit && compinit -u\nsource <(xds completion zsh)\n"
        f"xds() {{ print -r -- \"$*\" >>'{output}' }}\n"
    )
    return "zsh", "-d", "-i"


def fish_command(directory: Path, output: Path) -> Sequence[str]:
    config = directory / "fish"
    config.mkdir()
    # Otherwise fish generates completions from all manual pages, in a process that continues after the test.
    (directory / ".local/share/fish/generated_completions").mkdir(parents=True)
    (config / "config.fish").write_text(
        f"function fish_prompt; echo -n '{PROMPT}'; end\nset -g fish_greeting\nxds completion fish | source\n"
        f"function xds; echo $argv >>'{output}'; end\n"
    )
    return "fish", "-i"


SHELLS = {"bash": bash_command, "zsh": zsh_command, "fish": fish_command}


class Terminal:
    """A shell on a terminal. In it, `xds` is a function that writes its arguments to `output`."""

    def __init__(self, command: Sequence[str], home: Path, output: Path) -> None:
        self.output = output
        self.printed = ""
        self._file, child_side = pty.openpty()
        env = {
            "PATH": environment()["PATH"],
            "HOME": str(home),
            "ZDOTDIR": str(home),
            "XDG_CONFIG_HOME": str(home),
            "TERM": "xterm",
        }
        # fish needs a controlling terminal.
        self._shell = subprocess.Popen(
            ("setsid", "--ctty", *command), env=env, stdin=child_side, stdout=child_side, stderr=child_side
        )
        os.close(child_side)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._file)

    @property
    def ran(self) -> list[str]:
        """Arguments of each `xds` that the shell has run."""
        return self.output.read_text().splitlines() if self.output.exists() else []

    def type(self, line: str) -> None:
        """Type a line, Tab and Enter, and wait until the shell has run it."""
        self._read_until(lambda: PROMPT in self.printed)
        self.printed = ""
        count = len(self.ran)
        os.write(self._file, f"{line}\t\r".encode())
        self._read_until(lambda: len(self.ran) > count)

    def _read_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.printed
            assert self._shell.poll() is None, self.printed
            if select.select([self._file], [], [], 0.05)[0]:
                self.printed += os.read(self._file, 1 << 16).decode(errors="replace")


@pytest.mark.parametrize("shell", SHELLS)
def test_interactive_shell_completes_as_the_user_types(shell: str, folder: Path, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    output, where = tmp_path / "ran", f"--manifests {folder}"
    typed = {
        "xds stat": "status",
        "xds reach --manif": "reach --manifests",
        f"xds reach {where} --from web-2": f"reach {where} --from web-2.shop",
    }
    with Terminal(SHELLS[shell](tmp_path, output), tmp_path, output) as terminal:
        for line in typed:
            terminal.type(line)
    assert [line.rstrip() for line in terminal.ran] == list(typed.values())
