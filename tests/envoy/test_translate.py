"""What holds for translations as a whole."""

from __future__ import annotations

from dataclasses import replace

from tests.policy.world import HTTP, TCP, mesh, pod, rule, service
from xds.descriptors import to_dict
from xds.envoy import clusters
from xds.model import Change, Interception, Protocol, ServicePort
from xds.snapshot import CLUSTER, LISTENER, ROUTE
from xds.traffic import ConnectionPool, TrafficPolicy
from xds.translate import translate

CLIENT = pod("client", "ns")


def test_a_service_that_cannot_be_translated_stays_as_it_was_and_the_others_go_on(monkeypatch):
    good, bad = service("good", "ns", HTTP), service("bad", "ns", HTTP)
    world = mesh(CLIENT, good, bad)
    name = "outbound|80||bad.ns.svc.cluster.local"
    before = translate(world, CLIENT).of(CLUSTER)[name]
    real = clusters.outbound

    def broken(config, spec, sources):
        if "bad.ns" in spec.name:
            raise OverflowError("beyond all bounds")
        return real(config, spec, sources)

    monkeypatch.setattr(clusters, "outbound", broken)
    changed = tuple(replace(s, ports=(replace(HTTP, protocol=Protocol.HTTP2),)) for s in (good, bad))
    after = world.apply(Change(applied=(*changed, service("new", "ns", HTTP))))
    found = translate(after, CLIENT).of(CLUSTER)
    assert found[name] is before
    assert "outbound|80||new.ns.svc.cluster.local" in found
    assert [str(ref) for ref in after.failures] == ["Service ns/bad"]
    fresh = translate(mesh(CLIENT, good, bad), CLIENT).of(CLUSTER)
    assert name not in fresh
    assert "outbound|80||good.ns.svc.cluster.local" in fresh


def test_a_service_port_that_is_the_sidecars_own_is_reached_at_the_services_address():
    health = ServicePort(port=15021, target=8021, name="http", protocol=Protocol.HTTP)
    listeners = translate(mesh(CLIENT, service("web", "ns", health)), CLIENT).of(LISTENER)
    assert "10.96.0.3_15021" in listeners
    assert "0.0.0.0_15021" not in listeners


def test_limits_of_tcp_connections_hold_with_and_without_interception():
    pool = ConnectionPool(tcp_idle_timeout=60, max_connection_duration=600)
    web = service("web", "ns", TCP)
    limited = rule("ns", web.host, policy=TrafficPolicy(connection_pool=pool))
    found = translate(mesh(CLIENT, web, limited), CLIENT).of(LISTENER)["10.96.0.3_90"]
    proxy = to_dict(found.type_url, found.body)["filter_chains"][0]["filters"][0]["typed_config"]
    assert (proxy["idle_timeout"], proxy["max_downstream_connection_duration"]) == ("60s", "600s")
    client = replace(CLIENT, interception=Interception.NONE, address="127.0.0.1")
    found = translate(mesh(client, web, limited), client).of(ROUTE)["http_proxy"]
    tunnel = to_dict(found.type_url, found.body)["virtual_hosts"][0]["routes"][0]["route"]
    assert (tunnel["idle_timeout"], tunnel["max_stream_duration"]) == ("60s", {"max_stream_duration": "600s"})


def test_the_proxys_port_is_the_one_that_the_mesh_says():
    ports = [ServicePort(port=n, target=n, name=f"http-{n}", protocol=Protocol.HTTP) for n in (15002, 16002)]
    web = replace(pod("web", "ns"), interception=Interception.NONE, address="127.0.0.1")
    for own, served in ((15002, 16002), (16002, 15002)):
        found = translate(mesh(web, service("web", "ns", *ports), proxy_http_port=own), web).of(LISTENER)
        assert set(found) == {"http_proxy", f"127.0.0.1_{served}"}
