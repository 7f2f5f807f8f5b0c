"""Metrics of validation by a local Envoy."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from xds.mesh.controlplane.validation import SnapshotValidator

RESULTS = ("accepted", "refused", "unvalidated")
"""Values of the label `result`."""


class ValidationMetrics(Collector):
    """Expose what Envoy has validated, and what is held back. With `--validate off`, there are no metrics."""

    def __init__(self, validation: SnapshotValidator | None) -> None:
        self._validation = validation

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        if not (validation := self._validation):
            return
        yield GaugeMetricFamily(
            "xds_validation_held_back",
            "Distinct resources that are held back from sidecars, because Envoy refuses them.",
            validation.held_back,
        )
        if not (envoy := validation.envoy):
            return
        resources = CounterMetricFamily(
            "xds_validation_resources",
            "Results; unvalidated: Envoy gave none. While it is missing, each change counts again.",
            labels=("result",),
        )
        for result in RESULTS:
            resources.add_metric((result,), envoy.results[result])
        yield resources
        yield CounterMetricFamily(
            "xds_validation_runs", "Runs of Envoy, each with up to 256 resources.", envoy.runs
        )
        yield CounterMetricFamily(
            "xds_validation_seconds", "Time that changes waited for these runs.", envoy.seconds
        )
        yield GaugeMetricFamily(
            "xds_validation_unavailable",
            "1 if the last run of Envoy gave no result, because Envoy is missing or slow; otherwise 0.",
            int(bool(envoy.unavailable)),
        )
