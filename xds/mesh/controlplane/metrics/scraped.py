"""Metrics computed from the state of the control plane at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from xds.codec import encode_counts
from xds.mesh.controlplane.controller import Controller
from xds.mesh.model.objects import Problem
from xds.mesh.parse import UNENFORCED
from xds.server import DiscoveryService
from xds.server.metrics import type_label


class BuildMetrics(Collector):
    """Expose the version."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        family = GaugeMetricFamily(
            "xds_build_info", "Always 1; the label is the version.", labels=("version",)
        )
        family.add_metric((version("xds-mesh"),), 1)
        yield family


class ConnectionMetrics(Collector):
    """Expose the number of proxies, sidecars, streams, failed calls and ended connections."""

    def __init__(self, discovery: DiscoveryService, controller: Controller) -> None:
        self._discovery = discovery
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        streams = self._discovery.streams
        names = {stream.node.id for stream in streams}
        waiting = {stream.node.id for stream in streams if self._controller.problem_of(stream.subscriber)}
        yield GaugeMetricFamily("xds_proxies", "Connected proxies.", len(names))
        yield GaugeMetricFamily(
            "xds_proxies_waiting",
            "Connected proxies without an up-to-date configuration: unknown pod or failed translation.",
            len(waiting),
        )
        yield GaugeMetricFamily(
            "xds_sidecars",
            "Running pods that should have a sidecar, according to their label.",
            len(self._controller.connections.sidecars.expected),
        )
        yield GaugeMetricFamily(
            "xds_sidecars_not_connected",
            "Running pods whose sidecar is not connected to this replica of the control plane.",
            len(self._controller.connections.sidecars.absent),
        )
        kinds = Counter(
            (stream.info.variant.value, type_label(stream.info.type_url) if stream.info.type_url else "ads")
            for stream in streams
        )
        yield _with_samples(
            GaugeMetricFamily(
                "xds_streams", "Open streams; type ads: aggregated.", labels=("variant", "type")
            ),
            kinds.items(),
        )
        codes = Counter({(code.name,): count for code, count in self._discovery.failed.items()})
        yield _with_samples(
            CounterMetricFamily(
                "xds_calls_failed",
                "Streams, fetches and polls that were refused, were malformed or failed, by gRPC status.",
                labels=("code",),
            ),
            codes.items(),
        )
        connections = self._discovery.connections
        reasons = Counter({(reason,): count for reason, count in connections.ended.items()})
        yield _with_samples(
            CounterMetricFamily(
                "xds_connections_ended",
                "Connections that the control plane closed because they exceeded a limit, by reason.",
                labels=("reason",),
            ),
            reasons.items(),
        )


class ControllerMetrics(Collector):
    """Expose the counters and certificates of a controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        stats, certificates = self._controller.stats, self._controller.certificates.stats()
        yield CounterMetricFamily("xds_changes", "Changes that sources reported.", stats.changes)
        yield CounterMetricFamily(
            "xds_change_batches",
            "Batches of changes that were applied.",
            stats.batches,
        )
        yield CounterMetricFamily(
            "xds_change_apply_seconds", "Time spent applying changes, in a thread.", stats.apply_seconds
        )
        yield _with_samples(
            CounterMetricFamily(
                "xds_translations",
                "Translations of pods; superseded: cancelled because newer changes arrived.",
                labels=("result",),
            ),
            (
                (("completed",), stats.translated),
                (("superseded",), stats.superseded),
                (("failed",), stats.failed),
            ),
        )
        yield CounterMetricFamily(
            "xds_translation_seconds",
            "Time that the event loop spent on translations.",
            stats.translate_seconds,
        )
        yield _with_samples(
            CounterMetricFamily(
                "xds_encodings",
                "Encoded messages, by full name. Equal messages are encoded once, not once per proxy.",
                labels=("message",),
            ),
            (((name,), count) for name, count in tuple(encode_counts.items())),
        )
        yield _with_samples(
            CounterMetricFamily(
                "xds_certificate_requests",
                "Requests of sidecars for certificates; failed: the request may succeed later.",
                labels=("result",),
            ),
            (((result,), count) for result, count in self._controller.certificates.requests.items()),
        )
        yield CounterMetricFamily("xds_certificates_issued", "Certificates issued.", certificates.issued)
        yield GaugeMetricFamily("xds_certificates", "Current certificates of pods.", certificates.current)
        soonest = certificates.soonest_expiry
        family = GaugeMetricFamily(
            "xds_certificate_expiry_timestamp_seconds",
            "Time at which the first of the current certificates expires; absent if there is none.",
        )
        if soonest:
            family.add_metric((), soonest.timestamp())
        yield family
        yield GaugeMetricFamily(
            "xds_root_certificate_expiry_timestamp_seconds",
            "Time at which the root certificate expires.",
            certificates.root_expiry.timestamp(),
        )


class ProblemMetrics(Collector):
    """Expose the problems of the input, unenforced objects, and for how long the source has been stale."""

    def __init__(
        self,
        problems: Callable[[], Collection[Problem]],
        stale_seconds: Callable[[], float] = float,
        unenforced: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._problems = problems
        self._stale_seconds = stale_seconds
        self._unenforced = unenforced

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        unenforced = self._unenforced()
        counts = Counter("notice" if problem.notice else "problem" for problem in self._problems())
        yield _with_samples(
            GaugeMetricFamily(
                "xds_problems",
                "Current problems of objects, settings and the running mesh, and notices.",
                labels=("severity",),
            ),
            (((severity,), counts[severity]) for severity in ("problem", "notice")),
        )
        yield _with_samples(
            GaugeMetricFamily(
                "xds_unenforced_objects",
                "Objects of kinds that the control plane does not enforce, such as AuthorizationPolicy.",
                labels=("kind",),
            ),
            (((kind.name,), unenforced.get(kind.name, 0)) for kind in UNENFORCED),
        )
        yield GaugeMetricFamily(
            "xds_source_stale_seconds",
            "Seconds since the API server became unreachable or refused access; 0 while it is watched.",
            value=self._stale_seconds(),
        )


def _with_samples(
    family: CounterMetricFamily | GaugeMetricFamily, values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    for labels, value in values:
        family.add_metric(labels, value)
    return family
