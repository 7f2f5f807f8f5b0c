"""Root rotation under load between real sidecars: no request fails, unless the first step is skipped."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.identity.companies import Company, key_pem, pem
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.secret_objects import put
from tests.real.conftest import loopback
from tests.support.switchover import FRESH, PATIENCE, World, running
from tests.support.waiting import eventually
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.rotation import Authorities, Stage, Timing
from xds.mesh.kube.ca_secret import USER_SECRET, CaSecrets, RotationController, load_or_create_authorities

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(300)]
__all__ = ["loopback"]


def rotation_of(
    world: World, secrets: CaSecrets, first: Authorities, now: Callable[[], datetime]
) -> RotationController:
    """Return the controller of the CA of running sidecars, with short stages."""
    return RotationController(
        secrets,
        first,
        on_change=world.plane.take,
        lagging=world.plane.controller.proxies_with_old_roots,
        leads=lambda: True,
        now=now,
        timing=Timing(timedelta(), timedelta(days=1), timedelta(hours=1)),
    )


async def test_ca_replacement_fails_no_request(cluster: Cluster, loopback, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    clock = now
    async with cluster.namespace("rotation") as namespace:
        first = await load_or_create_authorities(cluster.api, namespace, "cluster.local", now)
        old = first.authority
        async with running(loopback, tmp_path, first) as world:
            controller = world.plane.controller
            rotation = rotation_of(world, CaSecrets(cluster.api, namespace), first, lambda: clock)
            before = await world.shown()
            root = Company.root("Root", now, key=rsa.generate_private_key(65537, 4096))
            issuing = root.subsidiary("Issuing", pathlen=0, key=rsa.generate_private_key(65537, 4096))
            await put(
                cluster,
                namespace,
                USER_SECRET,
                {
                    "ca-cert.pem": pem(issuing),
                    "ca-key.pem": key_pem(issuing),
                    "root-cert.pem": pem(root),
                    "cert-chain.pem": pem(issuing) + pem(root),
                },
            )

            # (a) Both roots are sent, but do not reach the clients, so the rotation does not continue.
            world.plane.dam.open.clear()
            await rotation.sync()
            assert rotation.current.stage is Stage.SPREADING
            await eventually(
                lambda: len(controller.proxies_with_old_roots()) == 2,
                timeout=PATIENCE,
                what="the servers have both roots",
            )
            assert {node.split("~")[2] for node in controller.proxies_with_old_roots()} == {
                client.full_name for client in world.clients
            }
            for _ in range(3):
                await rotation.sync()
            assert rotation.current.stage is Stage.SPREADING
            await world.more()
            world.plane.dam.open.set()
            await eventually(
                lambda: not controller.proxies_with_old_roots(),
                timeout=PATIENCE,
                what="the clients have both roots",
            )
            await world.until_trusted(old.root_pem, pem(root))
            assert await world.shown() == before

            # (b) The new CA issues certificates.
            await rotation.sync()
            assert rotation.current.stage is Stage.RETIRING

            await world.until_issued_by(issuing, before)
            await world.more()
            await world.until_trusted(old.root_pem, pem(root))

            # (c) The old root is removed.
            clock = now + timedelta(hours=2)
            await rotation.sync()
            assert rotation.current.stage is Stage.STEADY
            await world.until_trusted(pem(root))
            await world.more()
            requests = await world.check()
            handshakes = [
                await world.mesh.sidecar(client).admin.stat(
                    "cluster.outbound|80||fresh.ns.svc.cluster.local;.ssl.handshake"
                )
                for client in world.clients
            ]
    fresh = sum(len(load.sent) for load in world.loads if load.url == FRESH)
    assert sum(handshakes) >= fresh
    print(f"{requests} requests, {fresh} on connections of their own")


async def test_renewals_by_cert_manager_fail_no_request(cluster: Cluster, loopback, tmp_path: Path) -> None:
    """The intermediate and its key are renewed, then the root: with its key, and with a new key."""
    now = datetime.now(UTC)
    clock = now
    root = Company.root("Root", now)
    issuing = root.subsidiary("Issuing", pathlen=0)

    async def renew(issuing: Company, root: Company) -> None:
        data = {"tls.crt": pem(issuing), "tls.key": key_pem(issuing), "ca.crt": pem(root)}
        await put(cluster, namespace, USER_SECRET, data, kind="kubernetes.io/tls")

    async with cluster.namespace("renewal") as namespace:
        await renew(issuing, root)
        first = await load_or_create_authorities(cluster.api, namespace, "cluster.local", now)
        async with running(loopback, tmp_path, first) as world:
            controller = world.plane.controller
            rotation = rotation_of(world, CaSecrets(cluster.api, namespace), first, lambda: clock)
            before = await world.shown()
            issuing = root.subsidiary("Issuing", pathlen=0)
            await renew(issuing, root)
            await rotation.sync()
            assert rotation.current.stage is Stage.STEADY
            await world.until_issued_by(issuing, before)
            await world.more()

            for key in (root.key, None):
                old, root, before = root, Company.root("Root", now, key=key), await world.shown()
                issuing = root.subsidiary("Issuing", pathlen=0)
                await renew(issuing, root)
                await rotation.sync()
                assert rotation.current.stage is Stage.SPREADING
                await world.until_trusted(pem(old), pem(root))
                await eventually(lambda: not controller.proxies_with_old_roots(), timeout=PATIENCE)
                await rotation.sync()
                await world.until_issued_by(issuing, before)
                await world.more()
                clock += timedelta(hours=2)
                await rotation.sync()
                assert rotation.current.stage is Stage.STEADY
                await world.until_trusted(pem(root))
                await world.more()
            print(await world.check(), "requests")


async def test_requests_fail_if_the_first_step_is_skipped(loopback, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    old, new = (Authority.create(PrivateKey.generate(), "cluster.local", now) for _ in range(2))
    async with running(loopback, tmp_path, Authorities(authority=old)) as world:
        world.plane.dam.open.clear()
        before = await world.shown()
        world.plane.controller.rotate(new, [old.root_pem])
        # The servers have certificates of the new CA, which the clients do not trust yet.
        await eventually(world.failed, timeout=PATIENCE, what="requests fail")
        shown = await world.shown()
        assert all(shown[client.name] == before[client.name] for client in world.clients)
        world.plane.dam.open.set()
        await eventually(lambda: not world.plane.controller.proxies_with_old_roots(), timeout=PATIENCE)
        await world.stop()
