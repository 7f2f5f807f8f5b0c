"""The reports of this replica that peers may act on, and the reports of peers that have not expired."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import inf

from xds.mesh.model.objects import DestinationRule, Fact, MeshConfig, PortKey, Ref
from xds.mesh.rollout.peers import PeerView, PortReport, ReplicaReport

REPORT_LIFETIME = 15.0
"""Seconds until a report expires if it is not renewed.

By then, the proxies of the replica have reconnected to another one.
"""


@dataclass(slots=True)
class _Peer:
    report: ReplicaReport
    version: str
    """The resource version of the Lease with the report. It changes with each renewal."""
    duration: float
    """Seconds until the report expires if it is not renewed."""
    seen_at: float
    """When this version was first seen, by this replica's clock. Clocks of machines are never compared."""


class ReplicaSync:
    """Track the reports of this replica and its peers, without I/O.

    The caller writes each report that `start_write` returns, and passes the reports that it reads to
    `read_back` and `receive`.
    """

    def __init__(self, duration: float = REPORT_LIFETIME) -> None:
        self.duration = duration
        self.is_synced = False
        """Whether this replica has read back its first report, and with it all earlier reports of peers."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is a new report to write."""
        self._rules_version = ""
        self._ports: Mapping[PortKey, PortReport] = {}
        self._written: list[ReplicaReport] = []
        """This replica's reports, from the last one that was read back to the last one that was written."""
        self._write_started: dict[int, float] = {}
        """For each of these reports, by number, when its write started."""
        self._valid_until = -inf
        """When this replica becomes isolated, unless it reads back another report."""
        self._peers: dict[str, _Peer] = {}

    # --- reports of this replica ----------------------------------------------------------------------------

    def publish(self, rules_version: str, ports: Mapping[PortKey, PortReport]) -> None:
        """Set the content of the next report."""
        self._rules_version, self._ports = rules_version, ports
        if self.has_unpublished:
            self.on_change()

    @property
    def has_unpublished(self) -> bool:
        """Whether the content differs from the last report that was written."""
        last = self._written[-1] if self._written else None
        return last is None or last.rules_version != self._rules_version or last.ports != self._ports

    def start_write(self, now: float, *, too_large: bool = False) -> ReplicaReport:
        """Return the report to write now. From now on, peers may have read it.

        Args:
            now: the time, in seconds of the event loop's clock.
            too_large: whether the ports do not fit into a report, so that it must omit them.
        """
        number = self._written[-1].number + 1 if self._written else 1
        report = ReplicaReport(number, self._rules_version, None if too_large else self._ports)
        self._written.append(report)
        self._write_started[number] = now
        return report

    def retract(self) -> None:
        """Drop the last report, because it was certainly not written."""
        del self._write_started[self._written.pop().number]

    def read_back(self, number: int, now: float) -> None:
        """Record that this replica has read one of its reports, and all reports that were written earlier."""
        if number not in self._write_started:
            return
        if self._valid_until <= now:
            # While isolated, this replica could not read renewals: restart the expiry of every peer.
            for peer in self._peers.values():
                peer.seen_at = now
        # Only 2/3 of the duration, from the start of the write: this replica must stop acting before peers
        # ignore its report.
        self._valid_until = self._write_started[number] + self.duration * 2 / 3
        self._written = [report for report in self._written if report.number >= number]
        self.is_synced = True
        self._write_started = {report.number: self._write_started[report.number] for report in self._written}

    # --- reports of peers -----------------------------------------------------------------------------------

    def receive(self, name: str, version: str, report: ReplicaReport, duration: float, now: float) -> None:
        """Record the report of a peer."""
        peer = self._peers.get(name)
        if peer is None or peer.version != version:
            self._peers[name] = _Peer(report, version, duration, now)

    def forget(self, name: str) -> None:
        """Forget a peer whose report was deleted."""
        self._peers.pop(name, None)

    @property
    def names(self) -> set[str]:
        """The names of the peers that have a report."""
        return set(self._peers)

    def expired(self, now: float) -> dict[str, str]:
        """Return the peers whose reports have expired, with the version last seen.

        The result is empty while this replica is isolated, because it may have missed renewals.
        """
        if self._valid_until <= now:
            return {}
        return {
            name: peer.version for name, peer in self._peers.items() if now >= peer.seen_at + peer.duration
        }

    def peer_view(self, now: float) -> PeerView:
        """Return what is known about peers now, and which reports of this replica they may act on."""
        expired = self.expired(now)
        reports = {name: peer.report for name, peer in self._peers.items() if name not in expired}
        own_reports = [(report.rules_version, report.ports or {}) for report in self._written]
        own_reports.append((self._rules_version, self._ports))
        is_isolated = self._valid_until <= now
        return PeerView(
            own_reports=tuple(ports for _, ports in own_reports),
            is_isolated=is_isolated,
            rules_are_shared=not is_isolated
            and all(version == self._rules_version for version, _ in own_reports),
            peers={name: report.ports for name, report in reports.items()},
            different_rules=frozenset(
                name for name, report in reports.items() if report.rules_version != self._rules_version
            ),
            in_transition=frozenset(
                key
                for report in reports.values()
                for key, port in (report.ports or {}).items()
                if port.in_transition
            ),
        )


class RulesVersion:
    """A hash of all DestinationRules and of the settings that affect them.

    Replicas that know the same rules and settings have the same hash.
    """

    def __init__(self) -> None:
        self._sum = 0
        self._hashes: dict[Ref, int] = {}
        self.version = ""

    def update(self, applied: Iterable[Fact], removed: Iterable[Ref], config: MeshConfig) -> None:
        """Update the hash for a change of DestinationRules and settings."""
        for ref in removed:
            self._sum -= self._hashes.pop(ref, 0)
        for rule in applied:
            if isinstance(rule, DestinationRule):
                new_hash = _hash(rule)
                self._sum += new_hash - self._hashes.get(rule.ref, 0)
                self._hashes[rule.ref] = new_hash
        settings = (
            config.default_destination_rule_export_to,
            config.root_namespace,
            config.enable_auto_mtls,
            config.mtls_enabled,
        )
        self.version = sha256(f"{self._sum} {settings}".encode()).hexdigest()[:16]


def _hash(rule: DestinationRule) -> int:
    fields = asdict(rule)
    del fields["meta"]
    content = json.dumps([str(rule.ref), rule.meta.age_key, fields], sort_keys=True, default=str)
    return int.from_bytes(sha256(content.encode()).digest()[:16], "big")
