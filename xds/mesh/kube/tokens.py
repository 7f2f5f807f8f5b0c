"""Verification of service account tokens by TokenReview, with a short-lived cache.

Anyone who can connect can send tokens, so requests to the API server are limited: malformed or expired tokens
are rejected locally, concurrent requests for one token share a review, the number of concurrent reviews is
bounded, and rejected tokens are rate-limited by address.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

import structlog

from xds.mesh.identity import AUDIENCE, claims
from xds.mesh.identity.claims import (
    AuthenticationUnavailableError,
    Caller,
    RateLimitedError,
    UnauthenticatedError,
)
from xds.mesh.kube.api import KubeApi, KubeError
from xds.server.token_bucket import TokenBuckets

log = structlog.get_logger(__name__)

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"

ACCEPTED_TTL = 30.0
"""Seconds for which an accepted token is cached, unless it expires earlier."""
REJECTED_TTL = 10.0
"""Seconds for which a rejected token is cached. A misconfigured client retries with the same token."""
MAX_CACHED_TOKENS = 8192
"""Maximum number of accepted, and of rejected, tokens in the cache."""

MAX_CONCURRENT_REVIEWS = 16
"""Maximum number of concurrent requests to the API server."""
MAX_PENDING_REVIEWS = 4096
"""Maximum number of running and queued reviews, sufficient for a cold start of a large mesh."""
MAX_REFUSALS = 32.0
"""Allowed burst of rejected tokens from one address."""
REFILL_RATE = 2.0
"""Allowed rejected tokens per second from one address, after the burst."""
MAX_BUDGETS = 4096
"""Maximum number of addresses whose budgets are tracked."""
_REVIEW_TIMEOUT = 10.0
"""Timeout of a review, in seconds."""

_Key: TypeAlias = bytes
_Answer: TypeAlias = Caller | UnauthenticatedError | AuthenticationUnavailableError


class _CachedAnswer(NamedTuple):
    answer: Caller | UnauthenticatedError
    until: float


class TokenReviewer:
    """Verifies tokens. `clock` returns monotonic seconds; `now` returns the current time."""

    def __init__(
        self,
        api: KubeApi,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._now = now
        self._clock = clock
        self._accepted: OrderedDict[_Key, _CachedAnswer] = OrderedDict()
        self._rejected: OrderedDict[_Key, _CachedAnswer] = OrderedDict()
        """A separate cache, so that rejected tokens do not evict accepted ones."""
        self._pending: dict[_Key, asyncio.Task[_Answer]] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_REVIEWS)
        self._budgets = TokenBuckets(MAX_BUDGETS)
        """Budget of rejected tokens of each address."""
        self._last_problem = ""
        """Last logged error of the API server."""

    async def __call__(self, token: str, peer: str) -> Caller:
        """Return the caller that a token identifies.

        Args:
            token: the service account token.
            peer: address of the peer that sent it, in gRPC's form.

        Raises:
            UnauthenticatedError: the token is invalid.
            AuthenticationUnavailableError: the API server cannot review it.
            RateLimitedError: too many reviews are pending, or too many tokens from the address were rejected.
        """
        expiry = claims.token_expiry(token, self._now(), AUDIENCE)
        key = hashlib.sha256(token.encode()).digest()
        answer = self._cached(key)
        if answer is None:
            if key not in self._pending:
                self._start_review(key, token, peer.rpartition(":")[0], expiry)
            answer = await asyncio.shield(self._pending[key])
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)
        return answer

    def _cached(self, key: _Key) -> _Answer | None:
        for cache in (self._accepted, self._rejected):
            if cached := cache.get(key):
                if self._clock() < cached.until:
                    return cached.answer
                del cache[key]
        return None

    def _start_review(self, key: _Key, token: str, address: str, expiry: datetime) -> None:
        if len(self._pending) >= MAX_PENDING_REVIEWS:
            raise RateLimitedError("too many tokens are being reviewed; try again")
        if not self._budgets.of(address, MAX_REFUSALS, REFILL_RATE).take(self._clock()):
            raise RateLimitedError(
                "too many tokens from this address were rejected; try again in a few seconds"
            )
        task = asyncio.create_task(self._review(key, token, address, expiry))
        self._pending[key] = task
        task.add_done_callback(lambda _: self._pending.pop(key))

    async def _review(self, key: _Key, token: str, address: str, expiry: datetime) -> _Answer:
        """Return the caller or an error, and give back the budget unless the token is rejected.

        Never raises, because the waiting calls may be cancelled.
        """
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        try:
            async with self._slots:
                review = await self._api.call("POST", PATH, body, timeout=_REVIEW_TIMEOUT)
            self._last_problem = ""
            caller = claims.from_review(review.get("status"), AUDIENCE)
        except KubeError as error:
            self._budgets.give_back(address)
            return self._unavailable(error)
        except UnauthenticatedError as error:
            _store(self._rejected, key, _CachedAnswer(error, self._clock() + REJECTED_TTL))
            return error
        self._budgets.give_back(address)
        lifetime = (expiry - self._now()).total_seconds()
        _store(self._accepted, key, _CachedAnswer(caller, self._clock() + min(ACCEPTED_TTL, lifetime)))
        return caller

    def _unavailable(self, error: KubeError) -> AuthenticationUnavailableError:
        problem = str(error)
        if problem != self._last_problem:
            self._last_problem = problem
            hint = "allow create on tokenreviews in authentication.k8s.io" if error.status == 403 else ""
            log.error("cannot review tokens", problem=problem, **({"hint": hint} if hint else {}))
        return AuthenticationUnavailableError("the API server cannot review the token; try again")


def _store(cache: OrderedDict[_Key, _CachedAnswer], key: _Key, answer: _CachedAnswer) -> None:
    cache[key] = answer
    if len(cache) > MAX_CACHED_TOKENS:
        cache.popitem(last=False)


async def own_account(api: KubeApi) -> tuple[str, str]:
    """Return the namespace and name of this process's service account, or empty strings. Raises KubeError."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    review = await api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
    user = str(review.get("status", {}).get("userInfo", {}).get("username", ""))
    return claims.parse_username(user)
