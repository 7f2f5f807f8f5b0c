"""Metrics of rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Histogram, Metric
from prometheus_client.registry import Collector

from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.metrics.families import counter, gauge
from xds.mesh.rollout.progress import accepts_plaintext, port_waits
from xds.mesh.rollout.waits import WaitingFor

_BUCKETS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histogram's buckets, in seconds."""


class RolloutMetrics(Collector):
    """Expose the transitions in progress, and the duration of finished ones."""

    def __init__(self, controller: Controller) -> None:
        self._rollouts = controller.rollouts
        self._duration = Histogram(
            "xds_rollout_duration_seconds",
            "Time from a change of an endpoint's desired mode until it is active on all proxies.",
            registry=None,
            buckets=_BUCKETS,
        )
        self._rollouts.rollout.stats.on_finished = self._duration.observe

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        rollout = self._rollouts.rollout
        waits = list(port_waits(self._rollouts))
        counts = Counter(wait.waiting_for for _, _, wait in waits)
        yield gauge(
            "xds_rollout_endpoints",
            "Endpoints (ports of pods) in transition to another mode, by what they wait for.",
            {waiting_for.value: counts[waiting_for] for waiting_for in WaitingFor},
            "waiting_for",
        )
        yield gauge(
            "xds_rollout_plaintext_endpoints",
            "Endpoints in transition that still accept plaintext although policies forbid it.",
            sum(accepts_plaintext(rollout, key, transition) for key, transition, _ in waits),
        )
        yield gauge(
            "xds_rollout_rejections",
            "Endpoints in transition that need a resource that was rejected.",
            sum(bool(wait.rejection) for _, _, wait in waits),
        )
        yield gauge(
            "xds_rollout_skipped_endpoints",
            "Endpoints whose transition skipped a proxy or replica that still lags.",
            len(rollout.skipped.ports),
        )
        yield gauge(
            "xds_rollout_rules_held",
            "DestinationRules that are held until servers accept the traffic they cause.",
            sum(rule.is_pending for rule in tuple(rollout.rules.values())),
        )
        yield counter(
            "xds_rollout_skipped",
            "Number of times a rollout skipped a lagging proxy or replica.",
            rollout.stats.skips,
        )
        yield counter(
            "xds_rollout_plaintext_disabled",
            "Number of times a port stopped accepting plaintext; open connections end after the drain time.",
            rollout.stats.plaintext_disabled,
        )
        yield from self._duration.collect()
