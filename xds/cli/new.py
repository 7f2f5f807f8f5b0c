"""`xds new`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from xds.cli.options import fail

EXAMPLES = """
xds new my-mesh && my-mesh/run.sh
"""


def new(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to create. It must not exist, or be empty.")
    ],
) -> None:
    """Write a small mesh of two services that runs on this machine.

    run.sh starts the control plane, both applications and their sidecars. It needs envoy on PATH (pip install
    'xds-mesh[demo]'), but no root privileges. README.md explains what to try.

    Exit status: 0 written, 1 the folder cannot be written, 2 the folder is not empty, or wrong usage.
    """
    try:
        if directory.exists() and any(directory.iterdir()):
            fail(f"{directory} is not empty: choose another folder")
        for name, content in _packaged(files("xds.cli") / "starter"):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if path.suffix == ".sh":
                path.chmod(0o755)
            typer.echo(f"created {path}")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", 1)
    typer.echo(f"start the mesh: {directory}/run.sh")


def _packaged(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the relative name and content of each file below a packaged folder."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{prefix}{entry.name}"
        if entry.name == "__pycache__":
            continue
        if entry.is_dir():
            yield from _packaged(entry, f"{name}/")
        else:
            yield name, entry.read_bytes()
