"""Who gets another's identity: nobody, by whichever port and credential. All over real sockets, with a real hub."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret
from structlog.testing import capture_logs

from tests.identity.credentials import certificate
from tests.server.doors import (
    CA,
    DENIED,
    FOREIGN,
    NODE,
    NOW,
    SDS,
    SLEEP,
    TRUST_DOMAINS,
    UNPROVEN,
    Site,
    fetch,
    issued,
    opened,
    refused,
    secret,
    sleep,
)
from tests.server.proxies import REQUEST, Client
from xds.mesh.controlplane.controller import Hub
from xds.mesh.identity.auth import Authentication
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.mesh.model.objects import Change, Ref
from xds.protocol.session import Variant
from xds.server import ADS, XdsServer
from xds.snapshot import SECRET


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with opened() as site:
        yield site


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("token", ["own", "unbound"])
async def test_a_token_gets_its_own_pods_key(site, token, variant):
    async with site.token(token) as channel:
        found = await secret(channel, variant)
        assert b"PRIVATE KEY" in found.tls_certificate.private_key.inline_bytes
        assert (await fetch(channel)).resources


@pytest.mark.parametrize("variant", Variant)
async def test_so_does_a_certificate_that_we_issued(site, variant):
    async with site.shows(issued(SLEEP)) as channel:
        found = await secret(channel, variant)
        assert b"PRIVATE KEY" in found.tls_certificate.private_key.inline_bytes


@pytest.mark.parametrize(
    ("token", "code", "why"),
    [
        (None, UNPROVEN, "no credential: send a token"),
        ("", UNPROVEN, "no credential: send a token"),
        ("garbage", UNPROVEN, "rejects the token"),
        ("other-namespace", DENIED, "service account legacy/sleep may not act for pod full/sleep-1"),
        ("other-account", DENIED, "the pod has another service account"),
        ("other-pod", DENIED, "its token is bound to pod sleep-2"),
        ("deleted-pod", DENIED, "its token belongs to an earlier pod of that name"),
        ("admin", DENIED, "the pod is in another namespace"),
        ("undecided", grpc.StatusCode.UNAVAILABLE, "nobody can be asked"),
        ("too-many", grpc.StatusCode.RESOURCE_EXHAUSTED, "too many tokens"),
    ],
)
async def test_a_token_does_not_get_anothers(site, token, code, why):
    async with site.token(token) as channel:
        ended, said = await refused(channel)
    assert ended is code
    assert why in said


async def test_another_scheme_is_no_credential(site):
    async with site.token("own", scheme="Basic") as channel:
        assert (await refused(channel))[0] is UNPROVEN


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (issued("spiffe://cluster.local/ns/legacy/sa/sleep"), "in another namespace"),
        (issued("spiffe://cluster.local/ns/full/sa/httpbin"), "another service account"),
    ],
    ids=["namespace", "account"],
)
async def test_anothers_certificate_does_not_get_it(site, shown, why):
    async with site.shows(shown) as channel:
        code, said = await refused(channel)
    assert code is DENIED
    assert why in said


@pytest.mark.parametrize(
    "shown",
    [
        certificate(CA, NOW, dns=("sleep.full",)),
        certificate(CA, NOW),
        certificate(CA, NOW, uris=("spiffe://elsewhere/ns/full/sa/sleep",)),
        certificate(CA, NOW, uris=(SLEEP, f"{SLEEP}2")),
    ],
    ids=["a DNS name", "no name", "another trust domain", "two names"],
)
async def test_a_certificate_of_ours_that_is_no_workloads_proves_nothing(site, shown):
    async with site.shows(shown) as channel:
        code, said = await refused(channel)
    assert code is UNPROVEN
    assert said.startswith("the certificate ")


@pytest.mark.parametrize(
    "shown",
    [
        issued(SLEEP, FOREIGN),
        certificate(FOREIGN, NOW, uris=(SLEEP,)),
        certificate(CA, NOW, uris=(SLEEP,), lifetime=timedelta(seconds=-1)),
    ],
    ids=["foreign CA", "forged", "expired"],
)
async def test_a_certificate_of_another_ca_or_time_gets_no_connection(site, shown):
    async with site.shows(shown) as channel:
        assert (await refused(channel))[0] is grpc.StatusCode.UNAVAILABLE
    assert not site.server.discovery.failed


async def test_where_a_certificate_is_asked_for_a_token_is_no_way_in(site):
    bearer = grpc.metadata_call_credentials(lambda _, give: give((("authorization", "Bearer own"),), None))
    credentials = grpc.composite_channel_credentials(grpc.ssl_channel_credentials(CA.root_pem), bearer)
    async with grpc.aio.secure_channel(f"localhost:{site.server.secure_ports[1]}", credentials) as channel:
        assert (await refused(channel))[0] is grpc.StatusCode.UNAVAILABLE


async def test_in_plaintext_a_token_proves_nothing_and_only_the_key_is_kept_back(site):
    async with site.plain() as channel:
        for variant in Variant:
            client = Client(
                channel, variant, f"{SDS}/{'Stream' if variant is Variant.SOTW else 'Delta'}Secrets"
            )
            client._node = NODE.format("sleep-1")
            await client.ask(SECRET, "default")
            code, said = await client.end()
            assert (code, "not served in plaintext" in said) == (DENIED, True)
        with pytest.raises(grpc.aio.AioRpcError, match="not served in plaintext"):
            await channel.unary_unary(f"{SDS}/FetchSecrets")(
                REQUEST(resource_names=["default"], node={"id": NODE.format("sleep-1")}).SerializeToString(),
                metadata=(("authorization", "Bearer own"),),
            )
        aggregated = Client(channel, Variant.DELTA, node=NODE.format("sleep-1"))
        await aggregated.ask(SECRET, "default", "ROOTCA")
        answer = await aggregated.get()
        assert [each.name for each in answer.resources] == ["ROOTCA"]
        assert list(answer.removed_resources) == ["default"]
        [error] = answer.resource_errors
        assert error.resource_name.name == "default"
        assert "not served in plaintext" in error.error_detail.message
        aggregated = Client(channel, Variant.SOTW, node=NODE.format("sleep-1"))
        await aggregated.ask(SECRET, "default", "ROOTCA")
        assert [Secret.parse(each.value).name for each in (await aggregated.get()).resources] == ["ROOTCA"]


@pytest.mark.parametrize("token", ["own", "unbound"])
async def test_the_stream_of_a_deleted_pod_ends(site, token):
    async with site.token(token) as channel:
        client = Client(channel, Variant.DELTA, node=NODE.format("sleep-1"))
        await client.ask(SECRET, "default")
        await client.get()
        site.hub.change(Change(removed=(Ref("Pod", "full", "sleep-1"),)))
        assert await client.end() == (DENIED, "pod full/sleep-1 is gone")
        again = Client(channel, Variant.DELTA, node=NODE.format("sleep-1"))
        await again.ask(SECRET, "default")
        site.hub.change(Change(applied=(sleep("2"),)))
        if token == "own":
            code, said = await again.end()
            assert (code, "an earlier pod" in said) == (DENIED, True)
        else:
            assert (await again.get()).resources


async def test_who_is_refused_again_and_again_is_logged_once(site):
    with capture_logs() as logs:
        async with site.token("garbage") as channel:
            for _ in range(3):
                await refused(channel)
    told = [line["log_level"] for line in logs if line["event"] == "caller refused"]
    assert told.count("warning") == 1
    assert told.count("debug") >= 14
    assert "garbage" not in str(logs)


async def test_where_no_tokens_are_taken_that_is_said():
    own = ServerCertificate(["localhost"], lambda: Trust(CA, CA.root_pem))
    hub = Hub(CA)
    async with (
        XdsServer(
            hub,
            "127.0.0.1:0",
            grace=0.2,
            secure=[("127.0.0.1:0", own.credentials(certificate_required=False))],
            authenticate=Authentication(lambda: TRUST_DOMAINS),
        ) as server,
        Site(server, hub).token("own") as channel,
    ):
        client = Client(channel, method=f"/{ADS}/StreamAggregatedResources")
        code, said = await client.end()
    assert (code, "tokens are not accepted here" in said) == (UNPROVEN, True)
