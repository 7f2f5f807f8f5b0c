"""Verification of service account tokens by TokenReview, with a short-lived cache.

Anyone who can connect can send tokens, so requests to the API server are limited: malformed or expired tokens
are rejected locally, concurrent requests for one token share a review, the number of concurrent reviews is
bounded, and an address whose tokens are rejected must wait.
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
"""Maximum number of running and queued reviews. Large enough for a cold start of a large mesh."""
MAX_REFUSALS = 32.0
"""Burst of rejected tokens that is allowed for an address."""
REFILL_RATE = 2.0
"""Rejected tokens per second that are allowed after the burst."""
MAX_BUDGETS = 4096
_REVIEW_TIMEOUT = 10.0
"""Timeout of a review, in seconds."""

_Key: TypeAlias = bytes
_Answer: TypeAlias = Caller | UnauthenticatedError | AuthenticationUnavailableError


class _CachedAnswer(NamedTuple):
    answer: Caller | UnauthenticatedError
    until: float


class TokenReviewer:
    """Returns the caller that a token identifies. `clock` counts seconds; `now` returns the time of day."""

    def __init__(
        self,
        api: KubeApi,
        audience: str = AUDIENCE,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._audience = audience
        self._now = now
        self._clock = clock
        self._accepted: OrderedDict[_Key, _CachedAnswer] = OrderedDict()
        self._rejected: OrderedDict[_Key, _CachedAnswer] = OrderedDict()
        """A separate cache, so that rejected tokens do not evict accepted ones."""
        self._pending: dict[_Key, asyncio.Task[_Answer]] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_REVIEWS)
        self._budgets = _RefusalBudgets(clock)
        self._last_problem = ""
        """The last logged error of the API server."""

    async def __call__(self, token: str, peer: str) -> Caller:
        """Return the identity that a token proves; `peer` is the caller's address, in gRPC's form.

        UnauthenticatedError: the token is invalid. AuthenticationUnavailableError: the API server cannot be
        asked. RateLimitedError: the caller has to retry later.
        """
        end = claims.token_expiry(token, self._now(), self._audience)
        key = hashlib.sha256(token.encode()).digest()
        answer = self._cached(key)
        if answer is None:
            if key not in self._pending:
                self._start_review(key, token, peer.rpartition(":")[0], end)
            answer = await asyncio.shield(self._pending[key])
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)
        return answer

    def _cached(self, key: _Key) -> _Answer | None:
        for known in (self._accepted, self._rejected):
            if found := known.get(key):
                if self._clock() < found.until:
                    return found.answer
                del known[key]
        return None

    def _start_review(self, key: _Key, token: str, address: str, end: datetime) -> None:
        if len(self._pending) >= MAX_PENDING_REVIEWS:
            raise RateLimitedError("too many tokens are being looked at; try again")
        self._budgets.take(address)
        task = asyncio.create_task(self._review(key, token, address, end))
        self._pending[key] = task
        task.add_done_callback(lambda _: self._pending.pop(key))

    async def _review(self, key: _Key, token: str, address: str, end: datetime) -> _Answer:
        """Return the caller or an error. Never raises, because the waiting calls may be cancelled."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            async with self._slots:
                review = await self._api.call("POST", PATH, body, timeout=_REVIEW_TIMEOUT)
            self._last_problem = ""
            caller = claims.from_review(review.get("status"), self._audience)
        except KubeError as error:
            self._budgets.give_back(address)
            return self._undecided(error)
        except UnauthenticatedError as error:
            _store(self._rejected, key, _CachedAnswer(error, self._clock() + REJECTED_TTL))
            return error
        self._budgets.give_back(address)
        left = (end - self._now()).total_seconds()
        _store(self._accepted, key, _CachedAnswer(caller, self._clock() + min(ACCEPTED_TTL, left)))
        return caller

    def _undecided(self, error: KubeError) -> AuthenticationUnavailableError:
        said = str(error)
        if said != self._last_problem:
            self._last_problem = said
            hint = "allow create on tokenreviews in authentication.k8s.io" if error.status == 403 else ""
            log.error("tokens cannot be reviewed", problem=said, **({"hint": hint} if hint else {}))
        return AuthenticationUnavailableError("the API server cannot be asked whose token it is; try again")


def _store(known: OrderedDict[_Key, _CachedAnswer], key: _Key, found: _CachedAnswer) -> None:
    known[key] = found
    if len(known) > MAX_CACHED_TOKENS:
        known.popitem(last=False)


class _RefusalBudgets:
    """Budgets of rejected tokens by address. Each review spends one, and returns it unless it is rejected."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Spent budget by address, and the time of the last update."""

    def take(self, address: str) -> None:
        """Spend one token of the budget. RateLimitedError: the budget is exhausted."""
        taken = self._spent(address) + 1
        if taken > MAX_REFUSALS:
            raise RateLimitedError(
                "too many tokens from this address were refused; try again in a few seconds"
            )
        self._set(address, taken)

    def give_back(self, address: str) -> None:
        self._set(address, self._spent(address) - 1)

    def _spent(self, address: str) -> float:
        taken, at = self._budgets.get(address, (0.0, 0.0))
        return max(taken - (self._clock() - at) * REFILL_RATE, 0.0)

    def _set(self, address: str, taken: float) -> None:
        self._budgets.pop(address, None)
        if taken > 0:
            self._budgets[address] = taken, self._clock()
        if len(self._budgets) > MAX_BUDGETS:
            self._budgets.popitem(last=False)


async def own_account(api: KubeApi) -> tuple[str, str]:
    """Return the namespace and name of our own service account, or empty strings. Raises KubeError."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    review = await api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
    user = str(review.get("status", {}).get("userInfo", {}).get("username", ""))
    return claims.parse_username(user)
