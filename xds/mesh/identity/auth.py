"""Authenticate gRPC calls by client certificate or bearer token.

This module reads a call's credential and maps errors to gRPC statuses. `xds.mesh.identity.claims` validates
the credential.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from typing import TypeAlias

import grpc
import grpc.aio
import structlog

from xds.mesh.identity import claims
from xds.mesh.identity.claims import (
    AuthenticationUnavailableError,
    Caller,
    IdentityPattern,
    RateLimitedError,
    UnauthenticatedError,
)
from xds.mesh.identity.tokens import TokenKey
from xds.server import Refused, is_encrypted
from xds.server.token_bucket import TokenBucket

log = structlog.get_logger(__name__)

TokenVerifier: TypeAlias = Callable[[str, str], Awaitable[Caller]]
"""Function that returns the caller for a token and a peer address in gRPC's format.

It raises UnauthenticatedError or AuthenticationUnavailableError."""

_BEARER = "bearer "
_MAX_LOGGED_REFUSALS = 1024
_LOG_BUDGET = (20, 1)
"""Burst and rate per second of log lines about refused callers. They bound the log during an attack."""


def own_token_verifier(
    key: TokenKey, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> TokenVerifier:
    """Return a verifier for tokens that this control plane signed."""

    async def verify(token: str, _peer: str) -> Caller:
        return key.verify(token, now())

    return verify


class Authentication:
    """Authenticate callers, for XdsServer(authenticate=...). A plaintext call has no caller (None).

    Raises Refused: with UNAUTHENTICATED for an invalid credential, and with UNAVAILABLE or RESOURCE_EXHAUSTED
    if the credential cannot be checked now.
    """

    def __init__(
        self,
        trust_domains: Callable[[], Collection[str]],
        verify: TokenVerifier | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._trust_domains = trust_domains
        self._verify = verify
        self._now = now
        self._logged: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Address and reason of recent refusals. A repeated refusal is logged only at debug level."""
        self._budget = TokenBucket(*_LOG_BUDGET)
        self._suppressed = 0

    async def __call__(self, context: grpc.aio.ServicerContext) -> Caller | None:
        """Return the caller."""
        if not is_encrypted(context):
            return None
        try:
            return await self._authenticate(context)
        except UnauthenticatedError as error:
            raise self._refused(context, grpc.StatusCode.UNAUTHENTICATED, str(error)) from None
        except RateLimitedError as error:
            raise self._refused(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
        except AuthenticationUnavailableError as error:
            raise self._refused(context, grpc.StatusCode.UNAVAILABLE, str(error)) from None

    async def _authenticate(self, context: grpc.aio.ServicerContext) -> Caller:
        if certificate := context.auth_context().get("x509_pem_cert"):
            return claims.from_certificate(certificate[0], self._trust_domains(), self._now())
        token = _bearer(context)
        if not token:
            raise UnauthenticatedError(
                "no credential: send a token as 'authorization: Bearer TOKEN', or present a client "
                "certificate to an mTLS listener"
            )
        if self._verify is None:
            raise UnauthenticatedError(
                "this server does not accept tokens: present a client certificate to an mTLS listener"
            )
        return await self._verify(token, context.peer())

    def _refused(self, context: grpc.aio.ServicerContext, code: grpc.StatusCode, reason: str) -> Refused:
        key = (context.peer().rpartition(":")[0], reason)
        is_known = key in self._logged
        self._logged[key] = None
        if len(self._logged) > _MAX_LOGGED_REFUSALS:
            self._logged.popitem(last=False)
        if is_known:
            log.debug("caller refused", peer=context.peer(), code=code.name, reason=reason)
        elif self._budget.take(asyncio.get_running_loop().time()):
            suppressed = {"suppressed": self._suppressed} if self._suppressed else {}
            log.warning("caller refused", peer=context.peer(), code=code.name, reason=reason, **suppressed)
            self._suppressed = 0
        else:
            self._suppressed += 1
        return Refused(code, reason)


def _bearer(context: grpc.aio.ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return ""


class AdminAuthorizer:
    """Admit only admins, for Introspection(admit=...). Other callers get PERMISSION_DENIED.

    Args:
        authentication: authenticates callers.
        identities: identities of the admins.
        trust_domains: returns the trust domains of the mesh.
        denial: end of the message for other callers.
    """

    def __init__(
        self,
        authentication: Authentication,
        identities: Collection[IdentityPattern],
        trust_domains: Callable[[], Collection[str]],
        *,
        denial: str = "is not an admin: add its identity with --admin-identity",
    ) -> None:
        self._denial = denial
        self._authentication = authentication
        self._identities = identities
        self._trust_domains = trust_domains

    async def __call__(self, context: grpc.aio.ServicerContext) -> None:
        """Return if the caller is an admin; otherwise raise Refused."""
        caller = await self._authentication(context)
        domains = self._trust_domains()
        if caller is None or not any(identity.matches(caller, domains) for identity in self._identities):
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{caller or 'an unauthenticated caller'} {self._denial}",
            )
