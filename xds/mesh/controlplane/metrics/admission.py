"""Metrics of the admission webhooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from xds.mesh.inject import policy_review, webhook


class AdmissionMetrics(Collector):
    """Expose the counters of the webhooks."""

    def __init__(self, requests: Mapping[str, int], policy_requests: Mapping[str, int]) -> None:
        """Create the collector.

        Args:
            requests: number of requests for injection, by result.
            policy_requests: number of requests about policies, by result.
        """
        self._requests = requests
        self._policy_requests = policy_requests

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        injection = CounterMetricFamily(
            "xds_webhook_requests",
            "Requests to the injection webhook, by result; malformed: the request contained no pod.",
            labels=("result",),
        )
        policies = CounterMetricFamily(
            "xds_policy_webhook_requests",
            "Requests to the policy webhook, by result; unchecked: allowed without a check of the effects.",
            labels=("result",),
        )
        for family, results, requests in (
            (injection, webhook.RESULTS, self._requests),
            (policies, policy_review.RESULTS, self._policy_requests),
        ):
            for result in results:
                family.add_metric((result,), requests.get(result, 0))
            yield family
