"""Request bodies of HTTP listeners, read and parsed in bounded memory and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiohttp import web

from xds.server.fair_share import FairSemaphore
from xds.server.http import client_of

BODY_TIMEOUT = 5.0
"""Timeout for the body in seconds, from the headers: 3 MiB at 5 Mbit/s."""
MAX_SMALL_BODY = 64 << 10
"""Maximum size of a body that needs no slot, in bytes. Any connection may buffer such a body."""
LARGE_BODIES = 16
"""Maximum number of large bodies of a listener in memory at the same time."""
LARGE_BODIES_PER_ADDRESS = 2
"""Maximum number of large bodies of one address in memory at the same time."""
MAX_JSON_VALUES = 30_000
"""Maximum number of separators in a JSON text. Parsing takes up to 250 ns for each, and holds the GIL."""
_MAX_DIGITS = 32
"""Maximum characters of a JSON number, because parsing takes quadratic time."""
BODY_COST = 0.002 / (1 << 20)
"""CPU seconds charged for each byte of a body."""


class BodyReader:
    """Reads the request bodies of a listener, in bounded memory and time.

    Args:
        limit: Maximum size of a body in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._large = FairSemaphore(LARGE_BODIES, LARGE_BODIES_PER_ADDRESS)

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncIterator[bytes]:
        """Yield the body of a request. A large body holds a slot until the block ends.

        Raises:
            aiohttp.web.HTTPException: 408, 411, 413 or 503.
        """
        length = request.content_length
        if length is None:
            raise web.HTTPLengthRequired(text="the request has no Content-Length header\n")
        if length > self._limit:
            raise web.HTTPRequestEntityTooLarge(
                self._limit, length, text=f"the request body has {length} bytes; the limit is {self._limit}\n"
            )
        async with AsyncExitStack() as stack:
            if length > MAX_SMALL_BODY:
                try:
                    async with asyncio.timeout(BODY_TIMEOUT):
                        await stack.enter_async_context(self._large.slot(client_of(request).address))
                except TimeoutError:
                    raise web.HTTPServiceUnavailable(
                        text=f"too many requests above {MAX_SMALL_BODY} bytes: the limits are {LARGE_BODIES} "
                        f"in total and {LARGE_BODIES_PER_ADDRESS} per address; try again later\n"
                    ) from None
            yield await _body(request)


async def _body(request: web.Request) -> bytes:
    client = client_of(request)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(
            text=f"the request body was not complete after {BODY_TIMEOUT:.0f} s\n"
        ) from None
    client.share.charge(BODY_COST * len(body), asyncio.get_running_loop().time())
    return body


def read_json(body: bytes) -> Any:
    """Parse JSON in bounded time.

    Raises:
        ValueError: the text is not JSON, or has more than MAX_JSON_VALUES separators.
    """
    if len(body.translate(None, _NOT_SEPARATORS)) > MAX_JSON_VALUES:
        raise ValueError(f"the JSON has more than {MAX_JSON_VALUES} commas, colons and opening brackets")
    try:
        return json.loads(body, parse_int=_integer, parse_float=_float)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


_NOT_SEPARATORS = bytes(byte for byte in range(256) if byte not in b",:[{")


def _integer(digits: str) -> int:
    return int(_check_length(digits))


def _float(digits: str) -> float:
    return float(_check_length(digits))


def _check_length(digits: str) -> str:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"the JSON has a number with more than {_MAX_DIGITS} characters")
    return digits
