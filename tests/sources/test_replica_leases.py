"""The Leases of replicas on a faulty server. With a real one: tests/kubernetes/test_reports.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sources.fake_apiserver import FakeApiServer
from tests.sources.faults import events, status
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.kube.replica_leases import PREFIX, ReplicaLeases
from xds.mesh.rollout.sync import ReplicaSync


@pytest.mark.parametrize(
    "fault",
    [
        events(b'{"type": "ADDED"}\n'),
        events(b"[]\n"),
        events(b'{"type": "MODIF\n'),
        status(503, "ServiceUnavailable"),
    ],
    ids=["no object", "no event", "no JSON", "an error"],
)
async def test_broken_watch_of_leases_is_resumed(tmp_path: Path, fault) -> None:
    async with FakeApiServer(tmp_path) as server, await server.connect() as api:
        server.fail("watch leases", fault)
        here, there = ReplicaSync("here", lambda: True), ReplicaSync("there", lambda: False)
        async with background(ReplicaLeases(api, "istio-system", here, lambda: None).run()):
            await eventually(lambda: here.has_joined, timeout=30, what="its plan is stored and read")
            async with background(ReplicaLeases(api, "istio-system", there, lambda: None).run()):
                await eventually(lambda: here.reports.names == {"there"}, timeout=30, what="it reads another")
                assert not server.faults["watch leases"]
                assert len(server.requests_for("list leases")) == 2, "one for each replica"
            group = "coordination.k8s.io"
            await server.remove("leases", "istio-system", f"{PREFIX}there", group)
            await eventually(lambda: not here.reports.names, timeout=30, what="the other one is forgotten")
