"""Recorded traffic of real sidecars: what `xds plan --replay` says breaks is refused, and the rest works."""

from __future__ import annotations

import json

import pytest
import pytest_asyncio
import yaml

from tests.support.authorization import authorization_policy, source
from tests.support.cluster import Cluster
from tests.support.controlplane import xds, xds_here
from tests.support.manifests import Manifest, peer_authentication
from tests.support.mesh import Mesh
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.netns,
    pytest.mark.envoy,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

CLIENTS = {"front.shop": "front", "batch.shop": "batch", "cron.legacy": "cron"}
"""Service account of each client. That of namespace legacy has no sidecar."""
URL = "http://web.shop/headers"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A server that every client calls, and the record of that."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            for client, account in CLIENTS.items():
                mesh.pod(*client.split("."), sidecar=client != "cron.legacy", account=account)
            pod = mesh.pod("web", "shop", account="web")
            mesh.service("web", "shop", {"http": (80, 8080)})
            await mesh.serve(pod, http=(8080,))
            await mesh.start()
            yield mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def record(mesh, tmp_path_factory):
    """The traffic that `xds observe` printed when all clients had called the server."""
    path = tmp_path_factory.mktemp("record") / "record.json"

    async def all_are_recorded() -> bool:
        assert await working(mesh) == set(CLIENTS)
        path.write_text(await xds("observe", f"--xds-address={mesh.plane.address}", "-o", "json"))
        edges = json.loads(path.read_text())["edges"]
        return {edge["client"] for edge in edges if edge["service"] == "web"} == set(CLIENTS.values())

    await eventually(all_are_recorded, timeout=60, every=1)
    return path


async def working(mesh: Mesh) -> set[str]:
    """Return the clients whose requests are allowed."""
    return {client for client in CLIENTS if (await mesh[client].client.get(URL)).code == "200"}


OTHER = source(namespaces=["other"])
CHANGES: dict[str, tuple[list[Manifest], set[str]]] = {
    "strict": ([peer_authentication("shop", "STRICT")], {"cron"}),
    "identity": (
        [authorization_policy("shop", source(principals=["cluster.local/ns/shop/sa/front"]))],
        {"batch", "cron"},
    ),
    "denied": ([authorization_policy("shop", source(serviceAccounts=["batch"]), action="DENY")], {"batch"}),
    "nothing": ([authorization_policy("shop")], {"front", "batch", "cron"}),
    "other": (
        [authorization_policy("shop", OTHER, action="DENY"), peer_authentication("shop", "PERMISSIVE")],
        set(),
    ),
}


@pytest.mark.parametrize(("objects", "broken"), CHANGES.values(), ids=CHANGES)
async def test_flows_that_break_are_refused(mesh, record, tmp_path, objects, broken):
    change = tmp_path / "change.yaml"
    change.write_text(yaml.safe_dump_all(objects))
    options = ("--manifests", mesh.manifests.directory, "-f", change, "--replay", record, "-o", "json")
    planned = await xds_here("plan", *options)
    found = json.loads(planned.stdout)["replay"]
    predicted = {(each["effect"], flow["client"]) for each in found["changes"] for flow in each["flows"]}
    assert predicted == {("breaks", client) for client in broken}
    assert (found["gaps"], found["unknown"], found["safe"]) == ([], [], not broken)
    assert planned.exit_code == bool(broken)
    asked = await xds_here(
        "plan", "-f", change, "--replay=2h", "-o", "json", f"--xds-address={mesh.plane.address}"
    )
    live = json.loads(asked.stdout)["replay"]
    assert {
        (each["effect"], flow["client"]) for each in live["changes"] for flow in each["flows"]
    } == predicted
    [gap] = live["gaps"]
    assert (gap.endswith(" of 2h"), live["safe"]) == (True, False)

    mesh.apply(*objects)
    await mesh.settled()
    assert await working(mesh) == {client for client, account in CLIENTS.items() if account not in broken}
    mesh.delete(*objects)
    await mesh.settled()
    assert await working(mesh) == set(CLIENTS)
