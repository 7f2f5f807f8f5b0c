"""Event streams: they outlive the time limit of responses, and survive errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from xds.mesh.controlplane.page import events
from xds.mesh.controlplane.page.events import ViewEvents
from xds.server import http


@asynccontextmanager
async def listening(states: Callable) -> AsyncIterator[tuple[ViewEvents, aiohttp.StreamReader]]:
    found = ViewEvents(states)
    app = web.Application()
    app.router.add_get("/", found.respond)
    listener = http.HttpListener(app, "127.0.0.1", 0)
    await listener.start()
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{listener.port}/") as got,
        ):
            assert await next_event(got.content) == ("hello", {})
            yield found, got.content
    finally:
        await found.close()
        await listener.stop()


async def next_event(stream: aiohttp.StreamReader) -> tuple[str, dict]:
    async with asyncio.timeout(30):
        while not (line := await stream.readline()).startswith(b"event: "):
            assert line, "the stream has ended"
        data = await stream.readline()
    return line.decode()[7:].strip(), json.loads(data.partition(b": ")[2])


async def test_stream_outlives_the_time_limit_of_a_response(monkeypatch):
    monkeypatch.setattr(http, "REQUEST_TIMEOUT", 6)
    monkeypatch.setattr(events, "KEEPALIVE_INTERVAL", 0.1)

    async def states():
        return {"map": 1}

    async with listening(states) as (_, stream):
        keepalives = 0
        while keepalives < 80:
            line = await stream.readline()
            assert line, "the stream has ended"
            keepalives += line.startswith(b": keepalive")


async def test_event_names_what_has_changed():
    found = {"map": 1, "proxies": 1}

    async def states():
        return dict(found)

    async with listening(states) as (_, stream):
        found["proxies"] = 2
        assert await next_event(stream) == ("changed", {"views": ["proxies"]})
        found.update(map=2, proxies=3)
        assert await next_event(stream) == ("changed", {"views": ["map", "proxies"]})


async def test_error_does_not_end_the_stream():
    calls = 0

    async def states():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ValueError("broken")
        return {"map": calls > 2}

    async with listening(states) as (_, stream):
        assert await next_event(stream) == ("changed", {"views": ["map"]})
    assert calls >= 3


async def test_stream_ends_when_the_server_stops():
    async def states():
        return {}

    async with listening(states) as (found, stream):
        await found.close()
        # A last event or nothing, and then the end of the stream.
        async with asyncio.timeout(30):
            while await stream.readline():
                pass
