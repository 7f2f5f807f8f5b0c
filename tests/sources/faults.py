"""Faults between an API server and its clients, as responses of the fake server."""

from __future__ import annotations

import asyncio
import struct

from aiohttp import web

from tests.sources.fake_apiserver import FakeApiServer, Fault, failure


def status(code: int, reason: str, message: str = "made by the test", **headers: str) -> Fault:
    """Answer with an error."""

    async def answer(_: web.Request) -> web.Response:
        return failure(code, reason, message, headers)

    return answer


def events(*lines: bytes, then: str = "end") -> Fault:
    """Answer with these bytes; then `end` properly, `cut` or `reset` the connection, or stay silent."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        assert request.transport
        match then:
            case "cut":
                request.transport.close()
            case "reset":
                request.transport.get_extra_info("socket").setsockopt(1, 13, struct.pack("ii", 1, 0))
                request.transport.abort()
            case "more":
                await asyncio.Event().wait()
        return response

    return answer


def silence() -> Fault:
    """Accept the request and never answer, as on a half-open connection."""

    async def answer(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    return answer


def slow(server: FakeApiServer, pieces: int) -> Fault:
    """Answer a list correctly, but in small pieces."""

    async def answer(request: web.Request) -> web.StreamResponse:
        whole = await server.answer(request)
        assert isinstance(whole, web.Response)
        assert isinstance(whole.body, bytes)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        size = len(whole.body) // pieces + 1
        for start in range(0, len(whole.body), size):
            await response.write(whole.body[start : start + size])
            await asyncio.sleep(0)
        return response

    return answer
