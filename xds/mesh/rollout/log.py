"""Log the progress of rollouts."""

from __future__ import annotations

from itertools import islice
from math import inf

import structlog

from xds.mesh.model.mesh import Mesh
from xds.mesh.rollout.machine import Rollout
from xds.mesh.rollout.progress import count_services, rule_progress, service_progress

log = structlog.get_logger(__name__)

LOG_INTERVAL = 5.0
"""Minimum interval between two log lines about the same service, in seconds."""
MAX_LOGGED = 10
"""Maximum number of services, and of DestinationRules, that are logged individually."""


class RolloutLog:
    """Log the progress of rollouts, at most every `LOG_INTERVAL` seconds."""

    def __init__(self) -> None:
        self._logged: dict[str, str] = {}
        """The status as last logged, by service or DestinationRule."""
        self._logged_at = -inf

    def update(self, mesh: Mesh, rollout: Rollout, now: float) -> None:
        """Log rollouts in progress, and those that have finished."""
        is_active = bool(
            rollout.transitions or rollout.skipped_ports or rollout.rule_transitions or rollout.skipped_rules
        )
        if not (is_active or self._logged) or (is_active and now < self._logged_at + LOG_INTERVAL):
            return
        self._logged_at = now
        logged: dict[str, str] = {}
        for service in islice(service_progress(mesh, rollout), MAX_LOGGED):
            logged[f"{service.service}.{service.namespace}"] = status = service.summary(now)
            _log(status, is_stalled=any(port.skipped or port.rejection for port in service.waiting))
        if (count := count_services(rollout) - len(logged)) > 0:
            log.info("more services in transition, not logged", count=count)
        for rule in islice(rule_progress(rollout), MAX_LOGGED):
            name, summary = f"DestinationRule/{rule.namespace}/{rule.name}", rule.summary(rule.since)
            logged[name] = summary
            # Log each summary once: a rejection lasts until the user changes the rule.
            if self._logged.get(name) != summary:
                _log(rule.summary(now), is_stalled=rule.skipped or bool(rule.rejection))
        for name in sorted(self._logged.keys() - logged.keys()):
            log.info("rollout finished", name=name)
        self._logged = logged


def _log(status: str, *, is_stalled: bool) -> None:
    if is_stalled:
        log.warning("rollout stalled", status=status)
    else:
        log.info("rollout in progress", status=status)
