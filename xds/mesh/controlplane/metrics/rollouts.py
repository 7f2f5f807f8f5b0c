"""How far changes of mode are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from xds.mesh.controlplane.controller import Hub
from xds.mesh.rollout.transition import Stage

_DURATIONS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Seconds: upper bounds of the histogram's buckets."""


class Rollouts(Collector):
    """Tells what is on its way, and how long it took what has arrived."""

    def __init__(self, hub: Hub) -> None:
        self._rollout = hub.rolling.rollout
        self._took = Histogram(
            "xds_rollout_seconds",
            "From when another mode was wanted of an endpoint to when it and its clients had it in force.",
            registry=None,
            buckets=_DURATIONS,
        )
        self._rollout.finished = self._took.observe

    def collect(self) -> Iterator[Metric]:
        """Tell."""
        rollout = self._rollout
        # Copied in one go: the next step may be taken meanwhile, in a thread.
        crossings, rules = tuple(rollout.crossings.values()), tuple(rollout.rules.values())
        stages = Counter(each.stage for each in crossings)
        waiting = GaugeMetricFamily(
            "xds_rollout_endpoints",
            "Endpoints (ports of pods) that are on their way to another mode, by what they wait for.",
            labels=("waiting_for",),
        )
        for stage in Stage:
            waiting.add_metric((stage.value,), stages[stage])
        yield waiting
        yield GaugeMetricFamily(
            "xds_rollout_unlocked_endpoints",
            "Those of them that still accept plaintext though policy forbids it.",
            sum(each.awaits_lock for each in crossings),
        )
        yield GaugeMetricFamily(
            "xds_rollout_rejections",
            "Those of them that cannot go on because a sidecar rejected its configuration.",
            sum(bool(each.rejection) for each in crossings),
        )
        yield GaugeMetricFamily(
            "xds_rollout_late_endpoints",
            "Endpoints that went on without a sidecar that still is not as far.",
            len(rollout.late),
        )
        yield GaugeMetricFamily(
            "xds_rollout_rules_held",
            "DestinationRules that are held back until their servers take what they say.",
            sum(each.at is None for each in rules),
        )
        yield CounterMetricFamily(
            "xds_rollout_passed_over",
            "Times that a sidecar was not waited for any longer.",
            rollout.passed_over,
        )
        yield CounterMetricFamily(
            "xds_rollout_locks",
            "Times that a port was closed to plaintext: connections in plaintext then end at the drain time.",
            rollout.locked,
        )
        yield from self._took.collect()
