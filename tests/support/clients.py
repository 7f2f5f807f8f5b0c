"""Clients: HTTP/1.1, HTTP/2 with prior knowledge, and TCP, from any place, with the pod's name resolution."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import aiohttp.abc

from tests.support import http2
from tests.support.answers import Answer
from tests.support.places import HERE, Place, family_of
from tests.support.tcp import Conversation

Resolve = Callable[[str, int], Sequence[tuple[str, int]]]
"""(host, port) -> the addresses to try, which may have other ports where nothing rewrites them on the way."""

NO_ANSWER = (
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    OSError,
    TimeoutError,
    http2.ClosedError,
)


class Client:
    """What an application in a pod uses to call others."""

    def __init__(
        self, place: Place = HERE, resolve: Resolve | None = None, *, proxy: str | None = None
    ) -> None:
        self.place = place
        self.resolve = resolve or (lambda _host, _port: [])
        self.proxy = proxy
        """URL of the HTTP proxy that plain HTTP requests go through."""

    def session(self, *, keep_alive: bool = False, connections: int = 1) -> aiohttp.ClientSession:
        """Return a session of its own. It never repeats a request that failed."""
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(self.resolve),
            use_dns_cache=False,
            force_close=not keep_alive,
            limit=connections,
            socket_factory=lambda address: self.place.tcp_socket(address[0]),
        )
        session = aiohttp.ClientSession(connector=connector, headers={"user-agent": "curl"})
        session._retry_connection = False
        return session

    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        timeout: float = 30,
    ) -> Answer:
        """Send one HTTP/1.1 request on a connection of its own."""
        async with self.session() as session:
            return await ask(
                session,
                url,
                headers=headers,
                method=method,
                proxy=self.proxy,
                ssl=tls or True,
                server_hostname=server_name,
                timeout=aiohttp.ClientTimeout(timeout),
            )

    async def gets(self, url: str, count: int, **how: Any) -> list[Answer]:
        """Send requests one after another, each on a connection of its own."""
        return [await self.get(url, **how) for _ in range(count)]

    async def get_http2(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 30,
    ) -> Answer:
        """Send one HTTP/2 request with prior knowledge, without TLS unless given."""
        parts = urlsplit(url)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        try:
            async with asyncio.timeout(timeout):
                connected = await self.connect(parts.hostname or "", parts.port or 80)
                return await http2.request(connected, parts.netloc, target, headers or {}, tls)
        except NO_ANSWER as error:
            return Answer.failed(error)

    async def connect(self, host: str, port: int) -> socket.socket:
        """Connect to the first address of a name, or to a literal address (IPv6: in brackets or not)."""
        host = host.strip("[]")
        targets = [(host, port)] if _is_address(host) else self.resolve(host, port)
        if not targets:
            raise ConnectionError(f"no such host: {host}")
        made = self.place.tcp_socket(family_of(targets[0][0]))
        try:
            await asyncio.get_running_loop().sock_connect(made, targets[0])
        except BaseException:
            made.close()
            raise
        return made

    @asynccontextmanager
    async def tcp(self, host: str, port: int, *, timeout: float = 30) -> AsyncIterator[Conversation]:
        """Talk over a TCP connection, through the proxy by CONNECT if there is one."""
        if self.proxy is None:
            conversation = await Conversation.over(await self.connect(host, port), timeout)
        else:
            proxy_host, _, proxy_port = self.proxy.removeprefix("http://").partition(":")
            conversation = await Conversation.over(await self.connect(proxy_host, int(proxy_port)), timeout)
            await conversation.connect_through(f"{host}:{port}")
        try:
            yield conversation
        finally:
            await conversation.close()


async def ask(session: aiohttp.ClientSession, url: str, *, method: str = "GET", **how: Any) -> Answer:
    """Send one request over a session."""
    try:
        async with session.request(method, url, allow_redirects=False, **how) as response:
            text = await response.text()
            seen = {name.lower(): value for name, value in response.headers.items()}
            return Answer(code=str(response.status), text=text, headers=seen)
    except NO_ANSWER as error:
        return Answer.failed(error)


def rotating(table: Mapping[tuple[str, int], Sequence[tuple[str, int]]]) -> Resolve:
    """Resolve (name, port) to its endpoints in turn, as DNS and kube-proxy together would."""
    turn = itertools.count()

    def resolve(host: str, port: int) -> Sequence[tuple[str, int]]:
        endpoints = list(table.get((host, port), ()))
        first = next(turn) % len(endpoints) if endpoints else 0
        return endpoints[first:] + endpoints[:first]

    return resolve


class _Resolver(aiohttp.abc.AbstractResolver):
    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        found = self._resolve(host, port)
        if not found:
            raise OSError(f"no such host: {host}")
        flags = socket.AI_NUMERICHOST
        return [
            {
                "hostname": host,
                "host": to,
                "port": target,
                "family": family_of(to),
                "proto": 0,
                "flags": flags,
            }
            for to, target in found
        ]

    async def close(self) -> None:
        """Hold nothing."""


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdecimal()
