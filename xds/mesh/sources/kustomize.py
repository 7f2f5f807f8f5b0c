"""Build kustomizations with `kustomize` or `kubectl`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from xds.mesh.sources.files import Text

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
    name = f"{' '.join(command)} {folder}"
    try:
        result = subprocess.run([*command, str(folder)], capture_output=True, check=False)  # noqa: S603
    except OSError as error:
        raise KustomizeError(f"{name}: {error.strerror}") from error
    if result.returncode:
        output = result.stderr.decode(errors="replace").strip()[-_MAX_ERROR:]
        raise KustomizeError(f"{name} failed with status {result.returncode}: {output}")
    return Text(name, result.stdout.decode(errors="replace"))
