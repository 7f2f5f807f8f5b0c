"""No pod gets another pod's key from `xds serve --kubernetes`, with real tokens, on each port."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.identity.credentials import certificate, token
from tests.kubernetes.conftest import _skip_without_programs
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.kubernetes.installing import run
from tests.kubernetes.serving import Serving
from tests.server.proxies import REQUEST, Client
from tests.support.loopback import free_port
from tests.support.waiting import eventually
from xds.codec import message_class
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.rotation import read_authority
from xds.mesh.kube import crds
from xds.mesh.kube.ca_secret import SECRET as CA_SECRET
from xds.mesh.kube.root_publisher import KEY, NAME
from xds.mesh.kube.tokens import PATH, TokenReviewer
from xds.protocol.session import Variant
from xds.snapshot import SECRET

pytestmark = pytest.mark.timeout(300)

DENIED, UNPROVEN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
AGAIN = " yet; ask again"
"""Status of a fetch before the pod's first configuration exists."""
SDS = "/envoy.service.secret.v3.SecretDiscoveryService"
_SECRET = message_class("envoy.extensions.transport_sockets.tls.v3.Secret")


@dataclass(frozen=True)
class Site:
    """A control plane in its own namespace, and pods web-1 and web-2 of account web in another."""

    cluster: Cluster
    serving: Serving
    namespace: str
    home: str
    """The control plane's namespace."""
    plain: int
    tls: int
    mtls: int
    roots: bytes

    async def token(
        self, account: str = "web", pod: str = "", audience: str = "xds-ca", namespace: str = ""
    ) -> str:
        return await self.cluster.token(namespace or self.namespace, account, audience=audience, pod=pod)

    @asynccontextmanager
    async def with_token(self, text: str | None) -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(self.roots)
        if text is not None:
            credentials = grpc.composite_channel_credentials(
                credentials, grpc.access_token_call_credentials(text)
            )
        async with grpc.aio.secure_channel(f"localhost:{self.tls}", credentials) as channel:
            yield channel

    @asynccontextmanager
    async def with_certificate(self, credential: tuple[bytes, bytes]) -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(self.roots, credential[1], credential[0])
        async with grpc.aio.secure_channel(f"localhost:{self.mtls}", credentials) as channel:
            yield channel

    def node(self, pod: str) -> str:
        return f"sidecar~10.244.9.1~{pod}.{self.namespace}~{self.namespace}.svc.cluster.local"

    def client(self, channel: grpc.aio.Channel, pod: str = "web-1") -> Client:
        return Client(channel, Variant.DELTA, f"{SDS}/DeltaSecrets", node=self.node(pod))

    async def fetch(self, channel: grpc.aio.Channel, pod: str = "web-1") -> tuple[grpc.StatusCode, str]:
        """Fetch a pod's key; return the status, and the error or the certificate."""
        async with asyncio.timeout(60):
            while (result := await self._fetch_once(channel, pod))[1].endswith(AGAIN):
                pass
        return result

    async def _fetch_once(self, channel: grpc.aio.Channel, pod: str) -> tuple[grpc.StatusCode, str]:
        request = REQUEST(resource_names=["default"])
        request.node.id = self.node(pod)
        call = channel.unary_unary(f"{SDS}/FetchSecrets")
        try:
            answer = await call(request.SerializeToString(), timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        body = message_class("envoy.service.discovery.v3.DiscoveryResponse").FromString(answer)
        [resource] = body.resources
        secret = _SECRET.FromString(resource.value)
        assert b"PRIVATE KEY" in secret.tls_certificate.private_key.inline_bytes
        return grpc.StatusCode.OK, secret.tls_certificate.certificate_chain.inline_bytes.decode()

    async def ca(self) -> Authority:
        kept = await self.cluster.api.get(f"/api/v1/namespaces/{self.home}/secrets/{CA_SECRET}")
        data = {name: base64.b64decode(value) for name, value in kept["data"].items()}
        return read_authority(data, datetime.now(UTC))

    def identity(self, account: str = "web", namespace: str = "") -> str:
        return f"spiffe://cluster.local/ns/{namespace or self.namespace}/sa/{account}"


async def pod(cluster: Cluster, namespace: str, name: str, account: str = "web") -> dict[str, Any]:
    body = {
        "metadata": {"name": name, "labels": {"security.istio.io/tlsMode": "istio"}},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "app"}]},
    }
    return await cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", body)


async def account(cluster: Cluster, namespace: str, name: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    await cluster.api.create(path, {"metadata": {"name": name}})


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A cluster for these tests alone: each control plane publishes its roots in all namespaces."""
    _skip_without_programs()
    with ControlPlane() as running:
        yield running


@pytest.fixture
async def site(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Site]:
    async with Cluster(plane) as cluster:
        async for made in _site(cluster, tmp_path):
            yield made


async def _site(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Site]:
    await crds.install(cluster.api)
    home, namespace = await cluster.new_namespace("home"), await cluster.new_namespace("shop")
    for where, name in ((home, "xds"), (namespace, "web"), (namespace, "other")):
        await account(cluster, where, name)
    await cluster.kubectl(
        "create", "clusterrolebinding", home, "--clusterrole=cluster-admin", f"--serviceaccount={home}:xds"
    )
    for number, name in enumerate(("web-1", "web-2"), 1):
        await pod(cluster, namespace, name)
        await cluster.run_pod(namespace, name, f"10.244.9.{number}")
    plain, tls, mtls = free_port(), free_port(), free_port()
    serving = Serving(
        await cluster.kubeconfig(f"{home}/xds"),
        tmp_path,
        f"--namespace={home}",
        f"--xds-address=127.0.0.1:{plain}",
        f"--xds-tls-address=127.0.0.1:{tls}",
        f"--xds-mtls-address=127.0.0.1:{mtls}",
    )
    async with serving:
        await serving.until_ready()
        config_map = await cluster.until(
            f"/api/v1/namespaces/{namespace}/configmaps/{NAME}",
            lambda config_map: KEY in config_map.get("data", {}),
        )
        roots = config_map["data"][KEY].encode()
        yield Site(cluster, serving, namespace, home, plain, tls, mtls, roots)


async def test_token_gets_only_the_key_of_its_pod(site: Site) -> None:
    cluster, namespace = site.cluster, site.namespace
    other_namespace = await cluster.new_namespace("other")
    await account(cluster, other_namespace, "web")
    await pod(cluster, namespace, "gone")
    gone = await site.token(pod="gone")
    await cluster.api.delete(f"/api/v1/namespaces/{namespace}/pods/gone", gracePeriodSeconds=0)
    own = await site.token(pod="web-1")
    for text in (own, await site.token()):
        async with site.with_token(text) as channel:
            code, chain = await site.fetch(channel)
            assert code is grpc.StatusCode.OK, chain
    async with site.with_token(await site.token(pod="web-2")) as channel:
        code, second = await site.fetch(channel, "web-2")
        assert (code, second == chain) == (grpc.StatusCode.OK, False)

    shown = {
        "none": (None, UNPROVEN, "no credential"),
        "garbage": ("garbage", UNPROVEN, "not a service account token"),
        "forged": (token(claims(own)), UNPROVEN, "rejects the token"),
        "expired a moment ago": (resigned(cluster, own, seconds=-60), UNPROVEN, "rejects the token"),
        "expired": (resigned(cluster, own, seconds=-3600), UNPROVEN, "expired at"),
        "wrong audience": (await site.token(audience="istio-ca"), UNPROVEN, "not for audience xds-ca"),
        "the API server's": (await site.token(audience=""), UNPROVEN, "not for audience xds-ca"),
        "another namespace's": (await site.token(namespace=other_namespace), DENIED, "in another namespace"),
        "another account's": (await site.token("other"), DENIED, "another service account"),
        "another pod's": (await site.token(pod="web-2"), DENIED, "bound to pod web-2"),
        "a deleted pod's": (gone, UNPROVEN, "rejects the token"),
        "the control plane's": (await site.token("xds", namespace=site.home), DENIED, "in another namespace"),
    }
    ends = {}
    for name, (text, *_) in shown.items():
        async with site.with_token(text) as channel:
            ends[name] = await site.fetch(channel)
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                stream = site.client(channel)
                await stream.ask(SECRET, "default")
            assert (await stream.end())[0] in {ends[name][0], grpc.StatusCode.INTERNAL}, name
    for name, (_, code, why) in shown.items():
        assert (name, ends[name][0], why in ends[name][1]) == (name, code, True), ends[name]
    log = site.serving.log.read_text()
    assert not [name for name, (text, *_) in shown.items() if text and text in log]

    # A re-signed token is valid, so the one above is refused only because of its age.
    async with site.with_token(resigned(cluster, own, seconds=600)) as channel:
        assert (await site.fetch(channel))[0] is grpc.StatusCode.OK


async def test_certificate_or_plaintext_gets_no_key(site: Site) -> None:
    now = datetime.now(UTC)
    ca, foreign = await site.ca(), Authority.create(PrivateKey.generate(), "cluster.local", now)

    def issued(identity: str, by: Authority = ca) -> tuple[bytes, bytes]:
        leaf = by.issue(identity, now)
        return leaf.chain, leaf.key.to_pem()

    shown = {
        "own": (issued(site.identity()), DENIED, "a certificate cannot be used to renew itself"),
        "another account's": (issued(site.identity("other")), DENIED, "another service account"),
        "another namespace's": (issued(site.identity(namespace="x")), DENIED, "in another namespace"),
        "a foreign CA's": (issued(site.identity(), foreign), grpc.StatusCode.UNAVAILABLE, ""),
        "expired": (
            certificate(ca, now, uris=(site.identity(),), lifetime=timedelta(seconds=-1)),
            grpc.StatusCode.UNAVAILABLE,
            "",
        ),
        "without SPIFFE": (certificate(ca, now, dns=("web-1",)), UNPROVEN, "no SPIFFE ID"),
    }
    for name, (pair, code, why) in shown.items():
        async with site.with_certificate(pair) as channel:
            ended, details = await site.fetch(channel)
        assert (name, ended, why in details) == (name, code, True), details
    async with grpc.aio.insecure_channel(f"127.0.0.1:{site.plain}") as channel:
        code, details = await site.fetch(channel)
        assert (code, "only over TLS" in details) == (DENIED, True)
        aggregated = Client(channel, Variant.DELTA, node=site.node("web-1"))
        await aggregated.ask(SECRET, "default", "ROOTCA")
        answer = await aggregated.get()
        assert [resource.name for resource in answer.resources] == ["ROOTCA"]
        assert list(answer.removed_resources) == ["default"]
    # The TLS port accepts no plaintext.
    async with grpc.aio.insecure_channel(f"localhost:{site.tls}") as channel:
        assert (await site.fetch(channel))[0] is grpc.StatusCode.UNAVAILABLE


async def test_stream_ends_when_its_pod_is_replaced(site: Site) -> None:
    cluster, path = site.cluster, f"/api/v1/namespaces/{site.namespace}/pods/web-1"
    bound, unbound = await site.token(pod="web-1"), await site.token()
    async with site.with_token(bound) as one, site.with_token(unbound) as two:
        streams = [site.client(channel) for channel in (one, two)]
        for stream in streams:
            await stream.ask(SECRET, "default")
            assert (await stream.get()).resources
        await cluster.api.delete(path, gracePeriodSeconds=0)
        for stream in streams:
            code, details = await stream.end()
            assert (code, details) == (DENIED, f"pod {site.namespace}/web-1 is gone")
        # A caller that waits for its pod is refused if the new pod has another account. An old pod's token is
        # not valid for the new pod.
        waiting = site.client(two)
        await waiting.ask(SECRET, "default")
        await pod(cluster, site.namespace, "web-1", account="other")
        code, details = await waiting.end()
        assert (code, "another service account" in details) == (DENIED, True)
        assert (await site.fetch(one))[0] in {DENIED, UNPROVEN}
    async with site.with_token(await site.token("other", pod="web-1")) as channel:
        assert (await site.fetch(channel))[0] is grpc.StatusCode.OK


async def test_only_admins_may_introspect_over_tls(site: Site, tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(site.roots)
    texts = {
        "admin": await site.token("xds", namespace=site.home),
        "web": await site.token(pod="web-1"),
        "bad": token({"aud": "xds-ca", "exp": time.time() + 600}),
    }
    ends = {}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        options = (f"--ca-file={roots}", f"--token-file={tmp_path / name}")
        status, _, stderr = await run("status", f"--xds-address=localhost:{site.tls}", *options)
        ends[name] = status, stderr
    # No sidecar is connected, so the command fails, but the admin got an answer.
    assert ends["admin"] == (1, ""), ends
    why = f"service account {site.namespace}/web is not an admin: add its identity with --admin-identity"
    assert ends["web"] == (3, f"xds: localhost:{site.tls} denied the request ({why})\n")
    assert (ends["bad"][0], "rejects the token" in ends["bad"][1]) == (3, True)


async def test_token_is_unavailable_during_an_api_server_outage(site: Site) -> None:
    own = await site.token(pod="web-1")
    site.cluster.stop_api_server()
    async with site.with_token(own) as channel:
        code, details = await site.fetch(channel)
        assert (code, "cannot review the token" in details) == (grpc.StatusCode.UNAVAILABLE, True), details
        await site.cluster.start_api_server()

        async def is_accepted() -> bool:
            return (await site.fetch(channel))[0] is grpc.StatusCode.OK

        await eventually(is_accepted, timeout=60, what="the token is accepted again")


async def test_bad_tokens_are_rate_limited(cluster: Cluster) -> None:
    """Two thousand callers, each with a different bad token that only the API server can reject."""
    async with cluster.namespace() as namespace:
        good = await cluster.token(namespace, "default", audience="xds-ca")
        api = _Counting(cluster.api)
        reviews = TokenReviewer(api)  # type: ignore[arg-type]
        payload = claims(good)

        async def show(number: int) -> str:
            try:
                return str(await reviews(token(payload | {"jti": str(number)}), "ipv4:10.0.0.9:1"))
            except Exception as error:  # noqa: BLE001 - compared below
                return type(error).__name__

        ends = await asyncio.gather(*(show(number) for number in range(2000)))
        assert set(ends) == {"UnauthenticatedError", "RateLimitedError"}
        assert api.reviews == ends.count("UnauthenticatedError") < 200
        assert (await reviews(good, "ipv4:10.0.0.10:1")).service_account == "default"


class _Counting:
    """Counts requests to the real API server."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.reviews = 0

    async def call(self, method: str, path: str, body: Any, **how: Any) -> Any:
        self.reviews += path == PATH
        return await self._api.call(method, path, body, **how)


def claims(text: str) -> dict[str, Any]:
    payload = text.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return decoded


def resigned(cluster: Cluster, text: str, *, seconds: int) -> str:
    """Return the token as the API server would have signed it, expiring in so many seconds."""
    header = text.split(".", maxsplit=1)[0]
    now = int(time.time())
    altered = claims(text) | {"exp": now + seconds, "iat": now + seconds - 600, "nbf": now + seconds - 600}
    payload = base64.urlsafe_b64encode(json.dumps(altered).encode()).decode().rstrip("=")
    key: Any = load_pem_private_key(
        (cluster.control_plane.folder / "pki/service-accounts.key").read_bytes(), None
    )
    numbers = decode_dss_signature(key.sign(f"{header}.{payload}".encode(), ec.ECDSA(hashes.SHA256())))
    signature = b"".join(number.to_bytes(32, "big") for number in numbers)
    return f"{header}.{payload}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
