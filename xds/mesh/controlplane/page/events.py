"""Server-sent events that tell a browser which views have changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any, TypeAlias

import structlog
from aiohttp import web

from xds.mesh.controlplane.page.access import SECURITY_HEADERS
from xds.server.fair_share import timed_steps
from xds.server.http import restart_timeout

log = structlog.get_logger(__name__)

CHECK_INTERVAL = 0.25
"""Minimum interval between two events, in seconds."""
MAX_LOAD = 0.1
"""Maximum share of a CPU core for comparing the views with their last state."""
KEEPALIVE_INTERVAL = 5.0
"""Seconds without an event after which a comment is sent, so that both sides notice a lost connection."""
MAX_STREAMS = 24
"""Maximum number of event streams."""

States: TypeAlias = Callable[[], Coroutine[Any, Any, Mapping[str, Hashable]]]
"""Returns the state of each view. Equal states mean that the view has not changed."""


class ViewEvents:
    """The event streams of all clients. Views are only compared while a client listens.

    Args:
        states: Returns the state of each view.
    """

    def __init__(self, states: States) -> None:
        self._states = states
        self._queues: dict[asyncio.Event, set[str]] = {}
        """For each stream: an event that wakes it, and the views that have changed since its last event."""
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Send events until the client disconnects or the server stops."""
        if len(self._queues) >= MAX_STREAMS or self._is_closed:
            text = f"{MAX_STREAMS} clients listen to events already; try again later\n"
            return web.Response(status=503, text=text, headers={"Retry-After": "5"})
        response = web.StreamResponse(headers=SECURITY_HEADERS)
        response.content_type = "text/event-stream"
        wake, changed = asyncio.Event(), set[str]()
        self._queues[wake] = changed
        if self._task is None:
            self._task = asyncio.create_task(self._compare())
        try:
            await response.prepare(request)
            await response.write(b"retry: 1000\nevent: hello\ndata: {}\n\n")
            await self._send(request, response, wake, changed)
        finally:
            del self._queues[wake]
            if not self._queues and self._task is not None:
                self._task.cancel()
                self._task = None
        return response

    async def close(self) -> None:
        """End all streams."""
        self._is_closed = True
        for wake in self._queues:
            wake.set()

    async def _send(
        self, request: web.Request, response: web.StreamResponse, wake: asyncio.Event, changed: set[str]
    ) -> None:
        while not self._is_closed:
            try:
                async with asyncio.timeout(KEEPALIVE_INTERVAL):
                    await wake.wait()
            except TimeoutError:
                text = ": keepalive\n\n"
            else:
                wake.clear()
                text = f"event: changed\ndata: {json.dumps({'views': sorted(changed)})}\n\n"
                changed.clear()
            restart_timeout(request)
            await response.write(text.encode())

    async def _compare(self) -> None:
        """Compare the views with their last state, until cancelled."""
        last: Mapping[str, Hashable] | None = None
        while True:
            steps: list[float] = []
            try:
                states = await timed_steps(self._states(), steps.append)
            except Exception as error:  # noqa: BLE001 - serving proxies does not depend on it
                log.error("failed to compare the page's views", problem=f"{type(error).__name__}: {error}")  # noqa: TRY400
                states = last or {}
            changed = {view for view in states if last is not None and states[view] != last.get(view)}
            last = states
            if changed:
                for wake, pending in self._queues.items():
                    pending.update(changed)
                    wake.set()
            # Not the elapsed time: while sidecars are updated, it is many times as long.
            await asyncio.sleep(max(CHECK_INTERVAL, sum(steps) * (1 / MAX_LOAD - 1)))
