"""An address answers to its owner: no Service takes what belongs to another's pods or Services."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.mesh.objects import facts, named, pod, service, slice_of
from xds.codec import to_dict
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Service
from xds.mesh.policy.disregarded import disregarded
from xds.snapshot import LISTENER, ROUTE

VIRTUAL, WEB, DB, STRANGER = "10.96.0.9", "10.1.0.1", "10.1.0.2", "192.0.2.1"
OWN_POD = {"kind": "Pod", "name": "mine"}
THEIR_POD = {"kind": "Pod", "name": "db", "namespace": "shop"}


def listing(namespace: str, name: str, address: str, target: dict[str, str] | None = None, *, port: int = 80):
    return slice_of(namespace, name, address, target) | {"ports": [{"port": port}]}


def passthrough(namespace: str, name: str) -> dict[str, Any]:
    spec = {
        "host": f"{name}.{namespace}.svc.cluster.local",
        "trafficPolicy": {"loadBalancer": {"simple": "PASSTHROUGH"}},
    }
    rule = named("DestinationRule", namespace, name, spec=spec)
    return rule | {"apiVersion": "networking.istio.io/v1"}


def client(name: str, address: str, mode: str) -> dict[str, Any]:
    found = pod("third", name, address)
    found["metadata"]["annotations"] = {"sidecar.istio.io/interceptionMode": mode}
    return found


def served(*objects: dict[str, Any]) -> list[Any]:
    """Facts as from an API server, which have no place in a file."""
    return [replace(fact, meta=replace(fact.meta, origin="")) for fact in facts(*objects)]


SHOP = [
    *(pod("shop", "web", WEB), service("shop", "web", VIRTUAL, year=2021)),
    listing("shop", "web", WEB, {"kind": "Pod", "name": "web"}),
    *(pod("shop", "db", DB), service("shop", "db", year=2021)),
    listing("shop", "db", DB, THEIR_POD),
    *(client("redirected", "10.1.0.8", "REDIRECT"), client("proxied", "10.1.0.9", "NONE")),
]
OWNED = (VIRTUAL, WEB, DB)
"""Addresses of namespace `shop`, which takes part in the test as the victim."""

CLAIMS = {
    "a headless Service lists a virtual address": (
        [service("aaa", "x"), listing("aaa", "x", VIRTUAL)],
        "EndpointSlice aaa/x-1",
        f"{VIRTUAL} belongs to Service shop/web: connections to it are not sent to Service aaa/x",
    ),
    "a headless Service lists a pod of a headless Service": (
        [service("aaa", "x"), listing("aaa", "x", DB)],
        "EndpointSlice aaa/x-1",
        f"{DB} belongs to Pod shop/db: connections to it are not sent to Service aaa/x",
    ),
    "by the pod's name": (
        [service("aaa", "x"), listing("aaa", "x", DB, THEIR_POD)],
        "EndpointSlice aaa/x-1",
        f"{DB} belongs to Pod shop/db: connections to it are not sent to Service aaa/x",
    ),
    "by the name of a pod of its own": (
        [
            *(service("aaa", "x"), pod("aaa", "mine", "10.1.0.7", mode="disabled")),
            listing("aaa", "x", DB, OWN_POD),
        ],
        "EndpointSlice aaa/x-1",
        (
            f"{DB} belongs to Pod shop/db: targetRef Pod aaa/mine is ignored; "
            f"{DB} belongs to Pod shop/db: connections to it are not sent to Service aaa/x"
        ),
    ),
    "by the name of a Pod that does not exist": (
        [service("aaa", "x"), listing("aaa", "x", DB, {"kind": "Pod", "name": "none"})],
        "EndpointSlice aaa/x-1",
        f"{DB} is ignored until its targetRef Pod aaa/none is known to have this address",
    ),
    "a Service under PASSTHROUGH lists a virtual address": (
        [service("aaa", "x", "10.96.0.8"), listing("aaa", "x", VIRTUAL), passthrough("aaa", "x")],
        None,
        "",
    ),
    "a younger Service claims a virtual address": (
        [service("aaa", "x", VIRTUAL, year=2022)],
        "Service aaa/x",
        f"clusterIP {VIRTUAL} belongs to Service shop/web: traffic to it is not sent to this Service",
    ),
    "an older Service claims a pod's address": (
        [service("aaa", "x", DB)],
        "Service aaa/x",
        f"clusterIP {DB} belongs to Pod shop/db: traffic to it is not sent to this Service",
    ),
}


def answering(mesh: Mesh) -> dict[tuple[str, str], Any]:
    """What becomes of connections to addresses of `shop`, with and without interception."""
    found: dict[tuple[str, str], Any] = {}
    redirected, proxied = mesh.pod("third", "redirected"), mesh.pod("third", "proxied")
    assert redirected
    assert proxied
    for name, listener in translate(mesh, redirected).of(LISTENER).items():
        if name.rpartition("_")[0] in OWNED:
            found["listener", name] = listener.version
    routes = translate(mesh, proxied).of(ROUTE)["http_proxy"]
    for host in to_dict(routes.type_url, routes.body)["virtual_hosts"]:
        for domain in host["domains"]:
            if domain.partition(":")[0] in OWNED:
                found["route", domain] = host["routes"]
    return found


@pytest.mark.parametrize(("claim", "told", "what"), CLAIMS.values(), ids=CLAIMS)
def test_foreign_claim_on_an_address_has_no_effect(claim, told, what) -> None:
    honest = answering(Mesh(facts(*SHOP)))
    assert honest.keys() == {
        *(("listener", f"{VIRTUAL}_80"), ("listener", f"{DB}_80")),
        *(("route", VIRTUAL), ("route", f"{VIRTUAL}:80"), ("route", DB), ("route", f"{DB}:80")),
    }
    claimed = Mesh(facts(*SHOP, *claim))
    assert answering(claimed) == honest
    said: dict[str, list[str]] = {}
    for each in disregarded(claimed):
        said.setdefault(str(each.ref), []).append(each.what)
    assert {ref: "; ".join(texts) for ref, texts in said.items()} == ({told: what} if told else {})
    # In any order of arrival.
    for first, second in ((SHOP, claim), (claim, SHOP)):
        mesh = Mesh(facts(*first, *SHOP[-2:]))
        for pod_ in mesh.pods():
            translate(mesh, pod_)
        assert answering(mesh.apply(Change(applied=tuple(facts(*second))))) == honest


def test_oldest_claimant_gets_an_unowned_address() -> None:
    mesh = Mesh(
        facts(
            *SHOP,
            *(service("aaa", "young", year=2022), listing("aaa", "young", STRANGER)),
            *(service("zoo", "old", year=2021), listing("zoo", "old", STRANGER)),
            *(
                service("aaa", "other-port", year=2023, port=90),
                listing("aaa", "other-port", STRANGER, port=90),
            ),
        )
    )
    redirected, proxied = mesh.pod("third", "redirected"), mesh.pod("third", "proxied")
    assert redirected
    assert proxied
    listeners = translate(mesh, redirected).of(LISTENER)
    assert [s.split()[1] for s in listeners[f"{STRANGER}_80"].sources] == ["zoo/old"]
    assert [s.split()[1] for s in listeners[f"{STRANGER}_90"].sources] == ["aaa/other-port"]
    routes = translate(mesh, proxied).of(ROUTE)["http_proxy"]
    hosts = to_dict(routes.type_url, routes.body)["virtual_hosts"]
    (there,) = (host for host in hosts if f"{STRANGER}:80" in host["domains"])
    assert there["routes"][0]["route"]["cluster"] == f"outbound|80|{STRANGER}|old.zoo.svc.cluster.local"


def test_address_passes_on_when_its_owner_is_deleted() -> None:
    whole = Mesh(facts(*SHOP, service("aaa", "x", VIRTUAL, year=2022)))
    redirected = whole.pod("third", "redirected")
    assert redirected

    def owner(mesh: Mesh) -> list[str]:
        return [s.split()[1] for s in translate(mesh, redirected).of(LISTENER)[f"{VIRTUAL}_80"].sources]

    assert owner(whole) == ["shop/web"]
    web = whole.service("shop", "web")
    assert isinstance(web, Service)
    without = whole.apply(Change(removed=(web.ref,)))
    assert owner(without) == ["aaa/x"]
    assert owner(without.apply(Change(applied=(web,)))) == ["shop/web"]


@pytest.mark.parametrize("written", ["FD00:0::9", "fd00:0:0:0:0:0:0:9"])
def test_address_forms_are_equivalent(written) -> None:
    owner = service("shop", "web", "fd00::9")
    mesh = Mesh(facts(owner, service("aaa", "x"), listing("aaa", "x", written) | {"addressType": "IPv6"}))
    taker = mesh.service("aaa", "x")
    assert taker
    (endpoint,) = mesh.endpoints(taker, taker.ports[0])
    assert not mesh.may_answer(taker, endpoint.address)


def test_ipv4_mapped_address_is_the_ipv4_address() -> None:
    listed = listing("aaa", "x", f"::ffff:{VIRTUAL}") | {"addressType": "IPv6"}
    mesh = Mesh(facts(*SHOP, service("aaa", "x"), listed))
    assert answering(mesh) == answering(Mesh(facts(*SHOP)))
    assert [each.what for each in disregarded(mesh)] == [
        f"{VIRTUAL} belongs to Service shop/web: connections to it are not sent to Service aaa/x"
    ]


def test_pod_cannot_take_an_allocated_cluster_ip() -> None:
    first, web, *others = SHOP
    honest = [first, web | {"metadata": web["metadata"] | {"uid": "1"}}, *others]
    claim = [
        *(pod("aaa", "mine", VIRTUAL, mode="disabled"), service("aaa", "x")),
        listing("aaa", "x", VIRTUAL, OWN_POD),
    ]
    mesh = Mesh(served(*honest, *claim))
    assert answering(mesh) == answering(Mesh(served(*honest)))
    assert [each.what for each in disregarded(mesh)] == [
        f"{VIRTUAL} belongs to Service shop/web: connections to it are not sent to Service aaa/x"
    ]


def test_uid_in_a_file_does_not_prove_allocation() -> None:
    evil = service("aaa", "evil", WEB)
    mesh = Mesh(facts(*SHOP, evil | {"metadata": evil["metadata"] | {"uid": "1"}}))
    assert answering(mesh) == answering(Mesh(facts(*SHOP)))


def test_host_network_pods_share_the_node_address() -> None:
    """With hostNetwork, each namespace decides for its own pods; the oldest Service wins a shared port."""
    mesh = Mesh(
        facts(
            *SHOP,
            *(pod("aaa", "agent", WEB), service("aaa", "agent", year=2022, port=81)),
            listing("aaa", "agent", WEB, {"kind": "Pod", "name": "agent"}, port=81),
        )
    )
    agent = mesh.service("aaa", "agent")
    web = mesh.service("shop", "web")
    assert agent
    assert web
    assert mesh.may_answer(agent, WEB)
    assert [e.pod and str(e.pod.ref) for s in (agent, web) for e in mesh.endpoints(s, s.ports[0])] == [
        "Pod aaa/agent",
        "Pod shop/web",
    ]
    assert list(disregarded(mesh)) == []
    third = service("third", "x")
    stolen = Mesh(facts(*SHOP, pod("aaa", "agent", WEB), third, listing("third", "x", WEB)))
    assert [each.what for each in disregarded(stolen)] == [
        f"{WEB} belongs to Pod aaa/agent and others: connections to it are not sent to Service third/x"
    ]
