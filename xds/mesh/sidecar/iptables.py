"""Puts rules into force with the machine's own iptables, whichever variant it has, in one step per IP version."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from xds.mesh.sidecar.rules import Family, RedirectConfig, redirect_rules, undo_rules

_NET_ADMIN = 12
_TIMEOUT = 60
"""Seconds. Another that changes rules at the same time is waited for half of that."""

_VARIANTS = ("", "-nft", "-legacy")
_INSTALL = (
    "Debian, Ubuntu: apt-get install iptables; Alpine: apk add iptables; Fedora: dnf install iptables-nft"
)


class IptablesError(Exception):
    """The rules are not in force. Says why, and what to do."""


def install_rules(config: RedirectConfig, *, warn: Callable[[str], object]) -> None:
    """Redirect the traffic of this network namespace; to do it twice is to do it once.

    Args:
        config: what to redirect.
        warn: told of what is amiss, but leads nobody past the sidecar.

    Raises:
        IptablesError: it cannot be done here.
    """
    _check_privileges()
    _apply(4, lambda current: redirect_rules(config, current, family=4))
    # Not only where the pod has IPv6 addresses: a router's advertisement may give it one at any time.
    if not _has_ipv6():
        return
    try:
        _apply(6, lambda current: redirect_rules(config, current, family=6))
    except IptablesError as error:
        if any(not address.startswith("fe80") for address in ipv6_addresses()):
            raise IptablesError(
                f"this pod has IPv6 addresses, whose traffic would bypass the sidecar: {error}"
            ) from None
        if _ipv6_is_enabled():
            warn(
                "IPv6 is not redirected: this pod has no global IPv6 address now, but the traffic of one that it gets later "
                f"would bypass the sidecar: {error}"
            )


def remove_rules() -> None:
    """Take the rules away, if they are there.

    Raises:
        IptablesError: it cannot be done here.
    """
    _check_privileges()
    _try_variants(4, partial(_remove, 4))
    if _has_ipv6():
        try:
            _try_variants(6, partial(_remove, 6))
        except IptablesError:
            # Where ip6tables does not work, `intercept` set nothing either, unless the pod has addresses.
            if ipv6_addresses():
                raise


def ipv6_addresses() -> list[str]:
    """Return this network namespace's IPv6 addresses, in 32 digits, loopback's apart; none where IPv6 is off."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    return [line.split()[0] for line in lines if line.split()[-1] != "lo"]


def _has_ipv6() -> bool:
    """Whether this kernel has IPv6 at all."""
    return Path("/proc/net/if_inet6").exists()


def _ipv6_is_enabled() -> bool:
    """Whether an interface of this network namespace can get an IPv6 address, unless a sysctl is changed first."""
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
    """Try one variant of iptables after the other, until one has done it. Fail if none works here at all."""
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
    """Return the variants of iptables that are here, the machine's own choice first."""
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
        process = subprocess.run(  # noqa: S603  # no shell, and every word is ours
            argv, input=stdin, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError:
        raise IptablesError(f"{argv[0]} is missing ({_INSTALL})") from None
    except subprocess.TimeoutExpired:
        raise IptablesError(f"{argv[0]} has not ended after {_TIMEOUT} s") from None
    if process.returncode:
        message = " ".join(process.stderr.split()) or "no message"
        raise IptablesError(f"{argv[0]}: exit status {process.returncode}: {message}")
    return process.stdout


def _check_privileges() -> None:
    if os.geteuid() != 0:
        raise IptablesError("needs to be root (securityContext.runAsUser: 0)")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    if not int(effective, 16) >> _NET_ADMIN & 1:
        raise IptablesError(
            "needs the capability NET_ADMIN (securityContext.capabilities.add: [NET_ADMIN, NET_RAW])"
        )
