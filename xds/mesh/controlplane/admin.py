"""The admin port: whether the process runs, whether it serves what it should, and what it counts."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Collection
from typing import TypeAlias

from aiohttp import web

from xds.mesh.model.objects import Problem
from xds.server.fair_share import CpuShare
from xds.server.http import HttpListener, client_of

MAX_WARNINGS = 20
"""Warnings that /ready lists; it counts the others."""

Exposed: TypeAlias = Callable[[str], tuple[bytes, str]]
"""Returns metrics, and their content type, for an Accept header."""


class AdminServer:
    """A small HTTP server for those who look after the process.

    `ready` returns None when the process serves what it should, else in words what it still lacks; `standing` what there is
    to say though it does, or nothing. `metrics` returns what is told at /metrics. `warnings` returns what is wrong but does not
    keep the process from serving: /ready lists it for callers on this machine, and counts it for others, who have not proved
    who they are and need not learn which policies protect nothing.
    """

    def __init__(
        self,
        ready: Callable[[], str | None],
        host: str,
        port: int,
        *,
        metrics: Exposed | None = None,
        standing: Callable[[], str] = str,
        warnings: Callable[[], Collection[Problem]] = tuple,
    ) -> None:
        self._ready = ready
        self._metrics = metrics
        self._standing = standing
        self._warnings = warnings
        self._host = host
        self._port = port
        self._listener: HttpListener | None = None
        self._scrapes = CpuShare()
        """What all addresses together use for metrics, which are made on the event loop that serves xDS."""
        self.port = 0
        """The port that it listens on, once started; of use when the choice was left with port 0."""

    async def start(self) -> None:
        """Listen. OSError: the address cannot be had."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/ready", self._readiness)
        if self._metrics:
            app.router.add_get("/metrics", self._counted)
        listener = HttpListener(app, self._host, self._port)
        await listener.start()
        self._listener = listener
        self.port = listener.port

    async def stop(self) -> None:
        """Stop listening."""
        if self._listener:
            await self._listener.stop()
            self._listener = None

    async def _counted(self, request: web.Request) -> web.Response:
        assert self._metrics  # noqa: S101 - else there is no such path
        loop = asyncio.get_running_loop()
        if (wait := self._scrapes.wait(loop.time())) > 0:
            text = f"the metrics were read too often; try again in {wait:.0f} s\n"
            return web.Response(status=429, text=text)
        began = time.thread_time()
        body, content_type = self._metrics(request.headers.get("Accept", ""))
        took = time.thread_time() - began
        for share in (self._scrapes, client_of(request).share):
            share.charge(took, loop.time())
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, request: web.Request) -> web.Response:
        missing = self._ready()
        if missing:
            return web.Response(text=f"{missing}\n", status=503)
        said = ": ".join(filter(None, ("ready", self._standing())))
        warnings = [problem for problem in self._warnings() if not problem.notice]
        shown = [f"warning: {each}" for each in warnings[:MAX_WARNINGS]] if _is_local(request) else []
        if more := len(warnings) - len(shown):
            shown.append(f"{more} {'more ' if shown else ''}warnings: xds status lists them")
        return web.Response(text="".join(f"{line}\n" for line in (said, *shown)))


def _is_local(request: web.Request) -> bool:
    return request.remote is not None and ipaddress.ip_address(request.remote).is_loopback
