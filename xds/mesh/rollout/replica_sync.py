"""Between a replica's own reports and those of others: which of ours others may be reading, and which of theirs count."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import inf

from xds.mesh.model.objects import DestinationRule, Fact, MeshConfig, PortKey, Ref
from xds.mesh.rollout.peers import Elsewhere, Report, Stand

DURATION = 15.0
"""Seconds after which a replica that says nothing any more does not count. Its proxies have come to another one by then."""


@dataclass(slots=True)
class _Other:
    report: Report
    version: str
    """Of the object that it was in: another one with each renewal."""
    duration: float
    seen: float
    """When that version was first seen, by our own clock: clocks of two machines are never compared."""


class Exchange:
    """What a replica has said, and heard. The shell writes what `write` returns, and brings what it reads, in its order."""

    def __init__(self, duration: float = DURATION) -> None:
        self.duration = duration
        self.is_known = False
        """Whether others reckon with us, and what they said before is known."""
        self.on_news: Callable[[], None] = lambda: None
        """Called when there may be something to write."""
        self._view = ""
        self._stands: Mapping[PortKey, Stand] = {}
        self._sent: list[Report] = []
        """From the last report of ours that was read back, to the last that was written."""
        self._began: dict[int, float] = {}
        """When the writing of each of these began."""
        self._held_until = -inf
        self._others: dict[str, _Other] = {}

    # --- our own -----------------------------------------------------------------------------------------------------

    def say(self, view: str, stands: Mapping[PortKey, Stand]) -> None:
        """Have others know this with the next report."""
        self._view, self._stands = view, stands
        if self.has_news:
            self.on_news()

    @property
    def has_news(self) -> bool:
        """Whether others are to know something else than was written last."""
        last = self._sent[-1] if self._sent else None
        return last is None or last.view != self._view or last.stands != self._stands

    def write(self, now: float, *, too_large: bool = False) -> Report:
        """Return the report that is to be written now; from here on it counts as one that others may have read.

        `too_large`: what there is to say cannot be written.
        """
        number = self._sent[-1].number + 1 if self._sent else 1
        report = Report(number, self._view, None if too_large else self._stands)
        self._sent.append(report)
        self._began[number] = now
        return report

    def retract(self) -> None:
        """Take back the last report, of which nothing was written."""
        del self._began[self._sent.pop().number]

    def read_back(self, number: int, now: float) -> None:
        """Take note that a report of ours was read, and all that was written before it."""
        if number not in self._began:
            return
        if self._held_until <= now:
            # Nothing was heard of anybody meanwhile; they are not gone for that.
            for other in self._others.values():
                other.seen = now
        # Counted from before the writing, and not to the end: nobody thinks that we are gone before we do.
        self._held_until = self._began[number] + self.duration * 2 / 3
        self._sent = [each for each in self._sent if each.number >= number]
        self.is_known = True
        self._began = {each.number: self._began[each.number] for each in self._sent}

    # --- others ------------------------------------------------------------------------------------------------------

    def hear(self, name: str, version: str, report: Report, duration: float, now: float) -> None:
        """Take note of another's report."""
        before = self._others.get(name)
        if before is None or before.version != version:
            self._others[name] = _Other(report, version, duration, now)

    def forget(self, name: str) -> None:
        """Take note that another's reports are not kept any more."""
        self._others.pop(name, None)

    @property
    def names(self) -> set[str]:
        """Whose reports there are."""
        return set(self._others)

    def gone(self, now: float) -> dict[str, str]:
        """Return whose reports do not count any more, if that can be told, and the versions that they were last seen in."""
        if self._held_until <= now:
            return {}
        return {name: each.version for name, each in self._others.items() if now >= each.seen + each.duration}

    # --- what to make of it ------------------------------------------------------------------------------------------

    def elsewhere(self, now: float) -> Elsewhere:
        """Return what is known of others now, and what they know of us."""
        gone = self.gone(now)
        reports = {name: each.report for name, each in self._others.items() if name not in gone}
        said = [(each.view, each.stands or {}) for each in self._sent]
        said.append((self._view, self._stands))
        cut_off = self._held_until <= now
        return Elsewhere(
            said=tuple(stands for _, stands in said),
            cut_off=cut_off,
            rules_said=not cut_off and all(view == self._view for view, _ in said),
            others={name: report.stands for name, report in reports.items()},
            apart_in_rules=frozenset(name for name, report in reports.items() if report.view != self._view),
            opened=frozenset(
                key
                for report in reports.values()
                for key, stand in (report.stands or {}).items()
                if stand.open
            ),
        )


class View:
    """What stands for all DestinationRules, and the settings by which they count: the same on all replicas that know the same."""

    def __init__(self) -> None:
        self._sum = 0
        self._each: dict[Ref, int] = {}
        self.version = ""

    def follow(self, applied: Iterable[Fact], removed: Iterable[Ref], config: MeshConfig) -> None:
        """Take note of a change."""
        for ref in removed:
            self._sum -= self._each.pop(ref, 0)
        for rule in applied:
            if isinstance(rule, DestinationRule):
                self._sum += (found := _hash(rule)) - self._each.get(rule.ref, 0)
                self._each[rule.ref] = found
        settings = (
            config.default_destination_rule_export_to,
            config.root_namespace,
            config.enable_auto_mtls,
            config.mtls_enabled,
        )
        self.version = sha256(f"{self._sum} {settings}".encode()).hexdigest()[:16]


def _hash(rule: DestinationRule) -> int:
    said = asdict(rule)
    del said["meta"]
    content = json.dumps([str(rule.ref), rule.meta.age_key, said], sort_keys=True, default=str)
    return int.from_bytes(sha256(content.encode()).digest()[:16], "big")
