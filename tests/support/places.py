"""Where sockets and processes live: this machine's loopback, or a network namespace of a test.

A socket always belongs to the namespace that its thread was in when it was created. So applications and
clients of any number of pods run in the test's own process and event loop; only their sockets are created
elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_NAMED = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)


class Place:
    """The network of this process."""

    def tcp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        """Make a TCP socket, ready for asyncio."""
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setblocking(False)
        return made

    def listener(self, address: str, port: int) -> socket.socket:
        """Make a listening TCP socket; port 0 takes a free one, and `::` accepts IPv4 as well."""
        made = self.tcp_socket(family_of(address))
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            made.listen(512)
        except BaseException:
            made.close()
            raise
        return made

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` here."""
        return list(argv)


def family_of(address: str) -> socket.AddressFamily:
    """Return the address family of an IP address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


HERE = Place()


class Namespace(Place):
    """A network namespace of its own. Close it when what runs in it has ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        try:
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    @property
    def file(self) -> Path:
        """The file that represents it."""
        return _NAMED / self.name

    def close(self) -> None:
        run("ip", "netns", "delete", self.name)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread into the namespace. Nothing may be awaited inside."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            away = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(away)
                try:
                    yield
                finally:
                    _setns(home)
            finally:
                os.close(away)
        finally:
            os.close(home)

    def tcp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        with self.entered():
            return super().tcp_socket(family)

    def command(self, *argv: str) -> list[str]:
        return ["/usr/bin/env", "ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a command to its end here, and return what it printed."""
        return run(*self.command(*argv), stdin=stdin)

    def sysctl(self, name: str, value: str) -> None:
        """Set a kernel parameter of this namespace."""
        with self.entered():
            Path("/proc/sys", *name.split(".")).write_text(value)


class ProcessNamespace(Namespace):
    """The network namespace of a process, which may end before."""

    def __init__(self, process: int) -> None:
        self.name = f"of process {process}"
        self._descriptor = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._descriptor)

    @property
    def file(self) -> Path:
        return Path(f"/proc/self/fd/{self._descriptor}")

    def close(self) -> None:
        self._close()

    def command(self, *argv: str) -> list[str]:
        raise NotImplementedError("only sockets can be made here")


def run(*argv: str, stdin: str = "") -> str:
    """Run a short command to its end; its standard error becomes the failure's message."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()}\n{stdin}")
    return done.stdout


@cache
def why_no_namespaces() -> str:
    """Say what keeps this machine from making network namespaces with interception; empty if nothing does."""
    missing = [tool for tool in ("ip", "iptables-restore", "setpriv") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: apt-get install iproute2 iptables util-linux)"
    if os.geteuid() != 0:
        return "needs root: network namespaces and iptables"
    try:
        trial = Namespace(f"xds-trial-{os.getpid()}")
    except RuntimeError as error:
        return f"cannot make a network namespace here: {error}"
    try:
        trial.run("iptables-restore", stdin="*nat\n-A OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n")
    except RuntimeError as error:
        return f"cannot set iptables rules here: {error}"
    finally:
        trial.close()
    return ""


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
