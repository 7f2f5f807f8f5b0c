"""TLS between real sidecars: what they negotiate, and changes of its settings under load."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from asyncio.subprocess import STDOUT
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.loopback import Loopback
from tests.support.processes import run
from tests.support.switchover import PORT, World, running
from xds.mesh.controlplane import connections
from xds.mesh.envoy.features import ALL_FEATURES, NO_FEATURES, Features, features_of
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.rotation import Authorities
from xds.mesh.model.objects import Change
from xds.protocol.wire import Node

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(300)]

VERSIONS, CURVES, CIPHERS = "versions", "curves", "ciphers"
AES = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"}
CHACHA = "TLS_CHACHA20_POLY1305_SHA256"


@pytest.fixture
def authorities() -> Authorities:
    now = datetime.now(UTC)
    return Authorities(authority=Authority.create(PrivateKey.generate(), "cluster.local", now))


async def negotiated(world: World, kind: str) -> dict[str, set[str]]:
    """Return what each sidecar's handshakes negotiate from now on."""

    async def counts() -> dict[str, dict[str, int]]:
        return {pod.name: await world.mesh.sidecar(pod).admin.stats(pattern) for pod in world.sidecars}

    pattern = rf"\.ssl\.{kind}\."
    before = await counts()
    await world.more(60)  # Each client connects to both servers.
    result = {
        name: {
            stat.split(f".ssl.{kind}.")[1] for stat, count in now.items() if count > before[name].get(stat, 0)
        }
        for name, now in (await counts()).items()
    }
    assert all(result.values()), result
    return result


async def everywhere(world: World, kind: str) -> set[str]:
    return set().union(*(await negotiated(world, kind)).values())


async def handshake(world: World, authority: Authority, directory: Path, **settings: Any) -> str:
    """Connect to a server's sidecar as a client of the mesh. Return the cipher; empty if TLS fails."""
    leaf = authority.issue("spiffe://cluster.local/ns/ns/sa/test", datetime.now(UTC))
    file = directory / "leaf.pem"
    file.write_bytes(leaf.chain + leaf.key.to_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(file)
    context.set_alpn_protocols(["istio"])
    if ciphers := settings.pop("ciphers", ""):
        context.set_ciphers(ciphers)
    for name, value in settings.items():
        setattr(context, name, value)
    try:
        _, writer = await asyncio.open_connection(world.servers[0].address, PORT, ssl=context)
    except ssl.SSLError:
        return ""
    cipher: str = writer.get_extra_info("cipher")[0]
    writer.close()
    return cipher


async def openssl(world: World, *options: str) -> str:
    """Return what `openssl s_client` prints when it connects to a server's sidecar."""
    address = f"{world.servers[0].address}:{PORT}"
    command = ("openssl", "s_client", "-connect", address, "-alpn", "istio", *options)
    _, output, _ = await run(*command, stderr=STDOUT)
    return output


async def test_default_is_tls_1_3_with_post_quantum_keys(
    loopback: Loopback, tmp_path: Path, authorities: Authorities
) -> None:
    async with running(loopback, tmp_path, authorities) as world:
        assert await everywhere(world, VERSIONS) == {"TLSv1.3"}
        assert await everywhere(world, CURVES) == {"X25519MLKEM768"}
        assert await everywhere(world, CIPHERS) <= {*AES, CHACHA}
        oldest = {"maximum_version": ssl.TLSVersion.TLSv1_2}
        assert not await handshake(world, authorities.authority, tmp_path, **oldest)
        assert await handshake(world, authorities.authority, tmp_path)
        await world.check()


async def test_changes_of_versions_and_curves_fail_no_request(
    loopback: Loopback, tmp_path: Path, authorities: Authorities
) -> None:
    steps: list[tuple[dict[str, Any], str, set[str]]] = [
        ({"minProtocolVersion": "TLSV1_2"}, VERSIONS, {"TLSv1.3"}),
        ({"minProtocolVersion": "TLSV1_3"}, VERSIONS, {"TLSv1.3"}),
        ({"ecdhCurves": ["X25519", "P-384"]}, CURVES, {"X25519"}),
        ({"ecdhCurves": ["P-384", "P-521"]}, CURVES, {"P-384"}),
        ({"ecdhCurves": ["P-521", "P-256"]}, CURVES, {"P-521"}),
        ({}, CURVES, {"X25519MLKEM768"}),
    ]
    async with running(loopback, tmp_path, authorities) as world:
        for mesh_tls, kind, expected in steps:
            await world.change({"meshMTLS": mesh_tls})
            assert await everywhere(world, kind) == expected
        print(await world.check(), "requests")


async def test_tls_1_2_and_its_cipher_suites_can_be_allowed(
    loopback: Loopback, tmp_path: Path, authorities: Authorities
) -> None:
    authority, oldest = authorities.authority, {"maximum_version": ssl.TLSVersion.TLSv1_2}
    suites = ["ECDHE-ECDSA-AES256-GCM-SHA384", "[ECDHE-ECDSA-CHACHA20-POLY1305|ECDHE-ECDSA-AES128-SHA]"]
    async with running(loopback, tmp_path, authorities) as world:
        await world.change({"meshMTLS": {"minProtocolVersion": "TLSV1_2", "cipherSuites": suites}})
        for suite in ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"):
            assert await handshake(world, authority, tmp_path, ciphers=suite, **oldest) == suite
        refused = "ECDHE-ECDSA-AES128-GCM-SHA256"
        assert not await handshake(world, authority, tmp_path, ciphers=refused, **oldest)
        await world.check()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
async def test_fips_policy_allows_only_approved_curves_and_ciphers(
    loopback: Loopback, tmp_path: Path, authorities: Authorities
) -> None:
    chacha = ("-tls1_3", "-ciphersuites", CHACHA)
    async with running(loopback, tmp_path, authorities) as world:
        assert f"Cipher is {CHACHA}" in await openssl(world, *chacha)
        world.mesh.settings = ("values.xds.compliancePolicy=fips-140-3",)
        world.plane.dam.open.clear()
        config = replace(world.plane.controller.mesh.config, fips=True)
        world.plane.controller.change(Change(config=config))
        await world.servers_first()
        assert await everywhere(world, CURVES) == {"P-256"}
        assert await everywhere(world, CIPHERS) <= AES
        assert "Cipher is (NONE)" in await openssl(world, *chacha)
        assert "Cipher is (NONE)" in await openssl(world, "-tls1_3", "-groups", "X25519")
        assert "Cipher is TLS_AES_256_GCM_SHA384" in await openssl(world, "-tls1_3", "-groups", "P-384")
        await world.check()


@pytest.mark.parametrize("policy", [(), ("values.xds.compliancePolicy=fips-140-3",)])
async def test_older_envoys_get_what_they_support_and_reach_newer_ones(
    loopback: Loopback,
    tmp_path: Path,
    authorities: Authorities,
    monkeypatch: pytest.MonkeyPatch,
    policy: tuple[str, ...],
) -> None:
    # Take one client and one server for Envoys of an unknown build.
    def features(name: str) -> Features:
        return NO_FEATURES if "delta" in name else ALL_FEATURES

    def of_nodes(nodes: Iterable[Node]) -> Features:
        found = list(nodes)
        assert features_of(found) == ALL_FEATURES
        return features(found[0].id)

    monkeypatch.setattr(connections, "features_of", of_nodes)
    async with running(loopback, tmp_path, authorities, policy, features) as world:
        curves = await negotiated(world, CURVES)
        versions = await negotiated(world, VERSIONS)
        await world.check()
    for name in ("client-delta", "web-delta"):
        assert curves[name] == {"P-256" if policy else "X25519"}
        assert versions[name] == {"TLSv1.2" if policy else "TLSv1.3"}
    for name in ("client-sotw", "web-sotw"):
        assert curves[name] == ({"P-256"} if policy else {"X25519", "X25519MLKEM768"})
        assert versions[name] == ({"TLSv1.2", "TLSv1.3"} if policy else {"TLSv1.3"})
