"""What the log says of rollouts."""

from __future__ import annotations

from itertools import islice
from math import inf

import structlog

from xds.mesh.model.mesh import Mesh
from xds.mesh.rollout.machine import Rollout
from xds.mesh.rollout.progress import how_many, progress, rules

log = structlog.get_logger(__name__)

TOLD_EVERY = 5.0
"""Seconds between two lines of the log about a service that is on its way,"""
MOST_TOLD = 10
"""and of how many services there are lines."""


class RolloutLog:
    """Says in the log how far services are: when that changes, but not more often than every few seconds."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._told_at = -inf

    def tell(self, mesh: Mesh, rollout: Rollout, now: float) -> None:
        """Say what is new, of some services if there are many."""
        going_on = bool(rollout.crossings or rollout.late or rollout.rules or rollout.late_rules)
        if not (going_on or self._told) or (going_on and now < self._told_at + TOLD_EVERY):
            return
        self._told_at = now
        told: dict[str, str] = {}
        for service in islice(progress(mesh, rollout), MOST_TOLD):
            told[f"{service.service}.{service.namespace}"] = said = service.words(now)
            _say(said, stuck=any(each.passed_over or each.rejection for each in service.waiting))
        if (more := how_many(rollout) - len(told)) > 0:
            log.info("rollout", more=more)
        for rule in islice(rules(rollout), MOST_TOLD):
            name, what = f"DestinationRule/{rule.namespace}/{rule.name}", rule.words(rule.since)
            told[name] = what
            if self._told.get(name) != what:  # It may be rejected for as long as somebody leaves it so.
                _say(rule.words(now), stuck=rule.passed_over or bool(rule.rejection))
        for name in sorted(self._told.keys() - told.keys()):
            log.info("rollout", status=f"{name}: done")
        self._told = told


def _say(status: str, *, stuck: bool) -> None:
    (log.warning if stuck else log.info)("rollout", status=status)
