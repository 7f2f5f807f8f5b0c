"""Counterexamples of `xds prove` are accepted by real sidecars, and what it proves is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.support.authorization import authorization_policy, source
from tests.support.cluster import Cluster
from tests.support.controlplane import xds
from tests.support.exchange import FAILS, HTTP1, MTLS, PLAINTEXT, TCP
from tests.support.manifests import Manifest, peer_authentication
from tests.support.mesh import Mesh

pytestmark = [
    pytest.mark.netns,
    pytest.mark.envoy,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

WAYS = ((HTTP1, 80), (TCP, 90))
TO = {"to": [{"services": ["db.prod"]}]}
ASSERTIONS = [
    {"name": "payments", "only": {"from": [{"namespaces": ["payments"]}], **TO}},
    {"name": "encrypted", "encrypted": TO},
    {"name": "strict", "strict": {"to": [{"namespaces": ["prod"]}]}},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("worker", "payments", account="worker")
            mesh.pod("outsider", "outside", sidecar=False)
            db = mesh.pod("db", "prod")
            mesh.service("db", "prod", {"http": (80, 8080), "tcp": (90, 9000)})
            await mesh.serve(db, http=(8080,), lines=(9000,))
            await mesh.start()
            yield mesh


async def prove(mesh: Mesh, directory: Path, *objects: Manifest) -> dict[str, Any]:
    """Apply exactly these policies, and return what is proven then."""
    mesh.manifests.write("policies", *objects)
    await mesh.settled()
    path = directory / "assertions.yaml"
    path.write_text(yaml.safe_dump({"assertions": ASSERTIONS}))
    options = (f"--filename={path}", f"--manifests={mesh.manifests.directory}", "--output=json")
    found = json.loads(await xds("prove", *options, may_be_no=True))
    return {each["name"]: each for each in found["assertions"]}


async def ways(mesh: Mesh, client: str) -> set[str]:
    return {(await mesh.exchange(what, client, "db.prod", port)).how for what, port in WAYS}


async def test_counterexamples_are_accepted_until_they_are_repaired(mesh, tmp_path):
    strict = peer_authentication("prod", "STRICT")
    everything = await prove(mesh, tmp_path)
    assert {each["verdict"] for each in everything.values()} == {"fails"}
    assert await ways(mesh, "outsider.outside") == {PLAINTEXT}

    # Everything in plaintext is refused, but a wildcard admits an account that does not exist yet.
    found = await prove(mesh, tmp_path, strict, authorization_policy("prod", source(namespaces=["pay*"])))
    assert {name: each["verdict"] for name, each in found.items()} == {
        "payments": "fails",
        "encrypted": "holds",
        "strict": "holds",
    }
    assert await ways(mesh, "outsider.outside") == {FAILS}
    (counterexample,) = found["payments"]["counterexamples"]
    assert (counterexample["accounts"], counterexample["mode"]) == ([], "mtls")
    _, _, rest = counterexample["identity"].partition("/ns/")
    namespace, _, account = rest.partition("/sa/")
    mesh.pod("intruder", namespace, account=account)
    await mesh.start()
    assert await ways(mesh, f"intruder.{namespace}") == {MTLS}

    found = await prove(mesh, tmp_path, strict, authorization_policy("prod", source(namespaces=["payments"])))
    assert {each["verdict"] for each in found.values()} == {"holds"}
    assert await ways(mesh, f"intruder.{namespace}") == {FAILS}
    assert await ways(mesh, "worker.payments") == {MTLS}
    assert await ways(mesh, "outsider.outside") == {FAILS}
