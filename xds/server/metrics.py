"""What happens on streams, counted as it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from xds.protocol.events import Acked, Event, Nacked, Subscribed
from xds.protocol.session import Variant
from xds.protocol.types import SHORT
from xds.server import Stream
from xds.server.convergence import ConvergenceTracker
from xds.server.stream import now
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET

OTHER: Final = "other"

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Seconds: upper bounds of the histograms' buckets."""


def type_label(type_url: str) -> str:
    """Return the value of the label `type`: `cds` and so on; clients may ask for any type, and those are all `other`."""
    return SHORT.get(type_url, OTHER).lower()


@dataclass(frozen=True, slots=True)
class _TypeMetrics:
    """The metrics of one type."""

    pushes: Counter
    bytes: Counter
    resources: Counter
    removed: Counter
    acks: Counter
    nacks: Counter
    subscriptions: Counter
    change_to_ack: Histogram
    push_to_ack: Histogram


class StreamMetrics:
    """An Observer that counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._streams: dict[Stream, ConvergenceTracker] = {}
        self._opened = Counter(
            "xds_streams_opened", "Streams that were let in.", ("variant",), registry=registry
        )

        for variant in Variant:
            self._opened.labels(variant.value)

        def counter(name: str, what: str) -> Counter:
            return Counter(name, what, ("type",), registry=registry)

        def histogram(name: str, what: str) -> Histogram:
            return Histogram(name, what, ("type",), registry=registry, buckets=LATENCIES)

        self._metrics = (
            counter("xds_pushes", "Responses that were sent."),
            counter("xds_push_bytes", "Size of the responses that were sent, without gRPC's framing."),
            counter("xds_resources_sent", "Resources in responses that were sent."),
            counter("xds_resources_removed", "Resources that responses took away."),
            counter("xds_acks", "Responses that a proxy took."),
            counter("xds_nacks", "Responses that a proxy rejected."),
            counter("xds_subscriptions", "Requests that changed what a proxy asks for."),
            histogram(
                "xds_change_to_ack_seconds",
                "From when a source told of a change to when a proxy took the first response with any of it.",
            ),
            histogram("xds_push_to_ack_seconds", "From when a response was sent to when a proxy took it."),
        )
        self._by_type: dict[str, _TypeMetrics] = {}
        for type_url in (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE):
            self._metrics_of(
                type_url
            )  # So that what has not happened yet is 0, and its first time an increase.

    def _metrics_of(self, type_url: str) -> _TypeMetrics:
        """Return the metrics of a type. Looking labels up costs more than counting, so it is done once."""
        value = type_label(type_url)
        metrics = self._by_type.get(value)
        if metrics is None:
            metrics = self._by_type[value] = _TypeMetrics(*(metric.labels(value) for metric in self._metrics))  # type: ignore[arg-type]
        return metrics

    def opened(self, stream: Stream) -> None:
        """A stream was let in."""
        self._streams[stream] = ConvergenceTracker()
        self._opened.labels(stream.info.variant.value).inc()

    def sent(self, stream: Stream, size: int) -> None:
        """A response of `size` bytes was handed to the stream."""
        response = stream.session.sent
        if response is None:
            return
        metrics = self._metrics_of(response.type_url)
        metrics.pushes.inc()
        metrics.bytes.inc(size)
        metrics.resources.inc(len(response.resources))
        metrics.removed.inc(len(response.removed))
        self._streams[stream].sent(stream, response)

    def received(self, stream: Stream, event: Event) -> None:
        """A request meant this."""
        match event:
            case Subscribed():
                self._metrics_of(event.type_url).subscriptions.inc()
                self._streams[stream].subscribed(stream, event)
            case Acked():
                metrics = self._metrics_of(event.type_url)
                metrics.acks.inc()
                metrics.push_to_ack.observe(event.waited)
                since = self._streams[stream].answered(event)
                if since is not None:
                    metrics.change_to_ack.observe(now() - since)
            case Nacked():
                self._metrics_of(event.type_url).nacks.inc()
                self._streams[stream].answered(event)

    def closed(self, stream: Stream) -> None:
        """A stream has ended."""
        del self._streams[stream]
