"""Metrics of the admission webhooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.registry import Collector

from xds.mesh.controlplane.metrics.families import counter
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
        yield counter(
            "xds_webhook_requests",
            "Requests to the injection webhook, by result; malformed: the request contained no pod.",
            {result: self._requests.get(result, 0) for result in webhook.RESULTS},
            "result",
        )
        yield counter(
            "xds_policy_webhook_requests",
            "Requests to the policy webhook, by result; unchecked: allowed without a check of the effects.",
            {result: self._policy_requests.get(result, 0) for result in policy_review.RESULTS},
            "result",
        )
