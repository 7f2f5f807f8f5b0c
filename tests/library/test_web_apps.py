"""The programs of docs/how-to/embed-in-a-web-app.md, with a real Envoy."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import aiohttp
import pytest

from tests.support.envoy import EnvoyProcess
from tests.support.loopback import free_port
from tests.support.waiting import eventually
from xds.testing import bootstrap

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "embed-in-a-web-app.md"
COMMANDS = {
    "fastapi_app": ("uvicorn", "fastapi_app:app", "--port"),
    "flask_app": ("flask", "--app", "flask_app", "run", "--no-reload", "--port"),
}
BAD = "web: 'app.example:80' has a host name, which Envoy does not resolve in an assignment"
REJECTED = "[fe80::1%none]:80"
"""Valid for Python; Envoy rejects it."""


@pytest.mark.envoy
@pytest.mark.parametrize("name", COMMANDS)
async def test_web_app_serves_what_its_requests_set(variant, name, tmp_path):
    page = PAGE.read_text()
    assert f"`{' '.join(COMMANDS[name][:-1])}`" in page
    (program,) = re.findall(rf'```python title="{name}.py"\n(.*?)```', page, re.DOTALL)
    xds, http = free_port(), free_port()
    (tmp_path / f"{name}.py").write_text(program.replace("18000", str(xds)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *COMMANDS[name], str(http), cwd=tmp_path, stdout=PIPE, stderr=STDOUT
    )
    url = f"http://127.0.0.1:{http}/services/web"
    try:
        async with (
            EnvoyProcess("edge", bootstrap("edge", xds, variant=variant), tmp_path, may_reject=True) as envoy,
            aiohttp.ClientSession() as session,
        ):

            async def put_json(body: object) -> tuple[int, dict[str, list[str]]]:
                async with session.put(url, json=body) as response:
                    return response.status, await response.json()

            async def put(*addresses: str) -> tuple[int, dict[str, list[str]]]:
                return await put_json(addresses)

            async def connected() -> bool:
                return await put("127.0.0.1:1") == (200, {"acked_by": ["edge"]})

            await eventually(connected, timeout=60, what="the Envoy has ACKed")
            assert await put("127.0.0.1:2") == (200, {"acked_by": ["edge"]})
            assert "web::127.0.0.1:2::" in await envoy.admin.get("/clusters")
            status, answer = await put("app.example:80")
            assert status == 422
            assert str(*answer.values()).startswith(BAD)
            for body in ([1], {"127.0.0.1:2": 1}, "127.0.0.1:2"):
                assert (await put_json(body))[0] == 422
            status, answer = await put(REJECTED)
            assert status == 409
            assert "edge rejected ClusterLoadAssignment web" in str(answer)
            # An Envoy that starts after the rejection gets what was served before.
            late = bootstrap("late", xds, variant=variant)
            async with EnvoyProcess("late", late, tmp_path) as other:
                assert "web::127.0.0.1:2::" in await other.admin.get("/clusters")
        process.send_signal(signal.SIGINT)
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert b"Traceback" not in output, output.decode()
