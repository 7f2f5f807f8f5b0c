"""The base image: the real one, or a stand-in where no image registry can be reached.

The stand-in is built from Debian packages and has what the Dockerfile relies on: Debian 13, Python 3.13
called python, pip and apt. It is larger. It trusts the CAs that this machine trusts, which company proxies
need.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.compose.environment import CACHE, MissingError, is_root

NAME = "python:3.13-slim"
_RELEASE = "trixie"
_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
_ROOTS = Path("/etc/ssl/certs/ca-certificates.crt")
_DOCKERFILE = f"""
FROM scratch
ADD python.tar /
COPY roots.crt {_ROOTS}
RUN ln -s /usr/bin/python3 /usr/local/bin/python
ENV PIP_CERT={_ROOTS}
"""


@contextmanager
def provided(environment: dict[str, str]) -> Iterator[None]:
    """Make the image available in the engine. A stand-in is removed afterwards, to prevent confusion.

    Raises:
        MissingError: the image is not available and cannot be built.
    """
    for command in (["image", "inspect", NAME], ["pull", "--quiet", NAME]):
        if not _docker(environment, *command).returncode:
            yield
            return
    try:
        with context() as folder:
            # Some installations lack the plugin for the newer builder.
            _must(_docker({**environment, "DOCKER_BUILDKIT": "0"}, "build", "-q", "-t", NAME, str(folder)))
        yield
    finally:
        _docker(environment, "image", "rm", "--force", NAME)


@contextmanager
def context() -> Iterator[Path]:
    """Yield a folder from which a builder makes the stand-in.

    Raises:
        MissingError: it cannot be made here.
    """
    archive = _archive()
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        (Path(folder) / "Dockerfile").write_text(_DOCKERFILE)
        (Path(folder) / "python.tar").hardlink_to(archive)
        shutil.copyfile(_ROOTS, Path(folder) / "roots.crt")
        yield Path(folder)


def _archive() -> Path:
    archive = CACHE / f"python-3.13-{_RELEASE}.tar"
    if archive.exists():
        return archive
    if not (is_root() and shutil.which("debootstrap")):
        raise MissingError(
            f"needs the image {NAME}: `docker pull {NAME}`, or be root where debootstrap is installed, of "
            "which a stand-in is made (Debian: apt-get install debootstrap debian-archive-keyring)"
        )
    print("Making a stand-in for python:3.13-slim: the first time takes about a minute", flush=True)
    CACHE.mkdir(exist_ok=True)
    making = archive.with_suffix(".making")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        command = [
            "debootstrap",
            "--variant=minbase",
            f"--include={_PACKAGES}",
            _RELEASE,
            str(root),
            *_mirror(),
        ]
        _must(subprocess.run(command, capture_output=True, text=True, check=False))
        _must(
            subprocess.run(
                ["tar", "-C", root, "-cf", making, "."], capture_output=True, text=True, check=False
            )
        )
    making.rename(archive)
    return archive


def _mirror() -> list[str]:
    """Return this machine's Debian mirror as a list, which is empty on other systems."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return found[:1]


def _docker(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise MissingError(f"{done.args[0]} {done.args[1]}: {(done.stderr or done.stdout)[-2000:]}")
