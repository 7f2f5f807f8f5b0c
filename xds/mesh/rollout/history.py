"""Finished transitions of ports: how long each phase took."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from xds.mesh.model.objects import Mode, PortKey
from xds.mesh.rollout.plan import Phase, Transition

MAX_FINISHED = 1000
"""Maximum number of finished transitions. The oldest ones are forgotten first."""
HISTORY_SECONDS = 3600.0
"""Time for which finished transitions are reported, in seconds."""


class Finished(NamedTuple):
    """A transition of a port that has finished."""

    key: PortKey
    """The port of the pod."""
    hosts: frozenset[tuple[str, int]]
    """The services that the port belonged to, as hosts and service ports."""
    before: Mode
    """The mode that was active when the transition started."""
    after: Mode
    """The mode that is served and active since."""
    started_at: float
    """When the transition started, in seconds of the event loop's clock."""
    finished_at: float
    """When the transition finished, in seconds of the event loop's clock."""
    phases: Mapping[Phase, float]
    """Time that each phase took, in seconds. Phases that were not needed are missing."""
    skipped: bool
    """Whether this replica continued without lagging proxies or replicas."""


@dataclass(slots=True)
class _Open:
    """A transition in the plan."""

    before: Mode
    transition: Transition
    phase_since: float
    phases: dict[Phase, float] = field(default_factory=dict)
    skipped: bool = False

    def end_phase(self, now: float) -> None:
        phase = self.transition.phase
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self.phase_since
        self.phase_since = now


class History:
    """Follow the transitions in the plan, and remember those that have finished."""

    def __init__(self) -> None:
        self._open: dict[PortKey, _Open] = {}
        self._finished: deque[Finished] = deque(maxlen=MAX_FINISHED)
        self.count = 0
        """Number of transitions that have finished since the start."""

    def advance(self, key: PortKey, transition: Transition, now: float) -> None:
        """Record a transition that starts or changes."""
        current = self._open.get(key)
        if current is None:
            self._open[key] = _Open(transition.listener.possible[0], transition, now)
            return
        if current.transition.phase is not transition.phase:
            current.end_phase(now)
        current.transition = transition

    def skip(self, key: PortKey) -> None:
        """Record that a transition continues without lagging proxies or replicas."""
        if current := self._open.get(key):
            current.skipped = True

    def end(self, key: PortKey, served: Mode | None, now: float) -> None:
        """Record that a transition has left the plan.

        Args:
            key: the port.
            served: the mode that is served and active; None to forget the transition, as the port is gone.
            now: the time, in seconds of the event loop's clock.
        """
        current = self._open.pop(key, None)
        if current is None or served is None:
            return
        current.end_phase(now)
        transition = current.transition
        self._finished.append(
            Finished(
                key,
                transition.hosts,
                current.before,
                served,
                transition.started_at,
                now,
                current.phases,
                current.skipped,
            )
        )
        self.count += 1

    def recent(self, now: float) -> list[Finished]:
        """Return the transitions that have finished within the last HISTORY_SECONDS, newest first."""
        return list(takewhile(lambda each: each.finished_at > now - HISTORY_SECONDS, self.finished()))

    def finished(self) -> list[Finished]:
        """Return the last MAX_FINISHED transitions, newest first."""
        return list(reversed(tuple(self._finished)))  # A copy: a thread may append.
