"""What became of the pods that the API server asked about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from xds.mesh.inject.webhook import RESULTS


class Admissions(Collector):
    """Tells the counts of a webhook."""

    def __init__(self, answers: Mapping[str, int]) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """Tell."""
        family = CounterMetricFamily(
            "xds_webhook_requests",
            "Requests to the webhook, by what became of the pod; malformed: there was none.",
            labels=("result",),
        )
        for result in RESULTS:
            family.add_metric((result,), self._answers.get(result, 0))
        yield family
