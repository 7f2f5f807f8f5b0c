"""The admin port."""

from __future__ import annotations

import asyncio
import logging
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from xds.mesh.controlplane.admin import AdminServer
from xds.mesh.model.objects import Problem
from xds.server.http import HttpListener


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def test_admin_is_healthy_at_once_and_ready_later():
    missing: str | None = "the manifests are being read"
    server = AdminServer(lambda: missing, "127.0.0.1", 0)
    await server.start()
    try:
        assert await get(server.port, "/healthz") == (200, "ok\n")
        assert await get(server.port, "/ready") == (503, "the manifests are being read\n")
        missing = None
        assert await get(server.port, "/ready") == (200, "ready\n")
        assert (await get(server.port, "/other"))[0] == 404
    finally:
        await server.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(server.port, "/healthz")
    await server.stop()


async def test_ready_lists_a_limited_number_of_warnings():
    problems = [
        Problem(where="m/lock.yaml:3", what="has no effect", hint="mend it"),
        Problem(where="m/x.yaml:1", what="was passed over", notice=True),
    ]
    server = AdminServer(lambda: None, "127.0.0.1", 0, note=lambda: "", warnings=lambda: problems)
    await server.start()
    try:
        warning = "warning: m/lock.yaml:3: has no effect (mend it)\n"
        assert await get(server.port, "/ready") == (200, f"ready\n{warning}")
        problems += [Problem(where="x", what="is wrong")] * 1000
        _, text = await get(server.port, "/ready")
        assert len(text.splitlines()) == 22
        assert text.splitlines()[-1] == "981 more warnings: xds status lists them"
        # Other clients see only the number of warnings: on other machines, as the kubelet, behind a sidecar
        # or a reverse proxy on this machine, and pages of other sites whose name resolves to this server.
        for peer, headers in (
            ("10.0.0.1", {}),
            ("127.0.0.6", {}),
            ("127.0.0.1", {"Host": "evil.example"}),
            ("127.0.0.1", {"X-Forwarded-For": "10.0.0.1"}),
        ):
            transport = Mock()
            transport.get_extra_info.side_effect = {"peername": (peer, 41234)}.get
            request = make_mocked_request("GET", "/ready", headers=headers, transport=transport)
            response = await server._get_readiness(request)
            assert response.text == "ready\n1001 warnings: xds status lists them\n"
    finally:
        await server.stop()


async def test_port_in_use_is_an_error():
    first = AdminServer(lambda: None, "127.0.0.1", 0)
    await first.start()
    with pytest.raises(OSError, match="address already in use"):
        await AdminServer(lambda: None, "127.0.0.1", first.port).start()
    await first.stop()


TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2


async def test_invalid_http_is_refused_without_a_log_line(caplog):
    server = AdminServer(lambda: None, "127.0.0.1", 0)
    await server.start()
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    try:
        for sent in (
            TLS_HELLO,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/x\r\n\r\n",
            asked + b"a b: c\r\n\r\n",
            asked + b"\r\n" + asked + b"a b: c\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 30)
            assert b"HTTP/1.0 400" in answer or b"HTTP/1.1 400" in answer
            writer.close()
        assert await get(server.port, "/healthz") == (200, "ok\n")
    finally:
        await server.stop()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_internal_error_is_logged(caplog):
    async def fail(_: web.Request) -> web.Response:
        raise ZeroDivisionError("a bug")

    app = web.Application()
    app.router.add_get("/", fail)
    listener = HttpListener(app, "127.0.0.1", 0)
    await listener.start()
    try:
        assert (await get(listener.port, "/"))[0] == 500
    finally:
        await listener.stop()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert isinstance(record.exc_info[1], ZeroDivisionError)
