"""Metrics of observed traffic."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.registry import Collector

from xds.mesh.controlplane.metrics.families import counter, gauge
from xds.mesh.controlplane.traffic_reports import TrafficReports


class TrafficMetrics(Collector):
    """Expose observed requests by namespace and mode, and what became of reports."""

    def __init__(self, reports: TrafficReports) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        reports, traffic = self._reports, self._reports.traffic
        yield counter(
            "xds_observed_requests",
            "HTTP requests, and connections of other protocols, that sidecars reported, by the server's "
            "namespace and by mode: mtls, tls, plaintext or refused.",
            dict(sorted(traffic.totals.items())),
            "namespace",
            "mode",
        )
        yield counter(
            "xds_denied_requests",
            "HTTP requests, and connections of other protocols, that AuthorizationPolicies deny, by the "
            "server's namespace. With dry_run, they were allowed and would be denied.",
            dict(sorted(reports.denials.totals.items())),
            "namespace",
            "dry_run",
        )
        yield gauge(
            "xds_observed_edges",
            "Edges of observed traffic: client workload, service port and mode.",
            len(traffic),
        )
        yield counter(
            "xds_observed_reports",
            "Reports of sidecars that were read, by gRPC service.",
            reports.received,
            "service",
        )
        reasons = {
            "malformed": reports.reader.ignored,
            "too many edges": traffic.evicted + reports.denials.evicted,
            "too many edges of one sidecar": traffic.excess + reports.denials.excess,
        }
        yield counter(
            "xds_observed_dropped",
            "Reports, entries of reports, and edges that were left out, by reason.",
            reports.dropped | reasons,
            "reason",
        )
