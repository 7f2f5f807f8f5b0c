"""What a change of the mesh breaks: as the difference of the results of all pairs before and after it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.golden.cases import CASES, extended, load
from tests.policy.meshes import facts, meshes
from tests.policy.naive_access import facts as policy_facts
from tests.policy.world import HTTP, ROOT, TCP, mesh, peer, pod, policy, rule, service, slices
from tests.support.authorization import authorization_policy, operation
from tests.support.predictions import predict, results, results_after
from xds.demo.play import STEPS
from xds.mesh.model.applied import as_applied
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    TRAFFIC_KINDS,
    Change,
    ContainerPort,
    Fact,
    MeshConfig,
    OutsideTraffic,
    Pod,
    Ref,
)
from xds.mesh.model.redirection import Redirection
from xds.mesh.policy.conflicts import overridden
from xds.mesh.policy.direct import refusals
from xds.mesh.policy.ineffective import why_ineffective, without_effect
from xds.mesh.policy.prediction import (
    Effect,
    HopChange,
    Prediction,
    outside_changes,
    predict_change,
    scope_of,
    unready_services,
)
from xds.mesh.policy.reach import OUTSIDE, Answer, Failure, Result, rank
from xds.mesh.policy.remedy import change_remedy, refusal_remedy, remedy
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader

Pair: TypeAlias = tuple[object, ...]
Found: TypeAlias = Mapping[object, Mapping[object, Answer]]


def answers(world: Mesh) -> Found:
    """(client, service, port) -> endpoint (None: there is none) -> answer."""
    found: dict[object, dict[object, Answer]] = defaultdict(dict)
    for o in predict(world):
        endpoint = o.endpoint and (o.endpoint.address, o.endpoint.port)
        hop = (o.client.ref, o.service.ref, o.port.port)
        found[hop][endpoint] = Answer(o.result, o.reason, o.decided_by, o.conditions)
    return found


def requirements(answer: Answer) -> set[str]:
    """Return on what an answer depends, without the names of policies."""
    return {text.rpartition(" (")[0] for text in answer.conditions}


def difference(before: Mesh, after: Mesh) -> set[Pair]:
    """The changed pairs, one by one."""
    old, new = answers(before), answers(after)
    clients = {o.ref for o in after.pods() if not o.ended}
    changed = set()
    for hop in (hop for hop in old if hop[0] in clients):
        best = max(old[hop].values(), key=rank)
        deleted = {None: Answer(Result.FAILS, "service-deleted")}
        for endpoint, answer in new.get(hop, deleted).items():
            earlier = old[hop].get(endpoint, best)
            was_unknown = earlier.reason == "tls-left-to-application" != answer.reason
            is_limited = answer.conditions and requirements(answer) != requirements(earlier)
            if answer.result != earlier.result or was_unknown or is_limited:
                changed.add((hop, endpoint, earlier.result, answer))
    return changed


def expanded(found: Prediction) -> list[Pair]:
    return [
        (
            (client.ref, change.service.ref, change.port.port),
            endpoint and (endpoint.address, endpoint.port),
            change.before.result,
            change.after._replace(basis=0),  # Outcomes do not have it.
        )
        for change in found.hops
        for clients in change.clients
        for client in clients.pods
        for endpoint in change.endpoints or (None,)
    ]


def check(before: Mesh, after: Mesh) -> None:
    found = predict_change(before, after)
    pairs = expanded(found)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == difference(before, after)
    breaking = any(change.effect is Effect.BREAKS for change in found.hops)
    assert breaking == any(
        answer.result == "fails" != earlier for _, _, earlier, answer in difference(before, after)
    )
    assert [change.effect for change in found.hops] == sorted(
        (change.effect for change in found.hops), key=list(Effect).index
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(meshes(), facts(), st.data())
def test_plan_leads_from_the_results_before_to_those_after(
    before: Mesh, changed: list[Fact], data: st.DataObject
):
    refs = [fact.ref for fact in before.facts()]
    removed = data.draw(st.lists(st.sampled_from(refs), max_size=3)) if refs else []
    after = before.apply(Change(applied=tuple(changed), removed=tuple(removed)))
    check(before, after)
    found = results(after)
    expected = results_after(predict_change(before, after), results(before), found)
    assert expected == {call: found[call] for call in expected}


def comparable(found: Prediction) -> object:
    hops = [replace(change, clients=()) for change in found.hops]
    refusals = [replace(refusal, clients=()) for refusal in found.refusals]
    clients = [
        [(item.namespace, item.accounts) for item in change.clients]
        for change in (*found.hops, *found.refusals)
    ]
    return hops, refusals, clients


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(meshes(), facts(), st.booleans(), st.data())
def test_scope_of_a_change_contains_all_its_effects(
    before: Mesh, changed: list[Fact], with_pods: bool, data: st.DataObject
):
    probed = tuple(replace(one, probe_ports=(8080,)) for one in before.pods())
    before = before.apply(Change(applied=probed))
    applied = tuple(fact for fact in changed if with_pods or not isinstance(fact, Pod))
    refs = [fact.ref for fact in before.facts() if with_pods or not isinstance(fact, Pod)]
    change = Change(applied=applied, removed=tuple(data.draw(st.lists(st.sampled_from(refs), max_size=3))))
    after = before.apply(change)
    scoped = predict_change(before, after, scope_of(change, before, after))
    assert comparable(scoped) == comparable(predict_change(before, after))


def test_scope_is_unknown_for_pods_and_settings():
    before = Mesh([service("web", "x", HTTP), service("web", "y", HTTP)])
    for change in (Change(applied=(pod("web", "x"),)), Change(config=MeshConfig(enable_auto_mtls=False))):
        assert scope_of(change, before, before.apply(change)) is None
    namespaced = Change(applied=(peer("x", "STRICT"),))
    expected = (frozenset({("x", "web")}), frozenset({"x"}))
    assert scope_of(namespaced, before, before.apply(namespaced)) == expected
    mesh_wide = Change(applied=(peer(ROOT, "STRICT"),))
    expected = (frozenset({("x", "web"), ("y", "web")}), None)
    assert scope_of(mesh_wide, before, before.apply(mesh_wide)) == expected


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(meshes(), facts())
def test_policies_without_effect_are_found_one_by_one(world: Mesh, changed: list[Fact]):
    before = without_effect(world)
    world = world.apply(Change(applied=tuple(changed)))
    unmatched, overrides = without_effect(world).problems, overridden(world)
    assert without_effect(world, before).problems == unmatched
    own = world.facts(with_defaults=False)
    for ref in (fact.ref for fact in own if fact.ref.kind in TRAFFIC_KINDS):
        *problems, last = (*why_ineffective(world, {ref}), None)
        if ref in overrides:
            last = problems.pop()
            assert "overrides it" in str(last)
        assert (tuple(problems), last is not None) == (unmatched.get(ref, ()), ref in overrides)


def test_objects_without_effect_are_found_among_all_kinds():
    lonely, misplaced = service("lonely", "x", HTTP), peer("typo", "STRICT")
    world = Mesh([lonely, misplaced, pod("web", "x")])
    assert why_ineffective(world, {peer("x", "STRICT").ref}) == []
    [missing] = why_ineffective(world, {misplaced.ref})
    assert "namespace typo does not exist" in missing.what
    [unmatched, again] = why_ineffective(world, {lonely.ref, misplaced.ref})
    assert ("it has no endpoints" in again.what, unmatched) == (True, missing)


PAIRS = [(one.values[0], other.values[0]) for one, other in pairwise([*CASES, CASES[0]])]
PAIRS += [(extended(case.values[0]), case.values[0]) for case in CASES if extended(case.values[0])]


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda case: case.name)
def test_plan_between_golden_meshes_is_the_difference_of_their_results(before: Path, after: Path):
    check(load(before), load(after))
    check(load(after), load(before))


EXAMPLES = Path(__file__).parents[2] / "examples" / "envoy" / "auto-mtls"


def task_meshes(folder: Path) -> list[Mesh]:
    """Return the mesh after each step of the Istio task."""
    for file in (EXAMPLES / "workloads").iterdir():
        (folder / file.name).write_text(file.read_text())
    found = []
    for step in STEPS:
        for name in step.delete:
            (folder / name).unlink()
        for name, example in step.apply.items():
            (folder / name).write_text((EXAMPLES / "steps" / example).read_text())
        report = Folder(folder, SettingsLoader(None, [f"values.global.mtls.auto={step.auto}".lower()])).load()
        found.append(Mesh(report.change.applied, report.change.config))
    return found


def summary(change: HopChange) -> str:
    clients = " ".join(f"{item.namespace}/{account}" for item in change.clients for account in item.accounts)
    target = f"{change.service.name}.{change.service.namespace}"
    return f"{change.effect}: {clients} -> {target} ({change.after.reason})"


WITH, WITHOUT = "full/httpbin full/sleep partial/httpbin", "legacy/httpbin legacy/sleep partial/default"
"""The clients with and without a sidecar."""
TASK = {
    "PERMISSIVE": [],
    "migration": [],
    "STRICT": [f"breaks: {WITHOUT} -> httpbin.full (server-requires-mtls)"],
    "plaintext policy": [
        f"plaintext: {WITH} -> httpbin.full (server-plaintext)",
        f"repaired: {WITHOUT} -> httpbin.full (client-without-sidecar)",
    ],
    "DestinationRule override": [f"breaks: {WITH} -> httpbin.full (server-plaintext)"],
    "clean-up": [f"repaired: {WITH} -> httpbin.full (auto-mtls)"],
    "auto=false": [
        f"plaintext: {WITH} -> httpbin.full (auto-mtls-off)",
        f"plaintext: {WITH} -> httpbin.partial (auto-mtls-off)",
    ],
    "auto=false, STRICT": [
        f"breaks: {WITH} -> httpbin.full (server-requires-mtls)",
        f"breaks: {WITHOUT} -> httpbin.full (server-requires-mtls)",
    ],
}


def test_plan_of_each_step_of_the_istio_task(tmp_path: Path):
    steps = task_meshes(tmp_path)
    for before, after in pairwise(steps):
        check(before, after)
    found = {
        after.name: [
            summary(change) for change in predict_change(*worlds).hops if change.service.name == "httpbin"
        ]
        for after, worlds in zip(STEPS[1:], pairwise(steps), strict=True)
    }
    assert found == TASK


def test_strict_breaks_clients_without_a_sidecar():
    world = mesh(pod("a", "x"), pod("b", "x", sidecar=False), service("a", "x", HTTP))
    found = predict_change(world, world.apply(Change(applied=(peer("x", "STRICT"),))))
    (change,) = found.hops
    assert found.breaks
    assert summary(change) == "breaks: x/b -> a.x (server-requires-mtls)"
    assert change.before[:2] == ("plaintext", "client-without-sidecar")
    assert len(change.before.decided_by) == 1


def test_strict_breaks_clients_outside_the_mesh():
    before = Mesh([pod("a", "x"), service("a", "x", HTTP, TCP)])
    after = before.apply(Change(applied=(peer("x", "STRICT", app="a", ports={9090: "PERMISSIVE"}),)))
    (change,) = outside_changes(before, after)
    assert [*change.clients[0].pods] == [OUTSIDE]
    assert (change.effect, change.port, change.after.reason) == ("breaks", HTTP, "server-requires-mtls")


def test_change_without_an_effect_is_an_empty_plan():
    world = mesh(pod("a", "x"), pod("b", "x"), service("a", "x"))
    found = predict_change(world, world.apply(Change(applied=(peer("x", "STRICT"),))))
    assert (found.hops, found.refusals, found.breaks) == ((), (), False)


def test_new_endpoint_that_fails_breaks_its_clients():
    world = mesh(
        pod("a", "x", app="s"), pod("b", "x"), service("s", "x", HTTP), rule("x", "*", "ISTIO_MUTUAL")
    )
    new = pod("new", "x", sidecar=False, app="s")
    (change,) = predict_change(world, world.apply(Change(applied=(new,)))).hops
    assert summary(change) == "breaks: x/a x/b -> s.x (endpoint-without-sidecar)"
    assert (len(change.endpoints), change.ready) == (1, 2)


@pytest.mark.parametrize(
    ("changed", "effects"),
    [
        ({"name": "renamed"}, []),
        ({"action": "DENY"}, [Effect.MAY_BREAK]),
    ],
)
def test_requests_are_compared_and_not_the_names_of_rules(changed: dict[str, str], effects: list[Effect]):
    world = [pod("a", "x"), pod("b", "x"), service("a", "x", HTTP)]
    before, after = (
        mesh(*world, *policy_facts([authorization_policy("x", operation(methods=["GET"]), **more)]))
        for more in ({}, changed)
    )
    assert [change.effect for change in predict_change(before, after).hops] == effects


def test_failure_that_becomes_certain_may_break_its_clients():
    before = mesh(pod("a", "x"), pod("web", "x"), service("web", "x", TCP), rule("x", "*", "SIMPLE"))
    found = predict_change(before, before.apply(Change(applied=(peer("x", "STRICT"),))))
    [change] = found.hops
    assert (change.effect, found.breaks) == (Effect.MAY_BREAK, False)
    assert (change.before.reason, change.after.reason) == ("tls-left-to-application", "tls-not-the-meshs")


def test_deleted_service_breaks_its_clients():
    world = mesh(pod("a", "x"), pod("b", "x"), service("a", "x"))
    gone = world.apply(Change(removed=(world.service("x", "a").ref,)))
    assert {str(change.after.reason) for change in predict_change(world, gone).hops} == {"service-deleted"}
    port_gone = world.apply(Change(applied=(service("a", "x", HTTP),)))
    assert [change.port for change in predict_change(world, port_gone).hops] == [TCP]


def test_new_clients_and_services_are_not_compared():
    world = mesh(pod("a", "x"), service("a", "x"), peer("x", "STRICT"))
    new = (pod("b", "x", sidecar=False), service("none", "x"))
    assert predict_change(world, world.apply(Change(applied=new))).hops == ()


PORTS = (ContainerPort(port=8080, name="http"), ContainerPort(port=9090, name="http-metrics"))
SERVER = replace(pod("a", "x"), ports=PORTS)
SCRAPED = {"prometheus.io/scrape": "true"}
UNUSED = [("pod-address", 8080)]


@pytest.mark.parametrize(
    ("probes", "annotations", "refused"),
    [
        ((8080, 15020), {}, [("kubelet-probe", 8080), ("metrics-port", 9090)]),
        ((), SCRAPED, [("prometheus-scrape", 8080), ("prometheus-scrape", 9090)]),
        ((), SCRAPED | {"prometheus.io/port": "9090"}, [("prometheus-scrape", 9090), *UNUSED]),
        ((), SCRAPED | {"prometheus.io/port": "15020"}, [("metrics-port", 9090), *UNUSED]),
        ((), SCRAPED | {"prometheus.io/port": "http"}, [("metrics-port", 9090), *UNUSED]),
        ((), SCRAPED | {"prometheus.io/port": "9" * 9999}, [("metrics-port", 9090), *UNUSED]),
        ((), {"prometheus.io/scrape": "false"}, [("metrics-port", 9090), *UNUSED]),
    ],
)
def test_strict_refuses_direct_traffic(probes, annotations, refused):
    server = replace(SERVER, probe_ports=probes, meta=replace(SERVER.meta, annotations=annotations))
    world = mesh(server)
    strict = world.apply(Change(applied=(peer("x", "STRICT"),)))
    found = predict_change(world, strict)
    assert [(str(refusal.traffic), refusal.port) for refusal in found.refusals] == refused
    assert found.breaks is any(OutsideTraffic(traffic).is_certain for traffic, _ in refused)
    assert {str(refusal.decided_by) for refusal in found.refusals} <= {"PeerAuthentication x/default"}
    assert predict_change(strict, strict).refusals == predict_change(strict, world).refusals == ()


def test_refused_traffic_is_that_which_exists_for_certain():
    annotated = replace(SERVER.meta, annotations=SCRAPED | {"prometheus.io/port": "9091"})
    server = replace(SERVER, probe_ports=(8080,), meta=annotated)
    peers = replace(server, meta=replace(annotated, ref=Ref("Pod", "x", "b")))
    bare = replace(pod("c", "x", sidecar=False), probe_ports=(8080,))
    pods = (server, peers, bare)
    found = refusals(mesh(*pods, peer("x", "STRICT")), pods)
    assert [(str(each.traffic), each.port) for each in found] == [
        ("kubelet-probe", 8080),
        ("prometheus-scrape", 9091),
    ]
    assert [pod.name for pod in found[0].clients[0].pods] == ["a", "b"]
    assert refusal_remedy(found[1]).startswith("let injection merge the metrics, or exempt port 9091 (")
    assert not refusals(mesh(*pods), pods)


def test_direct_traffic_to_excluded_ports_is_not_refused():
    for redirection in (Redirection(exclude_inbound_ports=(80, 9090)), Redirection(inbound_ports=(80,))):
        server = replace(SERVER, ports=PORTS[1:], probe_ports=(9090,), redirection=redirection)
        world = mesh(server)
        assert not predict_change(world, world.apply(Change(applied=(peer("x", "STRICT"),)))).refusals


def test_direct_traffic_to_new_pods_is_refused():
    strict = mesh(peer("x", "STRICT"), replace(pod("b", "x", sidecar=False), probe_ports=(80,)))
    new = replace(SERVER, probe_ports=(8080,))
    (refusal, _) = predict_change(strict, strict.apply(Change(applied=(new,)))).refusals
    assert [clients.accounts for clients in refusal.clients] == [{"a": (new,)}]


def test_direct_traffic_to_a_running_workload_is_not_new():
    running = replace(pod("web-7d4b9c6f5-x2x4z", "x"), probe_ports=(8080,))
    template = replace(pod("deploy/web", "x"), probe_ports=(8080,), is_template=True, address="")
    strict = mesh(peer("x", "STRICT"), running)
    assert predict_change(strict, strict.apply(Change(applied=(template,)))).refusals == ()
    permissive = mesh(running)
    after = permissive.apply(Change(applied=(template, peer("x", "STRICT"))))
    (refusal,) = predict_change(permissive, after).refusals
    assert [clients.accounts for clients in refusal.clients] == [
        {"deploy/web": (template,), "web-7d4b9c6f5-x2x4z": (running,)}
    ]


def test_scope_contains_services_of_other_namespaces_that_list_a_pod():
    """A Service with a selector can have an EndpointSlice with the address of a pod of another namespace."""
    server = pod("srv", "a")
    web = service("web", "b", HTTP)
    before = mesh(server, pod("naked", "c", sidecar=False), web, slices(web, server.address))
    change = Change(applied=(peer("a", "STRICT"),))
    after = before.apply(change)
    (hop,) = predict_change(before, after, scope_of(change, before, after)).hops
    assert (hop.effect, hop.service.ref.namespace) == (Effect.BREAKS, "b")


def test_every_failure_and_plaintext_has_a_remedy():
    worlds = [load(case.values[0]) for case in CASES]
    found = {
        (o.result, o.reason): remedy(Answer(o.result, o.reason, o.decided_by), "x/c", o.client)
        for world in worlds
        for o in predict(world)
    }
    assert all(bool(text) == (result != "mtls") for (result, _), text in found.items())
    assert len(found) > 10
    assert not any("{" in text for text in found.values())


@pytest.mark.parametrize(
    ("facts", "client", "text"),
    [
        ([], "naked", "add a sidecar to x/c, or use PERMISSIVE in PeerAuthentication x/default until then"),
        (
            [rule("x", "*", "DISABLE")],
            "b",
            "remove tls from DestinationRule x/rule, or use PERMISSIVE in PeerAuthentication x/default",
        ),
    ],
)
def test_remedy_when_the_server_requires_mtls(facts, client, text):
    world = mesh(
        pod("a", "x"), pod("b", "x"), pod("naked", "x", sidecar=False), service("a", "x", HTTP),
        peer("x", "STRICT"), *facts,
    )  # fmt: skip
    (o,) = predict(world, [world.pod("x", client)])
    answer = Answer(o.result, o.reason, o.decided_by)
    assert remedy(answer, "x/c", o.client) == text


def test_remedy_without_auto_mtls():
    world = mesh(
        pod("a", "x"), pod("b", "x"), service("a", "x", HTTP), policy("", "STRICT"), enable_auto_mtls=False
    )
    (o, *_) = predict(world)
    answer = Answer(o.result, o.reason, o.decided_by)
    assert remedy(answer, "x/b", o.client) == "enable auto mTLS, or use PERMISSIVE in MeshPolicy default"


def test_remedy_for_an_unknown_pod_is_to_check_it():
    refs = (Ref("EndpointSlice", "x", "web-1"), Ref("Pod", "x", "ghost"))
    answer = Answer(Result.FAILS, Failure.POD_UNKNOWN, refs)
    expected = "check whether Pod x/ghost exists and has the address that its EndpointSlice lists"
    assert remedy(answer, "x/c", pod("c", "x")) == expected


def test_remedy_for_a_probe_is_injection():
    world = mesh(replace(SERVER, probe_ports=(8080,)))
    texts = {
        refusal.traffic: refusal_remedy(refusal)
        for refusal in predict_change(world, world.apply(Change(applied=(peer("x", "STRICT"),)))).refusals
    }
    exempt = (
        "exempt port 9090 (PeerAuthentication with a selector, mtls STRICT and portLevelMtls 9090 "
        "PERMISSIVE), or use PERMISSIVE in PeerAuthentication x/default"
    )
    assert texts[OutsideTraffic.METRICS_PORT] == exempt
    assert texts[OutsideTraffic.KUBELET_PROBE].startswith(
        "inject the sidecar with rewritten probes, or exempt port 8080 ("
    )


def test_applied_facts_keep_what_the_api_server_set():
    old_pod = replace(pod("a", "x"), ready=False, more_addresses=("fd00::1",))
    old_service, old_policy = service("a", "x", HTTP), peer("x", "STRICT", age=60)
    world = mesh(old_pod, old_service, old_policy)
    new_pod = replace(old_pod, address="", more_addresses=(), ready=True, service_account="other")
    assert as_applied(world, new_pod) == replace(old_pod, service_account="other")
    moved = replace(old_pod, address="10.0.0.9")
    assert as_applied(world, moved) == moved
    new_service = service("a", "x", TCP)
    assert as_applied(world, replace(new_service, addresses=())) == new_service
    headless = replace(new_service, addresses=(), headless=True)
    assert as_applied(world, headless) == headless
    assert as_applied(world, peer("x", "DISABLE")) == peer("x", "DISABLE", age=60)
    assert as_applied(world, peer("y", "DISABLE")) == peer("y", "DISABLE")


def test_remedy_of_a_change_is_for_connections_that_get_worse():
    world = mesh(pod("a", "x"), pod("naked", "x", sidecar=False), service("a", "x", HTTP))
    strict = world.apply(Change(applied=(peer("x", "STRICT"),)))
    (worse,), (better,) = predict_change(world, strict).hops, predict_change(strict, world).hops
    expected = "add a sidecar to x/naked, or use PERMISSIVE in PeerAuthentication x/default until then"
    assert (change_remedy(worse), change_remedy(better)) == (expected, "")


def test_objects_without_effect_are_named_with_the_reason():
    lost = peer("x", "STRICT", name="lost", app="nobody")
    old = policy("x", "DISABLE", "a", name="old")
    rules = [rule("x", "a.x.svc.cluster.local", "DISABLE", name=name) for name in ("first", "second")]
    world = mesh(pod("a", "x"), service("a", "x", HTTP), peer("x", "STRICT"), lost, old, *rules)
    found = [problem.what for problem in why_ineffective(world, {lost.ref, old.ref})]
    assert [text.partition(",")[0] for text in found] == [
        "selector app=nobody matches no pod in namespace x",
        "Policy x/old: has no effect",
    ]
    assert list(why_ineffective(world, set())) == []


def test_services_without_a_ready_pod_are_named() -> None:
    before = mesh(
        replace(pod("slow", "a"), ready=False),
        pod("web", "a"),
        replace(pod("done", "a"), ended=True),
        *(service(name, "a", HTTP) for name in ("slow", "web", "done", "empty")),
        replace(pod("other", "b"), ready=False),
        service("other", "b", HTTP),
    )
    assert [each.name for each in unready_services(before, None)] == ["slow", "other"]
    enforcing = peer("a", "STRICT")
    after = before.apply(Change(applied=(enforcing,)))
    scope = scope_of(Change(applied=(enforcing,)), before, after)
    assert [each.name for each in unready_services(after, scope)] == ["slow"]
