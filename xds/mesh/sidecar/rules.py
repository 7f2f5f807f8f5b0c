"""Generate iptables-restore input that redirects a pod's traffic to its sidecar.

The chains have Istio's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xds.mesh.envoy.names import PASSTHROUGH_SOURCES
from xds.mesh.model.families import LOCALHOST, Family
from xds.mesh.model.objects import ADMIN_PORT
from xds.mesh.model.redirection import Network, Redirection
from xds.mesh.sidecar.settings import PROXY_ID, SIDECAR_PORTS

INBOUND = "ISTIO_INBOUND"
OUTBOUND = "ISTIO_OUTPUT"
TO_INBOUND = "ISTIO_IN_REDIRECT"
TO_OUTBOUND = "ISTIO_REDIRECT"
CHAINS = (INBOUND, OUTBOUND, TO_INBOUND, TO_OUTBOUND)

_JUMP = re.compile(rf"-A (?:PREROUTING|OUTPUT) (?:.* )?-j (?:{'|'.join(CHAINS)})(?: .*)?")
_CHAIN = re.compile(rf":({'|'.join(CHAINS)}) .*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedirectConfig(Redirection):
    """Arguments of the iptables rules. The defaults are Istio's, and redirect nearly all traffic."""

    outbound_port: int = 15001
    """Port of the sidecar's outbound listener."""
    inbound_port: int = 15006
    """Port of the sidecar's inbound listener."""
    uid: int = PROXY_ID
    """User of the sidecar."""
    gid: int = PROXY_ID
    """Group of the sidecar. Traffic is the sidecar's own if both its user and its group match."""
    exclude_inbound_ports: tuple[int, ...] = SIDECAR_PORTS
    """Inbound ports that are not redirected."""
    exclude_interfaces: tuple[str, ...] = ()
    """Network interfaces whose traffic is not redirected."""


def redirect_rules(config: RedirectConfig, current: str = "", *, family: Family = 4) -> str:
    """Return the input for `iptables-restore --noflush` that installs the rules atomically.

    Args:
        config: traffic to redirect.
        current: output of `iptables-save -t nat`. Rules in it from an earlier run are replaced.
        family: IP version, 4 or 6.
    """
    # With --noflush, declaring a chain creates or flushes it.
    return _nat(
        [*(f":{chain} - [0:0]" for chain in CHAINS), *_delete_jumps(current), *_rules(config, family)]
    )


def undo_rules(current: str) -> str:
    """Return the input that removes the rules of `redirect_rules`; empty if none exist."""
    chains = [match[1] for line in current.splitlines() if (match := _CHAIN.fullmatch(line.strip()))]
    jumps = list(_delete_jumps(current))
    if not chains and not jumps:
        return ""
    return _nat([*jumps, *(f"-F {chain}" for chain in chains), *(f"-X {chain}" for chain in chains)])


def _delete_jumps(current: str) -> Iterator[str]:
    """Yield a delete command for each existing jump to our chains, with the exact text of the rule."""
    for line in current.splitlines():
        if _JUMP.fullmatch(line.strip()):
            yield "-D" + line.strip().removeprefix("-A")


def _rules(config: RedirectConfig, family: Family) -> Iterator[str]:
    yield f"-A {TO_INBOUND} -p tcp -j REDIRECT --to-ports {config.inbound_port}"
    yield f"-A {TO_OUTBOUND} -p tcp -j REDIRECT --to-ports {config.outbound_port}"
    yield from _inbound(config)
    yield from _outbound(config, family)


def _inbound(config: RedirectConfig) -> Iterator[str]:
    if config.inbound_ports == ():
        return
    yield f"-A PREROUTING -p tcp -j {INBOUND}"
    # Do not redirect the admin port: Envoy might forward to 127.0.0.1, where its admin interface listens.
    yield f"-A {INBOUND} -p tcp --dport {ADMIN_PORT} -j RETURN"
    yield from (f"-A {INBOUND} -i {name} -j RETURN" for name in config.exclude_interfaces)
    yield from (f"-A {INBOUND} -p tcp --dport {port} -j RETURN" for port in config.exclude_inbound_ports)
    if config.inbound_ports is None:
        yield f"-A {INBOUND} -p tcp -j {TO_INBOUND}"
    else:
        yield from (f"-A {INBOUND} -p tcp --dport {port} -j {TO_INBOUND}" for port in config.inbound_ports)


def _outbound(config: RedirectConfig, family: Family) -> Iterator[str]:
    prefix = 32 if family == 4 else 128
    localhost, inbound_source = (f"{hosts[family]}/{prefix}" for hosts in (LOCALHOST, PASSTHROUGH_SOURCES))
    own_traffic = f"-m owner --uid-owner {config.uid} --gid-owner {config.gid}"
    yield f"-A OUTPUT -p tcp -j {OUTBOUND}"
    yield from (f"-A {OUTBOUND} -o {name} -j RETURN" for name in config.exclude_interfaces)
    # Inbound traffic from the sidecar to the application has this source address.
    yield f"-A {OUTBOUND} -s {inbound_source} -o lo -j RETURN"
    # The application called a service that its own pod serves: handle it like inbound traffic.
    if config.inbound_ports != ():
        yield f"-A {OUTBOUND} ! -d {localhost} -o lo -p tcp {own_traffic} -j {TO_INBOUND}"
    # Do not redirect calls of the application to localhost or its own pod address.
    yield f"-A {OUTBOUND} -o lo -m owner ! --uid-owner {config.uid} -j RETURN"
    yield f"-A {OUTBOUND} -o lo -m owner ! --gid-owner {config.gid} -j RETURN"
    # Other traffic of the sidecar goes directly to its destination.
    yield f"-A {OUTBOUND} {own_traffic} -j RETURN"
    yield f"-A {OUTBOUND} -d {localhost} -j RETURN"
    yield from (f"-A {OUTBOUND} -p tcp --dport {port} -j RETURN" for port in config.exclude_outbound_ports)
    yield from (
        f"-A {OUTBOUND} -d {network} -j RETURN" for network in _filter_family(family, config.exclude_networks)
    )
    yield from (f"-A {OUTBOUND} -p tcp --dport {port} -j {TO_OUTBOUND}" for port in config.outbound_ports)
    if config.networks is None:
        yield f"-A {OUTBOUND} -j {TO_OUTBOUND}"
    else:
        yield from (
            f"-A {OUTBOUND} -d {network} -j {TO_OUTBOUND}"
            for network in _filter_family(family, config.networks)
        )


def _filter_family(family: Family, networks: Iterable[Network]) -> Iterator[Network]:
    return (network for network in networks if network.version == family)


def _nat(lines: Iterable[str]) -> str:
    return "\n".join(["*nat", *lines, "COMMIT", ""])
