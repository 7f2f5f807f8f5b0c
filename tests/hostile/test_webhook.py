"""The webhook under attack: unauthenticated clients delay no admission, and cost little."""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.hostile.attackers import HONEST, Connection, connected, get, many, post, review, until_limited
from tests.hostile.harness import MIB, _cpu, _descriptors, _memory
from tests.hostile.webhook_process import NAME

VERSION = "admission.k8s.io/v1"
DELAY = 15.0
"""Maximum seconds of an admission, and of the event loop's lag, on a busy machine during an attack."""
POD = {"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "web", "image": "web"}]}}


class Webhook:
    """A webhook in its own process."""

    def __init__(self, process: asyncio.subprocess.Process, message: dict[str, Any], log: Path) -> None:
        self.pid = process.pid
        self.address = ("127.0.0.1", int(message["port"]))
        self.admin = ("127.0.0.1", int(message["admin"]))
        self.log = log
        self.lag = 0.0
        """Maximum lag of its event loop, in seconds."""
        self._process = process
        self._tls = ssl.create_default_context(cadata=message["ca"])

    def connected(self, source: str) -> AbstractAsyncContextManager[Connection]:
        """Connect over TLS."""
        return connected(self.address, source, self._tls, NAME)

    async def admit(self, pod: object = POD) -> float:
        """Admit a pod like the API server. Return the duration in seconds."""
        began = time.monotonic()
        async with self.connected(HONEST) as connection:
            status, answer = await connection.ask(post("/inject", review(pod)))
        assert status == 200, answer
        assert json.loads(answer)["response"]["allowed"]
        return time.monotonic() - began

    @property
    def log_lines(self) -> int:
        return self.log.read_bytes().count(b"\n")

    @property
    def cpu(self) -> float:
        return _cpu(self.pid)

    async def follow(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            self.lag = max(self.lag, json.loads(line)["lag"])


@asynccontextmanager
async def serving(directory: Path, divisor: int = 1) -> AsyncIterator[Webhook]:
    log = directory / "webhook.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.hostile.webhook_process", str(divisor)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdin
    assert process.stdout
    try:
        async with asyncio.timeout(60):
            message = json.loads(await process.stdout.readline())
        webhook = Webhook(process, message, log)
        following = asyncio.create_task(webhook.follow())
        await webhook.admit()
        yield webhook
        following.cancel()
        assert process.returncode is None
    finally:
        process.kill()
        await process.wait()


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def webhook(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Webhook]:
    """One process for all tests, whose attackers have different addresses."""
    async with serving(tmp_path_factory.mktemp("hostile-webhook")) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Webhook]:
    """A webhook with a fiftieth of the usual CPU share per address, for slow machines."""
    async with serving(tmp_path_factory.mktemp("hostile-limited"), 50) as found:
        yield found


def unknown_annotations(size: int) -> bytes:
    """Return the review of a pod with annotations that resemble known ones."""
    name = "traffic.sidecar.istio.io/includeOutboundIPRange{:05}"
    return review(POD | {"metadata": {"annotations": {name.format(n): "" for n in range(size // 60)}}})


async def test_unknown_annotations_delay_no_admission(webhook: Webhook) -> None:
    """Regression: 64 KiB took 0.5 s on the event loop, and six clients delayed an admission by 2 s."""
    body, asked = unknown_annotations(64 << 10), Counter[int]()

    async def attack() -> None:
        async with webhook.connected("127.0.0.91") as connection:
            for _ in range(4):
                status, _ = await connection.ask(post("/inject", body))
                asked[status] += 1

    began = webhook.cpu
    attacking = asyncio.gather(*(attack() for _ in range(6)))
    admissions = [await webhook.admit() for _ in range(10)]
    await attacking
    assert asked.keys() <= {200, 429}
    assert webhook.cpu - began < 24 * 0.1
    assert max(admissions) < DELAY
    assert webhook.lag < DELAY


DENSE = {
    "annotations": unknown_annotations(3 * MIB),
    "lists": b'{"kind":[' + b"[]," * 1_000_000 + b"1]}",
    "objects": b'{"kind":[' + b"{}," * 1_000_000 + b"1]}",
    "integers": b'{"kind":[' + (b"9" * 4299 + b",") * 725 + b"1]}",
    "containers": review({"spec": {"containers": [{"name": "a"}] * 7000}}),
    "problems": review({"spec": {"containers": [1] * 25_000}}),
    "labels": review(POD | {"metadata": {"labels": {f"{n}": 1 for n in range(14_000)}}}),
    "networks": review(
        POD
        | {
            "metadata": {
                "annotations": {"traffic.sidecar.istio.io/excludeOutboundIPRanges": "1.1.1.1," * 25_000}
            }
        }
    ),
    "level": review(POD | {"metadata": {"annotations": {"sidecar.istio.io/logLevel": "warn" * 700_000}}}),
    "name": review({"metadata": {"name": "\n" * 1_000_000}, "spec": {"containers": [1] * 100}}),
    "environment": review(
        {"spec": {"containers": [{"name": "a", "env": [{"name": f"{n}", "value": ""} for n in range(5000)]}]}}
    ),
    "string": review(
        {"metadata": {"name": "x", "annotations": {"a": "b" * 2 * MIB}}} | {"spec": POD["spec"]}
    ),
}


async def test_dense_bodies_cost_little(webhook: Webhook) -> None:
    """Regression: 8 MiB of annotations took 66 s, and other bodies of 3 MiB up to a second."""
    async with asyncio.timeout(100):
        for shape, body in DENSE.items():
            began = webhook.cpu
            for number in range(3):
                async with webhook.connected(f"127.0.{number}.66") as connection:
                    await connection.ask(post("/inject", body))
            assert (webhook.cpu - began) / 3 < 0.15, shape
    await webhook.admit()


async def test_body_above_the_limit_is_refused_unread(webhook: Webhook) -> None:
    head = f"POST /inject HTTP/1.1\r\nHost: x\r\nContent-Length: {8 * MIB}\r\n\r\n".encode()
    async with webhook.connected("127.0.0.92") as connection, asyncio.timeout(30):
        status, text = await connection.ask(head)
        assert (status, str(3 * MIB) in text.decode()) == (413, True)
    endless = b"POST /inject HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    async with webhook.connected("127.0.0.92") as connection, asyncio.timeout(30):
        status, text = await connection.ask(endless)
        assert (status, b"Content-Length" in text) == (411, True)


async def test_slow_bodies_delay_no_large_pod(webhook: Webhook) -> None:
    """Regression: eight connections with half a body delayed every pod above 64 KiB until status 503."""
    head = f"POST /inject HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB}\r\n\r\n{{".encode()
    large = POD | {"metadata": {"annotations": {"a": "b" * (128 << 10)}}}
    async with AsyncExitStack() as stack:
        for _ in range(40):
            connection = await stack.enter_async_context(webhook.connected("127.0.0.93"))
            connection.writer.write(head)
        admissions = [await webhook.admit(large) for _ in range(5)]
    assert max(admissions) < DELAY


async def test_idle_connections_delay_no_admission(webhook: Webhook) -> None:
    """Regression: 1,000 silent connections used 1,000 descriptors, and no client could connect."""
    resource.prlimit(webhook.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    before, memory, lines = _descriptors(webhook.pid), _memory(webhook.pid), webhook.log_lines
    async with many(webhook.address, [f"127.0.0.{n}" for n in range(60, 72)], 100) as idle:
        for connection in idle:
            connection.writer.write(b"\x16")
        async with asyncio.timeout(60):
            for _ in range(5):
                await webhook.admit()
        assert _descriptors(webhook.pid) - before < 300
        assert _memory(webhook.pid) - memory < 128 * MIB
        assert webhook.log_lines - lines < 20


async def test_handshakes_of_an_address_are_limited(limited: Webhook) -> None:
    """Regression: handshakes were unlimited, and each took up to 2 ms of the event loop."""

    async def handshake() -> int:
        async with limited.connected("127.0.0.95"):
            return 200

    answers = await until_limited(handshake)
    assert answers[0], "connections beyond the limit are closed"
    await limited.admit()


async def test_reviews_of_an_address_are_limited(limited: Webhook) -> None:
    """Regression: one address could use the whole CPU with bodies of 3 MiB."""

    async def ask() -> int:
        async with limited.connected("127.0.0.96") as connection:
            return (await connection.ask(post("/inject", DENSE["level"])))[0]

    answers = await until_limited(ask)
    assert answers[0] + answers[429]
    await limited.admit()


async def test_scrapes_of_an_address_are_limited(limited: Webhook) -> None:
    """Regression: scrapes were unlimited, on the event loop that serves xDS."""

    async def scrape() -> int:
        async with connected(limited.admin, "127.0.0.97") as connection:
            return (await connection.ask(get("/metrics")))[0]

    answers = await until_limited(scrape)
    assert answers[0] + answers[429]
    async with connected(limited.admin, HONEST) as connection:
        assert (await connection.ask(get("/metrics")))[0] == 200


async def test_refused_pods_are_logged_in_part(webhook: Webhook) -> None:
    """Regression: each refused pod was logged."""
    before = webhook.log_lines
    refused, statuses = review({"spec": {"containers": [1]}}), Counter[int]()

    async def attack(source: str) -> None:
        async with webhook.connected(source) as connection:
            for _ in range(200):
                statuses[(await connection.ask(post("/inject", refused)))[0]] += 1

    await asyncio.gather(*(attack(f"127.0.0.{n}") for n in range(60, 65)))
    lines = webhook.log_lines - before
    assert statuses[200] >= 500
    assert lines < 300


# --- policies -----------------------------------------------------------------------------------------------


def policy_review(document: Any) -> bytes:
    request = {"uid": "1", "operation": "CREATE", "object": document}
    return json.dumps({"apiVersion": VERSION, "kind": "AdmissionReview", "request": request}).encode()


def rule(spec: Any, **metadata: Any) -> bytes:
    meta = {"name": "x", "namespace": "ns1", **metadata}
    version = "networking.istio.io/v1"
    return policy_review({"apiVersion": version, "kind": "DestinationRule", "metadata": meta, "spec": spec})


def strict(namespace: str, name: str = "default") -> bytes:
    return policy_review(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"mtls": {"mode": "STRICT"}},
        }
    )


DENSE_POLICIES = {
    "lists": b'{"kind":[' + b"[]," * 1_000_000 + b"1]}",
    "subsets": rule(
        {"host": "s1", "subsets": [{"name": f"v{n}", "labels": {"a": "b"}} for n in range(4000)]}
    ),
    "ports": rule({"host": "s1", "trafficPolicy": {"portLevelSettings": [{}] * 10_000}}),
    "unknown": rule({f"hos{n}": 1 for n in range(14_000)}),
    "host": rule({"host": "x" * 2 * MIB}),
    "labels": rule({"host": "s1"}, labels={f"{n}": 1 for n in range(14_000)}),
    "name": rule({"host": "s1"}, name="\n" * 1_000_000),
    "deep": rule({"host": "s1"}).replace(b'"s1"', b"[" * 900 + b"]" * 900),
}


async def test_dense_policies_cost_little(webhook: Webhook) -> None:
    async with asyncio.timeout(100):
        for shape, body in DENSE_POLICIES.items():
            began = webhook.cpu
            for number in range(3):
                async with webhook.connected(f"127.0.{number}.67") as connection:
                    status, _ = await connection.ask(post("/validate", body))
                    assert status in {200, 400}, shape
            assert (webhook.cpu - began) / 3 < 0.5, shape
    await webhook.admit()


async def test_flood_of_policies_uses_a_part_of_the_cpu(webhook: Webhook) -> None:
    """A policy for the whole mesh costs about a CPU second. Other reviews and pods must not wait for it."""
    answers = Counter[str]()

    async def attack(source: str) -> None:
        async with webhook.connected(source) as connection:
            for number in range(6):
                body = strict("istio-system", f"{source}-{number}")
                status, text = await connection.ask(post("/validate", body))
                if status == 503:  # It waited too long for the requests of the others.
                    answers["unchecked"] += 1
                    continue
                assert status == 200
                response = json.loads(text)["response"]
                assert response["allowed"]
                unchecked = "not checked" in str(response.get("warnings"))
                answers["unchecked" if unchecked else "checked"] += 1

    began, started, lines = webhook.cpu, time.monotonic(), webhook.log_lines
    attacking = asyncio.gather(*(attack(f"127.0.0.{number}") for number in range(110, 120)))
    admissions = [await webhook.admit() for _ in range(10)]
    await attacking
    # The burst of 5 s, a tenth of the time, and what 70 requests and connections cost.
    assert webhook.cpu - began < 5 + 0.1 * (time.monotonic() - started) + 70 * 0.05
    assert max(admissions) < DELAY
    assert webhook.lag < DELAY
    assert answers["unchecked"] > 10
    assert webhook.log_lines - lines < 20
