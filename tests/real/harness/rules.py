"""iptables rules, as text for iptables-restore: what a sidecar's init container and a node's kube-proxy would set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

PROXY_ID = 1337
"""The user and group that the sidecar runs as: how its own traffic is told from the application's."""

OUTBOUND, INBOUND = 15001, 15006
NOT_INTERCEPTED = (15090, 15021, 15020)
"""Ports of the sidecar itself: metrics, health, merged health."""


def sidecar() -> str:
    """Redirect a pod's TCP traffic to its sidecar, both ways."""
    return _nat(
        ["IN", "OUT", "TO_IN", "TO_OUT"],
        [
            "-A PREROUTING -p tcp -j IN",
            *(f"-A IN -p tcp --dport {port} -j RETURN" for port in NOT_INTERCEPTED),
            "-A IN -p tcp -j TO_IN",
            f"-A TO_IN -p tcp -j REDIRECT --to-ports {INBOUND}",
            "-A OUTPUT -p tcp -j OUT",
            # What the sidecar hands to the application, having got it from outside, bears this source.
            "-A OUT -s 127.0.0.6/32 -o lo -j RETURN",
            # The sidecar calls its own pod (the application asked for a service that the pod serves): as from outside.
            f"-A OUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --uid-owner {PROXY_ID} -j TO_IN",
            f"-A OUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --gid-owner {PROXY_ID} -j TO_IN",
            # The application calls its own pod's address, or 127.0.0.1: nobody's business.
            f"-A OUT -o lo -m owner ! --uid-owner {PROXY_ID} -j RETURN",
            # Everything else that the sidecar sends is meant for where it goes.
            f"-A OUT -m owner --uid-owner {PROXY_ID} -j RETURN",
            f"-A OUT -m owner --gid-owner {PROXY_ID} -j RETURN",
            "-A OUT -d 127.0.0.1/32 -j RETURN",
            "-A OUT -j TO_OUT",
            f"-A TO_OUT -p tcp -j REDIRECT --to-ports {OUTBOUND}",
        ],
    )


def node(pods: Iterable[str], virtual: Mapping[tuple[str, int], Sequence[tuple[str, int]]]) -> str:
    """Balance (virtual address, port) over its endpoints in turn, and let a pod reach itself that way."""
    rules: list[str] = []
    for (address, port), endpoints in virtual.items():
        for left, (to, target) in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
            turn = f"-m statistic --mode nth --every {left} --packet 0 " if left > 1 else ""
            rules.append(
                f"-A PREROUTING -d {address}/32 -p tcp --dport {port} {turn}-j DNAT --to-destination {to}:{target}"
            )
    rules += [f"-A POSTROUTING -s {pod}/32 -d {pod}/32 -j MASQUERADE" for pod in pods]
    return _nat([], rules)


def _nat(chains: Iterable[str], rules: Iterable[str]) -> str:
    return "\n".join(["*nat", *(f":{chain} - [0:0]" for chain in chains), *rules, "COMMIT", ""])
