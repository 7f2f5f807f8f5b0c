"""The HTTP ports of `xds serve` under attack: xDS and honest clients are not affected."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from tests.hostile.attackers import HONEST, connected, get, many, post
from tests.hostile.harness import MESH, MIB, NODE, Target, _descriptors, _memory
from tests.support.loopback import free_port
from tests.support.processes import open_files

CLUSTERS = "/v3/discovery:clusters"
SECRETS = "/v3/discovery:secrets"
WITHIN = 60.0
"""Timeout in seconds, several times the expected duration on a slow machine."""
OTHERS = [f"127.0.0.{n}" for n in range(60, 72)]


class Web(Target):
    """`xds serve` with a REST address."""

    def __init__(self, directory: Path, mesh: str = MESH) -> None:
        self.rest = ("127.0.0.1", free_port())
        super().__init__(directory, f"--rest-address=127.0.0.1:{self.rest[1]}", mesh=mesh)

    async def get(self, path: str, source: str = HONEST) -> tuple[int, bytes]:
        """Send a request to the admin port on a new connection."""
        async with connected(self.admin, source) as connection, asyncio.timeout(WITHIN):
            return await connection.ask(get(path))

    async def poll(self, path: str, *names: str, **headers: str) -> tuple[int, bytes]:
        """Send a request to the REST port as the sidecar."""
        request = json.dumps({"node": {"id": NODE}, "resource_names": names}).encode()
        async with connected(self.rest, HONEST) as connection, asyncio.timeout(WITHIN):
            return await connection.ask(post(path, request, **headers))


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Web]:
    """One process for all tests, which use different addresses, as a start takes longer than an attack."""
    async with Web(tmp_path_factory.mktemp("hostile-http")) as target:
        yield target


async def test_idle_connections_do_not_block_others(target: Web) -> None:
    """Regression: all 1,024 descriptors were used, xDS was unavailable, and the log was flooded."""
    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    async with (
        target.watched() as cost,
        many(target.admin, OTHERS, 100),
        many(target.rest, OTHERS, 100),
    ):
        for _ in range(5):
            assert await target.get("/healthz") == (200, b"ok\n")
            assert (await target.poll(CLUSTERS))[0] == 200
        async with target.channel(target.token(pod="web-1")) as channel:
            await asyncio.wait_for(channel.channel_ready(), WITHIN)
    assert not cost.failures
    assert cost.descriptors < 400
    assert cost.log_lines < 20
    assert cost.memory < 64 * MIB


async def test_connections_beyond_the_limit_of_an_address_are_closed(target: Web) -> None:
    async with many(target.admin, ["127.0.0.81"], 64) as idle, asyncio.timeout(WITHIN):
        closed = [asyncio.create_task(one.closed()) for one in idle]
        while sum(task.done() for task in closed) < 32:
            await asyncio.wait(closed, return_when=asyncio.FIRST_COMPLETED, timeout=0.1)
        assert await target.get("/healthz") == (200, b"ok\n")
        for task in closed:
            task.cancel()
        await asyncio.gather(*closed, return_exceptions=True)


async def test_lack_of_descriptors_is_logged_once(target: Web) -> None:
    """Regression: asyncio logged 8,000 lines a second, as it retries a failed accept 128 times at once."""
    lines, (soft, hard) = (
        target.log.read_bytes().count(b"\n"),
        resource.prlimit(target.pid, resource.RLIMIT_NOFILE),
    )
    async with many(target.admin, ["127.0.0.84"], 5):
        assert await target.get("/healthz") == (200, b"ok\n")
        try:
            async with asyncio.timeout(WITHIN):
                # A busy server may still close connections of earlier tests, and then has free descriptors.
                while b"cannot accept connections" not in target.log.read_bytes():
                    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (_descriptors(target.pid), hard))
                    async with many(target.admin, ["127.0.0.85"], 20):
                        await asyncio.sleep(0.05)
        finally:
            resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert await target.get("/healthz") == (200, b"ok\n")
    assert target.log.read_bytes().count(b"\n") - lines < 10


SLOW = {
    "says nothing": b"",
    "half a header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ",
    "second request": get("/healthz") + b"GET /heal",
    "no body": b"POST /v3/discovery:clusters HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{",
    "endless body": b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    "reads nothing": get("/metrics") * 4000,
}


async def test_slow_clients_are_disconnected(target: Web) -> None:
    """Regression: silent clients were closed after 3,630 s, and clients that did not read, never."""

    async def attack(start: bytes) -> None:
        async with connected(
            target.rest if b"POST /v3" in start else target.admin, "127.0.0.82"
        ) as connection:
            reads = start != SLOW["reads nothing"]
            if not reads:
                connection.writer.transport.pause_reading()
            connection.writer.write(start)
            while not connection.writer.transport.is_closing():
                with suppress(OSError):
                    # Sending a header byte per second does not extend the timeout.
                    connection.writer.write(b"a" if start.endswith((b"X: ", b"/heal")) else b"")
                if reads and connection.reader.at_eof():
                    return
                if not reads and not await _is_open(connection.writer.get_extra_info("sockname")[1], target):
                    return
                with suppress(TimeoutError, ConnectionError):
                    await asyncio.wait_for(connection.reader.read(1 << 16), 0.5)

    lines = target.log.read_bytes().count(b"\n")
    attacks = {name: asyncio.create_task(attack(start)) for name, start in SLOW.items()}
    await asyncio.wait(attacks.values(), timeout=WITHIN)
    assert [name for name, task in attacks.items() if not task.done()] == []
    assert target.log.read_bytes().count(b"\n") - lines < 10
    await asyncio.gather(*attacks.values())


async def _is_open(port: int, target: Web) -> bool:
    """Whether the server holds a connection from a local port."""
    held = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if int(line.split()[2].rpartition(":")[2], 16) == port
    }
    sockets = open_files(target.pid)
    return any(f"socket:[{inode}]" in sockets for inode in held)


async def test_large_headers_cost_little_memory(target: Web) -> None:
    """Regression: each connection with incomplete headers used a megabyte."""
    async with AsyncExitStack() as stack:
        before = _memory(target.pid)
        for source in OTHERS:
            for number in range(32):
                with suppress(OSError):
                    connection = await stack.enter_async_context(connected(target.admin, source))
                    header = b"".join(b"x-%d: %s\r\n" % (n, b"a" * 8000) for n in range(120))
                    connection.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + header)
                    if number == 31 and source == OTHERS[-1]:
                        await asyncio.wait_for(connection.reader.read(1), 5)
        assert await target.get("/healthz") == (200, b"ok\n")
        assert _memory(target.pid) - before < 192 * MIB, "384 connections used 384 MiB"


async def test_web_page_gets_no_answer(target: Web) -> None:
    """Regression: DNS rebinding let a web page read everything, including private keys."""
    assert (await target.poll(CLUSTERS, Host="evil.example.com"))[0] == 421
    assert (await target.poll(CLUSTERS, Origin="http://evil.example.com:15020"))[0] == 403
    assert (await target.poll(CLUSTERS, Sec_Fetch_Site="same-origin"))[0] == 403
    assert (await target.poll(CLUSTERS, Content_Type="text/plain"))[0] == 415
    for host in ("127.0.0.1:15020", "[::1]:15020", "localhost", "xds_cluster"):
        assert (await target.poll(CLUSTERS, Host=host))[0] == 200


async def test_rest_serves_no_private_key(target: Web) -> None:
    status, body = await target.poll(SECRETS, "default", "ROOTCA")
    assert (status, b"are served only over TLS" in body) == (403, True)
    status, body = await target.poll(SECRETS)
    assert b"PRIVATE KEY" not in body
    assert b"inline_bytes" not in body.replace(b"trusted_ca", b"", 1).partition(b"private_key")[2]
    status, body = await target.poll(SECRETS, "ROOTCA")
    assert [secret["name"] for secret in json.loads(body)["resources"]] == ["ROOTCA"]
