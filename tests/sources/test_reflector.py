"""A reflector with a faulty server and network: no known object is lost, no change is reported twice."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.sources.fake_apiserver import FakeApiServer, line
from tests.sources.faults import events, silence, slow, status
from tests.sources.following import QUICK, Following
from xds.mesh.kube.api import KubeApi
from xds.mesh.kube.ndjson import MAX_LINE_LENGTH
from xds.mesh.kube.reflector import FailureCause
from xds.mesh.kube.resource import KubeResource, WatchOptions


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(tmp_path) as server:
        yield server


@pytest.fixture
async def api(server: FakeApiServer) -> AsyncIterator[KubeApi]:
    async with await server.connect() as api:
        yield api


MANY = 10_000
"""Number of faults that lasts until the test clears them."""


def config_map(name: str, namespace: str = "shop", **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "data": data}


async def fill(server: FakeApiServer, *names: str) -> None:
    for name in names:
        await server.put("configmaps", config_map(name, key="old"))


def event(what: str, name: str, version: int, **data: str) -> bytes:
    obj = config_map(name, **data)
    obj["metadata"]["resourceVersion"] = str(version)
    return line(what, obj)


BROKEN = {
    "in the middle of an event": (event("ADDED", "b", 900)[:40], "cut"),
    "after an event": (event("ADDED", "b", 101, key="new"), "cut"),
    "by a reset": (event("ADDED", "b", 101, key="new")[:40], "reset"),
    "by an end without a newline": (event("ADDED", "b", 900).rstrip(), "end"),
    "with a garbled line": (b'{"type": "ADDED", "object": {"metad\xff\xfe\n', "end"),
    "with a line that is no event": (b"[1, 2, 3]\n", "end"),
    "with an event without an object": (b'{"type": "ADDED"}\n', "end"),
    "with an error": (line("ERROR", {"code": 500, "message": "etcdserver: leader changed"}), "end"),
    "by silence": (event("ADDED", "b", 101, key="new"), "more"),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_broken_watch_resumes_at_its_version(server: FakeApiServer, api: KubeApi, how: str) -> None:
    await fill(server, "a")
    content, then = BROKEN[how]
    server.fail("watch configmaps", events(content, then=then))
    async with Following(api, options=QUICK._replace(idle_timeout=1.0)) as following:
        await following.until(lambda: following.watches > 1)
        await server.put("configmaps", config_map("c", key="new"))
        await following.until(lambda: "c" in following.names)
        assert following.lists == 1, "the version was known, so the watch resumes without a list"
        [first, second, *_] = server.requests_for("watch configmaps")
        is_complete = "key" in str(content) and content.endswith(b"\n")
        assert (first.query["resourceVersion"], second.query["resourceVersion"]) == ("101", "101")
        assert ("b" in following.names) == is_complete
        assert following.reflector.failure is None


async def test_events_may_arrive_byte_by_byte(server: FakeApiServer, api: KubeApi) -> None:
    content = event("ADDED", "a", 102, key="value") + event("MODIFIED", "a", 103, key="ünïcödé")
    server.fail("watch configmaps", events(*(bytes([byte]) for byte in content)))
    async with Following(api) as following:
        await following.until(lambda: following.reflector.objects == {("shop", "a"): {"key": "ünïcödé"}})


@pytest.mark.parametrize("size", [64 << 10, 3 << 20, 9 << 20])
async def test_objects_may_exceed_buffer_sizes(server: FakeApiServer, api: KubeApi, size: int) -> None:
    await server.put("configmaps", config_map("listed", key="x" * size))
    async with Following(api, keep=lambda obj, _: len(obj["data"]["key"])) as following:
        await following.until(lambda: following.reflector.objects == {("shop", "listed"): size})
        await server.put("configmaps", config_map("watched", key="y" * size))
        await following.until(lambda: following.reflector.objects.get(("shop", "watched")) == size)
        assert following.lists == 1


async def test_endless_line_is_dropped(server: FakeApiServer, api: KubeApi) -> None:
    endless = [
        b'{"type": "ADDED", "object": {"data": {"key": "',
        *[b"x" * (1 << 20)] * ((MAX_LINE_LENGTH >> 20) + 2),
    ]
    server.fail("watch configmaps", events(*endless, then="more"))
    async with Following(api) as following:
        await following.until(lambda: following.watches > 1)
        await fill(server, "a")
        await following.until(lambda: following.names == {"a"})


async def test_bookmarks_advance_the_version(server: FakeApiServer, api: KubeApi) -> None:
    await fill(server, "a")
    async with Following(api) as following:
        await following.until(lambda: following.watches == 1)
        for number in range(5):
            await server.put("pods", {"metadata": {"name": f"pod-{number}", "namespace": "shop"}})
        await following.until(lambda: following.reflector._version == str(server.version))
        server.compacted = server.version
        await server.cut()
        await fill(server, "b")
        await following.until(lambda: following.names == {"a", "b"})
        assert following.lists == 1


async def test_expired_page_falls_back_to_an_unpaged_list(server: FakeApiServer, api: KubeApi) -> None:
    names = {f"map-{number}" for number in range(9)}
    await fill(server, *names)
    first = asyncio.Event()

    def keep(obj: dict[str, Any], _: Any) -> dict[str, Any]:
        if not first.is_set():
            first.set()
            server._pages.clear()  # like a compaction
        return dict(obj["data"])

    async with Following(api, options=QUICK._replace(page_size=2), keep=keep) as following:
        await following.until(lambda: following.reflector.complete)
        assert following.names == names
        assert [request.query.get("limit") for request in server.requests_for("list configmaps")] == [
            "2",
            "2",
            None,
        ]
        assert len(following.changes) == 1


async def test_broken_or_slow_list_removes_nothing(server: FakeApiServer, api: KubeApi) -> None:
    await fill(server, "a", "b")
    async with Following(api) as following:
        await following.until(lambda: following.watches == 1)
        whole = json.dumps({"metadata": {"resourceVersion": "999"}, "items": [config_map("a")]}).encode()
        server.fail(
            "list configmaps",
            events(whole[:50], then="cut"),
            events(whole[:50]),
            events(b"[]"),
            events(json.dumps({"items": []}).encode()),
            slow(server, 40),
        )
        await server.remove("configmaps", "shop", "a")
        await server.put("configmaps", config_map("c"))
        before = len(following.changes)
        await server.compact()
        await following.until(lambda: following.names == {"b", "c"})
        assert [change for change in following.changes[before:] if "b" in change] == []
        assert following.lists == 6
        await following.until(lambda: following.reflector.failure is None)


async def test_outage_keeps_objects_and_backs_off(server: FakeApiServer, api: KubeApi) -> None:
    await fill(server, "a")
    async with Following(api) as following:
        await following.until(lambda: following.watches == 1)
        await server.stop()
        await following.until(lambda: following.reflector.failure)
        failure = following.reflector.failure
        assert failure
        assert failure.cause is FailureCause.UNREACHABLE
        assert "cannot be reached" in failure.message
        await following.until(lambda: following.watches > 6)
        assert following.names == {"a"}
        assert following.reflector.failure
        assert following.reflector.failure.since == failure.since
        await server.start()
        await following.until(lambda: following.reflector.failure is None)
        await fill(server, "b")
        await following.until(lambda: following.names == {"a", "b"})
        assert following.lists == 1, "the restarted server still has all versions"


async def test_half_open_connection_is_detected(server: FakeApiServer, api: KubeApi) -> None:
    await fill(server, "a")
    server.fail("watch configmaps", *(silence() for _ in range(MANY)))
    async with Following(api, options=QUICK._replace(idle_timeout=0.2)) as following:
        await following.until(lambda: following.reflector.failure)
        assert following.reflector.failure
        assert following.reflector.failure.since == following.reflector._last_contact > 0, (
            "since the last word, not since now"
        )
        server.faults.clear()
        await following.until(lambda: following.reflector.failure is None)
        assert following.names == {"a"}


async def test_retry_after_is_respected(server: FakeApiServer, api: KubeApi) -> None:
    server.fail("list configmaps", status(429, "TooManyRequests", "too many", Retry_After="1"))
    began = time.monotonic()
    async with Following(api, options=QUICK._replace(max_retry_after=5.0)) as following:
        await following.until(lambda: following.reflector.complete)
        assert time.monotonic() - began >= 1.0


async def test_expired_token_is_read_again(server: FakeApiServer, api: KubeApi) -> None:
    async with Following(api) as following:
        await following.until(lambda: following.watches == 1)
        server.token = "renewed"
        await server.cut()
        await following.until(lambda: following.reflector.failure)
        assert following.reflector.failure
        assert following.reflector.failure.cause is FailureCause.UNREACHABLE
        server.token_file.write_text("renewed")
        await fill(server, "a")
        await following.until(lambda: following.names == {"a"})
        assert following.lists == 1


POLICIES = KubeResource(
    kind="Policy", plural="policies", versions=("v1alpha1",), group="authentication.istio.io", custom=True
)
REFUSALS = {
    "forbidden": (status(403, "Forbidden"), FailureCause.FORBIDDEN),
    "not served": (status(404, "NotFound"), FailureCause.NOT_SERVED),
    "not ready": (status(503, "ServiceUnavailable"), FailureCause.UNREACHABLE),
}


@pytest.mark.parametrize("why", REFUSALS)
async def test_refused_list_is_retried_and_never_complete(
    server: FakeApiServer, api: KubeApi, why: str
) -> None:
    server.serve_istio()
    await server.put("policies", config_map("a"), POLICIES.group)
    fault, cause = REFUSALS[why]
    server.fail("list policies", *(fault for _ in range(MANY)))
    async with Following(api, POLICIES) as following:
        await following.until(lambda: following.lists > 8)
        assert not following.reflector.complete
        assert following.reflector.failure
        assert following.reflector.failure.cause is cause
        server.faults.clear()
        await following.until(lambda: following.reflector.complete)
        assert following.names == {"a"}
        assert following.reflector.failure is None


@pytest.mark.parametrize("why", REFUSALS)
async def test_refused_watch_keeps_the_objects(server: FakeApiServer, api: KubeApi, why: str) -> None:
    server.serve_istio()
    await server.put("policies", config_map("a"), POLICIES.group)
    fault, cause = REFUSALS[why]
    async with Following(api, POLICIES) as following:
        await following.until(lambda: following.watches == 1)
        for request in ("list policies", "watch policies"):
            server.fail(request, *(fault for _ in range(MANY)))
        await server.cut()
        await following.until(lambda: following.lists + following.watches > 12)
        assert following.names == {"a"}
        assert following.reflector.failure
        assert following.reflector.failure.cause is cause
        await server.remove("policies", "shop", "a", POLICIES.group)
        await server.put("policies", config_map("b"), POLICIES.group)
        server.faults.clear()
        await following.until(lambda: following.names == {"b"})
        assert following.reflector.failure is None


async def test_forbidden_list_keeps_the_objects(server: FakeApiServer, api: KubeApi) -> None:
    await fill(server, "a")
    async with Following(api) as following:
        await following.until(lambda: following.watches == 1)
        server.fail("watch configmaps", *(status(403, "Forbidden") for _ in range(30)))
        server.fail("list configmaps", *(status(403, "Forbidden") for _ in range(2)))
        await server.cut()
        await following.until(
            lambda: (
                following.reflector.failure and following.reflector.failure.cause is FailureCause.FORBIDDEN
            )
        )
        assert following.names == {"a"}
        server.faults.clear()
        await following.until(lambda: following.reflector.failure is None)


async def test_rejected_version_is_replaced_by_a_new_list(server: FakeApiServer, api: KubeApi) -> None:
    await fill(server, "a")
    wrong = {"code": 400, "reason": "BadRequest", "message": "resourceVersion: too large"}
    server.fail("watch configmaps", *(events(line("ERROR", wrong)) for _ in range(3)))
    async with Following(api) as following:
        await following.until(lambda: following.lists == 2)
        await fill(server, "b")
        await following.until(lambda: following.names == {"a", "b"})


async def test_repeated_expiry_backs_off(server: FakeApiServer, api: KubeApi) -> None:
    await fill(server, "a")
    gone = {"code": 410, "reason": "Expired", "message": "too old resource version"}
    forgets = [events(line("ERROR", gone)), status(410, "Expired")]
    server.fail("watch configmaps", *(forgets * MANY))
    waits: list[int] = []

    class Counted(WatchOptions):
        def delay(self, failures: int) -> float:
            waits.append(failures)
            return super().delay(failures)

    async with Following(api, options=Counted(*QUICK)) as following:
        await following.until(lambda: following.lists > 5)
        assert set(range(1, 5)) <= set(waits), "the first expiry lists at once, each later one waits longer"
        server.faults.clear()
        await fill(server, "b")
        await following.until(lambda: following.names == {"a", "b"} and following.reflector._expirations == 0)
        assert following.reflector.failure is None
        lists = following.lists
        await server.compact()
        await fill(server, "c")
        await following.until(lambda: following.names == {"a", "b", "c"})
        assert following.lists <= lists + 1


async def test_unknown_events_are_ignored(server: FakeApiServer, api: KubeApi) -> None:
    unknown = [
        line("ADDED", {"metadata": {}}),
        line("ADDED", {"metadata": [1]}),
        line("PONDERED", config_map("x")),
    ]
    server.fail("watch configmaps", events(*unknown, event("ADDED", "a", 103, key="v")))
    async with Following(api) as following:
        await following.until(lambda: following.names == {"a"})


async def test_long_list_yields_to_the_event_loop(server: FakeApiServer, api: KubeApi) -> None:
    names = [f"map-{number:04}" for number in range(300)]
    await fill(server, *names)
    turns: list[int] = []
    kept = 0

    def keep(obj: dict[str, Any], _: Any) -> Any:
        nonlocal kept
        kept += 1
        time.sleep(0.0005)  # the time to read a large object
        return obj["data"]

    async def others() -> None:
        while True:
            turns.append(kept)
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    async with Following(api, keep=keep) as following:
        await following.until(lambda: following.reflector.complete)
    task.cancel()
    between = [turn for turn in turns if 0 < turn < len(names)]
    assert len(set(between)) > 10


def test_backoff_is_exponential_with_jitter_and_a_limit() -> None:
    options = WatchOptions(min_delay=1.0, max_delay=10.0)
    for failures, longest in ((1, 1.0), (2, 2.0), (4, 8.0), (5, 10.0), (10_000, 10.0)):
        waits = {options.delay(failures) for _ in range(50)}
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(waits) > 40


async def test_next_page_is_requested_while_a_page_is_read(
    server: FakeApiServer, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xds.checkpoint.TIME_SLICE", 0.0)
    await fill(server, "a", "b", "c", "d")
    lists: list[int] = []

    def keep(obj: dict[str, Any], _: Any) -> Any:
        lists.append(following.lists)
        return obj["data"]

    following = Following(api, options=QUICK._replace(page_size=2), keep=keep)
    async with following:
        await following.until(lambda: following.reflector.complete)
    assert lists == [1, 2, 2, 2]
