"""Observed traffic beside predicted connections."""

from __future__ import annotations

from tests.policy.world import HTTP, TCP, mesh, pod, service
from xds.mesh.controlplane import predictions
from xds.mesh.controlplane.hop_traffic import HopTraffic
from xds.mesh.observe.edges import Client, Edge, EdgeKey, Reporter, Target, Traffic, TrafficMode
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1.traffic_pb2 import TrafficEdge

NOON = 1_000_000 * 600.0
WORLD = mesh(
    pod("web", "a"),
    pod("one", "b"),
    pod("two", "c"),
    pod("old", "c", sidecar=False),
    service("web", "a", HTTP, TCP),
)
MTLS, PLAINTEXT = TrafficMode.MTLS, TrafficMode.PLAINTEXT


def traffic(*edges: tuple[str, TrafficMode, int], port: int = 80, seen: float = NOON) -> Traffic:
    """Return traffic to `web`: the client as NAMESPACE/ACCOUNT, the mode, and the requests of a minute."""
    found = Traffic()
    for client, mode, requests in edges:
        key = EdgeKey(Client(*client.split("/")), Target("a", "web", port), mode)
        found.add(key, Reporter.CLIENT, ("b", "one"), requests=requests, now=seen)
    return found


def reach(observed: Traffic | None, **request) -> list[pb.ReachResponse]:
    hop_traffic = HopTraffic(observed.edges(), NOON) if observed is not None else None
    return list(predictions.reach(WORLD, pb.ReachRequest(**request), hop_traffic))


def hops(observed: Traffic | None, port: int = 80) -> dict[str, pb.Hop]:
    return {hop.outcome: hop for each in reach(observed) for hop in each.hops if hop.port == port}


def rates(item: pb.Hop | pb.ConnectionResult) -> dict[int, float]:
    assert item.HasField("observed")
    return {each.mode: each.requests_per_minute for each in item.observed.modes}


def test_hop_has_the_traffic_of_its_clients_by_mode():
    found = hops(
        traffic(("b/one", MTLS, 30), ("c/two", MTLS, 6), ("b/one", PLAINTEXT, 2), ("c/old", PLAINTEXT, 9))
    )
    assert rates(found["mtls"]) == {TrafficEdge.MTLS: 36, TrafficEdge.PLAINTEXT: 2}
    assert rates(found["plaintext"]) == {TrafficEdge.PLAINTEXT: 9}


def test_traffic_of_other_clients_and_ports_is_left_out():
    found = hops(traffic(("b/two", MTLS, 30), ("/10.20.0.7", PLAINTEXT, 5)))
    assert (rates(found["mtls"]), rates(found["plaintext"])) == ({}, {})
    observed = traffic(("b/one", MTLS, 30), port=90)
    assert rates(hops(observed)["mtls"]) == {}
    assert rates(hops(observed, port=90)["mtls"]) == {TrafficEdge.MTLS: 30}


def test_traffic_names_the_latest_report():
    observed = traffic(("b/one", MTLS, 30), seen=NOON - 3600)
    [mode] = hops(observed)["mtls"].observed.modes
    assert (mode.requests_per_minute, mode.last_seen.ToMilliseconds()) == (0, (NOON - 3600) * 1000)


def test_each_result_has_the_traffic_of_its_clients_account():
    observed = traffic(("b/one", MTLS, 30), ("c/old", PLAINTEXT, 9))
    found = {
        item.client: rates(item)
        for each in reach(observed, expand=True)
        for item in each.results
        if item.port == 80
    }
    assert found == {
        "web.a": {},
        "one.b": {TrafficEdge.MTLS: 30},
        "two.c": {},
        "old.c": {TrafficEdge.PLAINTEXT: 9},
    }


def test_nothing_is_observed_without_traffic():
    assert not any(hop.HasField("observed") for hop in hops(None).values())
    assert not any(item.HasField("observed") for each in reach(None, expand=True) for item in each.results)


def test_rate_of_an_edge_is_computed_once(monkeypatch):
    computed: list[Edge] = []
    rate = Edge.rate
    monkeypatch.setattr(Edge, "rate", lambda edge, now: computed.append(edge) or rate(edge, now))
    observed = traffic(("b/one", MTLS, 30), ("c/old", PLAINTEXT, 9))
    reach(observed, expand=True)
    assert len(computed) == 2
    computed.clear()
    reach(observed, service="web.a:90")
    assert computed == []
