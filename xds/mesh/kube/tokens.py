"""Whose token it is, asked of the API server by TokenReview; what it said is remembered for a moment.

Anybody who reaches our port can show tokens, so what an attacker can make us ask is limited: what is plainly no good is not shown to
the API server, concurrent questions about one token are one, few are asked at a time, and an address whose tokens are
refused has to wait.
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

GOOD_FOR = 30.0
"""Seconds that a token counts as good after it was found to be, unless it expires before."""
BAD_FOR = 10.0
"""Seconds that it counts as bad: who mounted the wrong one tries again and again."""
MOST_KEPT = 8192
"""Tokens of each kind that are remembered."""

AT_ONCE = 16
"""Reviews that are under way at the API server."""
MOST_WAITING = 4096
"""Reviews that are under way or wait for that: a large mesh after a cold start."""
FAILURES = 32.0
"""Tokens from one address that may be refused one after the other,"""
RECOVERY = 2.0
"""and how many more per second after that."""
MOST_ADDRESSES = 4096
_WITHIN = 10.0
"""Seconds for an answer of the API server."""

_Key: TypeAlias = bytes
_Answer: TypeAlias = Caller | UnauthenticatedError | AuthenticationUnavailableError


class _Known(NamedTuple):
    answer: Caller | UnauthenticatedError
    until: float


class TokenReviews:
    """Tells whose tokens are. `clock` is in seconds, `now` the time of day."""

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
        self._good: OrderedDict[_Key, _Known] = OrderedDict()
        self._bad: OrderedDict[_Key, _Known] = OrderedDict()
        """Apart, so that bad ones do not push out the good."""
        self._under_way: dict[_Key, asyncio.Task[_Answer]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._failures = _Failures(clock)
        self._said = ""
        """What the log was last told that the API server cannot be asked."""

    async def __call__(self, token: str, peer: str) -> Caller:
        """Return whose token it is; `peer` is who shows it, in gRPC's form.

        UnauthenticatedError: nobody's. AuthenticationUnavailableError: the API server cannot be asked. RateLimitedError: it is not, for now.
        """
        end = claims.token_expiry(token, self._now(), self._audience)
        key = hashlib.sha256(token.encode()).digest()
        answer = self._remembered(key)
        if answer is None:
            if key not in self._under_way:
                self._begin(key, token, peer.rpartition(":")[0], end)
            answer = await asyncio.shield(self._under_way[key])
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)
        return answer

    def _remembered(self, key: _Key) -> _Answer | None:
        for known in (self._good, self._bad):
            if found := known.get(key):
                if self._clock() < found.until:
                    return found.answer
                del known[key]
        return None

    def _begin(self, key: _Key, token: str, address: str, end: datetime) -> None:
        if len(self._under_way) >= MOST_WAITING:
            raise RateLimitedError("too many tokens are being looked at; try again")
        self._failures.take(address)
        task = asyncio.create_task(self._ask(key, token, address, end))
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key))

    async def _ask(self, key: _Key, token: str, address: str, end: datetime) -> _Answer:
        """Return what is to be told; nothing is raised, as perhaps nobody waits any longer."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            async with self._slots:
                review = await self._api.call("POST", PATH, body, timeout=_WITHIN)
            self._said = ""
            caller = claims.from_review(review.get("status"), self._audience)
        except KubeError as error:
            self._failures.give_back(address)
            return self._undecided(error)
        except UnauthenticatedError as error:
            _keep(self._bad, key, _Known(error, self._clock() + BAD_FOR))
            return error
        self._failures.give_back(address)
        left = (end - self._now()).total_seconds()
        _keep(self._good, key, _Known(caller, self._clock() + min(GOOD_FOR, left)))
        return caller

    def _undecided(self, error: KubeError) -> AuthenticationUnavailableError:
        said = str(error)
        if said != self._said:
            self._said = said
            hint = "allow create on tokenreviews in authentication.k8s.io" if error.status == 403 else ""
            log.error("tokens cannot be reviewed", problem=said, **({"hint": hint} if hint else {}))
        return AuthenticationUnavailableError("the API server cannot be asked whose token it is; try again")


def _keep(known: OrderedDict[_Key, _Known], key: _Key, found: _Known) -> None:
    known[key] = found
    if len(known) > MOST_KEPT:
        known.popitem(last=False)


class _Failures:
    """How many tokens may be shown from an address: each takes one of a few, and gives it back if it was no bad one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._taken: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """How many are missing of which address, and when that was so."""

    def take(self, address: str) -> None:
        """Take one. RateLimitedError: there is none left."""
        taken = self._missing(address) + 1
        if taken > FAILURES:
            raise RateLimitedError(
                "too many tokens from this address were refused; try again in a few seconds"
            )
        self._set(address, taken)

    def give_back(self, address: str) -> None:
        self._set(address, self._missing(address) - 1)

    def _missing(self, address: str) -> float:
        taken, at = self._taken.get(address, (0.0, 0.0))
        return max(taken - (self._clock() - at) * RECOVERY, 0.0)

    def _set(self, address: str, taken: float) -> None:
        self._taken.pop(address, None)
        if taken > 0:
            self._taken[address] = taken, self._clock()
        if len(self._taken) > MOST_ADDRESSES:
            self._taken.popitem(last=False)


async def own_account(api: KubeApi) -> tuple[str, str]:
    """Return the namespace and name of the service account that we are; both empty if we are none. KubeError."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    review = await api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
    user = str(review.get("status", {}).get("userInfo", {}).get("username", ""))
    return claims.parse_username(user)
