"""A control plane with a port for each kind of credential, and its clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret

from tests.server.proxies import REQUEST, RESPONSE, Client
from xds.introspect import Introspection
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.policies_service import PoliciesService
from xds.mesh.controlplane.proxies_service import ProxiesService
from xds.mesh.controlplane.replica_traffic import ReplicaTraffic
from xds.mesh.controlplane.report.service import ReportsService
from xds.mesh.controlplane.rollouts_service import RolloutsService
from xds.mesh.controlplane.traffic_reports import TrafficReports
from xds.mesh.controlplane.traffic_service import TrafficService
from xds.mesh.identity.auth import AdminAuthorizer, Authentication
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.claims import (
    AuthenticationUnavailableError,
    Caller,
    CredentialKind,
    IdentityPattern,
    RateLimitedError,
    UnauthenticatedError,
)
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.mesh.model.objects import Change, Meta, Pod, Ref
from xds.mesh.v1 import described
from xds.protocol.session import Variant
from xds.server import XdsServer
from xds.snapshot import SECRET

NOW = datetime.now(UTC)
CA = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
FOREIGN = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"
NODE = "sidecar~10.0.0.1~{}.full~full.svc.cluster.local"
SDS = "/envoy.service.secret.v3.SecretDiscoveryService"
DENIED, UNPROVEN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
CLIENT_LOST_STATUS = grpc.StatusCode.INTERNAL, "Internal error from Core"
"""What gRPC's client reports if a call ends during a write, instead of the server's status."""
TRUST_DOMAINS = ("cluster.local",)


def caller(namespace: str, account: str, pod: str = "", uid: str = "") -> Caller:
    return Caller(
        namespace=namespace, service_account=account, pod=pod, pod_uid=uid, credential=CredentialKind.TOKEN
    )


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
    """Replace TokenReviews. Tests with a real API server are in tests/kubernetes."""
    assert peer.startswith("ipv4:127.0.0.1:")
    if token == "undecided":
        raise AuthenticationUnavailableError("no API server")
    if token == "too-many":
        raise RateLimitedError("too many tokens")
    if found := TOKENS.get(token):
        return found
    raise UnauthenticatedError("the API server rejects the token")


@dataclass(frozen=True)
class Site:
    server: XdsServer
    controller: Controller
    reports: TrafficReports

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


@asynccontextmanager
async def opened() -> AsyncIterator[Site]:
    """Serve a controller that knows pod full/sleep-1."""
    controller = Controller(CA, serve_keys=False)
    async with AsyncExitStack() as stack:
        task = asyncio.create_task(controller.run())
        stack.callback(task.cancel)
        controller.change(Change(applied=(sleep(),)))
        await controller.ready.wait()
        own = ServerCertificate(["localhost"], lambda: Trust(CA, CA.root_pem))
        authentication = Authentication(lambda: TRUST_DOMAINS, judge)
        reports = TrafficReports(controller)
        admins = AdminAuthorizer(
            authentication, [IdentityPattern("istio-system", "xds")], lambda: TRUST_DOMAINS
        )
        server = XdsServer(
            controller.connections,
            "127.0.0.1:0",
            grace=0.2,
            added=[
                Introspection(
                    (
                        ProxiesService(controller.problem_of),
                        RolloutsService(controller),
                        PoliciesService(controller),
                        traffic := TrafficService(controller, ReplicaTraffic(reports)),
                        ReportsService(controller, traffic),
                    ),
                    admit=admins,
                    documented=described,
                ),
                reports,
            ],
            secure=[
                ("127.0.0.1:0", own.credentials(certificate_required=False)),
                ("127.0.0.1:0", own.credentials(certificate_required=True)),
            ],
            authenticate=authentication,
        )
        await stack.enter_async_context(server)
        yield Site(server, controller, reports)


def issued(identity: str, ca: Authority = CA) -> tuple[bytes, bytes]:
    leaf = ca.issue(identity, NOW)
    return leaf.chain, leaf.key.to_pem()


async def secret(channel: grpc.aio.Channel, variant: Variant, pod: str = "sleep-1") -> Secret:
    """Request the secret of a pod only."""
    word = "Stream" if variant is Variant.SOTW else "Delta"
    client = Client(channel, variant, f"{SDS}/{word}Secrets", node=NODE.format(pod))
    await client.ask(SECRET, "default")
    answer = await client.get()
    [resource] = answer.resources
    body = resource.value if variant is Variant.SOTW else resource.resource.value
    return Secret.parse(body)


async def refused(channel: grpc.aio.Channel, pod: str = "sleep-1") -> tuple[grpc.StatusCode, str]:
    """Request a key in every way. Return the statuses. No request may get a key."""
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
    """Request a key. Return the status of the stream."""
    client = Client(channel, variant, method, node=NODE.format(pod))
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await client.ask(SECRET, "default")
    end = await client.end()
    if end == CLIENT_LOST_STATUS:
        return await Client(channel, variant, method).end()
    return end


async def fetch(channel: grpc.aio.Channel, pod: str = "sleep-1"):
    request = REQUEST(resource_names=["default"])
    request.node.id = NODE.format(pod)
    call = channel.unary_unary(f"{SDS}/FetchSecrets")
    while True:
        try:
            return RESPONSE.FromString(await call(request.SerializeToString()))
        except grpc.aio.AioRpcError as error:
            if "yet; ask again" not in (
                error.details() or ""
            ):  # Else it came before its pod's first snapshot.
                raise
