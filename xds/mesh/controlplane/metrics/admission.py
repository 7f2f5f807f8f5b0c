"""Metrics of the injection webhook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from xds.mesh.inject.webhook import RESULTS


class AdmissionMetrics(Collector):
    """Expose the counters of a webhook."""

    def __init__(self, requests: Mapping[str, int]) -> None:
        self._requests = requests

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        family = CounterMetricFamily(
            "xds_webhook_requests",
            "Requests to the webhook, by result; malformed: the request contained no pod.",
            labels=("result",),
        )
        for result in RESULTS:
            family.add_metric((result,), self._requests.get(result, 0))
        yield family
