"""The reports of this replica that peers may be reading, and the reports of peers that still count."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import inf

from xds.mesh.model.objects import DestinationRule, Fact, MeshConfig, PortKey, Ref
from xds.mesh.rollout.peers import PeerView, PortReport, ReplicaReport

REPORT_LIFETIME = 15.0
"""Seconds after which a report that was not renewed expires. By then, the replica's proxies have moved."""


@dataclass(slots=True)
class _Peer:
    report: ReplicaReport
    version: str
    """The version of the object that held the report. It changes with each renewal."""
    duration: float
    """Seconds that the report counts without renewal."""
    seen_at: float
    """When this version was first seen, by this replica's clock: clocks of machines are never compared."""


class ReplicaSync:
    """Keep track of reports. The caller writes what `start_write` returns, and passes on what it reads."""

    def __init__(self, duration: float = REPORT_LIFETIME) -> None:
        self.duration = duration
        self.is_synced = False
        """Whether peers know this replica, and it has read what they reported before."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when there may be something to write."""
        self._rules_version = ""
        self._ports: Mapping[PortKey, PortReport] = {}
        self._written: list[ReplicaReport] = []
        """The own reports, from the last one that was read back to the last one that was written."""
        self._write_started: dict[int, float] = {}
        """When the write of each of these reports started."""
        self._valid_until = -inf
        self._peers: dict[str, _Peer] = {}

    # --- own reports ----------------------------------------------------------------------------------------

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
        """Return the report to write now. From here on it counts as one that peers may have read.

        Args:
            now: the time, in seconds of the event loop's clock.
            too_large: the ports do not fit into a report, so the report has none.
        """
        number = self._written[-1].number + 1 if self._written else 1
        report = ReplicaReport(number, self._rules_version, None if too_large else self._ports)
        self._written.append(report)
        self._write_started[number] = now
        return report

    def retract(self) -> None:
        """Drop the last report, because nothing of it was written."""
        del self._write_started[self._written.pop().number]

    def read_back(self, number: int, now: float) -> None:
        """Record that an own report was read, and with it every report that was written earlier."""
        if number not in self._write_started:
            return
        if self._valid_until <= now:
            # While isolated, this replica could not read renewals: give every peer its full time again.
            for peer in self._peers.values():
                peer.seen_at = now
        # Counted from the start of the write, and only 2/3 of the duration: this replica has to stop before
        # peers stop waiting for it.
        self._valid_until = self._write_started[number] + self.duration * 2 / 3
        self._written = [report for report in self._written if report.number >= number]
        self.is_synced = True
        self._write_started = {report.number: self._write_started[report.number] for report in self._written}

    # --- reports of peers -----------------------------------------------------------------------------------

    def receive(self, name: str, version: str, report: ReplicaReport, duration: float, now: float) -> None:
        """Record the report of a peer."""
        known = self._peers.get(name)
        if known is None or known.version != version:
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

        Empty while this replica is isolated.
        """
        if self._valid_until <= now:
            return {}
        return {
            name: peer.version for name, peer in self._peers.items() if now >= peer.seen_at + peer.duration
        }

    def peer_view(self, now: float) -> PeerView:
        """Return what is known about peers now, and what they know about this replica."""
        expired = self.expired(now)
        reports = {name: peer.report for name, peer in self._peers.items() if name not in expired}
        own = [(report.rules_version, report.ports or {}) for report in self._written]
        own.append((self._rules_version, self._ports))
        is_isolated = self._valid_until <= now
        return PeerView(
            own_reports=tuple(ports for _, ports in own),
            is_isolated=is_isolated,
            rules_are_shared=not is_isolated and all(version == self._rules_version for version, _ in own),
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
        """Apply a change."""
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
