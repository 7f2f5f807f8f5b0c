"""The real Envoy over TLS with a token file: large responses; new tokens, certificates and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import Metadata
from envoy_data_plane.google.protobuf import Struct, Value

from tests.identity.bridges import bridge
from tests.support.envoy import EnvoyProcess
from tests.support.loopback import Loopback, free_port
from xds.codec import to_json_dict
from xds.mesh.envoy.bootstrap import TokenFile, bootstrap
from xds.mesh.identity.auth import Authentication
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.claims import Caller, CredentialKind, UnauthenticatedError
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.mesh.model.objects import Interception, Meta, Pod, Ref
from xds.server import XdsServer
from xds.store import Store

pytestmark = [pytest.mark.envoy, pytest.mark.parametrize("sotw", [True, False], ids=["sotw", "delta"])]

NOW = datetime.now(UTC)
WITHIN = 60.0
LARGE = 6 * 1024 * 1024
STATIC_CLUSTERS = 3
"""Number of clusters in the bootstrap."""


@dataclass
class Site:
    """A control plane at one port, with the tokens that it accepts."""

    folder: Path
    port: int = field(default_factory=free_port)
    trust: Trust = field(init=False)
    store: Store = field(default_factory=Store)
    good: set[str] = field(default_factory=lambda: {"first"})
    shown: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    """Every received token, valid or not."""

    def __post_init__(self) -> None:
        ca = authority()
        self.trust = Trust(ca, ca.root_pem)
        (self.folder / "roots.pem").write_bytes(ca.root_pem)
        self.project("first")

    def project(self, token: str) -> None:
        """Replace the token atomically, as the kubelet does."""
        (self.folder / "new").write_text(token)
        (self.folder / "new").rename(self.folder / "token")

    async def judge(self, token: str, _: str) -> Caller:
        self.shown.put_nowait(token)
        if token not in self.good:
            raise UnauthenticatedError("the token expired")
        return Caller(namespace="ns", service_account=token, credential=CredentialKind.TOKEN)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[XdsServer]:
        own = ServerCertificate(["localhost"], lambda: self.trust)
        async with XdsServer(
            self.store,
            "127.0.0.1:0",
            grace=0.5,
            secure=[(f"127.0.0.1:{self.port}", own.credentials(certificate_required=False))],
            authenticate=Authentication(lambda: ("cluster.local",), self.judge),
        ) as server:
            yield server

    def envoy(self, loopback: Loopback, *, sotw: bool) -> EnvoyProcess:
        meta = Meta(ref=Ref("Pod", "ns", "web"))
        pod = Pod(meta=meta, address=loopback.address(), interception=Interception.NONE)
        files = TokenFile(token=str(self.folder / "token"), roots=str(self.folder / "roots.pem"))
        config = bootstrap(pod, "localhost", self.port, sotw=sotw, credential=files)
        return EnvoyProcess("web", to_json_dict(config), self.folder)

    async def until_shown(self, token: str) -> None:
        async with asyncio.timeout(WITHIN):
            while await self.shown.get() != token:
                pass

    async def until_known_as(self, token: str) -> None:
        """Wait until the Envoy is synced on a stream that it opened with this token."""
        async with asyncio.timeout(WITHIN):
            while [client.stream.caller.service_account for client in self.store.clients] != [token]:
                await asyncio.sleep(0.02)
            await self.store.applied()


def authority() -> Authority:
    return Authority.create(PrivateKey.generate(), "cluster.local", NOW)


def cluster(name: str, size: int = 0) -> Cluster:
    filler = Struct(fields={"filler": Value(string_value="x" * size)})
    return Cluster(
        name=name, type=ClusterDiscoveryType.STATIC, metadata=Metadata(filter_metadata={"test": filler})
    )


def replace(store: Store, *clusters: Cluster) -> None:
    """Serve exactly these clusters, and no listeners."""
    store.replace(clusters)


async def test_envoy_accepts_a_response_of_six_megabytes(loopback, tmp_path, sotw):
    site = Site(tmp_path)
    replace(site.store, *(cluster(f"c{number}", LARGE // 100) for number in range(100)))
    async with site.serving(), site.envoy(loopback, sotw=sotw) as envoy:
        await site.until_known_as("first")
        assert await envoy.admin.stat("cluster_manager.active_clusters") == STATIC_CLUSTERS + 100
        largest = site.store.view("").of("type.googleapis.com/envoy.config.cluster.v3.Cluster")
        assert sum(len(resource.body) for resource in largest.values()) >= LARGE * 0.99


async def test_replaced_token_is_used_on_the_next_stream(loopback, tmp_path, sotw):
    site = Site(tmp_path)
    replace(site.store, cluster("a"))
    async with site.serving(), site.envoy(loopback, sotw=sotw) as envoy:
        await site.until_known_as("first")
        site.project("second")
        replace(site.store, cluster("b"))
        await site.until_known_as("first")  # a stream that goes on needs no other
        site.good = {"second"}
        end(site.store)
        await site.until_known_as("second")

        # A token that expires during a stream only affects the next stream, which waits for a renewed token.
        site.good = set()
        end(site.store)
        await site.until_shown("second")
        await site.until_shown("second")
        site.good = {"third"}
        site.project("third")
        await site.until_known_as("third")
        replace(site.store, cluster("c"))
        await site.until_known_as("third")
        assert await envoy.admin.stat("cluster_manager.cluster_added") == STATIC_CLUSTERS + 3


async def test_envoy_reconnects_after_a_ca_rotation(loopback, tmp_path, sotw):
    site = Site(tmp_path)
    replace(site.store, cluster("a"))
    async with site.serving():
        envoy = site.envoy(loopback, sotw=sotw)
        await envoy.__aenter__()
        await site.until_known_as("first")
    old, new = site.trust.authority, authority()
    try:
        async with site.serving():
            await site.until_known_as("first")
            # Envoy reads its roots once, so the new CA's certificate needs a bridge to the old root.
            site.trust = Trust(new, new.root_pem + old.root_pem, bridge(old, new))
            end(site.store)
            await site.until_known_as("first")
        replace(site.store, cluster("b"))
        async with site.serving():
            await site.until_known_as("first")
            assert await envoy.admin.stat("cluster_manager.cluster_removed") == 1
    finally:
        await envoy.__aexit__(None, None, None)


def end(store: Store) -> None:
    """End all streams; their clients open new ones."""
    for client in tuple(store.clients):
        client.refuse(grpc.StatusCode.UNAVAILABLE, "the connection is old")
