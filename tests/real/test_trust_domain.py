"""Migration of the trust domain under load, as in docs/how-to/migrate-the-trust-domain.md."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.loopback import Loopback
from tests.support.switchover import FRESH, PATIENCE, World, running
from tests.support.waiting import eventually
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.rotation import Authorities

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(300)]

OLD, NEW = "cluster.local", "shop.example"


@pytest.fixture
def authorities() -> Authorities:
    return Authorities(authority=Authority.create(PrivateKey.generate(), OLD, datetime.now(UTC)))


async def identities(world: World) -> set[str]:
    """Return the trust domains of clients on new connections, as applications see them."""
    answers = [
        sent.answer
        for load in world.loads
        if load.url == FRESH
        for sent in await load.more(20, timeout=PATIENCE)
    ]
    return {answer.identity.split("/")[2] for answer in answers}


async def test_migration_of_the_trust_domain_fails_no_request(
    loopback: Loopback, tmp_path: Path, authorities: Authorities
) -> None:
    async with running(loopback, tmp_path, authorities) as world:
        assert await identities(world) == {OLD}
        await world.change({"trustDomain": OLD, "trustDomainAliases": [NEW]})
        assert await identities(world) == {OLD}
        await world.change({"trustDomain": NEW, "trustDomainAliases": [OLD]})
        assert await identities(world) == {NEW}
        await world.change({"trustDomain": NEW})
        assert await identities(world) == {NEW}
        print(await world.check(), "requests")


async def test_requests_fail_without_the_alias(
    loopback: Loopback, tmp_path: Path, authorities: Authorities
) -> None:
    async with running(loopback, tmp_path, authorities) as world:
        world.plane.dam.open.clear()
        world.write_settings({"trustDomain": NEW, "trustDomainAliases": [OLD]})
        await eventually(world.failed, timeout=PATIENCE, what="requests fail")
        world.plane.dam.open.set()
