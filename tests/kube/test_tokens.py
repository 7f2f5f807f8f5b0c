"""TokenReviews that the control plane requests. tests/kubernetes uses a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from kubernetes.aio import client
from structlog.testing import capture_logs

from tests.identity.credentials import token
from tests.support.listening import listen
from xds.mesh.identity.claims import (
    AuthenticationUnavailableError,
    Caller,
    CredentialKind,
    RateLimitedError,
    UnauthenticatedError,
)
from xds.mesh.kube import tokens
from xds.mesh.kube.api import KubeApi
from xds.mesh.kube.tokens import TokenReviewer

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
PEER = "ipv4:10.0.0.7:4711"
SLEEP = Caller(namespace="full", service_account="sleep", credential=CredentialKind.TOKEN)


def make_token(name: str = "good", *, minutes: float = 60) -> str:
    """Return a token. The fake server accepts names that start with `good`."""
    return token({"aud": ["xds-ca"], "exp": (NOW + timedelta(minutes=minutes)).timestamp(), "sub": name})


class Server:
    """Answers TokenReviews, and counts them."""

    def __init__(self) -> None:
        self.status = 201
        self.accepted = {
            make_token("good"),
            *(make_token(f"good-{number}") for number in range(100)),
            make_token("brief", minutes=0.25),
        }
        self.reviews = 0
        self.current = 0
        self.maximum = 0
        self.resume = asyncio.Event()
        self.resume.set()
        self.received = asyncio.Event()

    async def review(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["spec"]["audiences"] == ["xds-ca"]
        self.reviews += 1
        self.current += 1
        self.maximum = max(self.maximum, self.current)
        self.received.set()
        await self.resume.wait()
        self.current -= 1
        if self.status != 201:
            return web.json_response({"message": "not now"}, status=self.status)
        good = body["spec"]["token"] in self.accepted
        status = {"authenticated": good}
        if good:
            status |= {"user": {"username": "system:serviceaccount:full:sleep"}, "audiences": ["xds-ca"]}
        return web.json_response({"status": status}, status=201)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def reviews(server, clock) -> AsyncIterator[TokenReviewer]:
    app = web.Application()
    app.router.add_post(tokens.PATH, server.review)
    runner = await listen(app, "127.0.0.1", 0)
    configuration = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    async with KubeApi(configuration, "default") as api:
        yield TokenReviewer(api, now=lambda: NOW + timedelta(seconds=clock.seconds), clock=clock)
    await runner.cleanup()


async def refusal(reviews: TokenReviewer, encoded: str, peer: str = PEER) -> str:
    with pytest.raises(UnauthenticatedError) as refused:
        await reviews(encoded, peer)
    return str(refused.value)


async def test_review_result_is_cached_briefly(server, clock, reviews):
    assert await reviews(make_token(), PEER) == SLEEP
    clock.seconds = tokens.ACCEPTED_TTL - 1
    assert await reviews(make_token(), PEER) == SLEEP
    assert server.reviews == 1
    clock.seconds = tokens.ACCEPTED_TTL
    server.accepted.clear()
    assert "rejects the token" in await refusal(reviews, make_token())
    assert server.reviews == 2


async def test_accepted_token_is_not_cached_past_its_expiry(server, clock, reviews):
    assert await reviews(make_token("brief", minutes=0.25), PEER) == SLEEP
    clock.seconds = 15
    server.accepted.clear()
    await refusal(reviews, make_token("brief", minutes=0.25))
    assert server.reviews == 2


async def test_rejected_token_is_cached(server, clock, reviews):
    messages = {await refusal(reviews, make_token("bad")) for _ in range(100)}
    assert (server.reviews, len(messages)) == (1, 1)
    clock.seconds = tokens.REJECTED_TTL
    await refusal(reviews, make_token("bad"))
    assert server.reviews == 2


async def test_obviously_invalid_token_is_not_reviewed(server, reviews):
    for encoded in ("x", make_token("good", minutes=-10), token({"aud": "vault", "exp": 1e11})):
        await refusal(reviews, encoded)
    assert server.reviews == 0


async def test_concurrent_reviews_of_one_token_are_merged(server, reviews):
    server.resume.clear()
    tasks = [asyncio.create_task(reviews(make_token(), PEER)) for _ in range(50)]
    await server.received.wait()
    tasks.pop(0).cancel()  # the review continues although its first caller is gone
    server.resume.set()
    assert await asyncio.gather(*tasks) == [SLEEP] * 49
    assert server.reviews == 1


async def test_concurrent_reviews_are_limited(server, reviews):
    callers = [reviews(make_token(f"good-{number}"), f"ipv4:10.0.0.{number}:1") for number in range(100)]
    assert await asyncio.gather(*callers) == [SLEEP] * 100
    assert server.reviews == 100
    assert server.maximum <= tokens.MAX_CONCURRENT_REVIEWS


async def test_bad_tokens_of_an_address_are_rate_limited(server, clock, reviews):
    async def refused_type(number: int) -> type[Exception]:
        with pytest.raises((UnauthenticatedError, RateLimitedError)) as refused:
            await reviews(make_token(f"bad-{number}"), PEER)
        return refused.type

    kinds = await asyncio.gather(*(refused_type(number) for number in range(1000)))
    assert server.reviews == kinds.count(UnauthenticatedError) == tokens.MAX_REFUSALS
    with pytest.raises(RateLimitedError, match="from this address"):
        await reviews(make_token(), PEER)
    assert await reviews(make_token(), "ipv4:10.0.0.8:4711") == SLEEP
    assert await reviews(make_token(), PEER) == SLEEP  # it is cached now
    clock.seconds = 1
    assert await reviews(make_token("good-1"), PEER) == SLEEP


async def test_good_tokens_from_one_address_are_not_limited(server, reviews):
    for number in range(100):
        assert await reviews(make_token(f"good-{number}"), PEER) == SLEEP


async def test_good_tokens_do_not_replace_the_budgets_of_bad_ones(server, reviews, monkeypatch):
    monkeypatch.setattr(reviews._budgets, "_limit", 4)
    for number in range(int(tokens.MAX_REFUSALS)):
        await refusal(reviews, make_token(f"bad-{number}"), PEER)
    for number in range(10):
        assert await reviews(make_token(f"good-{number}"), f"ipv4:10.0.1.{number}:1") == SLEEP
    with pytest.raises(RateLimitedError, match="from this address"):
        await reviews(make_token("bad"), PEER)


async def test_pending_reviews_are_limited(server, reviews, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_PENDING_REVIEWS", 2)
    server.resume.clear()
    tasks = [asyncio.create_task(reviews(make_token(f"good-{number}"), PEER)) for number in range(2)]
    await server.received.wait()
    with pytest.raises(RateLimitedError, match="too many tokens are being reviewed"):
        await reviews(make_token("good-3"), PEER)
    server.resume.set()
    assert await asyncio.gather(*tasks) == [SLEEP, SLEEP]


async def test_caches_are_bounded_and_separate(server, reviews, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_CACHED_TOKENS", 3)
    await reviews(make_token(), PEER)
    for number in range(10):
        await refusal(reviews, make_token(f"bad-{number}"), f"ipv4:10.0.1.{number}:1")
    assert await reviews(make_token(), PEER) == SLEEP
    assert server.reviews == 11
    await refusal(reviews, make_token("bad-9"), "ipv4:10.0.1.9:1")
    assert server.reviews == 11
    await refusal(reviews, make_token("bad-0"), "ipv4:10.0.1.0:1")
    assert server.reviews == 12
    assert (len(reviews._accepted), len(reviews._rejected)) == (1, 3)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_api_server_error_is_unavailable(server, reviews, status):
    server.status = status
    with capture_logs() as logs:
        for number in range(50):
            with pytest.raises(AuthenticationUnavailableError, match="cannot review the token") as undecided:
                await reviews(make_token(), PEER)
            assert undecided.type is AuthenticationUnavailableError, number
    assert server.reviews == 50
    [line] = [line for line in logs if line["event"] == "cannot review tokens"]
    assert ("tokenreviews" in line.get("hint", "")) == (status == 403)
    server.status = 201
    assert await reviews(make_token(), PEER) == SLEEP


async def test_unreachable_api_server_is_unavailable():
    async with KubeApi(client.Configuration(host="http://127.0.0.1:1"), "default") as api:
        with pytest.raises(AuthenticationUnavailableError):
            await TokenReviewer(api, now=lambda: NOW)(make_token(), PEER)


async def test_tokens_are_not_logged(server, reviews):
    with capture_logs() as logs:
        await refusal(reviews, make_token("bad"))
        server.status = 500
        with pytest.raises(AuthenticationUnavailableError):
            await reviews(make_token("worse"), PEER)
    assert make_token("bad") not in str(logs)
    assert make_token("worse") not in str(logs)
    assert make_token("bad") not in repr(reviews.__dict__)
