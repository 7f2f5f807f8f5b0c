"""The real Envoy with keys that `xds proxy` makes in the pod: no private key leaves it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.identity.companies import Company, key_pem, pem
from tests.sidecar.pods import Process
from tests.support import manifests
from tests.support.clients import Client
from tests.support.local import LocalPod
from tests.support.loopback import Loopback, free_port
from tests.support.own_keys import OwnKeyMesh, TokenPlane
from tests.support.switchover import KEPT, PATIENCE, World, running
from tests.support.waiting import eventually
from xds.mesh.controlplane.connections import Connections
from xds.mesh.controlplane.signing import ExternalIssuer
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


async def until_renewed(world: World) -> None:
    """Wait until each sidecar has another certificate than now."""
    before = await world.shown()

    async def are_new() -> bool:
        return all(new.isdisjoint(before[name]) for name, new in (await world.shown()).items())

    await eventually(are_new, timeout=PATIENCE, what="all sidecars have a new certificate")


async def test_new_keys_and_a_new_root_fail_no_request(loopback: Loopback, tmp_path: Path) -> None:
    now, first = datetime.now(UTC), authorities()
    second = Authority.create(PrivateKey.generate(), "cluster.local", now)
    spreading = replace(first, upcoming=second, since=now)
    retiring = Authorities(authority=second, retired=first.authority.roots, since=now)
    how = {"features": own_keys, "of": (OwnKeyMesh, TokenPlane), "lifetime": timedelta(seconds=30)}
    async with running(loopback, tmp_path, first, **how) as world:
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
        await until_renewed(world)
        await world.more()
        world.plane.take(spreading)
        both = (first.authority.root_pem, second.root_pem)
        await world.until_trusted(*both)
        for pod in world.sidecars:  # The kubelet updates the files.
            new = world.mesh.folder(pod) / "roots.new"
            new.write_bytes(b"".join(both))
            new.replace(world.mesh.folder(pod) / "roots.pem")
        world.plane.take(retiring)
        await until_renewed(world)
        await world.more()
        world.plane.take(Authorities(authority=second))
        await world.until_trusted(second.root_pem)
        await world.more()
        assert b"PRIVATE KEY" not in served(world)
        requests = world.plane.controller.certificates.requests
        assert requests["signed"] >= 3 * len(world.sidecars)
        assert (requests["refused"], requests["failed"]) == (0, 0)
        print(await world.check(), "requests,", requests["signed"], "certificates")


class HalfUpgraded(OwnKeyMesh):
    """A mesh in which only some sidecars make their own keys."""

    def makes_key(self, pod: LocalPod) -> bool:
        return pod.name.endswith("-delta")


async def test_old_sidecars_keep_the_keys_of_the_control_plane(loopback: Loopback, tmp_path: Path) -> None:
    def features(name: str) -> Features:
        return ALL_FEATURES._replace(own_key="-delta" in name)

    how = {"features": features, "of": (HalfUpgraded, TokenPlane)}
    async with running(loopback, tmp_path, authorities(), **how) as world:
        world.mesh.apply(manifests.peer_authentication("ns", "STRICT"))
        await world.mesh.settled(timeout=PATIENCE)
        await world.more()
        issued = world.plane.controller.certificates._issuer._issued
        assert {name for _, name in issued} == {"client-sotw", "web-sotw"}
        print(await world.check(), "requests")


async def test_absent_control_plane_at_renewal_fails_no_request(loopback: Loopback, tmp_path: Path) -> None:
    how = {"features": own_keys, "of": (OwnKeyMesh, TokenPlane), "lifetime": timedelta(seconds=60)}
    async with running(loopback, tmp_path, authorities(), **how) as world:
        world.mesh.apply(manifests.peer_authentication("ns", "STRICT"))
        await world.mesh.settled(timeout=PATIENCE)
        logs = [world.mesh.sidecar(pod).log for pod in world.sidecars]
        await world.plane.__aexit__()

        def some_failed() -> bool:
            return any("cannot renew the certificate" in log.read_text() for log in logs)

        await eventually(some_failed, timeout=PATIENCE, what="a certificate could not be renewed")
        await world.more()
        await world.plane.__aenter__()
        await until_renewed(world)
        await world.more()
        assert any("received a certificate" in log.read_text() for log in logs)
        print(await world.check(), "requests")


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
async def test_external_signer_certifies_keys_made_in_pods(loopback: Loopback, tmp_path: Path) -> None:
    root = Company.root("Root", datetime.now(UTC))
    (tmp_path / "ca.pem").write_bytes(pem(root))
    (tmp_path / "ca-key.pem").write_bytes(key_pem(root))
    command = f"openssl x509 -req -CA {tmp_path}/ca.pem -CAkey {tmp_path}/ca-key.pem -copy_extensions copy"
    external = ExternalIssuer(command.split(), tmp_path / "ca.pem", lambda: datetime.now(UTC))
    async with running(
        loopback,
        tmp_path,
        authorities(),
        # Sidecars do not know it: the control plane tells them what the request must name.
        ("meshConfig.trustDomain=example.org",),
        features=own_keys,
        of=(OwnKeyMesh, TokenPlane),
        external=external,
    ) as world:
        world.mesh.apply(manifests.peer_authentication("ns", "STRICT"))
        await world.mesh.settled(timeout=PATIENCE)
        await world.more()
        assert b"PRIVATE KEY" not in served(world)
        requests = world.plane.controller.certificates.requests
        assert requests == {"signed": 4, "refused": 0, "failed": 0}
        answer = await world.clients[0].client.get(KEPT)
        assert answer.identity == "spiffe://example.org/ns/ns/sa/client-sotw"
        print(await world.check(), "requests")


class OldPlane(TokenPlane):
    """A control plane of an earlier version, which makes the keys."""

    async def listen(self) -> int:
        self.services.clear()
        connections = self.controller.connections

        def without_own_key(key):
            needs = Connections.needs(connections, key)
            return needs._replace(features=needs.features._replace(own_key=False))

        connections.needs = without_own_key
        return await super().listen()


async def test_sidecars_with_own_keys_work_with_an_older_control_plane(
    loopback: Loopback, tmp_path: Path
) -> None:
    async with running(loopback, tmp_path, authorities(), of=(OwnKeyMesh, OldPlane)) as world:
        await world.more()
        log = world.mesh.sidecar(world.servers[0]).log

        def is_refused() -> bool:
            return re.search(r"no certificate yet.*UNIMPLEMENTED", log.read_text()) is not None

        await eventually(is_refused, timeout=PATIENCE, what="the request for a certificate is refused")
        print(await world.check(), "requests")


async def is_up(address: str) -> bool:
    return (await Client().get(f"http://{address}:15000/server_info")).ok


async def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_envoy_and_its_agent_end_together(loopback: Loopback, tmp_path: Path) -> None:
    environment = {
        "POD_NAME": "web",
        "POD_NAMESPACE": "ns",
        "INSTANCE_IP": loopback.address(),
        "XDS_INTERCEPTION_MODE": "NONE",
        "XDS_ADDRESS": f"localhost:{free_port()}",
        "XDS_TOKEN_FILE": str(tmp_path / "token"),
        "XDS_ROOT_FILE": str(tmp_path / "roots.pem"),
        "XDS_KEY_DIR": str(tmp_path / "key"),
    }
    (tmp_path / "token").write_text("token")
    (tmp_path / "roots.pem").write_bytes(authorities().authority.root_pem)
    endings = (
        (signal.SIGTERM, False, 0),
        (signal.SIGKILL, True, 137),
        (signal.SIGKILL, False, -signal.SIGKILL),
    )
    for number, to_envoy, status in endings:
        async with Process(environment, tmp_path / "log") as agent:
            pid = agent.pid
            # The socket of the previous agent remains, and is replaced.
            await eventually(lambda: "UNAVAILABLE" in (tmp_path / "log").read_text(), timeout=PATIENCE)
            # Before, it might not handle a signal.
            await eventually(lambda: is_up(environment["INSTANCE_IP"]), timeout=PATIENCE)
            (envoy,) = await children(pid)
            os.kill(envoy if to_envoy else pid, number)
            assert await agent.ended() == status
            await eventually(lambda envoy=envoy: not Path(f"/proc/{envoy}/exe").exists(), timeout=PATIENCE)
