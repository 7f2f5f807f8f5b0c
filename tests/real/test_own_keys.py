"""The real Envoy with keys that `xds proxy` makes in the pod: no private key leaves it."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support import manifests
from tests.support.loopback import Loopback
from tests.support.own_keys import OwnKeyMesh, TokenPlane
from tests.support.switchover import PATIENCE, World, running
from tests.support.waiting import eventually
from xds.mesh.envoy.features import ALL_FEATURES, Features
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.rotation import Authorities
from xds.snapshot import SECRET

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(300)]


def own_keys(_: str) -> Features:
    return ALL_FEATURES._replace(own_key=True)


def authorities() -> Authorities:
    return Authorities(authority=Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC)))


def served(world: World) -> bytes:
    """Return everything that the control plane serves to sidecars now, and check that it knows no key."""
    controller = world.plane.controller
    assert not controller.certificates._issuer._issued
    snapshots = [each.snapshot for streams in controller.connections.streams.values() for each in streams]
    assert len(snapshots) == len(world.sidecars)
    assert all(set(snapshot.of(SECRET)) == {"ROOTCA"} for snapshot in snapshots)
    return b"".join(r.body for each in snapshots for kind in each.types for r in each.of(kind).values())


async def test_keys_made_in_pods_are_renewed_without_a_failed_request(
    loopback: Loopback, tmp_path: Path
) -> None:
    async with running(
        loopback,
        tmp_path,
        authorities(),
        features=own_keys,
        of=(OwnKeyMesh, TokenPlane),
        lifetime=timedelta(seconds=12),
    ) as world:
        world.mesh.apply(manifests.peer_authentication("ns", "STRICT"))
        await world.mesh.settled(timeout=PATIENCE)
        await world.more()
        resources = served(world)
        assert b"PRIVATE KEY" not in resources
        assert b"xds-own-certificate" in resources
        for pod in world.sidecars:
            directory = world.mesh.folder(pod) / "key"
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (directory, directory / "sds.sock")]
            assert modes == [0o700, 0o600]
        for _ in range(2):
            before = await world.shown()

            async def are_new(before: dict[str, set[str]] = before) -> bool:
                return all(new.isdisjoint(before[name]) for name, new in (await world.shown()).items())

            await eventually(are_new, timeout=PATIENCE, what="all sidecars have a new certificate")
            await world.more()
        assert b"PRIVATE KEY" not in served(world)
        requests = world.plane.controller.certificates.requests
        assert requests["signed"] >= 3 * len(world.sidecars)
        assert (requests["refused"], requests["failed"]) == (0, 0)
        print(await world.check(), "requests,", requests["signed"], "certificates")
