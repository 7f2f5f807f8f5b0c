"""One question and its answer between an application and a service, and how it went over the wire."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.clients import NO_ANSWER, Client
from tests.support.cluster import ClusterPod

HTTP1, HTTP2, TCP, SERVER_FIRST = "HTTP/1.1", "HTTP/2", "TCP", "server-first TCP"
MTLS, PLAINTEXT, FAILS = "mtls", "plaintext", "fails"

Saw = Callable[[str], bool]
"""Whether this went over the wire where everybody could read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What became of it."""

    how: str
    """MTLS, PLAINTEXT (anybody on the way could read the question), or FAILS."""
    pod: str = ""
    """POD.NAMESPACE that answered."""
    identity: str = ""
    """Of the client, as the application was told it; for HTTP only."""
    protocol: str = ""
    """As it reached the application."""
    why: str = ""
    """Where it failed: the status and body, or the error."""


async def exchange(
    saw: Saw, what: str, client: ClusterPod, host: str, port: int, *, timeout: float = 30
) -> Exchange:
    """Ask for something that nobody ever asked for before, and look for it on the wire."""
    token = secrets.token_hex(12)
    if what in (HTTP1, HTTP2):
        get = client.client.get if what == HTTP1 else client.client.get_http2
        answer = await get(f"http://{host}:{port}/{token}", timeout=timeout)
        if not answer.ok:
            return Exchange(how=FAILS, why=f"{answer.code} {answer.error or answer.text}")
        assert answer.echo["path"] == f"/{token}"
        return Exchange(
            how=PLAINTEXT if saw(token) else MTLS,
            pod=answer.pod,
            identity=answer.identity,
            protocol=answer.echo["protocol"],
        )
    try:
        said = await _converse(client.client, host, port, token, timeout, greeted=what == SERVER_FIRST)
    except NO_ANSWER as error:
        return Exchange(how=FAILS, why=f"{type(error).__name__}: {error}")
    pod, _, echo = said.partition(": ")
    assert echo == token
    how = PLAINTEXT if saw(token) else MTLS
    return Exchange(how=how, pod=pod, protocol="TCP")


async def _converse(client: Client, host: str, port: int, line: str, timeout: float, *, greeted: bool) -> str:
    async with client.tcp(host, port, timeout=timeout) as conversation:
        if greeted:
            greeting = await conversation.hear()
            assert greeting.startswith("220 "), greeting
        return await conversation.ask(line)
