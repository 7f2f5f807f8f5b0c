"""The admin port: health, readiness, metrics and the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import TypeAlias

from aiohttp import web

from xds.mesh.controlplane.page.api import Page
from xds.mesh.model.objects import Problem
from xds.server.fair_share import CpuShare
from xds.server.http import HttpListener, client_of, foreign_host, is_local

MAX_WARNINGS = 20
"""Maximum number of warnings that /ready lists. The rest are only counted."""

RenderMetrics: TypeAlias = Callable[[str], tuple[bytes, str]]
"""Renders the metrics for an Accept header. Returns them with their content type."""


class AdminServer:
    """An HTTP server for operators and monitoring."""

    def __init__(
        self,
        ready: Callable[[], str | None],
        host: str,
        port: int,
        *,
        metrics: RenderMetrics | None = None,
        note: Callable[[], str] = str,
        warnings: Callable[[], Collection[Problem]] = tuple,
        page: Page | None = None,
    ) -> None:
        """Create a server that does not listen yet.

        Args:
            ready: returns None if the process is ready, else the reason why it is not.
            host: the address to listen on.
            port: the port to listen on. 0: any free port.
            metrics: renders the metrics for /metrics. None: the path does not exist.
            note: returns a note that /ready adds when the process is ready, such as that the API server is
                unreachable. Empty: no note.
            warnings: returns problems that do not prevent the process from serving. For clients on this
                machine, /ready lists them. For other clients, it only counts them, because they are not
                authenticated and must not learn which policies have no effect.
            page: the page at / and its API. None: the paths do not exist.
        """
        self._ready = ready
        self._metrics = metrics
        self._note = note
        self._warnings = warnings
        self._page = page
        self._host = host
        self._port = port
        self._listener: HttpListener | None = None
        self._scrapes = CpuShare()
        """Limit of the CPU time for rendering metrics, which blocks the event loop that serves xDS."""
        self.port = 0
        """The port that the server listens on, after `start`."""

    async def start(self) -> None:
        """Start to listen.

        Raises:
            OSError: the address cannot be used.
        """
        app = web.Application()
        app.router.add_get("/healthz", self._get_health)
        app.router.add_get("/ready", self._get_readiness)
        if self._metrics:
            app.router.add_get("/metrics", self._get_metrics)
        if self._page:
            self._page.add_routes(app)
        listener = HttpListener(app, self._host, self._port)
        await listener.start()
        self._listener = listener
        self.port = listener.port

    async def stop(self) -> None:
        """Stop listening."""
        if self._listener:
            await self._listener.stop()
            self._listener = None

    async def _get_metrics(self, request: web.Request) -> web.Response:
        assert self._metrics  # noqa: S101 - without it, the path does not exist
        loop = asyncio.get_running_loop()
        if (wait := self._scrapes.wait(loop.time())) > 0:
            text = f"the metrics were read too often; try again in {wait:.0f} s\n"
            return web.Response(status=429, text=text)
        started_at = time.thread_time()
        body, content_type = self._metrics(request.headers.get("Accept", ""))
        seconds = time.thread_time() - started_at
        for share in (self._scrapes, client_of(request).share):
            share.charge(seconds, loop.time())
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _get_health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_readiness(self, request: web.Request) -> web.Response:
        reason = self._ready()
        if reason:
            return web.Response(text=f"{reason}\n", status=503)
        status = ": ".join(filter(None, ("ready", self._note())))
        warnings = [problem for problem in self._warnings() if not problem.notice]
        may_read = is_local(request) and not foreign_host(request, ())
        lines = [f"warning: {warning}" for warning in warnings[:MAX_WARNINGS]] if may_read else []
        if more := len(warnings) - len(lines):
            lines.append(f"{more} {'more ' if lines else ''}warnings: xds status lists them")
        return web.Response(text="".join(f"{line}\n" for line in (status, *lines)))
