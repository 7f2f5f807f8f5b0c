"""Build kustomizations with `kustomize` or `kubectl`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from xds.mesh.model.objects import printable
from xds.mesh.sources.files import MAX_FILE_SIZE, Text

TIMEOUT = 60.0
"""Maximum duration of a build, in seconds. A base in a Git repository is cloned."""
_FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_COMMANDS = (("kustomize", "build"), ("kubectl", "kustomize"))
_MAX_ERROR = 1000
"""Maximum length of the program's output in an error, in characters."""


class KustomizeError(Exception):
    """A kustomization cannot be built."""


def is_kustomization(folder: Path) -> bool:
    """Whether a folder contains a kustomization file."""
    return any((folder / name).is_file() for name in _FILES)


def build(folder: Path) -> Text:
    """Return the manifests that a kustomization generates. Raises KustomizeError.

    Problems refer to lines of this output, because kustomize does not preserve those of the files.
    """
    command = next((command for command in _COMMANDS if shutil.which(command[0])), None)
    if command is None:
        raise KustomizeError(
            f"{folder} is a kustomization, but neither kustomize nor kubectl is on PATH: install one of "
            f"them, or pass its output: kustomize build {folder} | xds COMMAND --manifests -"
        )
    name = printable(f"{' '.join(command)} {folder}")
    try:
        # An absolute path is neither an option nor the address of a Git repository.
        status, output, errors = _run([*command, str(folder.absolute())])
    except OSError as error:
        raise KustomizeError(f"{name}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise KustomizeError(
            f"{name} has not finished after {TIMEOUT:.0f} s: if it refers to another repository, clone that "
            "first, and refer to the clone"
        ) from error
    if status:
        raise KustomizeError(f"{name} failed with status {status}:{_quote(errors)}")
    if len(output) > MAX_FILE_SIZE:
        raise KustomizeError(f"{name}: its output is larger than {MAX_FILE_SIZE >> 20} MiB")
    return Text(name, output.decode(errors="replace"))


def _run(command: Sequence[str]) -> tuple[int, bytes, bytes]:
    """Run a program that cannot ask for input. Return its status and output, slightly more than the limit."""
    with TemporaryFile() as output, TemporaryFile() as errors:
        with subprocess.Popen(  # noqa: S603 - the program is on the user's PATH
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            start_new_session=True,  # without a terminal, on which ssh would ask for a password
        ) as process:
            try:
                status = process.wait(TIMEOUT)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # including git
                raise
        output.seek(0)
        errors.seek(0)
        return status, output.read(MAX_FILE_SIZE + 1), errors.read(MAX_FILE_SIZE)


def _quote(errors: bytes) -> str:
    """Return the end of a program's errors. No line can be a command to a terminal or to GitHub Actions."""
    # GitHub Actions ignores blanks before "::", and finds "##[" anywhere in a line.
    text = errors.decode(errors="replace").strip()[-_MAX_ERROR:].replace("##[", "# #[")
    return "".join(f"\n  | {printable(line)}" for line in text.splitlines())
