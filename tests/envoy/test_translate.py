"""What holds for translations as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.world import HTTP, TCP, mesh, peer, pod, rule, service, slices
from xds.codec import to_dict
from xds.mesh.envoy import clusters
from xds.mesh.envoy.translate import translate
from xds.mesh.model.objects import (
    Change,
    ContainerPort,
    EndpointAddress,
    Interception,
    Protocol,
    ServicePort,
)
from xds.mesh.model.traffic import ConnectionPool, TrafficPolicy
from xds.mesh.policy.disregarded import disregarded
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE

CLIENT = pod("client", "ns")
OWN_PORTS = (15000, 15001, 15006, 15020, 15021, 15090)


def test_failed_service_keeps_previous_resources(monkeypatch):
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


@pytest.mark.parametrize("number", OWN_PORTS)
def test_sidecar_port_is_served_at_cluster_ip(number):
    http = ServicePort(port=number, target=8021, name="http", protocol=Protocol.HTTP)
    web = service("web", "ns", http)
    listeners = translate(mesh(CLIENT, web), CLIENT).of(LISTENER)
    assert f"{web.addresses[0]}_{number}" in listeners
    assert f"0.0.0.0_{number}" not in listeners


@pytest.mark.parametrize("passthrough", [True, False])
@pytest.mark.parametrize("interception", list(Interception))
@pytest.mark.parametrize("number", OWN_PORTS)
def test_no_service_leads_to_a_sidecar_port(number, interception, passthrough):
    server = replace(
        pod("web", "ns"), interception=interception, ports=(ContainerPort(port=number, name="p"),)
    )
    targets = (number, "p")
    ports = [
        ServicePort(port=80 + n, target=target, name=f"n{n}", protocol=Protocol.HTTP)
        for n, target in enumerate(targets)
    ]
    locked = peer("ns", "STRICT", ports={number: "DISABLE"}, app="web")
    world = mesh(CLIENT, server, service("web", "ns", *ports), locked, passthrough_inbound=passthrough)
    snapshot = translate(world, server)
    assert f"inbound|{number}||" not in snapshot.of(CLUSTER)
    if interception is Interception.NONE:
        assert f"{server.address}_{number}" not in snapshot.of(LISTENER)
        return
    listener = snapshot.of(LISTENER)["virtualInbound"]
    chains = to_dict(listener.type_url, listener.body)["filter_chains"]
    here = [chain for chain in chains if chain["filter_chain_match"].get("destination_port") == number]
    closed = world.config.closed_ports(interception)
    assert [chain["name"] for chain in here] == ([f"BlackHoleCluster-{number}"] if number in closed else [])
    told = {each.what for each in disregarded(world)}
    assert len(told) == (len(targets) if number in closed else 0)


def test_tcp_limits_with_and_without_interception():
    pool = ConnectionPool(tcp_idle_timeout=60, max_connection_duration=600)
    web = service("web", "ns", TCP)
    limited = rule("ns", web.host, policy=TrafficPolicy(connection_pool=pool))
    found = translate(mesh(CLIENT, web, limited), CLIENT).of(LISTENER)[f"{web.addresses[0]}_90"]
    proxy = to_dict(found.type_url, found.body)["filter_chains"][0]["filters"][0]["typed_config"]
    assert (proxy["idle_timeout"], proxy["max_downstream_connection_duration"]) == ("60s", "600s")
    client = replace(CLIENT, interception=Interception.NONE, address="127.0.0.1")
    found = translate(mesh(client, web, limited), client).of(ROUTE)["http_proxy"]
    tunnel = to_dict(found.type_url, found.body)["virtual_hosts"][0]["routes"][0]["route"]
    assert (tunnel["idle_timeout"], tunnel["max_stream_duration"]) == ("60s", {"max_stream_duration": "600s"})


def test_named_pod_is_reached_even_if_not_ready():
    server = replace(pod("web-0", "ns", app="web"), hostname="web-0", subdomain="web")
    entry = EndpointAddress(address=server.address, ready=False, pod=server.ref)
    web = replace(service("web", "ns", HTTP), addresses=(), headless=True)
    assignments = translate(mesh(CLIENT, server, web, slices(web, entry)), CLIENT).of(ENDPOINT)
    status = {
        name: [entry["health_status"] for entry in group["lb_endpoints"]]
        for name, resource in assignments.items()
        for group in to_dict(resource.type_url, resource.body)["endpoints"]
    }
    assert status == {
        "outbound|80||web.ns.svc.cluster.local": ["UNHEALTHY"],
        f"outbound|80|{server.address}|web.ns.svc.cluster.local": ["HEALTHY"],
    }


def test_proxy_port_follows_mesh_config():
    ports = [ServicePort(port=n, target=n, name=f"http-{n}", protocol=Protocol.HTTP) for n in (15002, 16002)]
    web = replace(pod("web", "ns"), interception=Interception.NONE, address="127.0.0.1")
    for own, served in ((15002, 16002), (16002, 15002)):
        found = translate(mesh(web, service("web", "ns", *ports), proxy_http_port=own), web).of(LISTENER)
        assert set(found) == {"http_proxy", f"127.0.0.1_{served}"}
