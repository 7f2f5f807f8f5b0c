"""What replicas report to each other about ports in transition, and what each may conclude.

A replica knows only the progress of the proxies that are connected to it. It therefore publishes a
`ReplicaReport`. For every port that is in transition on any replica, the report says which modes the listener
may have if the pod is connected to this replica, or connects to it later, and what this replica's clients may
send to the port (`PortReport`). Reports arrive late, but all are written to one place, which keeps them in
one order.

Two actions can break requests of proxies on other replicas: narrowing a listener (for example to STRICT), and
changing what clients send. Before a replica does either, it

1. publishes a report that allows for the action. A report is always a superset of what is active;
2. waits until it reads its own report back, and with it every report that was written earlier;
3. acts if none of the reports that it has read by then forbids it. No peer's client may send what the
   listener is about to refuse, and every peer's listener must accept what clients are about to send.

If two such actions conflict, one of the two reports was written first, and the replica that wrote the other
report has read it before it acts. So the two actions never both happen. Widening a listener needs no
agreement. Peers may have read any of the reports that this replica has started to write, so all of them count
(`ReplicaSync`). See docs/adr/0015.
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
    """Whether the port is in transition on this replica. Otherwise it is in transition on another one."""
    modes: frozenset[Mode]
    """The modes that the listener may have on this replica."""
    sends: frozenset[Send]
    """What this replica's clients may send."""


UNKNOWN_POD = PortReport(in_transition=False, modes=frozenset(), sends=frozenset())
"""The report about a port of a pod that the replica does not know."""


class ReplicaReport(NamedTuple):
    """What a replica reports about all ports that are in transition on any replica."""

    number: int
    """A number that grows with each report of the replica."""
    rules_version: str
    """A hash of all DestinationRules that the replica knows, and of the settings that affect them."""
    ports: Mapping[PortKey, PortReport] | None
    """The ports. None: there are too many to report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """What peers report, and what they can know about this replica. Default: there are no peers."""

    own_reports: tuple[Mapping[PortKey, PortReport], ...] | None = None
    """Every version of this replica's report that peers may be reading. None: there are no peers."""
    is_isolated: bool = False
    """Whether peers may have expired this replica, because it has not renewed its report in time."""
    rules_are_shared: bool = True
    """Whether peers can know that this replica has read all DestinationRules that it has read."""
    peers: Mapping[str, Mapping[PortKey, PortReport] | None] = field(default_factory=dict)
    """The reported ports, by name of the peer. None: the peer has too many to report."""
    different_rules: frozenset[str] = frozenset()
    """The peers with another set of DestinationRules, so that it is unknown what their clients send."""
    in_transition: frozenset[PortKey] = frozenset()
    """The ports that are in transition on any peer."""

    def may_refuse(self, key: PortKey, send: Send) -> list[str]:
        """Return the peers whose listener of a port may refuse what is sent."""
        return self._peers_where(
            key, lambda report: not all(send in ACCEPTED_SENDS[mode] for mode in report.modes)
        )

    def may_send(self, key: PortKey, refused: Collection[Send]) -> list[str]:
        """Return the peers whose clients may send to a port what is about to be refused."""
        return self._peers_where(key, lambda report: not report.sends.isdisjoint(refused))

    def not_settled(self, key: PortKey, mode: Mode, send: Send) -> list[str]:
        """Return the peers where something other than this mode, or this kind of traffic, may be active."""
        return self._peers_where(key, lambda report: not (report.modes <= {mode} and report.sends <= {send}))

    def without_report(self, key: PortKey) -> list[str]:
        """Return the peers that do not report a port."""
        return [name for name, ports in self.peers.items() if ports is None or key not in ports]

    def possible_modes(self, key: PortKey) -> set[Mode]:
        """Return the modes that peers report for a port."""
        reports = [ports[key] for ports in self.peers.values() if ports and key in ports]
        return {mode for report in reports for mode in report.modes}

    def knows_mode(self, key: PortKey, mode: Mode) -> bool:
        """Return whether peers can know that this mode may be active on this replica."""
        return self.own_reports is None or self._is_in_every_report(
            lambda ports: key in ports and mode in ports[key].modes
        )

    def knows_send(self, key: PortKey, send: Send) -> bool:
        """Return whether peers can know that clients of this replica may send this."""
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
        """Return the peers whose report matches, or that are not known to have no such report."""
        return [
            name
            for name, ports in self.peers.items()
            if ports is None or key not in ports or name in self.different_rules or matches(ports[key])
        ]
