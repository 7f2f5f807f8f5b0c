"""How far namespaces are on the way to STRICT, and what is missing."""

from __future__ import annotations

import time
from dataclasses import replace

from tests.policy.world import HTTP, mesh, peer, pod, service
from xds.mesh.controlplane.page.migration import compute_breaks, find_breaks, rows
from xds.mesh.controlplane.page.observed import ObservedTraffic
from xds.mesh.model.objects import Change, Mode, Ref, ServedDiff
from xds.mesh.observe.counts import RETENTION
from xds.mesh.observe.edges import Client, EdgeKey, Reporter, Target, Traffic, TrafficMode
from xds.mesh.observe.workloads import target_of

FACTS = (
    pod("web", "a"),
    pod("db", "a"),
    pod("old", "b", sidecar=False),
    service("web", "a", HTTP),
)


async def table(world, breaks=None, traffic=None, away=()):
    if breaks is None:
        async for found in compute_breaks(world):
            breaks = found
    observed = ObservedTraffic([traffic] if traffic else (), world)
    connected = {pod.key for pod in world.pods() if pod.has_sidecar} - {*away}
    return {
        (row["namespace"], row["workload"]): row for row in await rows(world, breaks, observed, connected)
    }


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
    (seen,) = row["observed"]
    note = "no pod: a node, or a client outside the mesh"
    assert (seen["mode"], seen["clients"]) == ("plaintext", [{"name": "10.20.0.7", "note": note}])
    assert (row["stage"], row["nextStep"]) == ("blocked", "Find out who sends plaintext: 10.20.0.7")


async def test_observed_plaintext_to_a_port_without_a_service_blocks_strict():
    world = mesh(pod("web", "a"), service("web", "a", HTTP))
    traffic = Traffic()
    key = EdgeKey(Client("b", "old"), target_of(world, world.pod("a", "web"), 7070), TrafficMode.PLAINTEXT)
    traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time())
    for row in (await table(world, traffic=traffic)).values():
        (seen,) = row["observed"]
        assert (row["stage"], seen["clients"]) == ("blocked", [{"name": "b/old", "note": ""}])


async def test_refused_plaintext_is_apart_from_accepted():
    world, traffic, now = mesh(pod("web", "a"), service("web", "a", HTTP)), Traffic(), time.time()
    for mode, address in ((TrafficMode.REFUSED, "127.0.0.1"), (TrafficMode.PLAINTEXT, "10.20.0.7")):
        key = EdgeKey(Client("", address), Target("a", "web", 80), mode)
        traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=now)
    accepted, refused = (await table(world, traffic=traffic))["a", "web"]["observed"]
    assert (accepted["mode"], accepted["requestsPerMinute"]) == ("plaintext", {"plaintext": 5.0})
    assert (refused["mode"], refused["requestsPerMinute"]) == ("refused", {"refused": 5.0})
    assert refused["clients"][0]["note"].startswith("a process in the server's own pod")


async def test_refused_plaintext_of_an_unlocked_workload_blocks_strict():
    world, traffic = mesh(pod("web", "a"), service("web", "a", HTTP)), Traffic()
    key = EdgeKey(Client("b", "old"), Target("a", "web", 80), TrafficMode.REFUSED)
    traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time())
    row = (await table(world, traffic=traffic))["a", "web"]
    assert row["nextStep"] == "Find out who sent plaintext that was refused: b/old"
    assert row["verdict"]["answer"] == "unsure"
    row = (await table(world.apply(Change(applied=(peer("a", "STRICT"),))), traffic=traffic))["a", "web"]
    assert row["verdict"]["text"].endswith("They refused plaintext from b/old.")


async def test_nothing_is_done_or_ready_while_sidecars_are_not_connected():
    """What such a sidecar accepts is not known: it may never have been configured."""
    away = [("a", "db")]
    locked = mesh(pod("web", "a"), pod("db", "a"), service("web", "a", HTTP), peer("a", mode="STRICT"))
    for world in (locked, mesh(pod("web", "a"), pod("db", "a"), service("web", "a", HTTP))):
        row = (await table(world, away=away))["a", ""]
        assert (row["sidecars"], row["connected"]) == (2, 1)
        why = "1 of 2 sidecars is not connected to the control plane"
        assert (row["stage"], row["nextStep"]) == ("disconnected", f"Find out why {why} (xds status)")
        text = f"It is not known whether a is locked, or can be: {why}."
        assert row["verdict"] == {"answer": "unsure", "text": text}
    found = await table(locked, away=away)
    assert {key: row["strict"] for key, row in found.items()} == {
        ("a", ""): 1,
        ("a", "db"): 0,
        ("a", "web"): 1,
    }
    assert (found["a", "web"]["stage"], found["a", "db"]["stage"]) == ("done", "disconnected")


async def test_verdict_says_whether_a_namespace_can_be_locked():
    open_, locked = await table(mesh(*FACTS)), await table(mesh(*FACTS, peer("a", "STRICT")))
    checking = await table(mesh(*FACTS), breaks={})
    world = mesh(pod("web-1", "a", app="web"), pod("web-2", "a", sidecar=False, app="web"))
    partly = await table(world)
    texts = {
        "no": (open_["a", ""], "a cannot be locked: 1 client (old.b) would break."),
        "yes": (open_["a", "db"], "db.a can be locked: no known client would break."),
        "locked": (locked["a", ""], "a is locked: its sidecars accept mutual TLS only."),
        "checking": (checking["a", "web"], "Checking what would break if web.a were locked."),
    }
    for answer, (row, text) in texts.items():
        assert row["verdict"] == {"answer": answer, "text": text}
    assert open_["b", ""]["verdict"]["text"] == "b cannot be locked: no pod has a sidecar."
    assert "in part: 1 of 2 pods has no sidecar" in partly["a", ""]["verdict"]["text"]


async def test_expired_plaintext_does_not_block_strict():
    world, traffic = mesh(pod("web", "a"), service("web", "a", HTTP)), Traffic()
    key = EdgeKey(Client("b", "old"), Target("a", "web", 80), TrafficMode.PLAINTEXT)
    traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time() - RETENTION - 1)
    assert (await table(world, traffic=traffic))["a", "web"]["observed"] == []


async def test_strict_namespace_is_done():
    found = await table(mesh(*FACTS, peer("a", "STRICT")))
    row = found["a", ""]
    assert (row["stage"], row["strict"], row["breaks"]) == ("done", 2, [])
    assert row["decidedBy"][0]["name"] == "default"


async def test_mode_in_force_is_the_served_one():
    world = mesh(*FACTS, peer("a", "STRICT"))
    ports = [(Ref("Pod", "a", name), port) for name in ("web", "db") for port in (0, 8080)]
    held = world.with_served(ServedDiff(modes=dict.fromkeys(ports, Mode.PERMISSIVE)))
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
    assert (broken.clients, broken.target) == ("the kubelet's probes", "port 8080 of web.a")
    assert broken.servers == {("a", "web")}
