"""Cost of a sidecar with a valid token that sends access logs as fast as it can, also for other sidecars."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any

import grpc.aio

from tests.hostile.harness import MESH, MIB, Target
from tests.support.waiting import eventually
from xds.codec import message_class
from xds.mesh.controlplane.traffic_reports import LOG_SERVICE, MAX_STREAMS
from xds.mesh.observe.report_reader import ACCESS_LOGS
from xds.server.report_streams import CLIENT_BURST, CLIENT_SHARE, MAX_REPORT_BYTES

LOGS = f"/{LOG_SERVICE}/StreamAccessLogs"
INVADED = f"""{MESH}---
apiVersion: v1
kind: Pod
metadata: {{name: evil-1, namespace: shop, labels: {{app: evil, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: evil}}
status: {{podIP: 127.9.1.1}}
"""
NODE = "sidecar~127.9.1.1~evil-1.shop~shop.svc.cluster.local"
HONEST = 15.0
"""Maximum seconds of an honest request on a busy machine during an attack."""
READING = 0.05
"""Share of a core that gRPC uses to read reports that the server drops."""


def first() -> bytes:
    message: Any = message_class(ACCESS_LOGS)()
    message.identifier.node.id = NODE
    return bytes(message.SerializeToString())


def logs(size: int) -> bytes:
    """Return a report with as many distinct clients as fit into a size."""
    message: Any = message_class(ACCESS_LOGS)()
    for number in range(size // 40):
        common = message.tcp_logs.log_entry.add().common_properties
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        common.downstream_direct_remote_address.socket_address.address = address
        common.downstream_local_address.socket_address.port_value = 1 + number % 65_535
    data = bytes(message.SerializeToString())
    assert size / 2 < len(data) <= size
    return data


async def flood(channel: grpc.aio.Channel, report: bytes) -> None:
    """Send reports on one stream until it ends."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        call = channel.stream_stream(LOGS)()
        await call.write(first())
        while True:
            await call.write(report)


async def dropped(target: Target) -> int:
    found = re.search(r'xds_observed_dropped_total\{reason="CPU budget"\} (\S+)', await target.metrics())
    return int(float(found[1])) if found else 0


async def test_flood_of_access_logs_costs_no_more_than_the_budget(tmp_path) -> None:
    loop = asyncio.get_running_loop()
    async with Target(tmp_path, mesh=INVADED) as target:

        async def all_were_paused_twice() -> bool:
            return await dropped(target) >= 2 * MAX_STREAMS

        started_at = loop.time()
        async with target.watched() as calm:
            await eventually(lambda: calm.served >= 50, timeout=60)
        calm_share = calm.cpu / (loop.time() - started_at)

        report = logs(MAX_REPORT_BYTES)
        async with target.channel(target.token("shop/evil", "evil-1")) as channel:
            attacks = [asyncio.create_task(flood(channel, report)) for _ in range(MAX_STREAMS)]
            started_at = loop.time()
            async with target.watched() as cost:
                await eventually(all_were_paused_twice, timeout=120, every=1)
            seconds = loop.time() - started_at
            assert not any(attack.done() for attack in attacks), "the streams stay open"
            for attack in attacks:
                attack.cancel()
            await asyncio.gather(*attacks, return_exceptions=True)
    assert not cost.failures
    assert cost.slowest < HONEST
    assert cost.memory < 200 * MIB
    budget = CLIENT_BURST + (CLIENT_SHARE + READING) * seconds
    assert cost.cpu - calm_share * seconds < 2 * budget
