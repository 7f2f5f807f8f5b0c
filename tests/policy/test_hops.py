"""Grouped results: they contain the result of each pair exactly once, and are sorted for readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from tests.golden.cases import CASES, load
from tests.policy.meshes import meshes
from tests.policy.world import HTTP, TCP, mesh, peer, pod, rule, service
from tests.support.predictions import predict
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import natural_key
from xds.mesh.policy import hops as hops_module
from xds.mesh.policy.hops import Clients, all_targets, hops
from xds.mesh.policy.reach import Outcome


def pairs(outcomes: Iterable[Outcome]) -> Counter[object]:
    return Counter(
        (
            o.client.ref,
            o.service.ref,
            o.port,
            o.endpoint and (o.endpoint.address, o.endpoint.port),
            o.result,
            o.reason,
            o.decided_by,
        )
        for o in outcomes
    )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(meshes())
def test_hops_contain_each_outcome_once(world: Mesh) -> None:
    assert pairs(outcome for hop in hops(world) for outcome in hop.outcomes()) == pairs(predict(world))


@pytest.mark.parametrize("case", CASES)
def test_hops_of_golden_meshes_contain_each_outcome_once(case) -> None:
    world = load(case)
    assert pairs(outcome for hop in hops(world) for outcome in hop.outcomes()) == pairs(predict(world))


@pytest.mark.parametrize(
    ("facts", "config", "plaintext"),
    [
        ([rule("a", "*", "DISABLE", export_to=("b",))], {}, ["b"]),
        ([rule("a", "*", "DISABLE")], {"default_destination_rule_export_to": ("b",)}, ["b"]),
        ([rule("b", "*", "DISABLE", selector={"app": "client"})], {}, ["b"]),
        ([rule("b", "*", "DISABLE", selector={"app": "other"})], {}, []),
        ([rule("a", "*", "DISABLE", export_to=(".",))], {}, []),
        ([rule("istio-system", "*", "DISABLE")], {}, ["b", "c", "istio-system"]),
        ([rule("istio-system", "*", "DISABLE", export_to=("c",))], {}, ["c"]),
    ],
)
def test_clients_with_other_rules_are_other_hops(facts, config, plaintext):
    clients = [pod("client", namespace) for namespace in ("b", "c", "istio-system")]
    world = mesh(pod("x", "a"), *clients, service("x", "a", HTTP), *facts, **config)
    found = {hop.answer.result: [item.namespace for item in hop.clients] for hop in hops(world, clients)}
    assert found.get("plaintext", []) == plaintext


def names(clients: tuple[Clients, ...]) -> list[tuple[str, dict[str, int]]]:
    return [
        (item.namespace, {account: len(pods) for account, pods in item.accounts.items()}) for item in clients
    ]


def test_clients_and_endpoints_with_one_answer_are_one_hop():
    servers = [pod(f"web-{number}", "shop", app="web") for number in range(3)]
    clients = [pod(f"c{number}", f"ns-{number % 12}") for number in range(24)]
    clients = [replace(item, service_account=f"a{item.name}") for item in clients]
    world = mesh(*servers, *clients, service("web", "shop", HTTP))
    (hop,) = hops(world, clients)
    assert (len(hop.endpoints), hop.ready) == (3, 3)
    assert names(hop.clients)[2] == ("ns-2", {"ac2": 1, "ac14": 1})
    assert [item.namespace for item in hop.clients] == [f"ns-{number}" for number in range(12)]


def test_failing_endpoints_are_a_hop_of_their_own_and_come_first():
    servers = [pod(f"web-{number}", "shop", sidecar=number > 0, app="web") for number in range(12)]
    client = pod("client", "zoo")
    world = mesh(*servers, client, service("web", "shop", HTTP), rule("shop", "*", "ISTIO_MUTUAL"))
    first, second = hops(world, [client])
    assert (first.answer.result, first.answer.reason) == ("fails", "endpoint-without-sidecar")
    assert (len(first.endpoints), len(second.endpoints), second.ready) == (1, 11, 12)


def test_service_without_endpoints_has_no_endpoints_in_its_hop():
    (hop,) = hops(mesh(pod("client", "zoo"), service("web", "shop", HTTP)))
    assert (hop.endpoints, hop.ready, hop.answer.reason) == ((), 0, "no-endpoint")
    assert [outcome.endpoint for outcome in hop.outcomes()] == [None]


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The arguments of each decision."""
    calls = []

    def answer_for(*args):
        calls.append(args)
        return original(*args)

    original = hops_module.answer_for
    monkeypatch.setattr(hops_module, "answer_for", answer_for)
    return calls


def test_decisions_do_not_grow_with_clients_and_endpoints(decided):
    servers = [replace(pod(f"web-{n}", "shop", app="web"), service_account="web") for n in range(20)]
    clients = [pod(f"c{number}", f"ns-{number}", sidecar=number % 2 > 0) for number in range(20)]
    list(hops(mesh(*servers, *clients, service("web", "shop", HTTP), peer("shop", "STRICT"))))
    assert len(decided) == 2, "clients with and without a sidecar"


def test_decisions_do_not_grow_with_rules_for_other_services(decided):
    names = [f"ns-{number}" for number in range(20)]
    pods = [pod("web-1", name, app="web") for name in names]
    services = [service("web", name, HTTP) for name in names]
    rules = [rule(name, f"web.{name}.svc.cluster.local", "DISABLE") for name in names]
    found = list(hops(mesh(*pods, *services, *rules)))
    assert [hop.answer.reason for hop in found] == ["destination-rule"] * 20
    assert len(decided) == 2 * 20, "for each Service: clients in its namespace, and all others"


def test_targets_are_in_natural_order():
    services = [service(name, namespace, TCP, HTTP) for namespace in ("b10", "b2") for name in ("s10", "s2")]
    assert [(found.namespace, found.name, port.port) for found, port in all_targets(mesh(*services))] == [
        (namespace, name, port) for namespace in ("b2", "b10") for name in ("s2", "s10") for port in (80, 90)
    ]
    assert natural_key("s2", "a") < natural_key("s10", "a") < natural_key("s10", "b")
    assert natural_key("10") < natural_key("a")
