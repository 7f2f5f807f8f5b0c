"""Install redirection rules with the available iptables variant, atomically per IP version."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from xds.mesh.envoy.names import PASSTHROUGH_SOURCES
from xds.mesh.model.families import Family
from xds.mesh.sidecar.rules import RedirectConfig, redirect_rules, undo_rules

_NET_ADMIN = 12
_ADD_ADDRESS, _REMOVE_ADDRESS = 0x8916, 0x8936
"""SIOCSIFADDR and SIOCDIFADDR, which the socket module lacks."""
_TIMEOUT = 60
"""Timeout of a command in seconds. The wait for the iptables lock is half of it."""

_VARIANTS = ("", "-nft", "-legacy")
_INSTALL = (
    "Debian, Ubuntu: apt-get install iptables; Alpine: apk add iptables; Fedora: dnf install iptables-nft"
)


class IptablesError(Exception):
    """The rules cannot be changed. The message has the reason and the fix."""


def install_rules(config: RedirectConfig, *, warn: Callable[[str], object]) -> None:
    """Redirect the traffic of this network namespace. Idempotent.

    Args:
        config: traffic to redirect.
        warn: called with a problem that currently lets no traffic bypass the sidecar, but may later.

    Raises:
        IptablesError: the rules cannot be changed.
    """
    _check_privileges()
    _apply(4, lambda current: redirect_rules(config, current, family=4))
    # Redirect IPv6 even without addresses: a router advertisement can add an address at any time.
    if not _has_ipv6():
        return
    try:
        _apply(6, lambda current: redirect_rules(config, current, family=6))
        _add_source()
    except IptablesError as error:
        if any(not address.startswith("fe80") for address in ipv6_addresses()):
            raise IptablesError(
                f"this pod has IPv6 addresses, whose traffic would bypass the sidecar: {error}"
            ) from None
        if _ipv6_is_enabled():
            warn(
                "IPv6 is not redirected: this pod has no global IPv6 address now, but traffic of a later one "
                f"would bypass the sidecar: {error}"
            )


def remove_rules() -> None:
    """Remove the rules if they exist.

    Raises:
        IptablesError: the rules cannot be changed.
    """
    _check_privileges()
    _try_variants(4, partial(_remove, 4))
    if _has_ipv6():
        with suppress(OSError):
            _change_address(_REMOVE_ADDRESS)
        try:
            _try_variants(6, partial(_remove, 6))
        except IptablesError:
            # Without ip6tables, `install_rules` succeeds only if the pod has no global IPv6 address, and then
            # installs no IPv6 rules.
            if ipv6_addresses():
                raise


def _add_source() -> None:
    """Give the pod the address from which its sidecar connects to the application over IPv6.

    All of 127.0.0.0/8 belongs to a machine, but only one IPv6 address does.
    """
    try:
        _change_address(_ADD_ADDRESS)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise IptablesError(f"cannot add {PASSTHROUGH_SOURCES[6]} to lo: {error.strerror}") from None


def _change_address(request: int) -> None:
    """Add or remove the address. `struct in6_ifreq`: address, prefix length, index of the interface."""
    address = socket.inet_pton(socket.AF_INET6, PASSTHROUGH_SOURCES[6])
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, request, struct.pack("16sIi", address, 128, socket.if_nametoindex("lo")))


def ipv6_addresses() -> list[str]:
    """Return the IPv6 addresses of this network namespace, as 32 hex digits each, without loopback."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    return [line.split()[0] for line in lines if line.split()[-1] != "lo"]


def _has_ipv6() -> bool:
    """Return whether the kernel supports IPv6."""
    return Path("/proc/net/if_inet6").exists()


def _ipv6_is_enabled() -> bool:
    """Return whether IPv6 is enabled on an interface other than loopback."""
    settings = Path("/proc/sys/net/ipv6/conf").glob("*/disable_ipv6")
    names = {file.parent.name: file.read_text(encoding="ascii").strip() for file in settings}
    return any(value == "0" for name, value in names.items() if name not in {"all", "lo"})


def _apply(family: Family, text: Callable[[str], str]) -> None:
    def apply(variant: str) -> bool:
        _restore(family, variant, text(_save(family, variant)))
        return True

    _try_variants(family, apply)


def _remove(family: Family, variant: str) -> bool:
    if text := undo_rules(_save(family, variant)):
        _restore(family, variant, text)
    return bool(text)


def _try_variants(family: Family, apply: Callable[[str], bool]) -> None:
    """Call `apply` with each iptables variant until it returns True. Raise IptablesError if all fail."""
    errors = []
    variants = _variants(family)
    for variant in variants:
        try:
            if apply(variant):
                return
        except IptablesError as error:
            errors.append(str(error))
    if len(errors) == len(variants):
        raise IptablesError("; ".join(errors))


def _variants(family: Family) -> list[str]:
    """Return the installed iptables variants, the system's default first."""
    variants = [variant for variant in _VARIANTS if shutil.which(_tool(family, variant, "restore"))]
    if not variants:
        raise IptablesError(f"{_tool(family, '', 'restore')} is missing ({_INSTALL})")
    return variants


def _tool(family: Family, variant: str, command: str) -> str:
    return f"{'iptables' if family == 4 else 'ip6tables'}{variant}-{command}"


def _save(family: Family, variant: str) -> str:
    return _run(_tool(family, variant, "save"), "-t", "nat")


def _restore(family: Family, variant: str, text: str) -> None:
    _run(_tool(family, variant, "restore"), "--noflush", f"--wait={_TIMEOUT // 2}", stdin=text)


def _run(*argv: str, stdin: str = "") -> str:
    try:
        process = subprocess.run(  # noqa: S603  # no shell, no user input
            argv, input=stdin, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError:
        raise IptablesError(f"{argv[0]} is missing ({_INSTALL})") from None
    except subprocess.TimeoutExpired:
        raise IptablesError(f"{argv[0]} timed out after {_TIMEOUT} s") from None
    if process.returncode:
        message = " ".join(process.stderr.split()) or "no message"
        raise IptablesError(f"{argv[0]}: exit status {process.returncode}: {message}")
    return process.stdout


def _check_privileges() -> None:
    if os.geteuid() != 0:
        raise IptablesError("must run as root (securityContext.runAsUser: 0)")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    if not int(effective, 16) >> _NET_ADMIN & 1:
        raise IptablesError(
            "needs the capability NET_ADMIN (securityContext.capabilities.add: [NET_ADMIN, NET_RAW])"
        )
