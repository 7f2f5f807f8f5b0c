"""What need not be counted as it happens, because it is known when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from xds.codec import encoded
from xds.mesh.controlplane.controller import Hub
from xds.mesh.model.objects import Problem
from xds.mesh.parse import UNENFORCED
from xds.server import DiscoveryService
from xds.server.metrics import type_label


class Build(Collector):
    """Which release this is."""

    def collect(self) -> Iterator[Metric]:
        """Tell."""
        family = GaugeMetricFamily("xds_build_info", "Always 1; the release is a label.", labels=("version",))
        family.add_metric((version("xds-mesh"),), 1)
        yield family


class Connected(Collector):
    """Who is connected, and who of them waits."""

    def __init__(self, discovery: DiscoveryService, hub: Hub) -> None:
        self._discovery = discovery
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """Tell."""
        streams = self._discovery.streams
        names = {stream.node.id for stream in streams}
        waiting = {stream.node.id for stream in streams if self._hub.missing(stream.subscriber)}
        yield GaugeMetricFamily("xds_proxies", "Proxies that are connected.", len(names))
        yield GaugeMetricFamily(
            "xds_proxies_waiting",
            "Those of them that get no configuration, or no newer one: the pod is not known, or it cannot be made.",
            len(waiting),
        )
        yield GaugeMetricFamily(
            "xds_sidecars",
            "Pods that run and whose label says that they have a sidecar.",
            len(self._hub.sidecars.expected),
        )
        yield GaugeMetricFamily(
            "xds_sidecars_not_connected",
            "Those of them whose sidecar is not connected to this control plane.",
            len(self._hub.sidecars.absent),
        )
        kinds = Counter(
            (stream.info.variant.value, type_label(stream.info.type_url) if stream.info.type_url else "ads")
            for stream in streams
        )
        yield _by(
            GaugeMetricFamily(
                "xds_streams", "Streams there are; type ads: aggregated.", labels=("variant", "type")
            ),
            kinds.items(),
        )
        codes = Counter({(code.name,): count for code, count in self._discovery.failed.items()})
        yield _by(
            CounterMetricFamily(
                "xds_calls_failed",
                "Streams, fetches and polls that were refused, malformed or went wrong here, by gRPC status.",
                labels=("code",),
            ),
            codes.items(),
        )
        connections = self._discovery.connections
        reasons = Counter({(reason,): count for reason, count in connections.ended.items()})
        yield _by(
            CounterMetricFamily(
                "xds_connections_ended",
                "Connections that the control plane ended because they exceeded a limit, by reason.",
                labels=("reason",),
            ),
            reasons.items(),
        )
        yield CounterMetricFamily(
            "xds_calls_unproven",
            "Calls of callers that had not proved who they are: refused, or answered with health.",
            connections.unproven_calls,
        )


class Work(Collector):
    """What the hub does."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """Tell."""
        work, certificates = self._hub.work, self._hub.certificates()
        yield CounterMetricFamily("xds_changes", "Changes that sources told of.", work.changes)
        yield CounterMetricFamily(
            "xds_change_batches",
            "Times that changes were applied: those that come close together are one.",
            work.applied,
        )
        yield CounterMetricFamily(
            "xds_change_apply_seconds", "Time spent on applying changes, in a thread.", work.apply_seconds
        )
        yield _by(
            CounterMetricFamily(
                "xds_translations",
                "Runs that make a proxy's configuration; overtaken: given up because newer facts came.",
                labels=("result",),
            ),
            ((("made",), work.made), (("overtaken",), work.overtaken), (("failed",), work.failed)),
        )
        yield CounterMetricFamily(
            "xds_translation_seconds", "Time that the event loop spent on such runs.", work.translate_seconds
        )
        yield _by(
            CounterMetricFamily(
                "xds_encodings",
                "Messages that were encoded, by full name: once for each distinct content, not for each proxy.",
                labels=("message",),
            ),
            (((name,), count) for name, count in tuple(encoded.items())),
        )
        yield CounterMetricFamily("xds_certificates_issued", "Certificates given out.", certificates.issued)
        yield GaugeMetricFamily("xds_certificates", "Certificates that pods have now.", certificates.held)
        soonest = certificates.soonest_expiry
        family = GaugeMetricFamily(
            "xds_certificate_expiry_timestamp_seconds",
            "When the first of those expires; absent if there is none.",
        )
        if soonest:
            family.add_metric((), soonest.timestamp())
        yield family
        yield GaugeMetricFamily(
            "xds_root_certificate_expiry_timestamp_seconds",
            "When the root certificate expires.",
            certificates.root_expiry.timestamp(),
        )


class Problems(Collector):
    """What is wrong with what sources say, and for how long they have said nothing."""

    def __init__(
        self,
        problems: Callable[[], Collection[Problem]],
        behind: Callable[[], float] = float,
        unenforced: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._problems = problems
        self._behind = behind
        self._unenforced = unenforced

    def collect(self) -> Iterator[Metric]:
        """Tell."""
        counted = self._unenforced()
        counts = Counter("notice" if problem.notice else "problem" for problem in self._problems())
        yield _by(
            GaugeMetricFamily(
                "xds_problems",
                "What is wrong now with manifests and settings (problem), or passed over on purpose (notice).",
                labels=("severity",),
            ),
            (((severity,), counts[severity]) for severity in ("problem", "notice")),
        )
        yield _by(
            GaugeMetricFamily(
                "xds_unenforced_objects",
                "Objects of kinds that the control plane does not enforce, such as AuthorizationPolicy.",
                labels=("kind",),
            ),
            (((kind.name,), counted.get(kind.name, 0)) for kind in UNENFORCED),
        )
        yield GaugeMetricFamily(
            "xds_source_behind_seconds",
            "For how long it has not been possible to learn of changes, because the API server is away or refuses; 0 while it tells them.",
            value=self._behind(),
        )


def _by(
    family: CounterMetricFamily | GaugeMetricFamily, values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    for labels, value in values:
        family.add_metric(labels, value)
    return family
