"""Metrics of rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from xds.mesh.controlplane.controller import Controller
from xds.mesh.rollout.transition import WaitingFor

_BUCKETS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histogram's buckets, in seconds."""


class RolloutMetrics(Collector):
    """Expose the transitions in progress, and the duration of finished ones."""

    def __init__(self, controller: Controller) -> None:
        self._rollout = controller.rollouts.rollout
        self._duration = Histogram(
            "xds_rollout_duration_seconds",
            "Time from a change of an endpoint's desired mode until it is active on all proxies.",
            registry=None,
            buckets=_BUCKETS,
        )
        self._rollout.on_finished = self._duration.observe

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        rollout = self._rollout
        # Copy first: a thread may change the rollout during the scrape.
        transitions = tuple(rollout.transitions.values())
        rule_transitions = tuple(rollout.rule_transitions.values())
        counts = Counter(transition.waiting_for for transition in transitions)
        waiting = GaugeMetricFamily(
            "xds_rollout_endpoints",
            "Endpoints (ports of pods) in transition to another mode, by what they wait for.",
            labels=("waiting_for",),
        )
        for waiting_for in WaitingFor:
            waiting.add_metric((waiting_for.value,), counts[waiting_for])
        yield waiting
        yield GaugeMetricFamily(
            "xds_rollout_plaintext_endpoints",
            "Endpoints in transition that still accept plaintext although policies forbid it.",
            sum(transition.accepts_plaintext for transition in transitions),
        )
        yield GaugeMetricFamily(
            "xds_rollout_rejections",
            "Endpoints in transition that are blocked because a sidecar rejected its configuration.",
            sum(bool(transition.rejection) for transition in transitions),
        )
        yield GaugeMetricFamily(
            "xds_rollout_skipped_endpoints",
            "Endpoints whose transition skipped a proxy or replica that still lags.",
            len(rollout.skipped_ports),
        )
        yield GaugeMetricFamily(
            "xds_rollout_rules_held",
            "DestinationRules that are held until servers accept the traffic they cause.",
            sum(rule.generation is None for rule in rule_transitions),
        )
        yield CounterMetricFamily(
            "xds_rollout_skipped",
            "Number of times a rollout skipped a lagging proxy or replica.",
            rollout.skip_count,
        )
        yield CounterMetricFamily(
            "xds_rollout_plaintext_disabled",
            "Number of times a port stopped accepting plaintext; open connections end after the drain time.",
            rollout.plaintext_disabled,
        )
        yield from self._duration.collect()
