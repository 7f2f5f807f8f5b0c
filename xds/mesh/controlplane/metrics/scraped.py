"""Metrics computed from the state of the control plane at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import Metric
from prometheus_client.registry import Collector

from xds.codec import encode_counts
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.metrics.families import counter, gauge
from xds.mesh.model.objects import Problem
from xds.mesh.parse import UNENFORCED
from xds.server import DiscoveryService
from xds.server.metrics import type_label


class BuildMetrics(Collector):
    """Expose the version."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        versions = {version("xds-mesh"): 1}
        yield gauge("xds_build_info", "Always 1; the label is the version.", versions, "version")


class ConnectionMetrics(Collector):
    """Expose the number of proxies, sidecars, streams, failed calls and ended connections."""

    def __init__(self, discovery: DiscoveryService, controller: Controller) -> None:
        self._discovery = discovery
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        streams, sidecars = self._discovery.streams, self._controller.connections.sidecars
        names = {stream.node.id for stream in streams}
        waiting = {stream.node.id for stream in streams if self._controller.problem_of(stream.subscriber)}
        yield gauge("xds_proxies", "Connected proxies.", len(names))
        yield gauge(
            "xds_proxies_waiting",
            "Connected proxies without an up-to-date configuration: unknown pod or failed translation.",
            len(waiting),
        )
        yield gauge(
            "xds_sidecars",
            "Running pods that should have a sidecar, according to their label.",
            len(sidecars.expected),
        )
        yield gauge(
            "xds_sidecars_not_connected",
            "Running pods whose sidecar is not connected to this replica of the control plane.",
            len(sidecars.absent),
        )
        kinds = Counter(
            (stream.info.variant.value, type_label(stream.info.type_url) if stream.info.type_url else "ads")
            for stream in streams
        )
        yield gauge("xds_streams", "Open streams; type ads: aggregated.", kinds, "variant", "type")
        yield counter(
            "xds_calls_failed",
            "Streams, fetches and polls that were refused, were malformed or failed, by gRPC status.",
            {code.name: count for code, count in self._discovery.failed.items()},
            "code",
        )
        yield counter(
            "xds_connections_ended",
            "Connections that the control plane closed because they exceeded a limit, by reason.",
            self._discovery.connections.ended,
            "reason",
        )


class ControllerMetrics(Collector):
    """Expose the counters and certificates of a controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        stats, certificates = self._controller.stats, self._controller.certificates.stats()
        yield counter("xds_changes", "Changes that sources reported.", stats.changes)
        yield counter("xds_change_batches", "Batches of changes that were applied.", stats.batches)
        yield counter(
            "xds_change_apply_seconds", "Time spent applying changes, in a thread.", stats.apply_seconds
        )
        yield counter(
            "xds_translations",
            "Translations of pods; superseded: cancelled because newer changes arrived.",
            {"completed": stats.translated, "superseded": stats.superseded, "failed": stats.failed},
            "result",
        )
        yield counter(
            "xds_translation_seconds",
            "Time that the event loop spent on translations.",
            stats.translate_seconds,
        )
        yield counter(
            "xds_encodings",
            "Encoded messages, by full name. Equal messages are encoded once, not once per proxy.",
            dict(encode_counts),
            "message",
        )
        yield counter(
            "xds_certificate_requests",
            "Requests of sidecars for certificates; failed: the request may succeed later.",
            self._controller.certificates.requests,
            "result",
        )
        yield counter("xds_certificates_issued", "Certificates issued.", certificates.issued)
        yield gauge("xds_certificates", "Current certificates of pods.", certificates.current)
        soonest = certificates.soonest_expiry
        yield gauge(
            "xds_certificate_expiry_timestamp_seconds",
            "Time at which the first of the current certificates expires; absent if there is none.",
            soonest.timestamp() if soonest else {},
        )
        yield gauge(
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
        yield gauge(
            "xds_problems",
            "Current problems of objects, settings and the running mesh, and notices.",
            {severity: counts[severity] for severity in ("problem", "notice")},
            "severity",
        )
        yield gauge(
            "xds_unenforced_objects",
            "Objects of kinds that the control plane does not enforce, such as RequestAuthentication.",
            {kind.name: unenforced.get(kind.name, 0) for kind in UNENFORCED},
            "kind",
        )
        yield gauge(
            "xds_source_stale_seconds",
            "Seconds since the API server became unreachable or refused access; 0 while it is watched.",
            self._stale_seconds(),
        )
