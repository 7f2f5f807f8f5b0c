"""The reports that replicas exchange about ports in transition, and what a replica may conclude from them.

A replica knows only the progress of the proxies that are connected to it. It therefore publishes a
`ReplicaReport`, with a `PortReport` for each port that is in transition on any replica. A `PortReport` lists

- the modes that the port's listener may have if its pod is connected to this replica, or connects later;
- what this replica's clients may send to the port.

Reports arrive late, but all replicas read them in the order in which they were written.

Two actions can break requests of proxies on other replicas: narrowing a listener (for example to STRICT), and
changing what clients send. Before either, a replica

1. publishes a report that already includes the action. A report is always a superset of what is active;
2. waits until it reads its own report back. It has then read every report that was written earlier;
3. acts if no report conflicts. No peer's client may send what the listener is about to refuse, and every
   peer's listener must accept what clients are about to send.

If the actions of two replicas conflict, one of their reports was written first. The replica that wrote the
second one has read the first before it acts, so only one of the actions happens. Widening a listener needs no
agreement.

Peers may have read any report that this replica has started to write, so all of these count (`ReplicaSync`).
See docs/adr/0015.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xds.mesh.model.objects import Mode, PortKey
from xds.mesh.policy.mtls import Send

ACCEPTED_SENDS: Mapping[Mode, frozenset[Send]] = {
    Mode.DISABLE: frozenset({Send.PLAINTEXT}),
    Mode.PERMISSIVE: frozenset({Send.PLAINTEXT, Send.MTLS}),
    Mode.STRICT: frozenset({Send.MTLS}),
}
"""What a server accepts in each mode. The application's own TLS counts as plaintext."""


class PortReport(NamedTuple):
    """What a replica reports about one port."""

    in_transition: bool
    """Whether the port is in transition on the replica itself, and not only on a peer."""
    modes: frozenset[Mode]
    """The modes that the listener may have on the replica."""
    sends: frozenset[Send]
    """What the replica's clients may send."""


UNKNOWN_POD = PortReport(in_transition=False, modes=frozenset(), sends=frozenset())
"""The report about a port in transition on a peer, if this replica does not know the pod."""


class ReplicaReport(NamedTuple):
    """What a replica reports about all ports that are in transition on any replica."""

    number: int
    """Sequence number of the replica's reports."""
    rules_version: str
    """A hash of all DestinationRules that the replica knows, and of the settings that affect them."""
    ports: Mapping[PortKey, PortReport] | None
    """The ports. None: there are too many for one report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """The reports of peers, and the reports of this replica that they may act on. Default: no peers."""

    own_reports: tuple[Mapping[PortKey, PortReport], ...] | None = None
    """Every report of this replica that peers may act on. None: there are no peers."""
    is_isolated: bool = False
    """Whether peers may ignore this replica, because it has not renewed its report in time."""
    rules_are_shared: bool = True
    """Whether every report that peers may act on has this replica's current `rules_version`."""
    peers: Mapping[str, Mapping[PortKey, PortReport] | None] = field(default_factory=dict)
    """The reported ports, by name of the peer. None: the peer has too many for one report."""
    different_rules: frozenset[str] = frozenset()
    """The peers with another `rules_version`. What their clients send is unknown."""
    in_transition: frozenset[PortKey] = frozenset()
    """The ports that are in transition on any peer."""

    def may_refuse(self, key: PortKey, send: Send) -> list[str]:
        """Return the peers whose listener may refuse this kind of traffic on a port."""
        return self._peers_where(
            key, lambda report: not all(send in ACCEPTED_SENDS[mode] for mode in report.modes)
        )

    def may_send(self, key: PortKey, refused: Collection[Send]) -> list[str]:
        """Return the peers whose clients may send traffic to a port that is about to be refused."""
        return self._peers_where(key, lambda report: not report.sends.isdisjoint(refused))

    def not_settled(self, key: PortKey, mode: Mode, send: Send) -> list[str]:
        """Return the peers on which another mode, or another kind of traffic, may be active."""
        return self._peers_where(key, lambda report: not (report.modes <= {mode} and report.sends <= {send}))

    def without_report(self, key: PortKey) -> list[str]:
        """Return the peers whose report does not include a port."""
        return [name for name, ports in self.peers.items() if ports is None or key not in ports]

    def possible_modes(self, key: PortKey) -> set[Mode]:
        """Return the modes that peers report for a port."""
        reports = [ports[key] for ports in self.peers.values() if ports and key in ports]
        return {mode for report in reports for mode in report.modes}

    def knows_mode(self, key: PortKey, mode: Mode) -> bool:
        """Return whether peers know that this mode may be active on this replica."""
        return self.own_reports is None or self._is_in_every_report(
            lambda ports: key in ports and mode in ports[key].modes
        )

    def knows_send(self, key: PortKey, send: Send) -> bool:
        """Return whether peers know that clients of this replica may send this kind of traffic."""
        return self.own_reports is None or self._is_in_every_report(
            lambda ports: key in ports and send in ports[key].sends
        )

    def _is_in_every_report(self, matches: Callable[[Mapping[PortKey, PortReport]], bool]) -> bool:
        return (
            not self.is_isolated
            and bool(self.own_reports)
            and all(matches(ports) for ports in self.own_reports or ())
        )

    def _peers_where(self, key: PortKey, matches: Callable[[PortReport], bool]) -> list[str]:
        """Return the peers whose report matches, or whose state is unknown."""
        return [
            name
            for name, ports in self.peers.items()
            if ports is None or key not in ports or name in self.different_rules or matches(ports[key])
        ]
