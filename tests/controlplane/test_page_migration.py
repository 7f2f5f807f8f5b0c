"""How far namespaces are on the way to STRICT, and what is missing."""

from __future__ import annotations

import time
from dataclasses import replace

from tests.policy.world import HTTP, mesh, peer, pod, service
from xds.mesh.controlplane.page.migration import compute_breaks, find_breaks, rows
from xds.mesh.controlplane.page.observed import ObservedTraffic
from xds.mesh.model.objects import Mode, Ref, Served
from xds.mesh.observe.counts import RETENTION
from xds.mesh.observe.edges import Client, EdgeKey, Reporter, Target, Traffic, TrafficMode
from xds.mesh.observe.workloads import target_of

FACTS = (
    pod("web", "a"),
    pod("db", "a"),
    pod("old", "b", sidecar=False),
    service("web", "a", HTTP),
)


async def table(world, breaks=None, traffic=None):
    if breaks is None:
        async for found in compute_breaks(world):
            breaks = found
    observed = ObservedTraffic(traffic, world)
    return {(row["namespace"], row["workload"]): row for row in await rows(world, breaks, observed)}


async def test_rows_name_who_would_break():
    found = await table(mesh(*FACTS))
    assert list(found) == [("a", ""), ("a", "db"), ("a", "web"), ("b", ""), ("b", "old")]
    row = found["a", ""]
    assert (row["pods"], row["sidecars"], row["strict"]) == (2, 2, 0)
    assert row["modes"] == {"PERMISSIVE": 2}
    assert [ref["kind"] for ref in row["decidedBy"]] == ["MeshPolicy"]
    (broken,) = row["breaks"]
    assert (broken["clients"], broken["target"], broken["effect"]) == ("old.b", "web.a:80", "breaks")
    assert (row["stage"], row["nextStep"][:25]) == ("blocked", "Add a sidecar to old.b, o")
    assert found["a", "web"]["stage"] == "blocked"
    assert found["a", "db"]["stage"] == "ready"
    assert (found["b", ""]["stage"], found["b", ""]["nextStep"]) == ("sidecars", "Add sidecars to old")
    assert found["b", ""]["breaks"] == []


async def test_observed_plaintext_blocks_strict():
    world = mesh(pod("web", "a"), service("web", "a", HTTP))
    assert (await table(world))["a", "web"]["stage"] == "ready"
    traffic = Traffic()
    key = EdgeKey(Client("", "10.20.0.7"), Target("a", "web", 80), TrafficMode.PLAINTEXT)
    traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time())
    row = (await table(world, traffic=traffic))["a", "web"]
    assert row["observed"]["clients"] == ["10.20.0.7"]
    assert (row["stage"], row["nextStep"]) == ("blocked", "Find out who sends plaintext: 10.20.0.7")


async def test_observed_plaintext_to_a_port_without_a_service_blocks_strict():
    world = mesh(pod("web", "a"), service("web", "a", HTTP))
    traffic = Traffic()
    key = EdgeKey(Client("b", "old"), target_of(world, world.pod("a", "web"), 7070), TrafficMode.PLAINTEXT)
    traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time())
    for row in (await table(world, traffic=traffic)).values():
        assert (row["stage"], row["observed"]["clients"]) == ("blocked", ["b/old"])


async def test_expired_plaintext_does_not_block_strict():
    world, traffic = mesh(pod("web", "a"), service("web", "a", HTTP)), Traffic()
    key = EdgeKey(Client("b", "old"), Target("a", "web", 80), TrafficMode.PLAINTEXT)
    traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time() - RETENTION - 1)
    assert (await table(world, traffic=traffic))["a", "web"]["observed"] is None


async def test_strict_namespace_is_done():
    found = await table(mesh(*FACTS, peer("a", "STRICT")))
    row = found["a", ""]
    assert (row["stage"], row["strict"], row["breaks"]) == ("done", 2, [])
    assert row["decidedBy"][0]["name"] == "default"


async def test_mode_in_force_is_the_served_one():
    world = mesh(*FACTS, peer("a", "STRICT"))
    ports = [(Ref("Pod", "a", name), port) for name in ("web", "db") for port in (0, 8080)]
    held = world.with_served(Served(modes=dict.fromkeys(ports, Mode.PERMISSIVE)))
    assert (await table(held))["a", ""]["modes"] == {"PERMISSIVE": 2}
    assert (await table(held))["a", ""]["stage"] == "ready"


async def test_unchecked_namespace_says_so():
    row = (await table(mesh(*FACTS), breaks={}))["a", ""]
    assert (row["breaks"], row["stage"]) == (None, "checking")


def test_current_policy_is_replaced():
    """A second PeerAuthentication for the namespace would have no effect."""
    world = mesh(*FACTS, peer("a", "PERMISSIVE", name="mine", age=5))
    assert len(find_breaks(world, "a")) == 1


def test_probes_of_strict_pods_break():
    probed = replace(pod("web", "a"), probe_ports=(8080,))
    (broken,) = find_breaks(mesh(probed), "a")
    assert (broken.clients, broken.target) == ("kubelet-probe", "port 8080 of web.a")
    assert broken.servers == {("a", "web")}
