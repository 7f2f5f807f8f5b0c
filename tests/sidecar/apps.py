"""Applications of pods: one that answers with a status, and one with metrics."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from tests.support.places import Place

PATH = "/stats/prometheus"
SUCCESS = "xds_application_scrape_success"


class App:
    """An HTTP application with a configurable status, which records its requests."""

    def __init__(self) -> None:
        self.status = 200
        self.requests: list[web.BaseRequest] = []

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.requests.append(request)
        if request.path == "/moved":
            return web.Response(status=302, headers={"location": "/elsewhere"})
        return web.Response(status=self.status, text=f"{request.path_qs} is {self.status}")

    @asynccontextmanager
    async def at(
        self, place: Place, port: int, tls: ssl.SSLContext | None = None, *, address: str = "0.0.0.0"
    ) -> AsyncIterator[None]:
        server = web.Server(self.answer, access_log=None)
        listening = await asyncio.get_running_loop().create_server(
            server, sock=place.listener(address, port), ssl=tls
        )
        try:
            yield
        finally:
            listening.close()
            await server.shutdown(1)
            await listening.wait_closed()


class Exporter(App):
    """An application with a counter, in the format that the client accepts, or with a fixed answer."""

    def __init__(self, **fixed: object) -> None:
        super().__init__()
        registry = CollectorRegistry()
        self.sales = Counter("sales", "Sold items.", registry=registry)
        self._registry, self._fixed = registry, fixed

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.requests.append(request)
        if self._fixed:
            return web.Response(**self._fixed)
        module = openmetrics if "openmetrics" in request.headers["Accept"] else exposition
        headers = {"content-type": module.CONTENT_TYPE_LATEST}
        return web.Response(body=module.generate_latest(self._registry), headers=headers)
