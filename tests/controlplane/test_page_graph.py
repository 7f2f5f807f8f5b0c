"""The map: nodes, edges and filters."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.policy.test_access import READS, policy, source
from tests.policy.world import HTTP, mesh, peer, pod, rule, service
from xds.mesh.controlplane.page import map_view as map_view_module
from xds.mesh.controlplane.page.graph import predict
from xds.mesh.controlplane.page.map_view import DENIED, PLAINTEXT, POSSIBLE, PROBLEMS, Selection, map_view
from xds.mesh.controlplane.page.observed import ObservedTraffic
from xds.mesh.model.authorization import Action, Attribute
from xds.mesh.model.mesh import Mesh
from xds.mesh.observe.edges import Client, Denial, EdgeKey, Reporter, Target, Traffic, TrafficMode

OUTSIDE = "workload/outside the mesh/clients"
FACTS = (
    pod("web", "a"),
    pod("db", "a"),
    pod("old", "b", sidecar=False),
    service("web", "a", HTTP),
    service("db", "a", HTTP),
    service("none", "b", HTTP),
)


NOTHING = ObservedTraffic((), Mesh())


async def view(world, observed=NOTHING, **selection):
    return await map_view(await predict(world), Selection(1000, **selection), observed)


def results(found):
    return {(edge["from"], edge["to"]): edge["predicted"]["result"] for edge in found["edges"]}


async def test_edges_have_the_results_of_connections():
    found = await view(mesh(*FACTS))
    assert results(found) == {
        ("workload/a/web", "service/a/db"): "mtls",
        ("workload/a/db", "service/a/web"): "mtls",
        ("workload/b/old", "service/a/db"): "plaintext",
        ("workload/b/old", "service/a/web"): "plaintext",
    }
    nodes = {node["id"]: node for node in found["nodes"]}
    assert nodes["service/b/none"]["problem"] == "no-endpoint"
    assert nodes["workload/b/old"]["sidecars"] == 0
    edge = found["edges"][0]
    assert edge["example"] == {"client": "old.b", "service": "db.a", "result": "plaintext"}
    assert edge["predicted"]["reasons"] == ["client-without-sidecar"]
    assert edge["connections"] == 1
    assert edge["observed"] is None


async def test_service_with_a_pod_without_sidecar_is_mixed():
    both = (pod("web-1", "a", app="web"), pod("web-2", "a", sidecar=False, app="web"))
    found = await view(mesh(*both, pod("db", "a"), service("web", "a", HTTP)))
    (edge,) = found["edges"]
    assert edge["predicted"] == {
        "result": "mixed",
        "mtls": 1,
        "plaintext": 1,
        "fails": 0,
        "reasons": ["endpoint-without-sidecar"],
        "why": ["server has no sidecar"],
        "conditions": [],
        "moreConditions": 0,
    }
    assert edge["label"]["text"] == "1 of 2"


async def test_failing_edges_have_a_reason_and_come_first():
    found = await view(mesh(*FACTS, peer("a", "STRICT")))
    assert [edge["predicted"]["result"] for edge in found["edges"]] == ["fails", "fails", "mtls", "mtls"]
    assert found["edges"][0]["label"]["text"] == "server requires mutual TLS"


BOTH = (pod("web-1", "a", app="web"), pod("web-2", "a", app="web", version="v2"), service("web", "a", HTTP))
NOTHING_ALLOWED = policy(namespace="a", app="web")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([*BOTH, NOTHING_ALLOWED], ("denied", "denied", ["AuthorizationPolicy"])),
        (
            [*BOTH, policy(namespace="a", version="v2")],
            ("denied", "1 of 2: denied", ["AuthorizationPolicy", "client has no sidecar"]),
        ),
        (
            [*BOTH, policy(namespace="a", version="v2"), peer("a", "STRICT", app="web")],
            ("fails", "server requires mutual TLS", ["server requires mutual TLS"]),
        ),
        (
            [*BOTH, NOTHING_ALLOWED, peer("a", "STRICT", name="lock", version="v2")],
            ("fails", "server requires mutual TLS", ["AuthorizationPolicy", "server requires mutual TLS"]),
        ),
    ],
    ids=["all", "some endpoints", "mode", "mode of another endpoint"],
)
async def test_denied_edges_are_no_failures(facts, expected):
    found = await view(mesh(*facts, pod("old", "b", sidecar=False)))
    (edge,) = (edge for edge in found["edges"] if edge["from"] == "workload/b/old")
    predicted = edge["predicted"]
    assert (predicted["result"], edge["label"]["text"], sorted(predicted["why"])) == expected


async def test_denied_edges_without_traffic_are_shown_by_their_filter():
    world = mesh(*BOTH, NOTHING_ALLOWED, pod("old", "b", sidecar=False), pod("c", "c", sidecar=False))
    traffic = Traffic()
    for client in ("old", "other"):
        key = EdgeKey(Client("b", client), Target("a", "web", 80), TrafficMode.PLAINTEXT)
        traffic.add(key, Reporter.SERVER, ("a", "web-1"), requests=5, now=time.time())
    seen = ObservedTraffic([traffic], world)
    shown = {
        only: {edge["from"] for edge in (await view(world, seen, only=only))["edges"]}
        for only in ("", PROBLEMS, DENIED)
    }
    old, other = "workload/b/old", "workload/c/c"
    assert (await view(world, seen))["edges"][0]["label"]["text"] == "denied, 5/min"
    assert shown == {"": {old}, PROBLEMS: set(), DENIED: {old, other}}
    assert set(results(await view(world, seen, only=DENIED)).values()) == {"denied"}


async def test_conditions_of_an_edge_are_named():
    rules = [policy(READS, action=Action.DENY, namespace="a", name=f"reads-{number}") for number in range(5)]
    found = await view(mesh(*BOTH, *rules, pod("old", "b", sidecar=False)))
    predicted = found["edges"][0]["predicted"]
    assert predicted["conditions"] == [
        f"unless GET|HEAD (AuthorizationPolicy a/reads-{number})" for number in range(3)
    ]
    assert (predicted["result"], predicted["moreConditions"]) == ("plaintext", 2)
    assert found["edges"][0]["label"]["text"] == "conditional"


async def test_plaintext_beside_what_is_denied_is_found():
    denied = policy(source(Attribute.NAMESPACE, "a"), namespace="a", app="db")
    world = mesh(*FACTS, denied)
    assert results(await view(world, opened=frozenset({"a"}), only=PLAINTEXT)) == {
        ("workload/b/old", "services/a"): "denied"
    }


async def test_many_failing_edges_have_no_reason(monkeypatch):
    monkeypatch.setattr(map_view_module, "MAX_REASONS", 1)
    found = await view(mesh(*FACTS, peer("a", "STRICT")))
    assert [edge["label"]["text"] for edge in found["edges"]] == [""] * 4


async def test_nothing_moves_while_modes_change():
    worlds = [mesh(*FACTS), mesh(*FACTS, peer("a", "STRICT")), mesh(*FACTS, rule("a", "*", "DISABLE"))]
    places = [
        [(node["id"], node["x"], node["y"]) for node in (await view(world))["nodes"]] for world in worlds
    ]
    assert places[0] == places[1] == places[2]
    assert len(places[0]) == 6


async def test_closed_namespaces_sum_up():
    found = await view(mesh(*FACTS), opened=frozenset({"a"}))
    edges = {(edge["from"], edge["to"]): edge for edge in found["edges"]}
    assert edges["workload/b/old", "services/a"]["connections"] == 2
    assert edges["workload/b/old", "services/a"]["predicted"]["plaintext"] == 2
    assert edges["workloads/a", "services/a"]["connections"] == 2
    boxes = {box["name"]: box["open"] for box in found["namespaces"]}
    assert boxes == {"a": False, "b": True}


async def test_large_mesh_is_closed_until_opened():
    services = [service(f"s{number}", "a", HTTP) for number in range(31)]
    world = mesh(pod("s0", "a"), pod("x", "b"), *services)
    assert [node["id"] for node in (await view(world))["nodes"]] == [
        "workloads/a",
        "workloads/b",
        "services/a",
    ]
    nodes = [node["id"] for node in (await view(world, opened=frozenset({"a"})))["nodes"]]
    assert nodes[:2] == ["workload/a/s0", "workloads/b"]
    assert len(nodes) == 33


async def test_search_opens_the_namespaces_with_matches():
    services = [service(f"s{number}", "a", HTTP) for number in range(31)]
    world = mesh(pod("s0", "a"), pod("x", "b"), *services, service("y", "b", HTTP))
    found = await view(world, search=" X b ")
    assert {node["id"] for node in found["nodes"]} == {"services/a", "workload/b/x", "service/b/y"}
    assert results(found) == {("workload/b/x", "services/a"): "mtls"}
    assert (found["matches"], (await view(world, search="nothing"))["matches"]) == (1, 0)
    found = await view(world, search="s")
    assert found["matches"] > 30
    assert not any(box["open"] for box in found["namespaces"])


@pytest.mark.parametrize(
    ("selection", "results_shown", "nodes"),
    [
        ({"only": PLAINTEXT}, {"plaintext"}, {"workload/b/old", "service/a/web", "service/a/db"}),
        ({"only": PROBLEMS}, set(), {"service/b/none"}),
        (
            {"namespace": "b"},
            {"plaintext"},
            {"workload/b/old", "service/a/web", "service/a/db", "service/b/none"},
        ),
        ({"namespace": "unknown"}, set(), set()),
    ],
)
async def test_filters(selection, results_shown, nodes):
    found = await view(mesh(*FACTS), **selection)
    assert set(results(found).values()) == results_shown
    assert {node["id"] for node in found["nodes"]} == nodes
    assert found["allNamespaces"] == ["a", "b"]


async def test_selected_node_keeps_all_nodes():
    found = await view(mesh(*FACTS), node="workload/a/web")
    assert results(found) == {("workload/a/web", "service/a/db"): "mtls"}
    assert len(found["nodes"]) == 6


async def test_observed_traffic_belongs_to_its_edge():
    traffic = Traffic()
    key = EdgeKey(Client("b", "old"), Target("a", "web", 80), TrafficMode.PLAINTEXT)
    traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time())
    world = mesh(*FACTS)
    found = await view(world, ObservedTraffic([traffic], world), only=POSSIBLE)
    by_edge = {edge["id"]: edge["observed"] for edge in found["edges"]}
    observed = by_edge.pop("workload/b/old service/a/web")
    assert observed["requestsPerMinute"] == {"plaintext": 5.0}
    assert 0 <= observed["secondsAgo"] < 60
    assert set(by_edge.values()) == {None}


async def test_denied_requests_are_shown_but_are_no_traffic():
    denials = Traffic()
    for denial in (Denial("no-admin", "GET", "/admin/*"), Denial("", "GET", "/x", dry_run=True)):
        key = EdgeKey(Client("b", "old"), Target("a", "web", 80), TrafficMode.PLAINTEXT, denial)
        denials.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time())
    world = mesh(*FACTS)
    observed = ObservedTraffic([Traffic(), denials], world)
    [edge] = (await view(world, observed))["edges"]
    assert edge["id"] == "workload/b/old service/a/web"
    counts = edge["observed"]["deniedPerHour"], edge["observed"]["wouldBeDeniedPerHour"]
    assert (counts, edge["observed"]["requestsPerMinute"]) == ((5, 5), {})
    assert edge["label"]["text"] == "5 denied"
    assert observed.plaintext_to([("a", "web")]) == []


async def test_traffic_and_failures_are_shown_by_default():
    traffic = Traffic()
    for client, target, failed in (("web", "db", 2), ("db", "web", 0)):
        key = EdgeKey(Client("a", client), Target("a", target, 80), TrafficMode.MTLS)
        traffic.add(key, Reporter.SERVER, ("a", target), requests=50, failed=failed, now=time.time())
    world = mesh(*FACTS)
    observed = ObservedTraffic([traffic], world)
    found = await view(world, observed)
    assert set(results(found)) == {
        ("workload/a/web", "service/a/db"),
        ("workload/a/db", "service/a/web"),
    }
    assert (found["unusedEdges"], len(found["nodes"])) == (2, 6)
    assert [edge["label"]["text"] for edge in found["edges"]] == ["50/min, 2 failed", "50/min"]
    failing = found["edges"][0]["observed"]
    assert (failing["requestsPerMinute"], failing["failedPerHour"]) == ({"mtls": 50.0}, 2)
    assert (failing["isFailing"], found["edges"][1]["observed"]["isFailing"]) == (True, False)
    everything = await view(world, observed, only=POSSIBLE)
    assert (len(everything["edges"]), everything["unusedEdges"]) == (4, 0)
    assert set(results(await view(world, observed, node="workload/b/old"))) == {
        ("workload/b/old", "service/a/db"),
        ("workload/b/old", "service/a/web"),
    }
    problems = await view(world, observed, only=PROBLEMS)
    assert list(results(problems)) == [("workload/a/web", "service/a/db")]
    strict = await view(mesh(*FACTS, peer("a", "STRICT")), observed)
    assert list(results(strict).values()) == ["fails", "fails", "mtls", "mtls"]


async def test_large_mesh_is_a_matrix_of_namespaces():
    services = [service(f"s{number}", "a", HTTP) for number in range(31)]
    pods = pod("s0", "a"), pod("x", "b"), pod("z", "c", sidecar=False)
    world, traffic = mesh(*pods, *services, service("x", "b", HTTP), service("z", "c", HTTP)), Traffic()
    for client, target, requests in (("x", "s0", 20), ("z", "s0", 5)):
        key = EdgeKey(Client({"x": "b", "z": "c"}[client], client), Target("a", target, 80), TrafficMode.MTLS)
        traffic.add(key, Reporter.SERVER, ("a", "s0"), requests=requests, failed=1, now=time.time())
    outside = EdgeKey(Client("", "10.20.0.7"), Target("a", "s0", 80), TrafficMode.PLAINTEXT)
    traffic.add(outside, Reporter.SERVER, ("a", "s0"), requests=1, now=time.time())
    observed = ObservedTraffic([traffic], world)
    found = await view(world, observed)
    assert found["isMatrix"]
    assert found["isLarge"]
    edges = {(edge["from"], edge["to"]): edge for edge in found["edges"]}
    assert set(edges) == {
        (OUTSIDE, "services/a"),
        *(
            (f"workloads/{client}", f"services/{server}")
            for client in "abc"
            for server in "abc"
            if client != server
        ),
    }
    assert edges["workloads/b", "services/a"]["observed"]["requestsPerMinute"] == {"mtls": 20.0}
    assert edges["workloads/c", "services/a"]["observed"]["failedPerHour"] == 1
    assert edges["workloads/a", "services/b"]["observed"] is None
    assert "path" not in edges["workloads/b", "services/a"]
    opened = await view(world, observed, namespace="b")
    assert not opened["isMatrix"]
    assert [box["name"] for box in opened["namespaces"] if box["open"]] == ["b"]
    assert set(results(opened)) == {("workload/b/x", "services/a")}
    assert opened["unusedEdges"] == 3


async def test_observed_client_outside_the_mesh_is_a_node():
    traffic, address = Traffic(), Client("", "10.20.0.7")
    for mode, requests in ((TrafficMode.PLAINTEXT, 5), (TrafficMode.REFUSED, 2)):
        key = EdgeKey(address, Target("a", "web", 80), mode)
        traffic.add(key, Reporter.SERVER, ("a", "web"), requests=requests, now=time.time())
    port = EdgeKey(address, Target("a", "pod/db", 7070), TrafficMode.PLAINTEXT)
    traffic.add(port, Reporter.SERVER, ("a", "db"), requests=1, now=time.time())
    for world, result in ((mesh(*FACTS), "plaintext"), (mesh(*FACTS, peer("a", "STRICT")), "fails")):
        # The node is visible although its "namespace" is no namespace that could be opened.
        found = await view(world, ObservedTraffic([traffic], world), opened=frozenset({"b"}))
        (edge,) = [edge for edge in found["edges"] if edge["from"] == OUTSIDE]
        assert (edge["to"], edge["predicted"]["result"]) == ("service/a/web", result)
        assert edge["observed"]["requestsPerMinute"] == {"plaintext": 5.0, "refused": 2.0}
        assert edge["example"]["client"] == ""
        assert found["allNamespaces"] == ["a", "b"]
        assert [box["name"] for box in found["namespaces"]] == ["outside the mesh", "a", "b"]


async def test_clients_outside_the_mesh_that_objects_prove_are_a_node():
    published = replace(service("web", "a", HTTP), published=True)
    found = await view(mesh(*FACTS, published))
    assert results(found)[OUTSIDE, "service/a/web"] == "plaintext"
    assert (OUTSIDE, "service/a/db") not in results(found)
    found = await view(mesh(*FACTS, published), only=PROBLEMS)
    assert OUTSIDE not in {node["id"] for node in found["nodes"]}


async def test_empty_mesh_has_an_empty_map():
    found = await view(mesh())
    assert (found["nodes"], found["edges"], found["height"]) == ([], [], 0)
