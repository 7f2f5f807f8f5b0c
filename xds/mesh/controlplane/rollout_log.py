"""Log the progress of rollouts."""

from __future__ import annotations

from itertools import islice
from math import inf

import structlog

from xds.mesh.controlplane.rollout_text import rule_summary, service_summary
from xds.mesh.model.mesh import Mesh
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.progress import count_services, rule_progress, service_progress

log = structlog.get_logger(__name__)

LOG_INTERVAL = 5.0
"""Seconds between two log lines about the same service."""
MAX_LOGGED = 10
"""Services, and DestinationRules, that are logged one by one."""


class RolloutLog:
    """Log the progress of services when it changes, at most every few seconds."""

    def __init__(self) -> None:
        self._logged: dict[str, str] = {}
        """The last status that was logged, by service or DestinationRule."""
        self._logged_at = -inf
        self._last_problem = ""

    def failed(self, problem: str, stack: str) -> None:
        """Log an error that stopped a step, once."""
        if problem != self._last_problem:
            log.error("rollout step failed", problem=problem, stack=stack)
        self._last_problem = problem

    def update(self, mesh: Mesh, rollouts: RolloutDriver, now: float) -> None:
        """Log what has changed."""
        is_active = bool(rollouts.rollout.is_in_progress or rollouts.rollout.skipped)
        if not (is_active or self._logged) or (is_active and now < self._logged_at + LOG_INTERVAL):
            return
        self._logged_at = now
        logged: dict[str, str] = {}
        for service in islice(service_progress(mesh, rollouts), MAX_LOGGED):
            logged[f"{service.service}.{service.namespace}"] = status = service_summary(service, now)
            _log(status, is_stalled=any(port.skipped or port.rejection for port in service.waiting))
        if (count := count_services(mesh, rollouts) - len(logged)) > 0:
            log.info("more services in transition, not logged", count=count)
        for rule in islice(rule_progress(rollouts), MAX_LOGGED):
            name, summary = str(rule.ref), rule_summary(rule, rule.since)
            logged[name] = summary
            # A rejection lasts until the user changes the rule: log it once.
            if self._logged.get(name) != summary:
                _log(rule_summary(rule, now), is_stalled=rule.skipped or bool(rule.rejection))
        for name in sorted(self._logged.keys() - logged.keys()):
            log.info("rollout finished", name=name)
        self._logged = logged


def _log(status: str, *, is_stalled: bool) -> None:
    if is_stalled:
        log.warning("rollout stalled", status=status)
    else:
        log.info("rollout in progress", status=status)
