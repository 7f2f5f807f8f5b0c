"""No client gets the identity of another, on any port and with any credential. Uses real sockets."""

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
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.traffic_reports import TrafficReports
from xds.mesh.identity.auth import Authentication
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.mesh.model.objects import Change, Ref
from xds.protocol.session import Variant
from xds.server import ADS, XdsServer
from xds.snapshot import SECRET
from xds.testing.streams import method_of


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with opened() as site:
        yield site


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("token", ["own", "unbound"])
async def test_token_gets_the_key_of_its_own_pod(site, token, variant):
    async with site.token(token) as channel:
        secrets = await secret(channel, variant)
        assert b"PRIVATE KEY" in secrets.tls_certificate.private_key.inline_bytes
        assert (await fetch(channel)).resources


async def test_issued_certificate_gets_all_but_another_certificate(site):
    """A stolen certificate ends with its lifetime."""
    async with site.shows(issued(SLEEP)) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be used to renew itself"):
            await channel.unary_unary(f"{SDS}/FetchSecrets")(
                REQUEST(resource_names=["default"], node={"id": NODE.format("sleep-1")}).SerializeToString()
            )
        client = Client(channel, Variant.DELTA, node=NODE.format("sleep-1"))
        await client.ask(SECRET, "default", "ROOTCA")
        assert [resource.name for resource in (await client.get()).resources] == ["ROOTCA"]


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
        ("undecided", grpc.StatusCode.UNAVAILABLE, "no API server"),
        ("too-many", grpc.StatusCode.RESOURCE_EXHAUSTED, "too many tokens"),
    ],
)
async def test_token_does_not_get_the_key_of_another_pod(site, token, code, why):
    async with site.token(token) as channel:
        ended, details = await refused(channel)
    assert ended is code
    assert why in details


async def test_other_authorization_scheme_is_refused(site):
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
async def test_certificate_does_not_get_the_key_of_another_pod(site, shown, why):
    async with site.shows(shown) as channel:
        code, details = await refused(channel)
    assert code is DENIED
    assert why in details


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
async def test_certificate_without_workload_identity_is_refused(site, shown):
    async with site.shows(shown) as channel:
        code, details = await refused(channel)
    assert code is UNPROVEN
    assert details.startswith("the certificate ")


@pytest.mark.parametrize(
    "shown",
    [
        issued(SLEEP, FOREIGN),
        certificate(FOREIGN, NOW, uris=(SLEEP,)),
        certificate(CA, NOW, uris=(SLEEP,), lifetime=timedelta(seconds=-1)),
    ],
    ids=["foreign CA", "forged", "expired"],
)
async def test_foreign_or_expired_certificate_gets_no_connection(site, shown):
    async with site.shows(shown) as channel:
        assert (await refused(channel))[0] is grpc.StatusCode.UNAVAILABLE
    assert not site.server.discovery.failed


async def test_token_is_refused_on_the_certificate_port(site):
    bearer = grpc.metadata_call_credentials(lambda _, give: give((("authorization", "Bearer own"),), None))
    credentials = grpc.composite_channel_credentials(grpc.ssl_channel_credentials(CA.root_pem), bearer)
    async with grpc.aio.secure_channel(f"localhost:{site.server.secure_ports[1]}", credentials) as channel:
        assert (await refused(channel))[0] is grpc.StatusCode.UNAVAILABLE


async def test_token_in_plaintext_gets_all_but_the_key(site):
    async with site.plain() as channel:
        for variant in Variant:
            client = Client(channel, variant, method_of(variant, SECRET), node=NODE.format("sleep-1"))
            await client.ask(SECRET, "default")
            code, details = await client.end()
            assert (code, "only over TLS" in details) == (DENIED, True)
        with pytest.raises(grpc.aio.AioRpcError, match="only over TLS"):
            await channel.unary_unary(f"{SDS}/FetchSecrets")(
                REQUEST(resource_names=["default"], node={"id": NODE.format("sleep-1")}).SerializeToString(),
                metadata=(("authorization", "Bearer own"),),
            )
        aggregated = Client(channel, Variant.DELTA, node=NODE.format("sleep-1"))
        await aggregated.ask(SECRET, "default", "ROOTCA")
        answer = await aggregated.get()
        assert [resource.name for resource in answer.resources] == ["ROOTCA"]
        assert list(answer.removed_resources) == ["default"]
        [error] = answer.resource_errors
        assert error.resource_name.name == "default"
        assert "only over TLS" in error.error_detail.message
        aggregated = Client(channel, Variant.SOTW, node=NODE.format("sleep-1"))
        await aggregated.ask(SECRET, "default", "ROOTCA")
        assert [Secret.parse(resource.value).name for resource in (await aggregated.get()).resources] == [
            "ROOTCA"
        ]


@pytest.mark.parametrize("token", ["own", "unbound"])
async def test_stream_of_a_deleted_pod_ends(site, token):
    async with site.token(token) as channel:
        client = Client(channel, Variant.DELTA, node=NODE.format("sleep-1"))
        await client.ask(SECRET, "default")
        await client.get()
        site.controller.change(Change(removed=(Ref("Pod", "full", "sleep-1"),)))
        assert await client.end() == (DENIED, "pod full/sleep-1 is gone")
        again = Client(channel, Variant.DELTA, node=NODE.format("sleep-1"))
        await again.ask(SECRET, "default")
        site.controller.change(Change(applied=(sleep("2"),)))
        if token == "own":
            code, details = await again.end()
            assert (code, "an earlier pod" in details) == (DENIED, True)
        else:
            assert (await again.get()).resources


async def test_repeated_refusal_is_logged_once(site):
    with capture_logs() as logs:
        async with site.token("garbage") as channel:
            for _ in range(3):
                await refused(channel)
    levels = [line["log_level"] for line in logs if line["event"] == "caller refused"]
    assert levels.count("warning") == 1
    assert levels.count("debug") >= 14
    assert "garbage" not in str(logs)


async def test_error_states_that_tokens_are_not_accepted():
    own = ServerCertificate(["localhost"], lambda: Trust(CA, CA.root_pem))
    controller = Controller(CA)
    async with (
        XdsServer(
            controller.connections,
            "127.0.0.1:0",
            grace=0.2,
            secure=[("127.0.0.1:0", own.credentials(certificate_required=False))],
            authenticate=Authentication(lambda: TRUST_DOMAINS),
        ) as server,
        Site(server, controller, TrafficReports(controller)).token("own") as channel,
    ):
        client = Client(channel, method=f"/{ADS}/StreamAggregatedResources")
        code, details = await client.end()
    assert (code, "this server does not accept tokens" in details) == (UNPROVEN, True)
