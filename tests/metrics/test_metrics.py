"""The metrics at /metrics: their format, their values and their documentation."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from datetime import UTC, datetime

import aiohttp
import grpc
import grpc.aio
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from docs import hooks
from tests.metrics.plane import NAME, NODE, SERVICE, WITHIN, Plane, pod
from tests.server.proxies import Client
from xds.mesh.controlplane.admin import AdminServer
from xds.mesh.controlplane.metrics.admission import AdmissionMetrics
from xds.mesh.controlplane.metrics.traffic import TrafficMetrics
from xds.mesh.controlplane.traffic_reports import TrafficReports
from xds.mesh.model.objects import (
    Change,
    DestinationRule,
    Meta,
    Mode,
    ModePolicy,
    Problem,
    Ref,
    Service,
)
from xds.mesh.model.traffic import ClientTls, TlsMode, TrafficPolicy
from xds.mesh.observe.edges import TrafficMode
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, SECRET

CDS, EDS = {"type": "cds"}, {"type": "eds"}


LOCK = ModePolicy(meta=Meta(ref=Ref("PeerAuthentication", "shop", "default")), mode=Mode.STRICT)


async def test_absent_sidecars_are_counted(plane: Plane, channel: grpc.aio.Channel):
    assert (plane.get("xds_sidecars"), plane.get("xds_sidecars_not_connected")) == (1, 1)
    client = Client(channel, Variant.DELTA, node=NODE)
    await client.ask(CLUSTER)
    await client.get()
    assert (plane.get("xds_sidecars"), plane.get("xds_sidecars_not_connected")) == (1, 0)
    client.call.cancel()
    await plane.until("xds_sidecars_not_connected", 1)


async def test_open_streams_are_counted(plane: Plane, channel: grpc.aio.Channel):
    assert plane.get("xds_proxies") == 0
    first, second = (Client(channel, Variant.DELTA, node=NODE) for _ in range(2))
    for client in (first, second):
        await client.ask(CLUSTER)
        await client.get()
    lost = Client(channel, Variant.SOTW, node=NODE.replace("web", "lost"))
    await lost.ask(CLUSTER)
    await plane.until("xds_streams", 1, variant="sotw", type="ads")
    assert plane.get("xds_streams", variant="delta", type="ads") == 2
    assert plane.get("xds_streams_opened_total", variant="delta") == 2
    assert (plane.get("xds_proxies"), plane.get("xds_proxies_waiting")) == (2, 1)
    lost.call.cancel()
    await plane.until("xds_streams", 0, variant="sotw", type="ads")
    assert (plane.get("xds_proxies"), plane.get("xds_proxies_waiting")) == (1, 0)
    assert plane.get("xds_streams_opened_total", variant="sotw") == 1


async def test_pushes_and_acks_are_counted_by_type(plane: Plane, channel: grpc.aio.Channel):
    client = Client(channel, Variant.DELTA, node=NODE)
    await client.ask(CLUSTER)
    response = await client.get()
    assert plane.get("xds_pushes_total", **CDS) == 1
    assert plane.get("xds_push_bytes_total", **CDS) == response.ByteSize()
    assert plane.get("xds_resources_sent_total", **CDS) == len(response.resources)
    assert plane.get("xds_subscriptions_total", **CDS) == 1
    await client.ask(CLUSTER, nonce=response.nonce)
    await plane.until("xds_acks_total", 1, **CDS)
    assert plane.get("xds_push_to_ack_seconds_count", **CDS) == 1
    await client.ask(ENDPOINT, NAME)
    response = await client.get()
    await client.ask(ENDPOINT, nonce=response.nonce, error="no")
    await plane.until("xds_nacks_total", 1, **EDS)
    assert plane.get("xds_acks_total", **EDS) == 0
    assert plane.get("xds_push_to_ack_seconds_count", **EDS) == 0


async def test_removals_are_counted(plane: Plane, channel: grpc.aio.Channel):
    client = Client(channel, Variant.DELTA, node=NODE)
    await client.ask(CLUSTER)
    await client.ask(CLUSTER, nonce=(await client.get()).nonce)
    assert plane.get("xds_resources_removed_total", **CDS) == 0
    plane.controller.change(Change(removed=(SERVICE.ref,)))
    response = await client.get()
    assert NAME in response.removed_resources
    assert plane.get("xds_resources_removed_total", **CDS) == len(response.removed_resources)


async def test_shared_encoding_is_counted_once(plane: Plane, channel: grpc.aio.Channel):
    clients = [Client(channel, Variant.DELTA, node=NODE) for _ in range(2)]
    for client in clients:
        await client.ask(ENDPOINT, NAME)
        await client.ask(ENDPOINT, nonce=(await client.get()).nonce)
    message = ENDPOINT.rpartition("/")[2]
    before = plane.get("xds_encodings_total", message=message)
    plane.controller.change(Change(applied=(pod("web-2", "127.9.0.2"),)))
    for client in clients:
        assert [each.name for each in (await client.get()).resources] == [NAME]
    assert plane.get("xds_encodings_total", message=message) == before + 1


async def test_unknown_types_get_no_label(plane: Plane, channel: grpc.aio.Channel):
    client = Client(channel, Variant.DELTA, node=NODE)
    for made_up in ("type.googleapis.com/made.Up", "nonsense\n"):
        await client.ask(made_up, "x")
    await plane.until("xds_subscriptions_total", 2, type="other")
    assert not [
        labels for _, labels in plane.samples() if "made.Up" in str(labels) or "nonsense" in str(labels)
    ]


async def test_change_is_measured_until_its_ack(plane: Plane, channel: grpc.aio.Channel):
    client = Client(channel, Variant.DELTA, node=NODE)
    for type_url, names in ((CLUSTER, ()), (ENDPOINT, (NAME,))):
        await client.ask(type_url, *names)
        response = await client.get()
        await client.ask(type_url, nonce=response.nonce)
    await plane.until("xds_acks_total", 1, **EDS)
    # The initial responses are not changes.
    assert plane.get("xds_change_to_ack_seconds_count", **CDS) == 0
    assert plane.get("xds_change_to_ack_seconds_count", **EDS) == 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    plane.controller.change(Change(applied=(pod("web-2", "127.9.0.2"),)))
    reported = loop.time()
    response = await client.get()
    assert [each.name for each in response.resources] == [NAME]
    answered = loop.time()
    await client.ask(ENDPOINT, nonce=response.nonce)
    await plane.until("xds_change_to_ack_seconds_count", 1, **EDS)
    seconds = plane.get("xds_change_to_ack_seconds_sum", **EDS)
    assert answered - reported <= seconds <= loop.time() - began
    # Nothing else has changed for this proxy.
    assert plane.get("xds_change_to_ack_seconds_count", **CDS) == 0
    assert plane.get("xds_changes_total") == 2
    assert plane.get("xds_change_batches_total") == 2


async def test_rejected_or_unsubscribed_change_is_not_measured(plane: Plane, channel: grpc.aio.Channel):
    client = Client(channel, Variant.DELTA, node=NODE)
    await client.ask(ENDPOINT, NAME)
    response = await client.get()
    await client.ask(ENDPOINT, nonce=response.nonce)
    plane.controller.change(Change(applied=(pod("web-2", "127.9.0.2"),)))
    response = await client.get()
    await client.ask(ENDPOINT, nonce=response.nonce, error="no")
    await plane.until("xds_nacks_total", 1, **EDS)
    # A new cluster does not count for a proxy without a subscription, and not when it subscribes later.
    other = Service(meta=Meta(ref=Ref("Service", "shop", "db")), addresses=("10.1.0.2",), ports=SERVICE.ports)
    plane.controller.change(Change(applied=(other,)))
    await plane.until("xds_change_batches_total", 3)
    await plane.until("xds_translations_total", 3, result="completed")
    await client.ask(CLUSTER)
    response = await client.get()
    await client.ask(CLUSTER, nonce=response.nonce)
    await plane.until("xds_acks_total", 1, **CDS)
    assert plane.get("xds_change_to_ack_seconds_count", **CDS) == 0
    assert plane.get("xds_change_to_ack_seconds_count", **EDS) == 0


async def test_failed_calls_are_counted_by_status(plane: Plane, channel: grpc.aio.Channel):
    for name in ("no-sidecar", "neither"):
        client = Client(channel, Variant.SOTW, node=name)
        await client.ask(LISTENER)
        assert (await client.end())[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert plane.get("xds_calls_failed_total", code="INVALID_ARGUMENT") == 2
    assert plane.get("xds_streams_opened_total", variant="sotw") == 0


async def test_certificates_problems_and_process_are_exposed(plane: Plane, channel: grpc.aio.Channel):
    assert plane.get("xds_certificates") == 0
    assert ("xds_certificate_expiry_timestamp_seconds", ()) not in plane.samples()
    client = Client(channel, Variant.DELTA, node=NODE)
    await client.ask(SECRET, "default", "ROOTCA")
    await client.get()
    now = datetime.now(UTC).timestamp()
    assert (plane.get("xds_certificates"), plane.get("xds_certificates_issued_total")) == (1, 1)
    assert now < plane.get("xds_certificate_expiry_timestamp_seconds") <= now + 86400
    assert plane.get("xds_root_certificate_expiry_timestamp_seconds") > now + 9 * 365 * 86400
    for where, notice in (("a:1", False), ("a:2", False), ("a:3", True)):
        plane.problems.append(Problem(where=where, what="x", notice=notice))
    assert plane.get("xds_problems", severity="problem") == 2
    assert plane.get("xds_problems", severity="notice") == 1
    assert plane.get("process_resident_memory_bytes") > 1e6
    assert [labels for name, labels in plane.samples() if name == "xds_build_info"]


async def test_transitions_are_counted(plane: Plane, channel: grpc.aio.Channel):
    def rollout_metrics() -> dict[str, float]:
        return {
            name.removeprefix("xds_rollout_") + "".join(f" {value}" for _, value in labels): number
            for (name, labels), number in plane.samples().items()
            if name.startswith("xds_rollout_") and "seconds" not in name and number
        }

    assert rollout_metrics() == {}
    server = Client(channel, Variant.DELTA, node=NODE)
    for type_url, names in (
        (CLUSTER, ()),
        (ENDPOINT, (NAME,)),
        (SECRET, ("default", "ROOTCA")),
        (LISTENER, ()),
        (EXTENSION_CONFIG, ("authorization-deny", "authorization-allow")),
    ):
        await server.ask(type_url, *names)
        await server.ask(type_url, nonce=(await server.get()).nonce)
    # All clients use mutual TLS already, so the server contracts at once.
    plane.controller.change(Change(applied=(LOCK,)))
    response = await server.get()
    await plane.until("xds_rollout_plaintext_endpoints", 1)
    assert rollout_metrics() == {
        "endpoints listener": 1,
        "plaintext_endpoints": 1,
        "plaintext_disabled_total": 1,
    }
    await server.ask(LISTENER, nonce=response.nonce, error="not to my taste")
    await plane.until("xds_rollout_rejections", 1)
    assert plane.get("xds_rollout_duration_seconds_count") == 0
    # The policy is removed: the server never stopped accepting plaintext.
    plane.controller.change(Change(removed=(LOCK.ref,)))
    response = await server.get()
    await server.ask(LISTENER, nonce=response.nonce)
    await plane.until("xds_rollout_plaintext_endpoints", 0)
    await plane.until("xds_rollout_duration_seconds_count", 1)
    assert 0 < plane.get("xds_rollout_duration_seconds_sum") < WITHIN
    assert rollout_metrics() == {"plaintext_disabled_total": 1}


async def test_skipped_proxies_are_counted(plane: Plane, channel: grpc.aio.Channel):
    plane.controller.change(Change(applied=(replace(LOCK, mode=Mode.DISABLE),)))
    await plane.until("xds_rollout_duration_seconds_count", 1)  # No proxy is connected.
    server = Client(channel, Variant.DELTA, node=NODE)
    await server.ask(LISTENER)
    await server.ask(LISTENER, nonce=(await server.get()).nonce)
    rule = DestinationRule(
        meta=Meta(ref=Ref("DestinationRule", "shop", "rule")),
        host="web.shop.svc.cluster.local",
        policy=TrafficPolicy(tls=ClientTls(mode=TlsMode.ISTIO_MUTUAL)),
    )
    plane.controller.change(Change(applied=(LOCK, rule)))
    await plane.until("xds_rollout_rules_held", 1)
    assert plane.get("xds_rollout_skipped_total") == 0
    plane.controller.rollouts.rollout.timeout = 0.1
    await plane.until("xds_rollout_skipped_endpoints", 1)
    assert plane.get("xds_rollout_skipped_total") >= 1
    await plane.until("xds_rollout_rules_held", 0)


async def test_event_loop_lag_is_measured(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("xds.mesh.controlplane.metrics.controlplane.LAG_INTERVAL", 0.01)
    watching = asyncio.create_task(plane.metrics.measure_loop_lag())
    await plane.until("xds_event_loop_lag_seconds_count", 1)
    before = plane.get("xds_event_loop_lag_seconds_sum")
    count = plane.get("xds_event_loop_lag_seconds_count")
    time.sleep(0.3)
    async with asyncio.timeout(WITHIN):
        while plane.get("xds_event_loop_lag_seconds_count") == count:
            await asyncio.sleep(0.01)
    assert plane.get("xds_event_loop_lag_seconds_sum") > before + 0.25
    watching.cancel()


async def test_admin_port_serves_both_metric_formats(plane: Plane):
    admin = AdminServer(lambda: None, "127.0.0.1", 0, metrics=plane.metrics.render)
    await admin.start()
    try:
        url = f"http://127.0.0.1:{admin.port}/metrics"
        async with aiohttp.ClientSession() as session:
            async with session.get(url) as response:
                assert response.headers["Content-Type"].startswith("text/plain; version=")
                families = list(text_string_to_metric_families(await response.text()))
            accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
            async with session.get(url, headers=accept) as response:
                assert response.headers["Content-Type"].startswith("application/openmetrics-text")
                assert list(openmetrics(await response.text()))
        assert {family.name for family in families} >= {"xds_pushes", "xds_proxies", "process_cpu_seconds"}
    finally:
        await admin.stop()


async def test_metric_names_follow_prometheus_conventions(plane: Plane):
    """The rules of `promtool check metrics`."""
    body, _ = plane.metrics.render()
    for family in text_string_to_metric_families(body.decode()):
        if not family.name.startswith("xds_"):
            continue
        assert family.documentation.endswith("."), family.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert not family.name.endswith(("_count", "_sum", "_bucket"))
        assert not re.search(r"_(milliseconds|ms|minutes|kilobytes)\b", family.name)
        for sample in family.samples:
            assert not sample.name.endswith("_created")
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            assert "le" not in sample.labels or family.type == "histogram"


async def test_reference_lists_every_metric(plane: Plane, channel: grpc.aio.Channel):
    client = Client(channel, Variant.DELTA, node=NODE)
    await client.ask(CLUSTER)
    await client.get()
    await Client(channel, Variant.SOTW, node="none").ask(LISTENER)
    await plane.until("xds_calls_failed_total", 1, code="INVALID_ARGUMENT")
    plane.metrics.register(AdmissionMetrics({}, {}))
    reports = TrafficReports(plane.controller)
    reports.traffic.totals["shop", TrafficMode.PLAINTEXT] = 1
    reports.denials.totals["shop", "true"] = 1
    plane.metrics.register(TrafficMetrics(reports))
    body, _ = plane.metrics.render()
    told = {}
    for family in text_string_to_metric_families(body.decode()):
        if family.name.startswith("xds_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = dict.fromkeys(label for sample in family.samples for label in sorted(sample.labels))
            labels.pop("le", None)
            told[name] = (family.type, ", ".join(sorted(labels)), family.documentation)
    listed = {
        metric.name: (metric.kind, ", ".join(metric.labels), metric.description) for metric in hooks.metrics()
    }
    assert listed == told
