"""The rules that redirect a pod's traffic to its sidecar, as text for iptables-restore. Chains are named as Istio's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal, TypeAlias

from xds.mesh.model.objects import ADMIN_PORT
from xds.mesh.sidecar.settings import PROXY_ID, SIDECAR_PORTS

Network: TypeAlias = IPv4Network | IPv6Network
Family: TypeAlias = Literal[4, 6]

INBOUND = "ISTIO_INBOUND"
OUTBOUND = "ISTIO_OUTPUT"
TO_INBOUND = "ISTIO_IN_REDIRECT"
TO_OUTBOUND = "ISTIO_REDIRECT"
CHAINS = (INBOUND, OUTBOUND, TO_INBOUND, TO_OUTBOUND)

_JUMP = re.compile(rf"-A (?:PREROUTING|OUTPUT) (?:.* )?-j (?:{'|'.join(CHAINS)})(?: .*)?")
_CHAIN = re.compile(rf":({'|'.join(CHAINS)}) .*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedirectConfig:
    """What of a pod's TCP traffic goes through its sidecar. The defaults are Istio's: nearly all of it."""

    outbound_port: int = 15001
    """Where the sidecar takes what leaves the pod."""
    inbound_port: int = 15006
    """Where it takes what comes."""
    uid: int = PROXY_ID
    """The user that the sidecar runs as."""
    gid: int = PROXY_ID
    """The group that it runs as. What has both is the sidecar's own traffic; an application may have one of them by chance."""
    inbound_ports: tuple[int, ...] | None = None
    """Redirect only what comes for these ports; None: for every port."""
    exclude_inbound_ports: tuple[int, ...] = SIDECAR_PORTS
    networks: tuple[Network, ...] | None = None
    """Redirect only what leaves for these; None: for everywhere."""
    exclude_networks: tuple[Network, ...] = ()
    outbound_ports: tuple[int, ...] = ()
    """Redirect what leaves for these ports, wherever to."""
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()


def redirect_rules(config: RedirectConfig, current: str = "", *, family: Family = 4) -> str:
    """Return the text for `iptables-restore --noflush` (or ip6tables-restore) that puts the rules into force in one step.

    Args:
        config: what to redirect.
        current: what `iptables-save -t nat` shows now: rules of ours that are there already are replaced.
        family: 4 or 6, for IPv4 or IPv6.
    """
    # With --noflush, to declare a chain is to make it or to empty it.
    return _nat(
        [*(f":{chain} - [0:0]" for chain in CHAINS), *_delete_jumps(current), *_rules(config, family)]
    )


def undo_rules(current: str) -> str:
    """Return the text that takes away what `redirect` put there; empty if nothing of it is there."""
    chains = [match[1] for line in current.splitlines() if (match := _CHAIN.fullmatch(line.strip()))]
    jumps = list(_delete_jumps(current))
    if not chains and not jumps:
        return ""
    return _nat([*jumps, *(f"-F {chain}" for chain in chains), *(f"-X {chain}" for chain in chains)])


def _delete_jumps(current: str) -> Iterator[str]:
    """Delete the jumps to our chains, exactly as they were said."""
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
    # Envoy could pass this on to 127.0.0.1, where its admin interface listens; at the pod's address, nothing listens.
    yield f"-A {INBOUND} -p tcp --dport {ADMIN_PORT} -j RETURN"
    yield from (f"-A {INBOUND} -i {name} -j RETURN" for name in config.exclude_interfaces)
    yield from (f"-A {INBOUND} -p tcp --dport {port} -j RETURN" for port in config.exclude_inbound_ports)
    if config.inbound_ports is None:
        yield f"-A {INBOUND} -p tcp -j {TO_INBOUND}"
    else:
        yield from (f"-A {INBOUND} -p tcp --dport {port} -j {TO_INBOUND}" for port in config.inbound_ports)


def _outbound(config: RedirectConfig, family: Family) -> Iterator[str]:
    localhost, inbound_source = ("127.0.0.1/32", "127.0.0.6/32") if family == 4 else ("::1/128", "::6/128")
    own_traffic = f"-m owner --uid-owner {config.uid} --gid-owner {config.gid}"
    yield f"-A OUTPUT -p tcp -j {OUTBOUND}"
    yield from (f"-A {OUTBOUND} -o {name} -j RETURN" for name in config.exclude_interfaces)
    # What the sidecar hands to the application, having got it from outside, bears this source.
    yield f"-A {OUTBOUND} -s {inbound_source} -o lo -j RETURN"
    # The sidecar calls its own pod (the application asked for a service that the pod serves): as from outside.
    if config.inbound_ports != ():
        yield f"-A {OUTBOUND} ! -d {localhost} -o lo -p tcp {own_traffic} -j {TO_INBOUND}"
    # The application calls its own pod's address, or localhost: nobody's business.
    yield f"-A {OUTBOUND} -o lo -m owner ! --uid-owner {config.uid} -j RETURN"
    yield f"-A {OUTBOUND} -o lo -m owner ! --gid-owner {config.gid} -j RETURN"
    # Everything else that the sidecar sends is meant for where it goes.
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


def parse_ports(text: str) -> tuple[int, ...] | None:
    """Read a flag's list of ports as Istio has it: `80,8080`, `*` for all (None), empty for none.

    Raises:
        ValueError: it is something else.
    """
    if text.strip() == "*":
        return None
    result = []
    for part in _split(text):
        if not part.isdecimal() or not 0 < int(part) < 65536:
            raise ValueError(f"{part!r} is not a port: write numbers with commas between, such as 80,8080")
        result.append(int(part))
    return tuple(dict.fromkeys(result))


def parse_networks(text: str) -> tuple[Network, ...] | None:
    """Read a flag's list of networks as Istio has it: `10.0.0.0/8,fd00::/8`, `*` for all (None), empty for none.

    Raises:
        ValueError: it is something else.
    """
    if text.strip() == "*":
        return None
    result = []
    for part in _split(text):
        try:
            result.append(ip_network(part))
        except ValueError as error:
            raise ValueError(f"{error}: write networks with commas between, such as 10.0.0.0/8") from None
    return tuple(dict.fromkeys(result))


def parse_interfaces(text: str) -> tuple[str, ...]:
    """Read a flag's list of network interfaces.

    Raises:
        ValueError: one of them is no name of an interface.
    """
    names = tuple(dict.fromkeys(_split(text)))
    for name in names:
        if not re.fullmatch(r"[\w.@:+-]{1,15}", name, re.ASCII) or name.startswith("-"):
            raise ValueError(f"{name!r} is not the name of a network interface")
    return names


def _split(text: str) -> Iterator[str]:
    return (stripped for part in text.split(",") if (stripped := part.strip()))
