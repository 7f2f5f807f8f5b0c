"""The admin port: whether the process runs, and whether it serves what it should."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web


class AdminServer:
    """A small HTTP server for those who look after the process.

    `ready` returns None when the process serves what it should, else in words what it still lacks.
    """

    def __init__(self, ready: Callable[[], str | None], host: str, port: int) -> None:
        self._ready = ready
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self.port = 0
        """The port that it listens on, once started; of use when the choice was left with port 0."""

    async def start(self) -> None:
        """Listen. OSError: the address cannot be had."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/ready", self._readiness)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        missing = self._ready()
        return web.Response(text=f"{missing}\n", status=503) if missing else web.Response(text="ready\n")
