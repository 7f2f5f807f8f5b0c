"""Who may see the page and its API: clients that have the admin token, or local clients if there is none."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from aiohttp import web

from xds.server.http import foreign_host, is_local
from xds.server.proxies import truncate

MIN_TOKEN_LENGTH = 16
"""Minimum number of characters of the admin token, so that it cannot be guessed."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Headers of all responses of the page and its API."""

Respond: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SAME_ORIGIN = {"same-origin", "none"}
"""Values of Sec-Fetch-Site in requests of the page itself, and of a user who enters the address."""


class Access:
    """Decide which requests for the page are answered.

    Args:
        token: Token that all clients need; None to admit local clients only, without a token.
        names: Names of this server with a dot, which a Host header may contain.
    """

    def __init__(self, token: str | None = None, names: Iterable[str] = ()) -> None:
        self._token = token.encode() if token else None
        self._names = frozenset(name.lower() for name in names)

    def guarded(self, respond: Respond, *, is_document: bool = False) -> Respond:
        """Return a handler that responds to admitted requests only.

        Args:
            respond: Handler of admitted requests.
            is_document: Whether pages of other sites may link to it. They may not load it otherwise.
        """

        async def handler(request: web.Request) -> web.StreamResponse:
            refusal = self._refusal(request, is_document=is_document)
            if refusal is not None:
                refusal.headers.extend(SECURITY_HEADERS)
                return refusal
            response = await respond(request)
            if not response.prepared:
                response.headers.extend(SECURITY_HEADERS)
            return response

        return handler

    def _refusal(self, request: web.Request, *, is_document: bool) -> web.Response | None:
        """Return the response to a request that is not admitted; None if it is admitted."""
        if host := foreign_host(request, self._names):
            text = f"unknown Host {truncate(host)!r}: use this server's address, localhost or a --tls-name\n"
            return web.Response(status=421, text=text)
        if not is_document and request.headers.get("Sec-Fetch-Site", "none") not in _SAME_ORIGIN:
            return web.Response(status=403, text="requests of other sites' pages are refused\n")
        if self._token is None:
            if is_local(request):
                return None
            text = (
                "this page is for clients on the machine of the control plane: use a port-forward, or set "
                "--admin-token\n"
            )
            return web.Response(status=403, text=text)
        if hmac.compare_digest(_token_in(request), self._token):
            return None
        return web.Response(
            status=401,
            text="the admin token is required: as the password, with any user name, or as a bearer token\n",
            headers={"WWW-Authenticate": 'Basic realm="xds", charset="UTF-8"'},
        )


def check_token(text: str) -> str:
    """Return the token in the content of a file.

    Raises:
        ValueError: the token is too short, or contains characters that a header cannot transport.
    """
    token = text.strip()
    if len(token) < MIN_TOKEN_LENGTH:
        raise ValueError(f"the token has {len(token)} characters; at least {MIN_TOKEN_LENGTH} are required")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError("the token must consist of printable ASCII characters without spaces")
    return token


def _token_in(request: web.Request) -> bytes:
    """Return the token of a request: a bearer token, or the password of HTTP Basic; empty without one."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    try:
        if scheme.lower() == "bearer":
            return credentials.strip().encode()
        if scheme.lower() == "basic":
            return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:  # A character outside ASCII, or malformed base64.
        pass
    return b""
