"""Services that only some clients see: what the others send, and to whom a change matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.test_ownership import CLIENT, NAKED, PROXIED, headless
from tests.policy.world import HTTP, ROOT, TCP, mesh, meta, peer, pod, service, sidecar
from xds.codec import to_dict
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Namespace, Pod, Protocol, Ref, Requirement, Service
from xds.mesh.policy.conflicts import Overridden, overridden
from xds.mesh.policy.explain import explain
from xds.mesh.policy.hops import hops
from xds.mesh.policy.ineffective import without_effect
from xds.mesh.policy.prediction import predict_change, scope_of
from xds.mesh.policy.reach import Failure, outcome
from xds.mesh.policy.remedy import remedy
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE

WEB, OWN = pod("web", "shop"), pod("client", "shop")
SHOP = service("web", "shop", TCP, age=5)
STRICT = peer("shop", "STRICT")
SEEN = "mtls auto-mtls"
HIDDEN = "plaintext not-exported"


def exported(to: str, found: Service = SHOP) -> Service:
    return replace(found, export_to=tuple(to.split()))


def result(world: Mesh, client: Pod, name: str = "web") -> str:
    """Return the outcome for a client and the only endpoint of a service, as it is explained."""
    called = world.service("shop", name)
    (endpoint,) = world.endpoints(called, called.ports[0])
    found = outcome(world, client, called, called.ports[0], endpoint)
    ((explanation, _),) = explain(world, client, called, called.ports)
    assert (explanation.result, explanation.reason) == (found.result, found.reason)
    return f"{found.result} {found.reason}"


@pytest.mark.parametrize(
    ("own", "default", "expected"),
    [
        ("", "*", ("mtls auto-mtls", "mtls auto-mtls")),
        ("", ".", ("mtls auto-mtls", HIDDEN)),
        ("", "~", (HIDDEN, HIDDEN)),
        ("", "third", (HIDDEN, "mtls auto-mtls")),
        ("*", ".", ("mtls auto-mtls", "mtls auto-mtls")),
        ("shop", "*", ("mtls auto-mtls", HIDDEN)),
        ("shop third", ".", ("mtls auto-mtls", "mtls auto-mtls")),
        ("third", "*", (HIDDEN, "mtls auto-mtls")),
        ("~", "*", (HIDDEN, HIDDEN)),
    ],
)
def test_service_is_visible_to_the_namespaces_that_it_is_exported_to(own, default, expected):
    world = mesh(CLIENT, OWN, WEB, exported(own), default_service_export_to=(default,))

    assert (result(world, OWN), result(world, CLIENT)) == expected
    for client, how in zip((OWN, CLIENT), expected, strict=True):
        snapshot = translate(world, client)
        names = [name for kind in (CLUSTER, ENDPOINT, LISTENER) for name in snapshot.of(kind)]
        is_sent = any(SHOP.host in name or SHOP.addresses[0] in name for name in names)
        assert is_sent is (how != HIDDEN)


@pytest.mark.parametrize(
    ("facts", "settings", "expected"),
    [
        ((), {}, (HIDDEN, "fails not-exported", "plaintext client-without-sidecar")),
        ((STRICT,), {}, ("fails not-exported-plaintext", "fails not-exported", "fails server-requires-mtls")),
        (
            (),
            {"allow_any_outbound": False},
            ("fails not-exported", "fails not-exported", "plaintext client-without-sidecar"),
        ),
    ],
)
@pytest.mark.parametrize("of", [SHOP, headless("web", "shop", age=5)], ids=["clusterIP", "headless"])
def test_hidden_service_is_an_unknown_address(of, facts, settings, expected):
    world = mesh(CLIENT, PROXIED, NAKED, WEB, exported("shop", of), *facts, **settings)

    assert tuple(result(world, client) for client in (CLIENT, PROXIED, NAKED)) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, (HIDDEN, "fails not-exported")), ({"allow_any_outbound": False}, ("fails not-exported",) * 2)],
)
def test_hidden_service_at_an_address_with_other_hidden_services(settings, expected):
    older = exported("shop", headless("older", "shop", age=9, app="web"))
    world = mesh(CLIENT, PROXIED, WEB, older, exported("shop", headless("web", "shop", age=5)), **settings)

    assert tuple(result(world, client) for client in (CLIENT, PROXIED)) == expected


def test_listener_of_a_visible_service_is_used_at_the_address_of_a_hidden_one():
    hidden = exported("shop", headless("web", "shop", age=9))
    world = mesh(CLIENT, OWN, PROXIED, WEB, STRICT, hidden, headless("other", "shop", age=5, app="web"))

    assert result(world, OWN) == result(world, CLIENT) == "mtls auto-mtls"
    assert result(world, PROXIED) == "fails not-exported"
    assert f"outbound|90|{WEB.address}|other.shop.svc.cluster.local" in translate(world, CLIENT).of(CLUSTER)


@pytest.mark.parametrize(("own", "by"), [("shop", "Service shop/web"), ("", None)])
def test_explanation_names_the_object_that_hides_the_service(own, by):
    world = mesh(CLIENT, WEB, STRICT, exported(own), default_service_export_to=(".",))
    ((found, _),) = explain(world, CLIENT, world.service("shop", "web"), SHOP.ports)

    assert found.why == (
        "the client does not see the service (exportTo, mesh settings or a Sidecar), so the "
        "client's sidecar passes the connection through, but the server accepts mutual TLS only"
    )
    assert (found.client.decided_by and str(found.client.decided_by)) == by
    (hop,) = (hop for hop in hops(world) if hop.answer.reason is Failure.NOT_EXPORTED_PLAINTEXT)
    assert remedy(hop.answer, "third/client", CLIENT) == (
        "let third/client see the service (exportTo, mesh settings or egress of a Sidecar), "
        "or use PERMISSIVE in PeerAuthentication shop/default"
    )


def test_plan_says_that_a_hidden_service_loses_mutual_tls():
    world = mesh(CLIENT, OWN, WEB, SHOP)
    change = Change(applied=(exported("shop"),))
    after = world.apply(change)

    (hop,) = predict_change(world, after, scope_of(change, world, after)).hops
    assert [pod.ref for client in hop.clients for pod in client.pods] == [CLIENT.ref]
    assert (str(hop.effect), f"{hop.after.result} {hop.after.reason}") == ("plaintext", HIDDEN)


def labelled(name: str, **labels: str) -> Namespace:
    return Namespace(meta=meta("Namespace", "", name, **labels))


def test_services_of_namespaces_that_are_not_selected_are_hidden():
    selectors = ((Requirement("mesh", "In", ("yes",)),), (Requirement("team", "Exists"),))
    world = mesh(CLIENT, OWN, WEB, exported("*"), discovery_selectors=selectors)
    assert result(world, OWN) == result(world, CLIENT) == SEEN, "the labels of the namespace are not known"

    for labels, expected in (
        ({"mesh": "no"}, HIDDEN),
        ({"mesh": "yes"}, SEEN),
        ({"team": ""}, SEEN),
        ({}, HIDDEN),
    ):
        change = Change(applied=(labelled("shop", **labels),))
        after = world.apply(change)
        assert result(after, OWN) == result(after, CLIENT) == expected
        effects = predict_change(world, after, scope_of(change, world, after)).hops
        assert bool(effects) is (result(world, CLIENT) != expected)
        name = "outbound|90||web.shop.svc.cluster.local"
        assert (name in translate(after, CLIENT).of(CLUSTER)) is (expected == SEEN)
        world = after

    ((found, _),) = explain(world, CLIENT, world.service("shop", "web"), SHOP.ports)
    assert str(found.client.decided_by) == "Namespace shop"


def test_answer_names_the_sidecar_that_blocks_a_connection():
    world = mesh(CLIENT, WEB, exported("shop"), sidecar("third", "*/*", allow_any=False))
    (hop,) = (hop for hop in hops(world) if hop.answer.reason is Failure.NOT_EXPORTED)
    assert [str(ref) for ref in hop.answer.decided_by] == ["Service shop/web", "Sidecar third/default"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (labelled("x", mesh="no"), labelled("x", mesh="yes")),
        (
            replace(service("api", "x", replace(HTTP, port=90)), export_to=("x",)),
            service("api", "x", replace(HTTP, port=90)),
        ),
        (service("other", "x", HTTP), service("api", "x", replace(HTTP, port=90))),
    ],
)
def test_plan_knows_that_a_new_http_port_refuses_connections_to_hidden_services(before, after):
    selectors = ((Requirement("mesh", "In", ("yes",)),),) if isinstance(before, Namespace) else ()
    api = [] if isinstance(before, Service) else [service("api", "x", replace(HTTP, port=90))]
    world = mesh(CLIENT, WEB, exported("shop"), pod("api", "x"), *api, before, discovery_selectors=selectors)
    change = Change(applied=(after,))
    changed = world.apply(change)

    assert (result(world, CLIENT), result(changed, CLIENT)) == (HIDDEN, "fails not-exported")
    hops = predict_change(world, changed, scope_of(change, world, changed)).hops
    assert [hop.service.name for hop in hops if str(hop.effect) == "breaks"] == ["web"]


def test_change_reaches_the_sidecars_that_it_concerns():
    def clusters(world: Mesh, client: Pod) -> Any:
        return translate(world, client).types[CLUSTER]

    third, fourth = CLIENT, pod("client", "fourth")
    world = mesh(OWN, third, fourth, WEB, SHOP)
    seen = {client.ref: clusters(world, client) for client in (OWN, third, fourth)}
    world = world.apply(Change(applied=(exported("shop third"),)))
    name = "outbound|90||web.shop.svc.cluster.local"

    assert clusters(world, OWN).get(name) is seen[OWN.ref].get(name)
    assert clusters(world, third).get(name) is seen[third.ref].get(name)
    assert name not in clusters(world, fourth)

    world = world.apply(Change(applied=(SHOP,)))
    assert name in clusters(world, fourth)


NAMES = "shop/web.shop.svc.cluster.local"


@pytest.mark.parametrize(
    ("sidecars", "own", "third"),
    [
        ([sidecar(ROOT, "*/*")], SEEN, SEEN),
        ([sidecar(ROOT, "./*")], SEEN, HIDDEN),
        ([sidecar(ROOT, "~/*")], HIDDEN, HIDDEN),
        ([sidecar(ROOT, NAMES)], SEEN, SEEN),
        ([sidecar(ROOT, "*/*.shop.svc.cluster.local")], SEEN, SEEN),
        (
            [sidecar(ROOT, "third/web.shop.svc.cluster.local", "shop/other.shop.svc.cluster.local")],
            HIDDEN,
            HIDDEN,
        ),
        ([sidecar(ROOT, "~/*", app="client")], SEEN, SEEN),
        ([sidecar("third", "~/*")], SEEN, HIDDEN),
        ([sidecar("third", "~/*", app="other")], SEEN, SEEN),
        ([sidecar("third", "~/*", app="other"), sidecar(ROOT, "./*")], SEEN, HIDDEN),
        ([sidecar("third", "./*", "shop/*"), sidecar(ROOT, "./*")], SEEN, SEEN),
        ([sidecar("third", "~/*"), sidecar("third", "*/*", name="a", app="client")], SEEN, SEEN),
        ([sidecar("third", "~/*", age=1), sidecar("third", "*/*", name="old", age=9)], SEEN, SEEN),
    ],
)
def test_sidecar_decides_which_services_its_clients_see(sidecars, own, third):
    world = mesh(CLIENT, OWN, WEB, SHOP, *sidecars)

    assert (result(world, OWN), result(world, CLIENT)) == (own, third)
    for client, how in ((OWN, own), (CLIENT, third)):
        name = "outbound|90||web.shop.svc.cluster.local"
        assert (name in translate(world, client).of(CLUSTER)) is (how == SEEN)


@pytest.mark.parametrize(
    ("facts", "by"),
    [
        ((SHOP, sidecar("third", "~/*", app="client")), "Sidecar third/default for the workload"),
        ((SHOP, sidecar("third", "~/*")), "Sidecar third/default for the namespace"),
        ((SHOP, sidecar(ROOT, "~/*")), "Sidecar istio-system/default for the mesh"),
        ((exported("shop"), sidecar(ROOT, "~/*")), "Service shop/web"),
    ],
)
def test_explanation_names_the_sidecar_that_hides_the_service(facts, by):
    world = mesh(CLIENT, WEB, *facts)
    ((found, _),) = explain(world, CLIENT, world.service("shop", "web"), SHOP.ports)

    assert str(found.client.decided_by) == by


def test_change_of_a_sidecar_changes_its_clients_and_keeps_what_others_share():
    other = pod("client", "fourth")
    world = mesh(OWN, CLIENT, other, WEB, SHOP)
    name = "outbound|90||web.shop.svc.cluster.local"
    before = {client.ref: translate(world, client).of(CLUSTER) for client in (CLIENT, other)}
    change = Change(applied=(sidecar("third", "~/*"),))
    after = world.apply(change)

    assert name not in translate(after, CLIENT).of(CLUSTER)
    assert translate(after, other).of(CLUSTER)[name] is before[other.ref][name]
    (hop,) = predict_change(world, after, scope_of(change, world, after)).hops
    assert [found.ref for client in hop.clients for found in client.pods] == [CLIENT.ref]
    assert (str(hop.effect), f"{hop.after.result} {hop.after.reason}") == ("plaintext", HIDDEN)

    changed = after.apply(Change(applied=(sidecar("third", "shop/*"),)))
    assert name in translate(changed, CLIENT).of(CLUSTER)
    assert name in translate(changed.apply(Change(removed=(change.applied[0].ref,))), CLIENT).of(CLUSTER)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize(("namespace", "labels"), [("third", {}), ("third", {"app": "client"}), (ROOT, {})])
def test_outbound_traffic_policy_of_a_sidecar_overrides_that_of_the_mesh(everywhere, namespace, labels):
    def default_cluster(world: Mesh, client: Pod) -> str:
        listener = translate(world, client).of(LISTENER)["virtualOutbound"]
        return str(to_dict(LISTENER, listener.body)["default_filter_chain"]["name"])

    inherited, allowed, blocked = (
        sidecar(namespace, "./*", allow_any=value, **labels) for value in (None, True, False)
    )
    world = mesh(CLIENT, OWN, WEB, exported("shop"), inherited, allow_any_outbound=everywhere)
    expected = HIDDEN if everywhere else "fails not-exported"
    assert result(world, CLIENT) == expected
    for policy, how, cluster in (
        (allowed, HIDDEN, "PassthroughCluster"),
        (blocked, "fails not-exported", "BlackHoleCluster"),
    ):
        change = Change(applied=(policy,))
        changed = world.apply(change)
        assert (result(changed, CLIENT), default_cluster(changed, CLIENT)) == (how, cluster)
        assert result(changed, OWN) == SEEN
        effects = predict_change(world, changed, scope_of(change, world, changed)).hops
        assert len(effects) == (how != expected)


def test_outbound_traffic_policy_of_a_sidecar_decides_about_unknown_hosts_of_a_port():
    def route_names(world: Mesh) -> list[str]:
        found = to_dict(ROUTE, translate(world, CLIENT).of(ROUTE)["80"].body)
        return [host["name"] for host in found["virtual_hosts"]]

    world = mesh(CLIENT, pod("api", "third"), service("api", "third", HTTP))
    assert "allow_any" in route_names(world)
    assert "allow_any" not in route_names(
        world.apply(Change(applied=(sidecar("third", "*/*", allow_any=False),)))
    )


def test_rejected_sidecar_hides_nothing_although_another_has_a_selector():
    unknown = replace(sidecar("third", "*/*", name="unknown", age=9), scope_unknown=True)
    world = mesh(CLIENT, WEB, SHOP, sidecar("third", "~/*", app="client", age=20), unknown)
    assert result(world, CLIENT) == HIDDEN, "the older one wins"

    world = mesh(CLIENT, WEB, SHOP, sidecar("third", "~/*", app="client", age=5), unknown)
    assert result(world, CLIENT) == SEEN


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (Protocol.TCP, "fails not-exported"),
        (Protocol.AUTO, "fails not-exported"),
        (Protocol.HTTP, HIDDEN),
    ],
)
@pytest.mark.parametrize("of", [SHOP, headless("web", "shop", age=5)], ids=["clusterIP", "headless"])
def test_listener_for_http_refuses_other_connections_to_a_hidden_service(of, protocol, expected):
    number = 9090 if of.headless else 90
    hidden = exported("shop", replace(of, ports=(replace(TCP, protocol=protocol),)))
    api = service("api", "third", replace(HTTP, port=number))
    world = mesh(CLIENT, WEB, pod("api", "third"), hidden, api)

    assert f"0.0.0.0_{number}" in translate(world, CLIENT).of(LISTENER)
    assert result(world, CLIENT) == expected
    assert result(world.apply(Change(removed=(api.ref,))), CLIENT) == HIDDEN


def test_older_sidecar_overrides_another_with_the_same_clients():
    old, new = sidecar("shop", "./*", name="old", age=9), sidecar("shop", "~/*", name="new", age=1)
    others = sidecar("shop", "./*", name="a", app="web"), sidecar("third", "./*")

    assert overridden(mesh(OWN, WEB, old, new, *others)) == {new.ref: Overridden((old.ref,), "")}


def test_selector_of_a_sidecar_that_matches_no_pod_is_reported():
    world = mesh(OWN, WEB, sidecar("shop", "./*", app="wbe"))

    assert "matches no pod" in str(without_effect(world).problems[Ref("Sidecar", "shop", "default")][0])
