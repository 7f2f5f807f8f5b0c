"""Streams of reports: who may report what, limits, and what the server does with garbage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from tests.server.doors import (
    CA,
    CLIENT_LOST_STATUS,
    DENIED,
    FOREIGN,
    NODE,
    SLEEP,
    UNPROVEN,
    Site,
    issued,
    opened,
    sleep,
)
from tests.support.waiting import eventually
from xds.codec import message_class
from xds.mesh.controlplane.traffic_reports import LOAD_SERVICE, LOG_SERVICE, MAX_STREAMS
from xds.mesh.controlplane.traffic_service import SERVICE
from xds.mesh.model.objects import Change, MeshConfig, Meta, Ref
from xds.mesh.observe.report_reader import ACCESS_LOGS, LOAD_REPORT
from xds.mesh.v1 import traffic_pb2 as pb
from xds.server.report_streams import CLIENT_BURST, CLIENT_SHARE, MAX_REPORT_BYTES, AllReportsShare
from xds.server.scheduling import WARNING_COST, RequestPacer

LOAD, LOGS = f"/{LOAD_SERVICE}/StreamLoadStats", f"/{LOG_SERVICE}/StreamAccessLogs"
WITHIN = 20.0


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with opened() as site:
        yield site


def load(pod: str = "sleep-1", *, node: bool = True) -> bytes:
    message: Any = message_class(LOAD_REPORT)()
    if node:
        message.node.id = NODE.format(pod)
    return bytes(message.SerializeToString())


def logs(pod: str = "sleep-1", *, peer: str = "10.0.0.9", entries: int = 1) -> bytes:
    message: Any = message_class(ACCESS_LOGS)()
    message.identifier.node.id = NODE.format(pod)
    for _ in range(entries):
        common = message.tcp_logs.log_entry.add().common_properties
        common.downstream_direct_remote_address.socket_address.address = peer
        common.downstream_local_address.socket_address.port_value = 8080
        common.access_log_type = 6
    return bytes(message.SerializeToString())


async def status(channel: grpc.aio.Channel, method: str, first: bytes) -> grpc.StatusCode:
    """Send a report, half-close, and return the status of the stream."""
    while True:
        call = channel.stream_stream(method)(timeout=WITHIN)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(first)
            await call.done_writing()
            async for _ in call:  # The status comes after the response.
                pass
        code = await call.code()
        assert isinstance(code, grpc.StatusCode)
        if (code, await call.details()) != CLIENT_LOST_STATUS:
            return code


async def sent(channel: grpc.aio.Channel, method: str, *reports: bytes) -> grpc.aio.StreamStreamCall:
    call = channel.stream_stream(method)(timeout=WITHIN)
    for report in reports:
        await call.write(report)
    return call


def observed(site: Site) -> list[str]:
    return [f"{key.client.name} {key.target.name}" for key, _ in site.reports.traffic.edges()]


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("own", grpc.StatusCode.OK),
        ("unbound", grpc.StatusCode.OK),
        ("other-namespace", DENIED),
        ("other-account", DENIED),
        ("other-pod", DENIED),
        ("deleted-pod", DENIED),
        ("admin", DENIED),
        ("unknown", UNPROVEN),
        (None, UNPROVEN),
    ],
)
async def test_sidecar_reports_only_about_its_own_pod(site: Site, token, expected):
    async with site.token(token) as channel:
        assert await status(channel, LOAD, load()) is expected
        assert await status(channel, LOGS, logs()) is expected
    assert observed(site) == (["10.0.0.9 pod/sleep-1"] if expected is grpc.StatusCode.OK else [])


async def test_certificate_of_the_pod_is_accepted_and_another_is_not(site: Site):
    async with site.shows(issued(SLEEP)) as channel:
        assert await status(channel, LOGS, logs()) is grpc.StatusCode.OK
    async with site.shows(issued(SLEEP.replace("sleep", "httpbin"))) as channel:
        assert await status(channel, LOGS, logs()) is DENIED
    async with site.shows(issued(SLEEP, FOREIGN)) as channel:
        assert await status(channel, LOGS, logs()) is grpc.StatusCode.UNAVAILABLE
    assert CA is not FOREIGN


async def test_load_reports_are_requested(site: Site):
    async with site.token("own") as channel:
        call = await sent(channel, LOAD, load())
        response: Any = message_class("envoy.service.load_stats.v3.LoadStatsResponse").FromString(
            await call.read()
        )
        call.cancel()
    assert (response.send_all_clusters, response.load_reporting_interval.seconds) == (True, 10)


async def test_later_reports_need_no_node(site: Site):
    async with site.token("own") as channel:
        call = await sent(channel, LOAD, load(), load(node=False), load("httpbin-1"))
        await eventually(lambda: site.reports.received[LOAD_SERVICE] == 3)
        call.cancel()


@pytest.mark.parametrize("report", [b"\xff\xff", b"", load("")[:-3]], ids=["garbage", "no node", "cut off"])
async def test_first_report_without_a_node_is_refused(site: Site, report):
    async with site.token("own") as channel:
        for method in (LOAD, LOGS):
            assert await status(channel, method, report) is grpc.StatusCode.INVALID_ARGUMENT
    assert bool(site.reports.incomplete) == (report != b"")


async def test_garbage_is_counted_and_does_not_end_the_stream(site: Site):
    async with site.token("own") as channel:
        call = await sent(
            channel, LOGS, logs(), b"\xff\xff", logs(peer="nobody"), b"x" * (MAX_REPORT_BYTES + 1)
        )
        await call.write(logs(peer="10.0.0.8"))
        await eventually(lambda: len(observed(site)) == 2)
        call.cancel()
    assert site.reports.reader.ignored == 2
    assert site.reports.dropped["too large"] == 1
    # Only for ports of this namespace, something may be missing.
    assert site.reports.incomplete.keys() == {"full"}
    assert not site.reports.last_dropped


async def test_first_report_that_is_too_large_is_refused(site: Site):
    async with site.token("own") as channel:
        large = logs() + b"\x00" * MAX_REPORT_BYTES
        assert await status(channel, LOGS, large) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert site.reports.incomplete.keys() == {"full"}
    assert not site.reports.last_dropped


@dataclass
class Charges:
    """What the pacer charged, and whether a measured block is running."""

    seconds: list[float]
    measuring: bool = False


@pytest.fixture
def charges(monkeypatch: pytest.MonkeyPatch) -> Charges:
    charges, charge, measure = Charges([]), RequestPacer.charge, RequestPacer.measure

    def record(pacer: RequestPacer, client: Hashable, seconds: float) -> None:
        charges.seconds.append(seconds)
        charge(pacer, client, seconds)

    @contextmanager
    def watch(pacer: RequestPacer, client: Hashable, extra: float = 0.0) -> Iterator[None]:
        charges.measuring = True
        with measure(pacer, client, extra):
            yield
        charges.measuring = False

    monkeypatch.setattr(RequestPacer, "charge", record)
    monkeypatch.setattr(RequestPacer, "measure", watch)
    return charges


async def test_first_report_is_parsed_once_and_charged(site: Site, charges: Charges, monkeypatch):
    events, parse, read = [], site.reports.reader.parse, site.reports.reader.read_access_logs

    def watched(name, function):
        def call(*args, **how):
            events.append((name, charges.measuring))
            return function(*args, **how)

        return call

    monkeypatch.setattr(site.reports.reader, "parse", watched("parse", parse))
    monkeypatch.setattr(site.reports.reader, "read_access_logs", watched("read", read))
    async with site.token("own") as channel:
        assert await status(channel, LOGS, logs()) is grpc.StatusCode.OK
    assert events == [("parse", True), ("read", True)]


@pytest.mark.parametrize(
    "report", [logs("sleep-2"), logs() + b"\x00" * MAX_REPORT_BYTES], ids=["pod", "size"]
)
async def test_refused_first_report_is_charged(site: Site, charges: Charges, report):
    async with site.token("own") as channel:
        assert await status(channel, LOGS, report) is not grpc.StatusCode.OK
    assert WARNING_COST in charges.seconds


async def test_first_reports_count_for_the_limit_of_all(monkeypatch):
    monkeypatch.setattr("xds.server.discovery.ALL_REPORTS", (1, 0.001))
    async with opened() as site, site.token("own") as channel:
        assert await status(channel, LOGS, logs()) is grpc.StatusCode.OK
        assert await status(channel, LOGS, logs()) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert site.reports.received[LOG_SERVICE] == 1
    assert site.reports.dropped["overload"] == 1
    assert site.reports.incomplete.keys() == {"full"}


async def test_reports_beyond_the_cpu_budget_are_dropped(site: Site, monkeypatch):
    """The stream stays open, and other sidecars are not affected."""
    monkeypatch.setattr("xds.server.discovery.DROP_PAUSE", 0)
    site.controller.change(Change(applied=(replace(sleep(), meta=Meta(ref=Ref("Pod", "full", "sleep-2"))),)))
    await eventually(lambda: site.controller.mesh.pod("full", "sleep-2"))
    async with site.token("unbound") as channel:
        call, other = await sent(channel, LOGS, logs()), await sent(channel, LOGS, logs("sleep-2"))
        await eventually(lambda: site.reports.received[LOG_SERVICE] == 2)
        budget = site.server.discovery.report_budget
        budget.charge(("full", "sleep-1", False), CLIENT_BURST + 60 * CLIENT_SHARE)
        for stream in (call, other, call):
            await stream.write(logs())
        await eventually(lambda: site.reports.dropped["CPU budget"] == 2)
        await eventually(lambda: site.reports.received[LOG_SERVICE] == 3)
        call.cancel()
        other.cancel()


async def test_reports_beyond_the_cpu_budget_of_all_are_dropped(site: Site):
    async with site.token("own") as channel:
        call = await sent(channel, LOGS, logs())
        await eventually(lambda: site.reports.received[LOG_SERVICE] == 1)
        budget = site.server.discovery.report_budget
        budget.charge("another", AllReportsShare.BURST + 60 * AllReportsShare.SHARE)
        await call.write(logs())
        await eventually(lambda: site.reports.dropped["CPU budget"] == 1)
        call.cancel()


async def test_report_that_is_too_large_is_logged_once(site: Site, monkeypatch):
    monkeypatch.setattr("xds.server.discovery.DROP_PAUSE", 0)
    large = b"x" * (MAX_REPORT_BYTES + 1)
    with capture_logs() as lines:
        async with site.token("own") as channel:
            calls = [await sent(channel, LOAD, load(), large, large) for _ in range(2)]
            await eventually(lambda: site.reports.dropped["too large"] == 4)
            for call in calls:
                call.cancel()
    [line] = [line for line in lines if line["event"] == "report too large, dropped"]
    assert (line["pod"], line["service"], line["limit"]) == ("full/sleep-1", LOAD_SERVICE, MAX_REPORT_BYTES)


async def test_number_of_streams_of_a_sidecar_is_limited(site: Site):
    async with site.token("own") as channel:
        calls = [await sent(channel, LOGS, logs()) for _ in range(MAX_STREAMS)]
        await eventually(lambda: site.reports.received[LOG_SERVICE] == MAX_STREAMS)
        assert await status(channel, LOGS, logs()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert site.reports.dropped["too many streams"] == 1
        calls.pop().cancel()

        async def is_accepted() -> bool:
            return await status(channel, LOGS, logs()) is grpc.StatusCode.OK

        await eventually(is_accepted)
        for call in calls:
            call.cancel()


async def test_fast_reporter_is_slowed_down(site: Site):
    """The server reads no faster than its limit, so gRPC's flow control stops the client."""
    async with site.token("own") as channel:
        call = channel.stream_stream(LOGS)()
        await call.write(logs())
        report = logs(entries=500)

        async def flood() -> None:
            while True:
                await call.write(report)

        flooding = asyncio.create_task(flood())
        started_at = time.monotonic()
        await eventually(lambda: site.reports.received[LOG_SERVICE] >= 40, timeout=100)
        seconds = time.monotonic() - started_at
        assert site.reports.received[LOG_SERVICE] <= 40 + 10 * seconds
        flooding.cancel()
        call.cancel()


async def test_stream_of_a_replaced_pod_ends_at_its_next_report(site: Site):
    async with site.token("own") as channel:
        call = await sent(channel, LOGS, logs())
        await eventually(lambda: observed(site))
        site.controller.change(Change(applied=(sleep(uid="2"),)))
        await eventually(lambda: site.controller.mesh.pod("full", "sleep-1").meta.uid == "2")
        await call.write(logs())
        assert await call.code() is DENIED


async def test_unknown_pod_is_counted(site: Site):
    async with site.plain() as channel:
        assert await status(channel, LOGS, logs("nobody")) is grpc.StatusCode.OK
    assert (observed(site), site.reports.dropped["unknown pod"]) == ([], 1)


async def test_nothing_is_observed_if_observation_is_disabled(site: Site):
    site.controller.change(Change(config=MeshConfig(observe=False)))
    await eventually(lambda: not site.reports.enabled)
    async with site.token("own") as channel:
        assert await status(channel, LOGS, logs()) is grpc.StatusCode.UNIMPLEMENTED
        # A load report stream stays open, because Envoy would reconnect every few seconds.
        call = await sent(channel, LOAD, load(), load(node=False))
        response = asyncio.ensure_future(call.read())
        done, _ = await asyncio.wait([response], timeout=0.5)
        assert not done
        call.cancel()
    assert site.reports.received.total() == 0


async def test_streams_end_when_the_server_stops(site: Site):
    async with site.token("own") as channel:
        call = await sent(channel, LOGS, logs())
        await eventually(lambda: observed(site))
        started_at = time.monotonic()
        await site.server.stop()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - started_at < WITHIN


def ask(channel: grpc.aio.Channel, name: str, request: pb.ListTrafficRequest) -> Any:
    make = channel.unary_unary if name == "List" else channel.unary_stream
    method = make(
        f"/{SERVICE}/{name}",
        request_serializer=pb.ListTrafficRequest.SerializeToString,
        response_deserializer=pb.ListTrafficResponse.FromString,
    )
    return method(request, timeout=WITHIN)


async def test_traffic_is_listed_for_admins_only(site: Site):
    async with site.token("own") as channel:
        call = await sent(channel, LOGS, logs(entries=3))
        await eventually(lambda: observed(site))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ask(channel, "List", pb.ListTrafficRequest())
        assert error.value.code() is DENIED
        call.cancel()
    async with site.token("admin") as channel:
        response = await ask(channel, "List", pb.ListTrafficRequest(namespace="full", plaintext_only=True))
        [edge] = response.edges
        assert (edge.client, edge.client_namespace, edge.service) == ("10.0.0.9", "", "pod/sleep-1")
        assert (edge.mode, edge.requests_per_minute, sum(edge.minutes)) == (pb.TrafficEdge.PLAINTEXT, 3, 3)
        assert response.enabled
        assert abs(response.time.ToSeconds() - time.time()) < WITHIN
        other = await ask(channel, "List", pb.ListTrafficRequest(namespace="legacy"))
        assert not other.edges


async def test_watch_sends_the_traffic_again_after_a_report(site: Site):
    async with site.token("admin") as admin, site.token("own") as channel:
        watch = ask(admin, "Watch", pb.ListTrafficRequest())
        assert not (await watch.read()).edges
        call = await sent(channel, LOGS, logs())
        assert [edge.client for edge in (await watch.read()).edges] == ["10.0.0.9"]
        call.cancel()
        watch.cancel()
