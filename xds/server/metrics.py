"""Prometheus metrics of streams."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from xds.protocol.events import Acked, Event, Nacked, Subscribed
from xds.protocol.session import Variant
from xds.protocol.types import SHORT_NAMES
from xds.server import Stream
from xds.server.convergence import ConvergenceTracker
from xds.server.stream import now
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET

OTHER: Final = "other"
"""Label of types without a short name."""

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of histogram buckets, in seconds."""

_BUCKETS = (*map(float, LATENCIES), inf)
_LABELS = {type_url: name.lower() for type_url, name in SHORT_NAMES.items()}


def type_label(type_url: str) -> str:
    """Return the value of the label `type`, such as `cds`.

    Clients can request any type, so all types without a short name share one label value.
    """
    return _LABELS.get(type_url, OTHER)


class _Latencies:
    """A histogram of durations. Without a lock, counting one takes a fifth of the time."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * len(_BUCKETS)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(_BUCKETS, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, label: str) -> None:
        """Add the histogram to a metric."""
        bounds = ("+Inf" if bound == inf else str(bound) for bound in _BUCKETS)
        family.add_metric((label,), [*zip(bounds, accumulate(self._counts), strict=True)], self._sum)


@dataclass(slots=True)
class _TypeMetrics:
    """The metrics of one type. `StreamMetrics.collect` exposes them, which costs less per event."""

    change_to_ack: _Latencies = field(default_factory=_Latencies)
    push_to_ack: _Latencies = field(default_factory=_Latencies)
    pushes: int = 0
    push_bytes: int = 0
    resources_sent: int = 0
    resources_removed: int = 0
    acks: int = 0
    nacks: int = 0
    subscriptions: int = 0


class StreamMetrics(Collector):
    """An `Observer` that counts streams, responses, ACKs and NACKs in Prometheus metrics.

    It is for servers of one event loop.

    Args:
        registry: Registry that the metrics are added to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._streams: dict[Stream, ConvergenceTracker] = {}
        self._opened = Counter("xds_streams_opened", "Accepted streams.", ("variant",), registry=registry)

        for variant in Variant:
            self._opened.labels(variant.value)
        self._by_type: dict[str, _TypeMetrics] = {}
        for type_url in (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE):
            self._metrics_of(type_url)  # Export zeros, so that the first event is visible as an increase.
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without samples, for scrapes that select metrics by name."""
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics by type."""
        return self._families(tuple(self._by_type.items()))  # A scrape may run in another thread.

    @staticmethod
    def _families(by_type: Iterable[tuple[str, _TypeMetrics]]) -> Iterator[Metric]:
        def counter(name: str, help_text: str) -> CounterMetricFamily:
            return CounterMetricFamily(name, help_text, labels=("type",))

        families = {
            "pushes": counter("xds_pushes", "Sent responses."),
            "push_bytes": counter("xds_push_bytes", "Bytes of sent responses, without gRPC framing."),
            "resources_sent": counter("xds_resources_sent", "Resources in sent responses."),
            "resources_removed": counter("xds_resources_removed", "Removed resources in sent responses."),
            "acks": counter("xds_acks", "Responses that a proxy ACKed."),
            "nacks": counter("xds_nacks", "Responses that a proxy NACKed."),
            "subscriptions": counter("xds_subscriptions", "Requests that changed a subscription."),
        }
        for name, family in families.items():
            for label, metrics in by_type:
                family.add_metric((label,), getattr(metrics, name))
            yield family

        def histogram(name: str, help_text: str) -> HistogramMetricFamily:
            return HistogramMetricFamily(name, help_text, labels=("type",))

        histograms = {
            "change_to_ack": histogram(
                "xds_change_to_ack_seconds",
                "Time from a change in a source to the ACK of the first response that contains part of it.",
            ),
            "push_to_ack": histogram(
                "xds_push_to_ack_seconds", "Time from sending a response to reading its ACK."
            ),
        }
        for name, durations in histograms.items():
            for label, metrics in by_type:
                getattr(metrics, name).add_to(durations, label)
            yield durations

    def _metrics_of(self, type_url: str) -> _TypeMetrics:
        label = type_label(type_url)
        metrics = self._by_type.get(label)
        if metrics is None:
            metrics = self._by_type[label] = _TypeMetrics()
        return metrics

    @property
    def oldest_change(self) -> float:
        """Time of the oldest change that is published and not ACKed; infinity if there is none."""
        return min((tracker.oldest_change(stream) for stream, tracker in self._streams.items()), default=inf)

    @property
    def synced(self) -> bool:
        """Whether all clients have ACKed their current resources."""
        return all(stream.session.synced for stream in self._streams)

    def opened(self, stream: Stream) -> None:
        """Count an opened stream."""
        self._streams[stream] = ConvergenceTracker()
        self._opened.labels(stream.info.variant.value).inc()

    def sent(self, stream: Stream, size: int) -> None:
        """Count a response of `size` bytes."""
        response = stream.session.sent
        if response is None:
            return
        metrics = self._metrics_of(response.type_url)
        metrics.pushes += 1
        metrics.push_bytes += size
        metrics.resources_sent += len(response.resources)
        metrics.resources_removed += len(response.removed)
        self._streams[stream].sent(stream, response)

    def received(self, stream: Stream, event: Event) -> None:
        """Count a subscription, an ACK or a NACK."""
        match event:
            case Subscribed():
                self._metrics_of(event.type_url).subscriptions += 1
                self._streams[stream].subscribed(stream, event)
            case Acked():
                metrics = self._metrics_of(event.type_url)
                metrics.acks += 1
                metrics.push_to_ack.observe(event.waited)
                changed_at = self._streams[stream].answered(stream, event)
                if changed_at is not None:
                    metrics.change_to_ack.observe(now() - changed_at)
            case Nacked():
                self._metrics_of(event.type_url).nacks += 1
                self._streams[stream].answered(stream, event)

    def closed(self, stream: Stream) -> None:
        """Forget a closed stream."""
        del self._streams[stream]
