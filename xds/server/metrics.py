"""Prometheus metrics of streams."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

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


def type_label(type_url: str) -> str:
    """Return the value of the label `type`, such as `cds`.

    Clients can request any type, so all types without a short name share one label value.
    """
    return SHORT_NAMES.get(type_url, OTHER).lower()


@dataclass(frozen=True, slots=True)
class _TypeMetrics:
    """The metrics of one type, with their label set."""

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
    """An `Observer` that counts streams, responses, ACKs and NACKs in Prometheus metrics.

    Args:
        registry: Registry that the metrics are added to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._streams: dict[Stream, ConvergenceTracker] = {}
        self._opened = Counter("xds_streams_opened", "Accepted streams.", ("variant",), registry=registry)

        for variant in Variant:
            self._opened.labels(variant.value)

        def counter(name: str, help_text: str) -> Counter:
            return Counter(name, help_text, ("type",), registry=registry)

        def histogram(name: str, help_text: str) -> Histogram:
            return Histogram(name, help_text, ("type",), registry=registry, buckets=LATENCIES)

        self._metrics = (
            counter("xds_pushes", "Sent responses."),
            counter("xds_push_bytes", "Bytes of sent responses, without gRPC framing."),
            counter("xds_resources_sent", "Resources in sent responses."),
            counter("xds_resources_removed", "Removed resources in sent responses."),
            counter("xds_acks", "Responses that a proxy ACKed."),
            counter("xds_nacks", "Responses that a proxy NACKed."),
            counter("xds_subscriptions", "Requests that changed a subscription."),
            histogram(
                "xds_change_to_ack_seconds",
                "Time from a change in a source to the ACK of the first response that contains part of it.",
            ),
            histogram("xds_push_to_ack_seconds", "Time from sending a response to its ACK."),
        )
        self._by_type: dict[str, _TypeMetrics] = {}
        for type_url in (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE):
            self._metrics_of(type_url)  # Export zeros, so that the first event is visible as an increase.

    def _metrics_of(self, type_url: str) -> _TypeMetrics:
        """Return the metrics of a type. They are cached, because a lookup is slower than counting."""
        label = type_label(type_url)
        metrics = self._by_type.get(label)
        if metrics is None:
            children = (metric.labels(label) for metric in self._metrics)
            metrics = self._by_type[label] = _TypeMetrics(*children)  # type: ignore[arg-type]
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
        metrics.pushes.inc()
        metrics.bytes.inc(size)
        metrics.resources.inc(len(response.resources))
        metrics.removed.inc(len(response.removed))
        self._streams[stream].sent(stream, response)

    def received(self, stream: Stream, event: Event) -> None:
        """Count a subscription, an ACK or a NACK."""
        match event:
            case Subscribed():
                self._metrics_of(event.type_url).subscriptions.inc()
                self._streams[stream].subscribed(stream, event)
            case Acked():
                metrics = self._metrics_of(event.type_url)
                metrics.acks.inc()
                metrics.push_to_ack.observe(event.waited)
                changed_at = self._streams[stream].answered(event)
                if changed_at is not None:
                    metrics.change_to_ack.observe(now() - changed_at)
            case Nacked():
                self._metrics_of(event.type_url).nacks.inc()
                self._streams[stream].answered(event)

    def closed(self, stream: Stream) -> None:
        """Forget a closed stream."""
        del self._streams[stream]
