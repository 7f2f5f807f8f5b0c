"""Trace each change with OpenTelemetry, until the last proxy has ACKed it.

| span | from | until |
|---|---|---|
| `change` | the source reports it | the last ACK, and the end of the rollout that it starts |
| `apply` | the debounce ends | the mesh has changed |
| `push` | the mesh has changed | the last response that contains part of it is sent |
| `ack` | a response is sent to a proxy | the proxy ACKs or rejects it |

Only the slowest proxies and those that reject a response have an `ack` span. Spans are made when a trace
ends, so that a change costs a few numbers for each proxy.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nlargest
from importlib.metadata import version
from typing import NamedTuple

from opentelemetry.trace import Status, StatusCode, Tracer, set_span_in_context

from xds.mesh.controlplane.batcher import Batch
from xds.mesh.controlplane.controller import Controller
from xds.mesh.model.objects import Change
from xds.protocol.events import Acked, Event, Nacked
from xds.protocol.types import short_name
from xds.server import Stream
from xds.server.metrics import StreamMetrics
from xds.server.stream import now

MAX_OPEN = 16
"""Maximum number of traces in progress. Changes that arrive meanwhile are not traced."""
MAX_PROXIES = 20
"""Maximum number of `ack` spans of slow proxies, and of proxies that reject a response."""
MAX_OBJECTS = 10
"""Maximum number of objects that a trace names."""
TIMEOUT = 300.0
"""Seconds after which a trace ends without the remaining ACKs."""
_INTERVAL, _MAX_INTERVAL = 0.05, 1.0
"""Seconds between checks of whether a trace is complete: at first, and after a while."""
_BACKOFF = 0.05
"""Ratio of this interval to the age of the oldest trace."""


class _Answer(NamedTuple):
    """What a proxy answered last."""

    sent_at: float
    answered_at: float
    type_url: str
    error: str


@dataclass(slots=True)
class _Trace:
    """A change in progress. Times are in seconds of the event loop's clock."""

    change: Change
    changed_at: float
    started_at: float
    applied_at: float
    has_rollout: bool
    """Whether the trace ends with the rollout that is in progress."""
    pushed_at: float = 0.0
    """Time of the last response; 0 before the first."""
    answers: dict[str, _Answer] = field(default_factory=dict)
    """Last answer of each proxy, by node ID."""
    rejections: dict[str, _Answer] = field(default_factory=dict)
    """The same for proxies that rejected a response."""


class ChangeTracer:
    """Make the traces. Pass it to the server as the observer of its streams.

    Args:
        controller: the controller whose changes are traced.
        streams: the metrics of the server's streams, to which all events are passed on.
        tracer: makes the spans.
    """

    def __init__(self, controller: Controller, streams: StreamMetrics, tracer: Tracer) -> None:
        self._controller = controller
        self._streams = streams
        self._tracer = tracer
        self._traces: list[_Trace] = []
        self._changed = asyncio.Event()
        controller.on_applied = self._applied

    async def run(self) -> None:
        """End traces as they complete, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._traces:
                await asyncio.sleep(_interval(now() - self._traces[0].changed_at))
                self._end_complete()

    # --- events ---------------------------------------------------------------------------------------------

    def _applied(self, batch: Batch, started_at: float) -> None:
        if len(self._traces) >= MAX_OPEN:
            return
        rollout = self._controller.rollouts.rollout
        trace = _Trace(batch.change, batch.changed_at, started_at, now(), rollout.is_in_progress)
        self._traces.append(trace)
        self._changed.set()

    def opened(self, stream: Stream) -> None:
        """Handle a new stream."""
        self._streams.opened(stream)

    def sent(self, stream: Stream, size: int) -> None:
        """Record when a response was sent."""
        self._streams.sent(stream, size)
        for trace in self._traces:
            trace.pushed_at = now()

    def received(self, stream: Stream, event: Event) -> None:
        """Record an ACK or a NACK of a response that was sent after a change."""
        self._streams.received(stream, event)
        if not self._traces or not isinstance(event, Acked | Nacked):
            return
        error = event.message if isinstance(event, Nacked) else ""
        at = now()
        answer = _Answer(at - event.waited, at, event.type_url, error)
        for trace in self._traces:
            if answer.sent_at >= trace.applied_at:
                trace.answers[stream.node.id] = answer
                if error:
                    trace.rejections[stream.node.id] = answer

    def closed(self, stream: Stream) -> None:
        """Handle the end of a stream."""
        self._streams.closed(stream)

    # --- the end --------------------------------------------------------------------------------------------

    def _end_complete(self) -> None:
        oldest = min(self._controller.publisher.oldest_change, self._streams.oldest_change)
        is_rolling_out = self._controller.rollouts.rollout.is_in_progress
        remaining = []
        for trace in self._traces:
            is_complete = trace.changed_at < oldest and not (
                trace.has_rollout and (is_rolling_out or not self._streams.synced)
            )
            if is_complete or now() > trace.changed_at + TIMEOUT:
                self._export(trace, is_complete=is_complete)
            else:
                remaining.append(trace)
        self._traces = remaining

    def _export(self, trace: _Trace, *, is_complete: bool) -> None:
        """Make the spans of a trace."""
        offset = time.time() - now()

        def nanoseconds(at: float) -> int:
            return round((at + offset) * 1e9)

        root = self._tracer.start_span("change", start_time=nanoseconds(trace.changed_at))
        context = set_span_in_context(root)

        def span(name: str, start: float, end: float, **attributes: str) -> None:
            child = self._tracer.start_span(
                name,
                context=context,
                start_time=nanoseconds(start),
                attributes={f"xds.{key}": value for key, value in attributes.items()},
            )
            if error := attributes.get("error"):
                child.set_status(Status(StatusCode.ERROR, error))
            child.end(nanoseconds(end))

        last = max((answer.answered_at for answer in trace.answers.values()), default=trace.applied_at)
        objects = list(_objects(trace.change))
        root.set_attributes(
            {
                "xds.objects": objects[:MAX_OBJECTS],
                "xds.object_count": len(objects),
                "xds.proxies": len(trace.answers),
                "xds.rejections": len(trace.rejections),
            }
        )
        span("apply", trace.started_at, trace.applied_at)
        if trace.pushed_at:
            span("push", trace.applied_at, trace.pushed_at)
        slowest = nlargest(MAX_PROXIES, trace.answers.items(), key=lambda item: item[1].answered_at)
        for node_id, answer in {
            **dict(list(trace.rejections.items())[:MAX_PROXIES]),
            **dict(slowest),
        }.items():
            attributes = {"proxy": node_id, "type": short_name(answer.type_url)}
            if error := answer.error or (node_id in trace.rejections and trace.rejections[node_id].error):
                attributes["error"] = error
            span("ack", answer.sent_at, answer.answered_at, **attributes)
        if trace.rejections:
            root.set_status(Status(StatusCode.ERROR, f"{len(trace.rejections)} proxies rejected a response"))
        elif not is_complete:
            root.set_status(Status(StatusCode.ERROR, f"not all proxies answered within {TIMEOUT:g} s"))
        root.end(nanoseconds(last if is_complete else now()))


def _interval(age: float) -> float:
    """Return the seconds until the next check, for the age of the oldest trace."""
    # A check walks all streams, and a proxy may never answer.
    return min(max(_INTERVAL, _BACKOFF * age), _MAX_INTERVAL)


def _objects(change: Change) -> Iterable[str]:
    if change.config:
        yield "mesh settings"
    yield from (str(fact.ref) for fact in change.applied)
    yield from (str(ref) for ref in change.removed)


def change_tracer(endpoint: str, controller: Controller, streams: StreamMetrics) -> ChangeTracer:
    """Return a tracer that sends its traces to a collector, over HTTP, in a thread.

    The OTEL_* environment variables set everything but the URL, such as OTEL_EXPORTER_OTLP_HEADERS. When the
    process exits, the traces that are not sent yet are sent.

    Args:
        endpoint: URL of the collector, without the path.
        controller: the controller whose changes are traced.
        streams: the metrics of the server's streams.
    """
    # They are imported only here, because they take long to import.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    attributes = {SERVICE_VERSION: version("xds-mesh")}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        attributes[SERVICE_NAME] = "xds"
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    return ChangeTracer(controller, streams, provider.get_tracer("xds"))
