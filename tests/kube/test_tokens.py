"""What is asked of an API server about tokens, and how often; a real one is asked in tests/kubernetes."""

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


def made(name: str = "good", *, minutes: float = 60) -> str:
    """A token; those whose name begins with `good` are accepted."""
    return token({"aud": ["xds-ca"], "exp": (NOW + timedelta(minutes=minutes)).timestamp(), "sub": name})


class Server:
    """Answers TokenReviews, and counts them."""

    def __init__(self) -> None:
        self.status = 201
        self.accepted = {
            made("good"),
            *(made(f"good-{number}") for number in range(100)),
            made("brief", minutes=0.25),
        }
        self.asked = 0
        self.now = 0
        self.most = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.came = asyncio.Event()

    async def review(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["spec"]["audiences"] == ["xds-ca"]
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        self.came.set()
        await self.go_on.wait()
        self.now -= 1
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


async def refusal(reviews: TokenReviewer, shown: str, peer: str = PEER) -> str:
    with pytest.raises(UnauthenticatedError) as refused:
        await reviews(shown, peer)
    return str(refused.value)


async def test_what_the_api_server_said_is_remembered_for_a_moment(server, clock, reviews):
    assert await reviews(made(), PEER) == SLEEP
    clock.seconds = tokens.ACCEPTED_TTL - 1
    assert await reviews(made(), PEER) == SLEEP
    assert server.asked == 1
    clock.seconds = tokens.ACCEPTED_TTL
    server.accepted.clear()
    assert "rejects the token" in await refusal(reviews, made())
    assert server.asked == 2


async def test_a_token_never_counts_as_good_after_its_end(server, clock, reviews):
    assert await reviews(made("brief", minutes=0.25), PEER) == SLEEP
    clock.seconds = 15
    server.accepted.clear()
    await refusal(reviews, made("brief", minutes=0.25))
    assert server.asked == 2


async def test_a_bad_token_is_not_looked_at_again_and_again(server, clock, reviews):
    said = {await refusal(reviews, made("bad")) for _ in range(100)}
    assert (server.asked, len(said)) == (1, 1)
    clock.seconds = tokens.REJECTED_TTL
    await refusal(reviews, made("bad"))
    assert server.asked == 2


async def test_one_that_is_plainly_no_good_is_not_shown_to_the_api_server(server, reviews):
    for shown in ("x", made("good", minutes=-10), token({"aud": "vault", "exp": 1e11})):
        await refusal(reviews, shown)
    assert server.asked == 0


async def test_concurrent_questions_about_one_token_are_one(server, reviews):
    server.go_on.clear()
    asking = [asyncio.create_task(reviews(made(), PEER)) for _ in range(50)]
    await server.came.wait()
    asking.pop(0).cancel()  # who asked first need not be who waits longest
    server.go_on.set()
    assert await asyncio.gather(*asking) == [SLEEP] * 49
    assert server.asked == 1


async def test_few_are_asked_at_a_time(server, reviews):
    callers = [reviews(made(f"good-{number}"), f"ipv4:10.0.0.{number}:1") for number in range(100)]
    assert await asyncio.gather(*callers) == [SLEEP] * 100
    assert server.asked == 100
    assert server.most <= tokens.MAX_CONCURRENT_REVIEWS


async def test_a_storm_of_bad_tokens_from_an_address_does_not_get_through(server, clock, reviews):
    async def show(number: int) -> type[Exception]:
        with pytest.raises((UnauthenticatedError, RateLimitedError)) as refused:
            await reviews(made(f"bad-{number}"), PEER)
        return refused.type

    kinds = await asyncio.gather(*(show(number) for number in range(1000)))
    assert server.asked == kinds.count(UnauthenticatedError) == tokens.MAX_REFUSALS
    with pytest.raises(RateLimitedError, match="from this address"):
        await reviews(made(), PEER)
    assert await reviews(made(), "ipv4:10.0.0.8:4711") == SLEEP
    assert await reviews(made(), PEER) == SLEEP  # for it is known now
    clock.seconds = 1
    assert await reviews(made("good-1"), PEER) == SLEEP


async def test_good_tokens_from_one_address_are_not_limited(server, reviews):
    for number in range(100):
        assert await reviews(made(f"good-{number}"), PEER) == SLEEP


async def test_there_are_only_so_many_that_wait(server, reviews, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_PENDING_REVIEWS", 2)
    server.go_on.clear()
    asking = [asyncio.create_task(reviews(made(f"good-{number}"), PEER)) for number in range(2)]
    await server.came.wait()
    with pytest.raises(RateLimitedError, match="too many tokens are being reviewed"):
        await reviews(made("good-3"), PEER)
    server.go_on.set()
    assert await asyncio.gather(*asking) == [SLEEP, SLEEP]


async def test_what_is_remembered_is_bounded_and_bad_ones_do_not_push_out_the_good(
    server, reviews, monkeypatch
):
    monkeypatch.setattr(tokens, "MAX_CACHED_TOKENS", 3)
    monkeypatch.setattr(tokens, "MAX_BUDGETS", 3)
    await reviews(made(), PEER)
    for number in range(10):
        await refusal(reviews, made(f"bad-{number}"), f"ipv4:10.0.1.{number}:1")
    assert await reviews(made(), PEER) == SLEEP
    assert server.asked == 11
    await refusal(reviews, made("bad-9"), "ipv4:10.0.1.9:1")
    assert server.asked == 11
    await refusal(reviews, made("bad-0"), "ipv4:10.0.1.0:1")
    assert server.asked == 12
    assert (len(reviews._accepted), len(reviews._rejected), len(reviews._budgets._budgets)) == (1, 3, 3)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_an_api_server_that_does_not_answer_leaves_it_open(server, reviews, status):
    server.status = status
    with capture_logs() as logs:
        for number in range(50):
            with pytest.raises(AuthenticationUnavailableError, match="cannot review the token") as undecided:
                await reviews(made(), PEER)
            assert undecided.type is AuthenticationUnavailableError, number
    assert server.asked == 50
    [line] = [line for line in logs if line["event"] == "cannot review tokens"]
    assert ("tokenreviews" in line.get("hint", "")) == (status == 403)
    server.status = 201
    assert await reviews(made(), PEER) == SLEEP


async def test_no_api_server_leaves_it_open():
    async with KubeApi(client.Configuration(host="http://127.0.0.1:1"), "default") as api:
        with pytest.raises(AuthenticationUnavailableError):
            await TokenReviewer(api, now=lambda: NOW)(made(), PEER)


async def test_no_token_is_in_the_log(server, reviews):
    with capture_logs() as logs:
        await refusal(reviews, made("bad"))
        server.status = 500
        with pytest.raises(AuthenticationUnavailableError):
            await reviews(made("worse"), PEER)
    assert made("bad") not in str(logs)
    assert made("worse") not in str(logs)
    assert made("bad") not in repr(reviews.__dict__)
