"""Who is asked how many connections a lock ended, and what becomes of the answers."""

from __future__ import annotations

import asyncio
import gzip
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeAlias

import pytest
import structlog
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.controlplane.rollouts import WITHIN, Plane, running
from tests.policy.world import peer
from tests.support.listening import listen
from xds.mesh.controlplane import dropped_connections
from xds.mesh.controlplane.dropped_connections import Page, read
from xds.mesh.model.objects import METRICS_PORT, Change, Ref
from xds.server.proxies import peer_address
from xds.snapshot import ENDPOINT, LISTENER

Shown: TypeAlias = str | Callable[[], web.Response]

FIRST, SECOND = "127.8.7.1", "127.8.7.2"
CUT = "envoy_cluster_upstream_cx_destroy_local_with_active_rq"


def page(cut: object, draining: int = 0, port: int = 8080) -> str:
    return (
        f"# TYPE {CUT} counter\n"
        f'{CUT}{{envoy_cluster_name="inbound|{port}||;"}} {cut}\n'
        f'{CUT}{{envoy_cluster_name="outbound|80||web.shop"}} 77\n'
        "# TYPE envoy_listener_manager_total_filter_chains_draining gauge\n"
        f"envoy_listener_manager_total_filter_chains_draining{{}} {draining}\n"
        "# TYPE envoy_listener_manager_total_listeners_draining gauge\n"
        "envoy_listener_manager_total_listeners_draining{} 0\n"
    )


class Sidecar:
    """Shows one page after the other, the last one for ever."""

    def __init__(self, *pages: Shown) -> None:
        self._pages = deque(pages)
        self.asked: list[str] = []

    def say(self, shown: str) -> None:
        self._pages = deque([shown])

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.query["filter"])
        found = self._pages.popleft() if len(self._pages) > 1 else self._pages[0]
        return web.Response(text=found) if isinstance(found, str) else found()


class Hanging(Sidecar):
    """Does not answer before it is over."""

    def __init__(self) -> None:
        super().__init__(page(0))
        self.over = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        await self.over.wait()
        return await super().answer(request)


@asynccontextmanager
async def showing(first: Sidecar | None, second: Sidecar) -> AsyncIterator[None]:
    """Have the sidecars of web-1 and web-2 show their pages; None: nobody listens there."""
    runners: list[web.AppRunner] = []
    try:
        for address, sidecar in ((FIRST, first), (SECOND, second)):
            if sidecar:
                app = web.Application()
                app.router.add_get("/stats/prometheus", sidecar.answer)
                runners.append(await listen(app, address, METRICS_PORT))
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


@pytest.fixture
async def plane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plane]:
    monkeypatch.setattr(dropped_connections, "PAUSE", 0.05)
    async with running("DISABLE", **{"web-1": FIRST, "web-2": SECOND}) as plane:
        yield plane


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN):
        while not is_so():
            await asyncio.sleep(0.01)


async def lock(plane: Plane, locked: int = 2) -> None:
    """Have both ports closed to plaintext; `locked`: how many times that was so then."""
    plane.say("STRICT")
    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)
    await until(lambda: plane.hub.rolling.rollout.locked == locked)


async def unlock(plane: Plane) -> None:
    applied = plane.hub.work.applied
    plane.hub.change(Change(applied=(peer("shop", "DISABLE"),)))
    await until(lambda: plane.hub.work.applied > applied and not plane.hub.rolling.is_open)


async def is_counted(plane: Plane, *, connections: int, unknown: int = 0) -> None:
    await until(lambda: plane.cuts.counting == 0)
    assert (plane.cuts.connections, plane.cuts.unknown) == (connections, unknown)


async def test_what_ended_between_the_lock_and_the_end_of_draining_is_counted(plane: Plane):
    first = Sidecar(page(4), page(5, draining=1), page(9, draining=1), page(9))
    second = Sidecar(page(2))
    async with showing(first, second):
        await lock(plane)
        await is_counted(plane, connections=5)
    assert set(first.asked) == set(second.asked) == {dropped_connections._FILTER}


async def test_it_is_not_known_before_the_lock_is_in_force(plane: Plane):
    first = Sidecar(page(0))
    async with showing(first, Sidecar(page(0))):
        plane.say("STRICT")
        await plane.first.answer(LISTENER)
        plane.first.keeps = {LISTENER: ""}
        await plane.one.answer(ENDPOINT)
        await until(lambda: plane.cuts.counting == 1 and len(first.asked) > 4)
        first.say(page(3))
        await plane.first.answer(LISTENER)
        await is_counted(plane, connections=3)


async def test_one_that_waits_for_nobody_is_counted_once_it_is_in_force(plane: Plane):
    first = Sidecar(page(0))
    async with showing(first, Sidecar(page(0))):
        plane.say("STRICT", at_once=True)
        await until(lambda: plane.cuts.counting == 1 and len(first.asked) > 4)
        first.say(page(2))
        await plane.first.answer(LISTENER)
        await is_counted(plane, connections=2)


async def test_a_lock_while_another_is_counted_is_waited_for(plane: Plane):
    first = Sidecar(page(0), page(0, draining=1))
    async with showing(first, Sidecar(page(0))):
        await lock(plane)
        await until(lambda: plane.cuts.counting == 1)
        await unlock(plane)
        await lock(plane, 4)
        await until(lambda: plane.cuts.counting == 2)
        first.say(page(3))
        await is_counted(plane, connections=3)


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "hello",
        page(0) + "#" * dropped_connections.MOST_BYTES,
        lambda: web.Response(status=503, text=page(0)),
        lambda: web.Response(
            status=302, headers={"Location": f"http://{SECOND}:{METRICS_PORT}/stats/prometheus"}
        ),
        lambda: web.Response(body=page(0).encode() + b"\xff\xfe"),
        lambda: web.Response(body=gzip.compress(page(0).encode()), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["nothing", "no page", "too long", "refusal", "redirect", "no text", "compressed"],
)
async def test_an_answer_that_is_no_page_is_not_known(plane: Plane, shown: Shown):
    async with showing(Sidecar(shown), Sidecar(page(0), page(1))):
        await lock(plane)
        await is_counted(plane, connections=1, unknown=1)


async def test_who_does_not_listen_hangs_or_starts_anew_is_not_known(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
):
    with structlog.testing.capture_logs() as logs:
        async with showing(None, Sidecar(page(5), page(4))):
            await lock(plane)
            await is_counted(plane, connections=0, unknown=2)
        monkeypatch.setattr(dropped_connections, "WITHIN", 0.1)
        first, second = Hanging(), Hanging()
        async with showing(first, second):
            await unlock(plane)
            await lock(plane, 4)
            await is_counted(plane, connections=0, unknown=4)
            for each in (first, second):
                each.over.set()
    told = [each for each in logs if "plaintext connections" in each["event"]]
    assert {(each["pod"], each["reason"]) for each in told if each["pod"] == "shop/web-2"} == {
        ("shop/web-2", "it has started anew meanwhile")
    }
    assert [each["asked"] for each in told if each["pod"] == "shop/web-1"] == [
        f"http://{FIRST}:{METRICS_PORT}/stats/prometheus"
    ]


async def test_who_does_not_answer_before_connections_may_have_ended_is_not_known(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dropped_connections, "BEFORE", 0.0)
    async with showing(Sidecar(page(0)), Sidecar(page(0))):
        await lock(plane)
        await is_counted(plane, connections=0, unknown=2)


async def test_who_drains_without_end_is_not_known(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dropped_connections, "LONGEST", 1.0)
    async with showing(Sidecar(page(0, draining=1)), Sidecar(page(0))):
        await lock(plane)
        await is_counted(plane, connections=0, unknown=1)


async def test_a_pod_that_takes_the_place_of_another_is_not_asked_in_its_stead(plane: Plane):
    first = Sidecar(page(0), page(0, draining=1))
    async with showing(first, Sidecar(page(0))):
        await lock(plane)
        await until(lambda: len(first.asked) > 1)
        pod = plane.hub.mesh.pod("shop", "web-1")
        assert pod
        plane.hub.change(Change(applied=(replace(pod, address="127.8.7.3"),)))
        await is_counted(plane, connections=0, unknown=1)


async def test_a_manifest_makes_us_connect_to_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dropped_connections, "PAUSE", 0.05)
    # Its stream comes from this machine, though the pod is said to be elsewhere.
    async with running("DISABLE", **{"web-1": "192.0.2.1", "web-2": SECOND}) as plane:
        ref = Ref("Pod", "shop", "web-1")
        with pytest.raises(ValueError, match="no stream of its own comes from the pod's address"):
            plane.cuts._host(ref, plane.cuts._pod(ref))
        async with showing(None, Sidecar(page(0))):
            await lock(plane)
            await is_counted(plane, connections=0, unknown=1)


async def test_the_sidecars_of_other_replicas_are_left_to_them(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plane.hub.rolling, "is_elsewhere", lambda key: key[1] == "web-1")
    first, second = Sidecar(page(0)), Sidecar(page(0))
    async with showing(first, second):
        await lock(plane)
        await until(lambda: len(second.asked) > 1)
        await is_counted(plane, connections=0)
    assert first.asked == []


async def test_only_another_replica_can_have_what_is_not_here(plane: Plane):
    rolling = plane.hub.rolling
    assert not rolling.is_elsewhere(("shop", "nobody"))
    rolling.share(0.0)
    assert rolling.is_elsewhere(("shop", "nobody"))
    assert not rolling.is_elsewhere(("shop", "web-1"))
    [subscriber] = plane.hub._streams["shop", "web-1"]
    plane.hub.disconnect(subscriber)
    assert not rolling.is_elsewhere(("shop", "web-1"))  # It may be on its way back.
    plane.hub._streams["shop", "web-1"] = {subscriber}
    rolling.connected(subscriber, 0.0)


def test_what_a_page_says():
    assert read(page(3, draining=2, port=9000)) == Page({9000: 3}, 2)
    for odd in (-1, "NaN", "1e9", 10**400, ""):
        assert read(page(odd)) == Page({}, 0)


@given(st.text() | st.text(alphabet='{}"\\=,# \n_envoy1e+|').map(lambda text: CUT + text))
def test_any_text_can_be_looked_at(text: str):
    with pytest.raises(ValueError, match="no page"):
        read(text)
    assert read(f"{page(1)}{text}") == Page({8080: 1}, 0)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4321", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:4321", "2001:db8::1"),
        ("ipv6:[::ffff:10.0.0.1]:4321", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4321", "fe80::1"),
        ("unix:/run/xds.sock", "None"),
        ("", "None"),
    ],
)
def test_where_a_stream_comes_from(peer: str, host: str):
    assert str(peer_address(peer)) == host
