"""A web application of a test's own."""

from __future__ import annotations

from aiohttp import web


async def listen(app: web.Application, host: str, port: int) -> web.AppRunner:
    """Serve an application without any limits; `cleanup` of the result stops that."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
