"""Addresses of replicas in their Leases."""

from __future__ import annotations

import asyncio

import pytest

from xds.mesh.kube.replica_leases import ADDRESS, ANNOTATION, PREFIX, ReplicaLeases
from xds.mesh.kube.rollout_codec import encode_report
from xds.mesh.rollout.observation import Report
from xds.mesh.rollout.sync import ReplicaSync


def lease(name: str, address: str | None) -> dict[str, object]:
    annotations = {ANNOTATION: encode_report(Report())} | ({} if address is None else {ADDRESS: address})
    metadata = {"name": PREFIX + name, "resourceVersion": "1", "annotations": annotations}
    return {"metadata": metadata, "spec": {"leaseDurationSeconds": 15}}


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ("10.0.0.2:15013", {"b": "10.0.0.2:15013"}),
        ("[fd00::2]:15013", {"b": "[fd00::2]:15013"}),
        ("", {"b": ""}),
        (None, {"b": ""}),
        ("unix:/run/socket", {"b": ""}),
        ("example.com:15013", {"b": ""}),
        ("10.0.0.2:http", {"b": ""}),
        ("starting", {}),
    ],
)
async def test_address_of_a_replica_is_an_ip_and_a_port(
    published: str | None, expected: dict[str, str]
) -> None:
    sync = ReplicaSync("a", lambda: False)
    leases = ReplicaLeases(None, "istio-system", sync, lambda: None)  # type: ignore[arg-type]
    now = asyncio.get_running_loop().time()
    sync.reports.renewed(now, now)
    for name in ("a", "b"):
        leases._receive(PREFIX + name, lease(name, published))
    assert leases.peer_addresses(now) == expected
    assert not leases.is_isolated(now)
    assert leases.peer_addresses(now + 14) == expected
    sync.reports.renewed(now + 20, now + 20)
    sync.reports.forget("b")
    assert leases.peer_addresses(now + 20) == {}
