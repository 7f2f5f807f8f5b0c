"""Connections that annotations exclude from the client's or the server's sidecar."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.policy.world import HTTP, TCP, mesh, peer, pod, rule, service
from tests.support.predictions import predict
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Mode
from xds.mesh.model.redirection import REDIRECT_ALL, Redirection
from xds.mesh.policy.describe import OTHER_PORTS, describe
from xds.mesh.policy.explain import explain
from xds.mesh.policy.hops import hops
from xds.mesh.policy.mtls import Send, decide
from xds.mesh.policy.prediction import predict_change
from xds.mesh.policy.reach import Answer
from xds.mesh.policy.remedy import remedy

CLIENT, BARE = pod("client", "x"), pod("bare", "x", sidecar=False)
WEB = pod("web", "x")
INBOUND = Redirection(exclude_inbound_ports=(HTTP.target,))
DIRECT = "annotations exclude the port from the server's sidecar"
CHANGE = "change the traffic annotations of"
SKIPS = "annotations of the client's pod exclude the connection from its sidecar"


def world(*facts, client: Redirection = REDIRECT_ALL, server: Redirection = REDIRECT_ALL, **config) -> Mesh:
    pods = replace(CLIENT, redirection=client), BARE, replace(WEB, redirection=server)
    return mesh(*pods, service("web", "x"), *facts, **config)


def result(found: Mesh, client: str = "client") -> list[str]:
    return [f"{o.result} {o.reason}" for o in predict(found, [found.pod("x", client)])]


@pytest.mark.parametrize(
    ("facts", "client", "expected"),
    [
        ([], "client", "fails inbound-excluded"),
        ([], "bare", "plaintext client-without-sidecar"),
        ([peer("x", "STRICT")], "client", "fails inbound-excluded"),
        ([peer("x", "STRICT")], "bare", "plaintext client-without-sidecar"),
        ([peer("x", "DISABLE")], "client", "plaintext server-plaintext"),
        ([peer("x", "STRICT"), rule("x", "*", "DISABLE")], "client", "plaintext destination-rule"),
        ([peer("x", "STRICT"), rule("x", "*", "ISTIO_MUTUAL")], "client", "fails inbound-excluded"),
        ([peer("x", "STRICT"), rule("x", "*", "SIMPLE")], "client", "fails tls-left-to-application"),
    ],
)
def test_excluded_server_port_reaches_the_application(facts, client, expected):
    assert result(world(*facts, server=INBOUND), client)[0] == expected


def test_other_ports_of_the_server_are_enforced():
    found = world(peer("x", "STRICT"), server=INBOUND)
    assert result(found) == ["fails inbound-excluded", "mtls auto-mtls"]
    assert result(found, "bare") == ["plaintext client-without-sidecar", "fails server-requires-mtls"]


PERMITTED = "plaintext outbound-excluded"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("STRICT", "fails outbound-excluded"), ("PERMISSIVE", PERMITTED), ("DISABLE", PERMITTED)],
)
@pytest.mark.parametrize("rules", [[], [rule("x", "*", "ISTIO_MUTUAL")]])
def test_excluded_connections_of_a_client_are_plaintext(mode, expected, rules):
    found = world(peer("x", mode), *rules, client=Redirection(exclude_outbound_ports=(HTTP.port,)))
    assert result(found)[0] == expected
    if not rules:
        assert result(found)[1] == ("plaintext server-plaintext" if mode == "DISABLE" else "mtls auto-mtls")


def test_connection_that_bypasses_both_sidecars_is_plaintext():
    found = world(peer("x", "STRICT"), client=Redirection(networks=()), server=INBOUND)
    assert result(found) == [PERMITTED, "fails outbound-excluded"]


@pytest.mark.parametrize("headless", [False, True])
def test_destination_is_the_service_or_the_endpoint_if_headless(headless):
    web = service("web", "x", HTTP)
    others = {False: WEB.address, True: web.addresses[0]}
    own = {True: WEB.address, False: web.addresses[0]}
    for address, expected in ((others[headless], "mtls auto-mtls"), (own[headless], PERMITTED)):
        client = replace(CLIENT, redirection=Redirection(exclude_networks=(ip_network(address),)))
        ports = Redirection(exclude_outbound_ports=(HTTP.target if headless else HTTP.port,))
        target = replace(web, headless=True, addresses=()) if headless else web
        assert result(mesh(client, WEB, target))[0] == expected
        assert result(mesh(replace(CLIENT, redirection=ports), WEB, target))[0] == PERMITTED


def test_clients_and_endpoints_with_other_exclusions_are_other_hops():
    twin = replace(pod("client-2", "x"), service_account="client")
    far = pod("web-2", "x", app="web")
    bypassing = replace(CLIENT, redirection=Redirection(exclude_networks=(ip_network(far.address),)))
    web = replace(service("web", "x", HTTP), headless=True, addresses=())
    found = mesh(bypassing, twin, WEB, far, web)
    assert sorted(
        (pod.name, hop.answer.result.value, sorted(endpoint.pod.name for endpoint in hop.endpoints))
        for hop in hops(found, [bypassing, twin])
        for pod in hop.clients[0].pods
    ) == [
        ("client", "mtls", ["web"]),
        ("client", "plaintext", ["web-2"]),
        ("client-2", "mtls", ["web", "web-2"]),
    ]


def explanation(found: Mesh):
    (group,) = explain(found, found.pod("x", "client"), found.service("x", "web"), (HTTP,))
    return group.explanation


def test_explanation_of_an_excluded_server_port():
    found = explanation(world(peer("x", "STRICT"), server=INBOUND))
    assert found.summary == f"fails: the client sends mutual TLS, but {DIRECT}"
    assert found.client.summary == "mutual TLS: auto mTLS is enabled, and the server's mode is STRICT"
    assert found.server == (f"whatever the application accepts: {DIRECT}", None, ())
    assert found.desired == found.served == (Send.MTLS, None)


def test_explanation_of_an_excluded_client():
    client = Redirection(exclude_outbound_ports=(HTTP.port,))
    mtls = rule("x", "*", "ISTIO_MUTUAL")
    found = explanation(world(mtls, client=client))
    assert found.summary == found.client.summary == f"plaintext: {SKIPS}"
    assert (found.client.decided_by, found.client.overridden, found.identities) == (None, (), ())
    assert found.desired == found.served == (Send.PLAINTEXT, Mode.PERMISSIVE)
    found = explanation(world(mtls, peer("x", "STRICT"), client=client))
    assert found.summary == f"fails: {SKIPS}, but the server accepts mutual TLS only"
    assert str(found.server.decided_by) == "PeerAuthentication x/default for the namespace"


def test_served_state_of_an_excluded_client():
    found = world(client=Redirection(networks=()))
    served = found.with_served(replace(found.served, modes={(WEB.ref, HTTP.target): Mode.STRICT}))
    assert explanation(served).served == (Send.PLAINTEXT, Mode.STRICT)
    web = served.service("x", "web")
    (endpoint,) = served.endpoints(web, HTTP)
    assert decide(served, served.pod("x", "client"), web, HTTP, endpoint).send is Send.PLAINTEXT


@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        (
            Redirection(exclude_inbound_ports=(7000,)),
            {7000: False, 8080: True, 9090: True, OTHER_PORTS: True},
        ),
        (Redirection(inbound_ports=(8080,)), {8080: True, 9090: False, OTHER_PORTS: False}),
        (Redirection(inbound_ports=()), {8080: False, 9090: False, OTHER_PORTS: False}),
    ],
)
def test_description_of_excluded_ports(redirection, expected):
    found = world(peer("x", "STRICT"), server=redirection)
    accepted = {True: "mutual TLS only (STRICT)", False: f"whatever the application accepts: {DIRECT}"}
    described = {item.port: item.server.summary for item in describe(found, found.pod("x", "web"))}
    assert described == {port: accepted[enforced] for port, enforced in expected.items()}


def test_plan_of_a_mode_knows_the_excluded_port():
    found = world(server=INBOUND)
    change = Change(applied=(peer("x", "STRICT"),))
    assert [hop.port for hop in predict_change(found, found.apply(change)).hops] == [TCP]


def test_plan_of_an_annotation():
    found = world()
    changed = found.apply(Change(applied=(replace(WEB, redirection=INBOUND),)))
    (change,) = predict_change(found, changed).hops
    assert (change.effect, change.after.reason) == ("breaks", "inbound-excluded")


@pytest.mark.parametrize(
    ("mode", "redirections", "text"),
    [
        (
            "STRICT",
            {"server": INBOUND},
            f"set DISABLE for the port in a DestinationRule, or {CHANGE} the endpoints",
        ),
        (
            "STRICT",
            {"client": Redirection(networks=())},
            f"{CHANGE} x/client, or use PERMISSIVE in PeerAuthentication x/default",
        ),
        (
            "PERMISSIVE",
            {"client": Redirection(networks=())},
            f"{CHANGE} x/client",
        ),
    ],
)
def test_remedy(mode, redirections, text):
    found = world(peer("x", mode), **redirections)
    o, *_ = predict(found, [found.pod("x", "client")])
    assert remedy(Answer(o.result, o.reason, o.decided_by), "x/client", o.client) == text
