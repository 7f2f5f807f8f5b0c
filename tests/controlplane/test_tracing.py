"""Traces of changes: what they contain, and when they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from tests.controlplane.rollouts import Plane, running
from tests.policy.world import pod
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.controlplane import tracing
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.tracing import ChangeTracer
from xds.mesh.model.objects import Change, Ref
from xds.server.metrics import StreamMetrics
from xds.snapshot import ENDPOINT, LISTENER

WEB_3 = replace(pod("web-3", "shop", app="web"), service_account="web-1")
"""A further endpoint with a known identity, so that its cluster does not change."""
ONE = "sidecar~127.0.0.1~one.shop~shop.svc.cluster.local"


class Traced:
    """A control plane, and the traces of its changes."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.plane: Plane
        self.tracer: ChangeTracer

    def observe(self, controller: Controller) -> ChangeTracer:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        streams = StreamMetrics(CollectorRegistry())
        self.tracer = ChangeTracer(controller, streams, provider.get_tracer("test"))
        return self.tracer

    def changes(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == "change"]

    async def trace_of(self, name: str) -> tuple[ReadableSpan, dict[str, list[ReadableSpan]]]:
        """Return the root of the trace that names an object, once it has ended, and its children by name."""

        def found() -> list[ReadableSpan]:
            return [span for span in self.changes()[1:] if name in (span.attributes or {})["xds.objects"]]

        await eventually(lambda: bool(found()))
        [root] = found()
        children: dict[str, list[ReadableSpan]] = {}
        for span in self.exporter.get_finished_spans():
            if span.parent and span.parent.span_id == root.context.span_id:
                children.setdefault(span.name, []).append(span)
        return root, children


@asynccontextmanager
async def traced(mode: str) -> AsyncIterator[Traced]:
    made = Traced()
    async with running(mode, observer=made.observe) as made.plane, background(made.tracer.run()):
        # The trace of the first change.
        await eventually(lambda: len(made.changes()) == 1)
        yield made


async def test_a_trace_ends_with_the_last_ack():
    async with traced("STRICT") as world:
        world.plane.one.hold(ENDPOINT)
        await world.plane.applied(WEB_3)
        await world.plane.one.wait_for(lambda: world.plane.one.held(ENDPOINT))
        await asyncio.sleep(3 * tracing._INTERVAL)  # No trace ends while an ACK is missing.
        assert len(world.changes()) == 1
        await world.plane.one.answer(ENDPOINT)
        root, children = await world.trace_of("Pod shop/web-3")
        assert root.status.status_code is StatusCode.UNSET
        assert root.attributes["xds.object_count"] == 1
        assert root.attributes["xds.rejections"] == 0
        assert {name: len(spans) for name, spans in children.items()}.keys() == {"apply", "push", "ack"}
        [ack] = [span for span in children["ack"] if span.attributes["xds.proxy"] == ONE]
        assert ack.attributes["xds.type"] == "EDS"
        assert ack.end_time == root.end_time
        assert ack.end_time - ack.start_time > timedelta(seconds=2 * tracing._INTERVAL).total_seconds() * 1e9
        [apply], [push] = children["apply"], children["push"]
        assert root.start_time <= apply.start_time <= apply.end_time <= push.end_time <= root.end_time


async def test_a_rejection_is_an_error():
    async with traced("STRICT") as world:
        world.plane.one.hold(ENDPOINT)
        await world.plane.applied(WEB_3)
        await world.plane.one.answer(ENDPOINT, error="no such thing")
        root, children = await world.trace_of("Pod shop/web-3")
        assert root.status.status_code is StatusCode.ERROR
        assert root.attributes["xds.rejections"] == 1
        [ack] = [span for span in children["ack"] if span.attributes["xds.proxy"] == ONE]
        assert ack.status.status_code is StatusCode.ERROR
        assert ack.status.description == "no such thing"


async def test_a_trace_of_a_mode_change_ends_with_its_rollout():
    async with traced("DISABLE") as world:
        world.plane.set_mode("STRICT")
        await world.plane.first.answer(LISTENER)
        # The servers accept both modes now. The rollout waits for the clients.
        await world.plane.one.wait_for(lambda: world.plane.one.held(ENDPOINT))
        await asyncio.sleep(3 * tracing._INTERVAL)
        assert len(world.changes()) == 1
        assert world.plane.controller.rollouts.rollout.is_in_progress
        await world.plane.one.answer(ENDPOINT)
        root, _ = await world.trace_of("PeerAuthentication shop/default")
        assert root.status.status_code is StatusCode.UNSET
        assert not world.plane.controller.rollouts.rollout.is_in_progress


async def test_a_trace_ends_without_the_remaining_acks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "TIMEOUT", 0.2)
    async with traced("STRICT") as world:
        world.plane.one.hold(ENDPOINT)
        await world.plane.applied(WEB_3)
        root, _ = await world.trace_of("Pod shop/web-3")
        assert root.status.description == "not all proxies answered within 0.2 s"


async def test_traces_in_progress_are_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "MAX_OPEN", 1)
    async with traced("STRICT") as world:
        world.plane.one.hold(ENDPOINT)
        await world.plane.applied(WEB_3)
        await world.plane.applied(pod("lonely", "shop"))
        await world.plane.one.answer(ENDPOINT)
        await world.trace_of("Pod shop/web-3")
        world.plane.controller.change(Change(removed=(Ref("Pod", "shop", "lonely"),)))
        await world.trace_of("Pod shop/lonely")
        assert len(world.changes()) == 3  # The first change, web-3, and the removal of the other pod.


def test_old_traces_are_checked_less_often():
    intervals = [tracing._interval(age) for age in (0, 1, 5, 60, 300)]
    assert intervals == [0.05, 0.05, 0.25, 1.0, 1.0]
