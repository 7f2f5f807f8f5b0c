"""Manifests of a hostile tenant: changes of others are still served, and the log stays readable."""

from __future__ import annotations

import time

import grpc
import grpc.aio
import pytest

from tests.hostile.harness import FETCH_CLUSTERS, MIB, NODE, Target
from tests.server.proxies import REQUEST
from tests.support.waiting import eventually

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 81, targetPort: 8080}}]}}
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: hostile, namespace: shop}
spec:
  host: web.shop.svc.cluster.local
"""
POOL = RULE + "  trafficPolicy:\n    connectionPool:\n"
HOSTILE = {
    "duration": POOL + f"      tcp: {{connectTimeout: '{'1' * 1_000_000}'}}\n",
    "accepted": POOL + "".join(f"      field{number}: 1\n" for number in range(100_000)),
    "refused": RULE + "".join(f"  field{number}: 1\n" for number in range(20_000)),
    "namespaces": RULE + "  exportTo: [" + ", ".join(f"n{number}" for number in range(20_000)) + "]\n",
    "text": RULE + "  exportTo: [&a " + "n" * 500_000 + ", *a" * 40_000 + "]\n",
    "aliases": "a: &a {" + '"": 1, ' * 20_000 + "}\nb: [" + "*a, " * 20_000 + "]\n",
    "nested": "{<<: " * 900 + "{}" + "}" * 900,
    "percent": "%\n" * 500_000,
    "tags": "".join(f"%TAG !a{number}! b\n" for number in range(100_000)) + "--- a\n",
    "documents": "---\nkind: Service\n" * 5_000,
    "copies": ("---" + SERVICE.format(name="copy")) * 1_000,
    "others": "---\n{apiVersion: batch/v1, kind: Job, metadata: {name: job}}\n" * 3_000,
}
NAMELESS = ("text", "aliases", "nested", "percent", "tags", "documents")
MAX_LOG_LINES = 600
"""A burst of 200 problems and 200 notices, and five of each per second for 20 seconds."""


async def _clusters(target: Target) -> bytes:
    request = REQUEST()
    request.node.id = NODE
    async with target.channel(target.token(pod="web-1")) as channel:
        try:
            fetched = await channel.unary_unary(FETCH_CLUSTERS)(request.SerializeToString(), timeout=30)
        except grpc.aio.AioRpcError as error:
            raise AssertionError(error.details()) from error
    assert isinstance(fetched, bytes)
    return fetched


async def _is_served(target: Target, name: str) -> None:
    """Write a Service, and wait until clients receive it."""
    (target.manifests / f"{name}.yaml").write_text(SERVICE.format(name=name))

    async def served() -> bool:
        return f"outbound|81||{name}.shop".encode() in await _clusters(target)

    await eventually(served, timeout=90, what=f"Service {name} is served\n{target.tail(3)}")


@pytest.mark.timeout(360)
async def test_valid_objects_are_served_beside_hostile_manifests(tmp_path) -> None:
    def max_log_lines() -> float:
        return max(MAX_LOG_LINES, MAX_LOG_LINES + 10 * (time.monotonic() - began - 20))

    began = time.monotonic()
    async with Target(tmp_path) as target:
        async with target.watched() as cost:
            for name, text in HOSTILE.items():
                (target.manifests / f"{name}.yaml").write_text(text)
            await _is_served(target, "first")
            await _is_served(target, "second")
        assert not cost.failures
        assert cost.slowest < 15
        assert cost.memory < 512 * MIB
        assert 20 < cost.log_lines < max_log_lines()
        assert cost.log_bytes < MIB / 2

        # The file is read again at start, which waits for files that hide the names of objects.
        for name in NAMELESS:
            (target.manifests / f"{name}.yaml").unlink()
        await target.stop()
        size, began = target.log.stat().st_size, time.monotonic()
        await target.start()
        await _is_served(target, "third")
        log = target.log.read_bytes()[size:]
        assert log.count(b"\n") < max_log_lines()
        assert len(log) < MIB / 2
        assert b"Traceback" not in target.log.read_bytes()
