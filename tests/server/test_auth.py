"""Who gets another's identity: nobody, by whichever port and credential. All over real sockets, with a real hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from tests.identity.credentials import certificate
from tests.server.proxies import REQUEST, RESPONSE, Client
from xds.api import proxies_pb2 as pb
from xds.auth import Admins, Authentication
from xds.hub import Hub
from xds.identity.ca import Authority
from xds.identity.claims import Caller, How, Identity, NotProvenError, TooManyError, UndecidedError
from xds.identity.keys import PrivateKey
from xds.introspect import Introspection
from xds.introspect.proxies import SERVICE, ProxiesService
from xds.model import Change, Meta, Pod, Ref
from xds.protocol.session import Variant
from xds.server import ADS, XdsServer
from xds.snapshot import SECRET
from xds.tls import OwnCertificate, Trust

NOW = datetime.now(UTC)
CA = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
FOREIGN = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"
NODE = "sidecar~10.0.0.1~{}.full~full.svc.cluster.local"
SDS = "/envoy.service.secret.v3.SecretDiscoveryService"
DENIED, UNPROVEN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
TRUST_DOMAINS = ("cluster.local",)


def caller(namespace: str, account: str, pod: str = "", uid: str = "") -> Caller:
    return Caller(namespace=namespace, service_account=account, pod=pod, pod_uid=uid, how=How.TOKEN)


TOKENS = {
    "own": caller("full", "sleep", "sleep-1", "1"),
    "unbound": caller("full", "sleep"),
    "other-namespace": caller("legacy", "sleep"),
    "other-account": caller("full", "httpbin"),
    "other-pod": caller("full", "sleep", "sleep-2", "2"),
    "deleted-pod": caller("full", "sleep", "sleep-1", "0"),
    "admin": caller("istio-system", "xds"),
}


async def judge(token: str, peer: str) -> Caller:
    """Stand in for TokenReviews: the real API server's are in tests/kubernetes."""
    assert peer.startswith("ipv4:127.0.0.1:")
    if token == "undecided":
        raise UndecidedError("nobody can be asked")
    if token == "too-many":
        raise TooManyError("too many tokens")
    if found := TOKENS.get(token):
        return found
    raise NotProvenError("the API server does not accept the token")


@dataclass(frozen=True)
class Site:
    server: XdsServer
    hub: Hub

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}") as channel:
            yield channel

    @asynccontextmanager
    async def token(self, text: str | None, scheme: str = "Bearer") -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(CA.root_pem)
        if text is not None:
            value = (("authorization", f"{scheme} {text}"),)
            bearer = grpc.metadata_call_credentials(lambda _, give: give(value, None))
            credentials = grpc.composite_channel_credentials(credentials, bearer)
        target = f"localhost:{self.server.secure_ports[0]}"
        async with grpc.aio.secure_channel(target, credentials) as channel:
            yield channel

    @asynccontextmanager
    async def shows(self, shown: tuple[bytes, bytes]) -> AsyncIterator[grpc.aio.Channel]:
        chain, key = shown
        credentials = grpc.ssl_channel_credentials(CA.root_pem, key, chain)
        target = f"localhost:{self.server.secure_ports[1]}"
        async with grpc.aio.secure_channel(target, credentials) as channel:
            yield channel


def sleep(uid: str = "1") -> Pod:
    return Pod(
        meta=Meta(ref=Ref("Pod", "full", "sleep-1"), uid=uid), service_account="sleep", address="10.0.0.1"
    )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    hub = Hub(CA, serve_keys=False)
    async with AsyncExitStack() as stack:
        task = asyncio.create_task(hub.run())
        stack.callback(task.cancel)
        hub.change(Change(applied=(sleep(),)))
        await hub.ready.wait()
        own = OwnCertificate(["localhost"], lambda: Trust(CA, CA.root_pem))
        authentication = Authentication(lambda: TRUST_DOMAINS, judge)
        admins = Admins(authentication, [Identity("istio-system", "xds")], lambda: TRUST_DOMAINS)
        server = XdsServer(
            hub,
            "127.0.0.1:0",
            grace=0.2,
            added=[Introspection([ProxiesService(hub.missing)], admit=admins)],
            secure=[
                ("127.0.0.1:0", own.credentials(certificate_required=False)),
                ("127.0.0.1:0", own.credentials(certificate_required=True)),
            ],
            authenticate=authentication,
        )
        await stack.enter_async_context(server)
        yield Site(server, hub)


def issued(identity: str, ca: Authority = CA) -> tuple[bytes, bytes]:
    leaf = ca.issue(identity, NOW)
    return leaf.chain, leaf.key.to_pem()


async def secret(channel: grpc.aio.Channel, variant: Variant, pod: str = "sleep-1") -> Secret:
    """Ask for a pod's own secret alone."""
    word = "Stream" if variant is Variant.SOTW else "Delta"
    client = Client(channel, variant, f"{SDS}/{word}Secrets", node=NODE.format(pod))
    await client.ask(SECRET, "default")
    answer = await client.get()
    [resource] = answer.resources
    body = resource.value if variant is Variant.SOTW else resource.resource.value
    return Secret.parse(body)


async def refused(channel: grpc.aio.Channel, pod: str = "sleep-1") -> tuple[grpc.StatusCode, str]:
    """Ask in every way; return how all of them end. Nobody may get a key in any."""
    ends = [
        await ended(channel, variant, method, pod)
        for variant, word in ((Variant.SOTW, "Stream"), (Variant.DELTA, "Delta"))
        for method in ("", f"{SDS}/{word}Secrets")
    ]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await fetch(channel, pod)
    ends.append((error.value.code(), error.value.details()))
    assert len(set(ends)) == 1, ends
    return ends[0]


async def ended(
    channel: grpc.aio.Channel, variant: Variant, method: str, pod: str
) -> tuple[grpc.StatusCode, str]:
    """Ask for a key; return how the stream ends."""
    client = Client(channel, variant, method, node=NODE.format(pod))
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await client.ask(SECRET, "default")
    end = await client.end()
    if end == (grpc.StatusCode.INTERNAL, "Internal error from Core"):
        # That is how gRPC's client sees a call that ended while it wrote: the server did not want to read.
        return await Client(channel, variant, method).end()
    return end


async def fetch(channel: grpc.aio.Channel, pod: str = "sleep-1"):
    request = REQUEST(resource_names=["default"])
    request.node.id = NODE.format(pod)
    return RESPONSE.FromString(await channel.unary_unary(f"{SDS}/FetchSecrets")(request.SerializeToString()))


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
        ("garbage", UNPROVEN, "does not accept the token"),
        ("other-namespace", DENIED, "service account legacy/sleep may not speak for pod full/sleep-1"),
        ("other-account", DENIED, "that has another service account"),
        ("other-pod", DENIED, "its token is bound to pod sleep-2"),
        ("deleted-pod", DENIED, "its token is of an earlier pod of that name"),
        ("admin", DENIED, "that is in another namespace"),
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


async def look(channel: grpc.aio.Channel) -> list[str]:
    """Ask in every way that an admin has; return what came."""
    ends = []

    async def end(call) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            ends.append(f"{error.code().name} {error.details()}")
        else:
            ends.append("OK")

    async def first(call) -> None:
        assert await call.read() is not grpc.aio.EOF, await call.code()

    await end(channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest()))
    ask = channel.unary_unary(f"/{SERVICE}/List", response_deserializer=pb.ListProxiesResponse.FromString)
    await end(ask(b""))
    watch = channel.unary_stream(f"/{SERVICE}/Watch")(b"")
    await end(first(watch))
    watch.cancel()
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    await end(first(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))))
    await end(
        channel.unary_unary("/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus")(b"")
    )
    return ends


async def test_the_control_planes_own_account_may_look_over_tls(site):
    async with site.token("admin") as channel:
        assert await look(channel) == ["OK"] * 5
    async with site.shows(issued("spiffe://cluster.local/ns/istio-system/sa/xds")) as channel:
        assert await look(channel) == ["OK"] * 5
    async with site.plain() as channel:
        assert await look(channel) == ["OK"] * 5


async def test_others_may_not(site):
    async with site.token("own") as channel:
        found = await look(channel)
    assert len(found) == 5
    assert {each.partition(":")[0] for each in found} == {
        "PERMISSION_DENIED service account full/sleep may not look at this"
    }
    async with site.shows(issued(SLEEP)) as channel:
        assert await look(channel) == found
    async with site.token(None) as channel:
        assert {each.partition(" ")[0] for each in await look(channel)} == {"UNAUTHENTICATED"}


async def test_where_no_tokens_are_taken_that_is_said():
    own = OwnCertificate(["localhost"], lambda: Trust(CA, CA.root_pem))
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
    assert (code, "no tokens are taken here" in said) == (UNPROVEN, True)
