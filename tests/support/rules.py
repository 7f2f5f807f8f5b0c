"""iptables rules of a node, as text for iptables-restore: what its kube-proxy would set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from xds.mesh.model.names import host_port


def node(pods: Iterable[str], virtual: Mapping[tuple[str, int], Sequence[tuple[str, int]]]) -> str:
    """Balance (virtual address, port) over its endpoints in turn, and let a pod reach itself that way.

    All addresses belong to one IP version.
    """
    rules: list[str] = []
    for (address, port), endpoints in virtual.items():
        for left, (to, target) in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
            turn = f"-m statistic --mode nth --every {left} --packet 0 " if left > 1 else ""
            rules.append(
                f"-A PREROUTING -d {address} -p tcp --dport {port} {turn}-j DNAT --to-destination "
                f"{host_port(to, target)}"
            )
    rules += [f"-A POSTROUTING -s {pod} -d {pod} -j MASQUERADE" for pod in pods]
    return "\n".join(["*nat", *rules, "COMMIT", ""])
