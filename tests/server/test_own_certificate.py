"""The server's certificate: renewal and reissue at run time, and clients with old and new roots."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.identity.bridges import bridge
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.identity.server_tls import ServerCertificate, Trust, service_names
from xds.server import XdsServer

NOW = datetime.now(UTC)


def authority(trust_domain: str = "cluster.local", **lifetime: timedelta) -> Authority:
    return Authority.create(PrivateKey.generate(), trust_domain, NOW, **lifetime)


@dataclass
class World:
    """The inputs of the certificate."""

    trust: Trust
    now: datetime = NOW


@pytest.fixture
def world() -> World:
    ca = authority()
    return World(Trust(ca, ca.root_pem))


@pytest.fixture
async def server(proxies, world) -> AsyncIterator[XdsServer]:
    own = ServerCertificate(["localhost", "127.0.0.1"], lambda: world.trust, now=lambda: world.now)
    secure = [("127.0.0.1:0", own.credentials(certificate_required=required)) for required in (False, True)]
    async with XdsServer(proxies, "127.0.0.1:0", grace=0.2, secure=secure) as server:
        yield server


async def healthy(
    server: XdsServer,
    roots: bytes,
    *,
    port: int = 0,
    host: str = "localhost",
    shown: tuple[bytes, bytes] | None = None,
) -> bool:
    """Whether a client with these roots can connect."""
    chain, key = shown or (None, None)
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    options = [("grpc.use_local_subchannel_pool", 1)]
    target = f"{host}:{server.secure_ports[port]}"
    async with grpc.aio.secure_channel(target, credentials, options) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
    return True


def fingerprint(server: XdsServer) -> str:
    pem = ssl.get_server_certificate(("127.0.0.1", server.secure_ports[0]))
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()


async def test_certificate_has_the_names_of_the_server(server, world):
    assert await healthy(server, world.trust.roots)
    assert await healthy(server, world.trust.roots, host="127.0.0.1")
    assert not await healthy(server, authority().root_pem)


def test_certificate_has_the_names_of_the_service():
    assert service_names("istio-system") == (
        "xds.istio-system.svc",
        "xds.istio-system.svc.cluster.local",
        "xds.istio-system",
        "xds",
    )


async def test_certificate_is_renewed_at_half_of_its_lifetime(server, world):
    first = await asyncio.to_thread(fingerprint, server)
    world.now = NOW + timedelta(hours=11)
    assert await asyncio.to_thread(fingerprint, server) == first
    world.now = NOW + timedelta(hours=12, minutes=1)
    assert await asyncio.to_thread(fingerprint, server) != first


async def test_rotation_reissues_the_certificate_without_a_restart(server, world):
    old, new = world.trust.authority, authority()
    world.trust = Trust(old, old.root_pem + new.root_pem)
    leaf = new.issue("spiffe://cluster.local/ns/a/sa/b", NOW)
    shown = leaf.chain, leaf.key.to_pem()
    assert await healthy(server, old.root_pem, port=1, shown=shown)
    world.trust = Trust(new, new.root_pem)
    assert not await healthy(server, old.root_pem)
    assert await healthy(server, new.root_pem)
    old_leaf = old.issue("spiffe://cluster.local/ns/a/sa/b", NOW)
    assert await healthy(server, new.root_pem, port=1, shown=shown)
    assert not await healthy(server, new.root_pem, port=1, shown=(old_leaf.chain, old_leaf.key.to_pem()))


async def test_bridge_serves_clients_with_the_old_root_only(server, world):
    old, new = world.trust.authority, authority()
    world.trust = Trust(new, new.root_pem, bridge(old, new))
    assert await healthy(server, old.root_pem)
    assert await healthy(server, new.root_pem)
    assert not await healthy(server, authority().root_pem)


async def test_failed_renewal_is_logged_and_keeps_the_certificate(server, world):
    good = world.trust.roots
    with capture_logs() as logs:
        world.trust = Trust(authority(lifetime=timedelta(seconds=-1)), good)
        assert await healthy(server, good)
        assert await healthy(server, good)
    [line] = [line for line in logs if "renewal failed" in line["event"]]
    assert "expired" in line["stack"]


def test_first_certificate_must_be_issued():
    ca = authority(lifetime=timedelta(seconds=-1))
    with pytest.raises(IdentityError, match="expired"):
        ServerCertificate(["x"], lambda: Trust(ca, ca.root_pem))
    ca = authority()
    with pytest.raises(IdentityError, match="lower-case DNS name"):
        ServerCertificate(["not a name"], lambda: Trust(ca, ca.root_pem))
