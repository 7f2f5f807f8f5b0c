"""Connections to an address that another Service may own: predictions use the listener of the owner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.policy.meshes import meshes
from tests.policy.test_access import READS, policy
from tests.policy.world import HTTP, TCP, mesh, meta, peer, pod, rule, service
from xds.codec import to_dict
from xds.mesh.envoy.translate import translate
from xds.mesh.model.loadbalancer import LoadBalancer, Simple
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import (
    Change,
    EndpointAddress,
    EndpointGroup,
    EndpointPort,
    Endpoints,
    Interception,
    Pod,
    Ref,
    ServedDiff,
    Service,
)
from xds.mesh.model.traffic import TrafficPolicy
from xds.mesh.policy.explain import explain
from xds.mesh.policy.listeners import is_used, listeners_at
from xds.mesh.policy.prediction import predict_change, scope_of
from xds.mesh.policy.reach import outcome
from xds.snapshot import LISTENER

CLIENT, PROXIED, NAKED = (
    pod("client", "third"),
    replace(pod("proxied", "third"), interception=Interception.NONE),
    pod("naked", "third", sidecar=False),
)
WEB, BARE = pod("web", "shop"), pod("bare", "shop", sidecar=False, app="web")


def headless(name: str, namespace: str, *, age: float = 9, port: Any = TCP, **selector: str) -> Service:
    found = service(name, namespace, port, age=age, **selector)
    return replace(found, headless=True, addresses=())


def listing(owner: str, namespace: str, address: str, port: int, target: Ref | None = None) -> Endpoints:
    group = EndpointGroup(
        addresses=(EndpointAddress(address=address, pod=target),),
        ports=tuple(EndpointPort(port=port, name=name) for name in ("tcp", "http")),
    )
    return Endpoints(meta=meta("EndpointSlice", namespace, f"{owner}-1"), service=owner, groups=(group,))


def taker(address: str, port: int, which: Any = TCP) -> list[Any]:
    """A headless Service of another namespace that lists an address, and asks for plaintext."""
    return [
        headless("taker", "aaa", port=which),
        listing("taker", "aaa", address, port),
        rule("aaa", "taker.aaa.svc.cluster.local", "DISABLE", name="taker"),
    ]


SHOP = service("web", "shop", TCP, age=5)
OWNER = headless("owner", "shop", age=5, app="web")
VIRTUAL = SHOP.addresses[0]
STRICT = peer("shop", "STRICT")
PASSES = rule(
    "shop",
    "web.shop.svc.cluster.local",
    policy=TrafficPolicy(load_balancer=LoadBalancer(Simple.PASSTHROUGH)),
    name="passes",
)
OLD = rule("shop", "old.shop.svc.cluster.local", "DISABLE", name="old")
GHOST = Ref("Pod", "shop", "ghost")
CALLED = headless("taker", "shop", age=1, app="web")
"""A headless Service of the owner's namespace, which is younger."""

OTHERS = "plaintext destination-rule", "plaintext client-without-sidecar"
"""What clients without interception, and those without a sidecar, get from the Service that they call."""
# The results for clients with interception, without it, and without a sidecar.
CASES = {
    "pod of another namespace": (
        [WEB, *taker(WEB.address, 9090)],
        ("plaintext passthrough", *OTHERS),
    ),
    "STRICT pod of another namespace": (
        [WEB, STRICT, *taker(WEB.address, 9090)],
        ("fails passthrough", "fails server-requires-mtls", "fails server-requires-mtls"),
    ),
    "pod that a headless Service owns": (
        [WEB, OWNER, *taker(WEB.address, 9090)],
        ("mtls auto-mtls", *OTHERS),
    ),
    "Service port of a headless Service": (
        [WEB, OWNER, *taker(WEB.address, 90)],
        ("mtls auto-mtls", *OTHERS),
    ),
    "pod of a Service under PASSTHROUGH": (
        [WEB, SHOP, PASSES, *taker(WEB.address, 9090)],
        ("mtls auto-mtls", *OTHERS),
    ),
    "pod of a Service with a rule for other clients": (
        [WEB, SHOP, replace(PASSES, export_to=(".",)), *taker(WEB.address, 9090)],
        ("plaintext passthrough", *OTHERS),
    ),
    "clusterIP": (
        [WEB, SHOP, STRICT, *taker(VIRTUAL, 90)],
        ("mtls auto-mtls", "fails server-requires-mtls", "fails server-requires-mtls"),
    ),
    "clusterIP with the worst result of several servers": (
        [WEB, BARE, SHOP, *taker(VIRTUAL, 90)],
        ("plaintext endpoint-without-sidecar", *OTHERS),
    ),
    "clusterIP without this port": ([WEB, SHOP, *taker(VIRTUAL, 91)], ("fails no-endpoint",) * 3),
    "clusterIP without servers": ([SHOP, *taker(VIRTUAL, 90)], ("fails no-endpoint",) * 3),
    "address that an older Service lists with an unknown Pod": (
        [
            headless("old", "shop", age=99),
            *(listing("old", "shop", "192.0.2.1", 9090, GHOST), OLD, *taker("192.0.2.1", 9090)),
        ],
        ("fails pod-unknown", *OTHERS),
    ),
    "address that a younger Service lists": (
        [
            *(headless("young", "shop", age=1), listing("young", "shop", "192.0.2.1", 9090)),
            *taker("192.0.2.1", 9090),
        ],
        ("plaintext destination-rule", *OTHERS),
    ),
    "HTTP port, which requests reach by the name of the Service": (
        [WEB, *taker(WEB.address, 80, replace(HTTP, target=80))],
        ("plaintext destination-rule", *OTHERS),
    ),
    "other port of an HTTP endpoint": (
        [WEB, *taker(WEB.address, 8080, HTTP)],
        ("plaintext passthrough", *OTHERS),
    ),
    "younger headless Service with the same pods": (
        [WEB, OWNER, CALLED, rule("shop", "taker.shop.svc.cluster.local", "DISABLE")],
        ("mtls auto-mtls", *OTHERS),
    ),
    "older Service whose rule decides": (
        [WEB, CALLED, headless("old", "shop", age=99, app="web"), OLD],
        ("plaintext destination-rule", "mtls auto-mtls", "plaintext client-without-sidecar"),
    ),
    "younger Service with the same clusterIP": (
        [
            WEB,
            SHOP,
            replace(service("taker", "aaa", TCP, age=1), addresses=SHOP.addresses),
            pod("taker", "aaa"),
        ],
        ("mtls auto-mtls", "mtls auto-mtls", "plaintext client-without-sidecar"),
    ),
    "Service that lists a clusterIP": (
        [
            *(WEB, SHOP, STRICT, service("taker", "aaa", TCP, age=1)),
            *(
                listing("taker", "aaa", VIRTUAL, 90),
                rule("aaa", "taker.aaa.svc.cluster.local", "ISTIO_MUTUAL"),
            ),
        ],
        ("mtls destination-rule", "mtls destination-rule", "fails server-requires-mtls"),
    ),
    "Service whose address is not known": (
        [replace(service("taker", "aaa", TCP), addresses=()), listing("taker", "aaa", "192.0.2.1", 9090)],
        ("plaintext endpoint-without-sidecar",) * 2 + ("plaintext client-without-sidecar",),
    ),
}


def called(world: Mesh) -> tuple[Service, Endpoint]:
    """Return the Service `taker` and its endpoint."""
    (found,) = (one for one in world.services() if one.name == "taker")
    (endpoint,) = world.endpoints(found, found.ports[0])
    return found, endpoint


def results(world: Mesh, *clients: Pod) -> tuple[str, ...]:
    found, endpoint = called(world)
    outcomes = (outcome(world, client, found, found.ports[0], endpoint) for client in clients)
    return tuple(f"{o.result} {o.reason}" for o in outcomes)


@pytest.mark.parametrize(("facts", "expected"), CASES.values(), ids=CASES)
def test_results_and_explanations_are_those_of_the_owner(facts, expected):
    world = mesh(CLIENT, PROXIED, NAKED, *facts)
    assert results(world, CLIENT, PROXIED, NAKED) == expected
    found, _ = called(world)
    groups = [explain(world, client, found, found.ports) for client in (CLIENT, PROXIED, NAKED)]
    assert tuple(f"{one.explanation.result} {one.explanation.reason}" for (one,) in groups) == expected


def test_address_of_no_service_is_blocked_if_only_services_are_allowed():
    world = mesh(CLIENT, PROXIED, NAKED, WEB, *taker(WEB.address, 9090), allow_any_outbound=False)
    assert results(world, CLIENT, PROXIED)[0] == "fails outbound-blocked"
    assert results(world, PROXIED, NAKED) == CASES["pod of another namespace"][1][1:]


def test_explanation_names_the_owner_and_its_objects():
    world = mesh(CLIENT, WEB, OWNER, *taker(WEB.address, 9090))
    found, _ = called(world)
    (group,) = explain(world, CLIENT, found, found.ports)
    assert group.explanation.why == (
        "the address belongs to Service shop/owner: auto mTLS is enabled, and the server's mode is PERMISSIVE"
    )
    assert group.explanation.identities == ("spiffe://cluster.local/ns/shop/sa/web",)


def test_condition_of_one_of_several_servers_is_not_hidden():
    some = policy(READS, namespace="shop", app="second")
    for first, second in (("web", "second"), ("second", "web")):
        pods = [
            pod(f"{number}-{app}", "shop", app=app, both="x") for number, app in enumerate((first, second))
        ]
        both = replace(service("web", "shop", HTTP, age=5, both="x"), addresses=SHOP.addresses)
        world = mesh(CLIENT, *pods, both, some, *taker(VIRTUAL, 80))
        found, endpoint = called(world)
        conditions = outcome(world, CLIENT, found, found.ports[0], endpoint).conditions
        assert conditions == ("if GET|HEAD (AuthorizationPolicy shop/rules)",)


def test_explanation_of_a_rollout_is_that_of_the_owner():
    world = mesh(CLIENT, WEB, OWNER, *taker(WEB.address, 9090))
    served = world.with_served(ServedDiff(mtls={(WEB.ref, 9090): False}))
    found, _ = called(served)
    (group,) = explain(served, CLIENT, found, found.ports)
    assert (group.explanation.desired.send, group.explanation.served.send) == ("mtls", "plaintext")


def test_change_of_the_owner_is_in_the_scope_of_its_plan():
    world = mesh(CLIENT, WEB, OWNER, *taker(WEB.address, 9090))
    disable = rule("shop", "owner.shop.svc.cluster.local", "DISABLE", name="owner")
    for change in (Change(applied=(disable,)), Change(removed=(OWNER.ref,))):
        after = world.apply(change)
        scoped = predict_change(world, after, scope_of(change, world, after))
        assert ("taker", "plaintext") in {(hop.service.name, str(hop.effect)) for hop in scoped.hops}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(meshes())
def test_sidecars_have_the_predicted_listeners(world: Mesh):
    client = world.pod("b", "v1")
    if client.interception is Interception.NONE or not client.has_sidecar:
        return
    listeners = translate(world, client).of(LISTENER).values()
    assert world.failures == {}
    served = {one.name: to_dict(one.type_url, one.body) for one in listeners if one.name[0].isdecimal()}
    numbers = {number for port in (HTTP, TCP) for number in (port.port, port.target)} | {95, 96, 15001}
    addresses = {
        address for fact in world.facts() if isinstance(fact, Pod | Service) for address in fact.addresses
    } | {
        # A list may contain the address of a Service that does not exist.
        entry.address
        for fact in world.facts()
        if isinstance(fact, Endpoints)
        for group in fact.groups
        for entry in group.addresses
    }
    predicted = {
        f"{address}_{number}": next(
            (found for found in listeners_at(world, address, number) if is_used(world, client, found)), None
        )
        for address in addresses | {"192.0.2.1"}
        for number in numbers
    }
    assert {name for name in served if not name.startswith("0.0.0.0_")} <= predicted.keys()
    for name, found in predicted.items():
        if found is None:
            assert name not in served
            continue
        where = found.endpoint.address if found.endpoint else ""
        cluster = f"outbound|{found.port.port}|{where}|{found.service.host}"
        assert ("BlackHoleCluster" if found.is_closed else cluster) in str(served[name])


def test_unknown_pod_at_the_address_of_another_namespace_closes_no_listener():
    ghost = listing("taker", "aaa", WEB.address, 9090, Ref("Pod", "aaa", "ghost"))
    world = mesh(CLIENT, WEB, headless("taker", "aaa"), ghost)
    (port,) = world.service("aaa", "taker").ports
    assert world.unknown_endpoints(world.service("aaa", "taker"), port)
    assert listeners_at(world, WEB.address, 9090) == ()
