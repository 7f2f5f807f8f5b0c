"""A Docker engine: the running one, or else one that is started here and stopped afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.compose.environment import MissingError, is_root, tail

_PATIENCE = 60
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


@contextmanager
def running(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield an environment in which `docker` has an engine.

    Raises:
        MissingError: none answers, and none can be started.
    """
    if _answers(environment):
        yield environment
        return
    if not (is_root() and shutil.which("dockerd") and shutil.which("iptables")):
        raise MissingError(
            "needs Docker: start it, or be root where dockerd and iptables are installed "
            "(Debian: apt-get install docker.io iptables)"
        )
    with _kept_as_it_is(), _folder() as folder, _started(folder) as socket:
        yield {**environment, "DOCKER_HOST": f"unix://{socket}"}


@contextmanager
def _folder() -> Iterator[Path]:
    """Create a folder and delete it afterwards, even with 40,000 files."""
    folder = Path(tempfile.mkdtemp(prefix="xds-dockerd-"))
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


@contextmanager
def _started(folder: Path) -> Iterator[Path]:
    socket, log = folder / "docker.sock", folder / "dockerd.log"
    command = ["dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    command += ["-H", f"unix://{socket}", "-p", str(folder / "pid")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}"}
        until = time.monotonic() + _PATIENCE
        while not _answers(environment):
            if process.poll() is not None or time.monotonic() > until:
                raise MissingError(f"dockerd does not start here:\n{tail(log)}")
            time.sleep(0.1)
        yield socket
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its containers and its containerd
        process.wait()


@contextmanager
def _kept_as_it_is() -> Iterator[None]:
    """Restore the machine's network afterwards: dockerd leaves rules, a bridge and IP forwarding behind."""
    forward = _FORWARD.read_text()
    before = {(tool, table): _rules(tool, table) for tool in ("iptables", "ip6tables") for table in _EMPTY}
    try:
        yield
    finally:
        for (tool, table), rules in before.items():
            if _rules(tool, table) != rules:
                text = rules or f"*{table}\n{_EMPTY[table]}COMMIT\n"
                subprocess.run([f"{tool}-restore"], input=text, text=True, check=True)
        subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)
        _FORWARD.write_text(forward)


_EMPTY = {
    table: "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains.split())
    for table, chains in {
        "filter": "INPUT FORWARD OUTPUT",
        "nat": "PREROUTING INPUT OUTPUT POSTROUTING",
    }.items()
}
"""Empty tables, to restore those that did not exist before dockerd."""


def _rules(tool: str, table: str) -> str:
    """Return the rules of a table; empty if it does not exist."""
    saved = subprocess.run([f"{tool}-save", "-t", table], capture_output=True, text=True, check=False).stdout
    lines = [line for line in saved.splitlines(keepends=True) if not line.startswith("#")]
    return "".join(lines)


def _answers(environment: dict[str, str]) -> bool:
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    return not subprocess.run(asked, env=environment, capture_output=True, check=False).returncode
