"""How this package listens for HTTP."""

from __future__ import annotations

import logging
import ssl
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError


class _Log(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log, without a traceback for each port scan: what a client sends that is no HTTP is no error of ours."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **kwargs: Any) -> None:
        if isinstance(exc_info, HttpProcessingError):
            self.debug(msg, *args)
        else:
            super().exception(msg, *args, exc_info=exc_info, **kwargs)


async def listen(
    app: web.Application, host: str, port: int, *, tls: ssl.SSLContext | None = None
) -> web.AppRunner:
    """Serve an application; `cleanup` of what is returned ends that. OSError: the address cannot be had."""
    runner = web.AppRunner(app, access_log=None, logger=_Log(logging.getLogger("aiohttp.server")))
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
