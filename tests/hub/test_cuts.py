"""Who is asked how many connections a lock ended, and what becomes of the answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.hub.rollouts import WITHIN, Plane, running
from xds import cuts
from xds.cuts import Page, ended, read
from xds.http import listen
from xds.model import Ref
from xds.server.proxies import host_of
from xds.sidecar.settings import METRICS_PORT
from xds.snapshot import ENDPOINT, LISTENER

FIRST, SECOND = "127.8.7.1", "127.8.7.2"


def page(cut: int, draining: int = 0, port: int = 8080) -> str:
    return (
        f"# TYPE {cuts._CUT} counter\n"
        f'{cuts._CUT}{{envoy_cluster_name="inbound|{port}||;"}} {cut}\n'
        f'{cuts._CUT}{{envoy_cluster_name="outbound|80||web.shop"}} 77\n'
        "# TYPE envoy_listener_manager_total_filter_chains_draining gauge\n"
        f"envoy_listener_manager_total_filter_chains_draining{{}} {draining}\n"
        "# TYPE envoy_listener_manager_total_listeners_draining gauge\n"
        "envoy_listener_manager_total_listeners_draining{} 0\n"
    )


class Sidecar:
    """Shows one page after the other, the last one for ever."""

    def __init__(self, *pages: str | web.Response) -> None:
        self._pages = deque(pages)
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.query["filter"])
        found = self._pages.popleft() if len(self._pages) > 1 else self._pages[0]
        return web.Response(text=found) if isinstance(found, str) else found


@asynccontextmanager
async def showing(address: str, sidecar: Sidecar) -> AsyncIterator[Sidecar]:
    app = web.Application()
    app.router.add_get("/stats/prometheus", sidecar.answer)
    runner = await listen(app, address, METRICS_PORT)
    try:
        yield sidecar
    finally:
        await runner.cleanup()


@pytest.fixture
async def plane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plane]:
    monkeypatch.setattr(cuts, "PAUSE", 0.05)
    async with running("DISABLE", **{"web-1": FIRST, "web-2": SECOND}) as plane:
        yield plane


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN):
        while not is_so():
            await asyncio.sleep(0.01)


async def lock(plane: Plane) -> None:
    plane.say("STRICT")
    await plane.first.answer(LISTENER)
    await plane.one.answer(ENDPOINT)
    await until(lambda: plane.hub.rolling.rollout.locked == 2)


async def test_what_ended_between_the_lock_and_the_end_of_draining_is_counted(plane: Plane):
    first = Sidecar(page(4), page(5, draining=1), page(9, draining=1), page(9))
    async with showing(FIRST, first), showing(SECOND, Sidecar(page(2))) as second:
        await lock(plane)
        await until(lambda: plane.cuts.connections == 5)
        await until(lambda: plane.cuts.counting == 0)
    assert (plane.cuts.connections, plane.cuts.unknown) == (5, 0)
    assert set(first.asked) == set(second.asked) == {cuts._FILTER}


async def test_it_is_not_known_before_the_lock_is_in_force(plane: Plane):
    async with (
        showing(FIRST, Sidecar(page(0), page(0), page(3))) as first,
        showing(SECOND, Sidecar(page(0))),
    ):
        plane.say("STRICT")
        await plane.first.answer(LISTENER)
        plane.first.keeps = {LISTENER: ""}
        await plane.one.answer(ENDPOINT)
        await until(lambda: plane.cuts.counting == 1 and len(first.asked) > 4)
        assert plane.cuts.connections == 0
        await plane.first.answer(LISTENER)
        await until(lambda: plane.cuts.counting == 0)
    assert (plane.cuts.connections, plane.cuts.unknown) == (3, 0)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "hello",
        page(-1),
        page(10**400),
        page(1).replace("} 1\n", "} NaN\n"),
        "x" * (cuts.MOST_BYTES + 1),
        web.Response(status=503),
        web.Response(status=302, headers={"Location": f"http://{SECOND}:{METRICS_PORT}/stats/prometheus"}),
        web.Response(body=b"\xff\xfe"),
        web.Response(text='x{a="'),
    ],
    ids=lambda answer: str(answer)[:20].replace("\n", " "),
)
async def test_who_cannot_be_asked_is_not_known_and_ends_nothing(
    plane: Plane, answer: str | web.Response | None
):
    async with showing(SECOND, Sidecar(page(0), page(1))) as second:
        if answer is None:
            await lock(plane)
        else:
            async with showing(FIRST, Sidecar(answer)):
                await lock(plane)
                await until(lambda: plane.cuts.unknown == 1)
        await until(lambda: plane.cuts.counting == 0)
        assert len(second.asked) >= 2
    assert (plane.cuts.connections, plane.cuts.unknown) == (1, 1)


async def test_a_manifest_makes_us_connect_to_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuts, "PAUSE", 0.05)
    # Its stream comes from this machine, though the pod is said to be elsewhere.
    async with running("DISABLE", **{"web-1": "192.0.2.1", "web-2": SECOND}) as plane:
        with pytest.raises(ValueError, match="does not come from the pod's address"):
            plane.cuts._where(Ref("Pod", "shop", "web-1"))
        async with showing(SECOND, Sidecar(page(0))):
            await lock(plane)
            await until(lambda: plane.cuts.counting == 0)
        assert plane.cuts.unknown == 1


async def test_the_sidecars_of_other_replicas_are_left_to_them(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    here = plane.hub.hosts
    monkeypatch.setattr(plane.hub, "hosts", lambda key: here(key) if key[1] != "web-1" else iter(()))
    async with showing(FIRST, Sidecar(page(0))) as first, showing(SECOND, Sidecar(page(0))):
        await lock(plane)
        await until(lambda: plane.cuts.counting == 0)
    assert (first.asked, plane.cuts.unknown) == ([], 0)


def test_a_counter_that_begins_anew():
    before = Page({8080: 5, 9090: 1}, 0)
    assert ended(before, Page({8080: 7, 9090: 1, 7070: 9}, 0), {8080, 9090}) == 2
    assert ended(before, Page({8080: 2}, 0), {8080, 9090}) == 2
    assert ended(Page({}, 0), Page({8080: 2}, 0), {8080}) == 2


def test_what_a_page_says():
    assert read(page(3, draining=2, port=9000)) == Page({9000: 3}, 2)


@given(st.text() | st.text(alphabet='{}"\\=,# \n_envoy1e+|').map(lambda text: cuts._CUT + text))
def test_any_text_is_a_page_or_a_value_error(text: str):
    with pytest.raises((ValueError, LookupError)):
        read(text)


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
    assert str(host_of(peer)) == host
