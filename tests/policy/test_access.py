"""What predictions say of AuthorizationPolicies: who is denied, and which requests are allowed."""

from __future__ import annotations

from dataclasses import replace

from tests.policy.world import HTTP, ROOT, TCP, mesh, meta, peer, pod, rule, service
from tests.support.predictions import predict
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, Rule
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import (
    AuthorizationPolicy,
    Change,
    Fact,
    MeshConfig,
    Namespace,
    Protocol,
    ServicePort,
)
from xds.mesh.policy.access import describe
from xds.mesh.policy.authorization import MAX_VALUES, Request
from xds.mesh.policy.direct import refusals
from xds.mesh.policy.explain import explain
from xds.mesh.policy.hops import hops
from xds.mesh.policy.ineffective import without_effect
from xds.mesh.policy.prediction import Effect, HopChange, predict_change
from xds.mesh.policy.prediction_text import breaking_sentences
from xds.mesh.policy.reach import answer_to_plaintext
from xds.mesh.policy.remedy import change_remedy, refusal_remedy

WEB, A, B, NAKED = pod("web", "x"), pod("a", "x"), pod("b", "y"), pod("naked", "x", sidecar=False)
SERVED = service("web", "x", HTTP, TCP)
SHOP = (WEB, A, B, NAKED, SERVED)


def policy(
    *rules: Rule, action: Action = Action.ALLOW, name: str = "rules", namespace: str = "x", **selector: str
) -> AuthorizationPolicy:
    return AuthorizationPolicy(
        meta=meta("AuthorizationPolicy", namespace, name), action=action, rules=rules, selector=selector
    )


def source(attribute: Attribute, *values: str) -> Rule:
    return Rule(sources=((Condition(attribute, tuple(map(Pattern.parse, values))),),))


def operation(attribute: Attribute, *values: str) -> Rule:
    return Rule(operations=((Condition(attribute, tuple(map(Pattern.parse, values))),),))


A_ONLY = source(Attribute.PRINCIPAL, "cluster.local/ns/x/sa/a")
READS = operation(Attribute.METHOD, "GET", "HEAD")


def found(world: Mesh, port: int = 80) -> dict[str, str]:
    """Return the result of each client's call, with the conditions."""
    return {
        each.client.name: " ".join((each.result, each.reason, *each.conditions))
        for each in predict(world)
        if each.port.port == port and each.client.name != "web"
    }


def test_clients_that_no_rule_names_are_denied():
    expected = {
        "a": "mtls auto-mtls",
        "b": "fails access-denied",
        "naked": "fails access-denied",
    }
    world = mesh(*SHOP, policy(A_ONLY, app="web"))
    for port in (80, 90):
        assert found(world, port) == expected
    denied = [each for each in predict(world) if each.reason == "access-denied"]
    assert {str(ref) for each in denied for ref in each.decided_by} == {"AuthorizationPolicy x/rules"}


def test_grouped_results_are_those_of_each_client():
    world = mesh(*SHOP, policy(A_ONLY), policy(READS, name="reads", action=Action.DENY, namespace=ROOT))
    single = {(each.client.ref, each.port.port): each for each in predict(world)}
    grouped = {(each.client.ref, each.port.port): each for hop in hops(world) for each in hop.outcomes()}
    assert grouped == single


def test_methods_make_results_depend_on_the_request():
    assert found(mesh(*SHOP, policy(READS))) == dict.fromkeys(
        ("a", "b"), "mtls auto-mtls if GET|HEAD (AuthorizationPolicy x/rules)"
    ) | {"naked": "plaintext client-without-sidecar if GET|HEAD (AuthorizationPolicy x/rules)"}
    deny = policy(READS, action=Action.DENY)
    assert found(mesh(*SHOP, deny))["a"] == "mtls auto-mtls unless GET|HEAD (AuthorizationPolicy x/rules)"
    assert found(mesh(*SHOP, deny), 90)["a"] == "fails access-denied", "a DENY loses its conditions on HTTP"


def test_undeclared_protocol_may_be_either():
    auto = ServicePort(port=85, target=8585, name="any", protocol=Protocol.AUTO)
    world = mesh(WEB, A, service("web", "x", auto), policy(READS))
    assert found(world, 85)["a"] == (
        "mtls auto-mtls if GET|HEAD for HTTP (AuthorizationPolicy x/rules) "
        "not for TCP (AuthorizationPolicy x/rules)"
    )


def test_address_may_be_all_that_is_known():
    """A connection of which nothing shows that it is HTTP may be either."""
    auto = ServicePort(port=85, target=8585, name="any", protocol=Protocol.AUTO)
    block = source(Attribute.SOURCE_IP, "192.0.2.0/24")
    world = mesh(WEB, service("web", "x", auto), policy(block))
    endpoint = Endpoint(address=WEB.address, port=8585, pod=WEB)
    for address, expected in (("192.0.2.1", "plaintext"), ("198.51.100.1", "fails"), (None, "plaintext")):
        answer = answer_to_plaintext(world, endpoint, Request(port=0, source_ip=address))
        assert (answer.result, bool(answer.conditions)) == (expected, address is None)
    world = mesh(WEB, service("web", "x", auto), policy(block), policy(READS, action=Action.DENY, name="no"))
    answer = answer_to_plaintext(world, endpoint, Request(port=0, source_ip="192.0.2.1"))
    assert answer.conditions == (
        "unless GET|HEAD for HTTP (AuthorizationPolicy x/no)",
        "not for TCP (AuthorizationPolicy x/no)",
    )


def test_strict_refuses_before_access_is_decided():
    assert found(mesh(*SHOP, peer("x", "STRICT"), policy(A_ONLY)))["naked"] == "fails server-requires-mtls"


def test_policies_elsewhere_and_of_other_workloads_do_not_matter():
    deny_all = {"action": Action.DENY, "name": "no"}
    for other in (policy(Rule(), namespace="y", **deny_all), policy(Rule(), app="other", **deny_all)):
        assert found(mesh(*SHOP, other)) == found(mesh(*SHOP))


def test_explanation_names_the_policy():
    def summary(world: Mesh, client) -> str:
        (explained,) = explain(world, client, SERVED, [HTTP])
        return explained.explanation.summary

    assert summary(mesh(*SHOP, policy(A_ONLY)), B) == (
        "fails: AuthorizationPolicy x/rules for the namespace denies it"
    )
    assert summary(mesh(*SHOP, policy(A_ONLY, app="web")), B) == (
        "fails: AuthorizationPolicy x/rules for the workload denies it"
    )
    assert summary(mesh(*SHOP, policy(READS)), A) == (
        "mutual TLS: auto mTLS is enabled, and the server's mode is PERMISSIVE; "
        "allowed if GET|HEAD (AuthorizationPolicy x/rules)"
    )


def names(change: HopChange) -> list[str]:
    return [pod.name for clients in change.clients for pod in clients.pods]


class TestPlan:
    def test_new_policy_breaks_clients(self):
        world = mesh(*SHOP)
        prediction = predict_change(world, world.apply(Change(applied=(policy(A_ONLY),))))
        broken = {(change.port.port, client) for change in prediction.hops for client in names(change)}
        assert broken == {(port, name) for port in (80, 90) for name in ("b", "naked", "web")}
        assert prediction.effects == {Effect.BREAKS: len(prediction.hops)}
        assert "access-denied (AuthorizationPolicy x/rules)" in next(breaking_sentences(prediction))
        assert change_remedy(prediction.hops[0]).startswith("allow ")

    def test_conditions_may_break(self):
        world = mesh(*SHOP)
        prediction = predict_change(world, world.apply(Change(applied=(policy(READS),))))
        assert prediction.effects.keys() == {Effect.MAY_BREAK, Effect.BREAKS}  # TCP cannot be GET.
        (change, *_) = [each for each in prediction.hops if each.port.port == 80]
        assert (change.effect, change.after.result) == (Effect.MAY_BREAK, "mtls")

    def test_other_conditions_may_break_also_if_they_read_the_same(self):
        def paths(last: str) -> AuthorizationPolicy:
            return policy(operation(Attribute.PATH, "/a", "/b", "/c", last))

        world = mesh(*SHOP, paths("/d"))
        prediction = predict_change(world, world.apply(Change(applied=(paths("/e"),))))
        (change, *_) = [each for each in prediction.hops if each.port.port == 80]
        assert change.effect is Effect.MAY_BREAK
        assert change.before.conditions == change.after.conditions
        assert "allow the other requests of" in change_remedy(change)

    def test_conditions_may_break_what_becomes_encrypted(self):
        world = mesh(*SHOP, rule("x", "*", "DISABLE"))
        change = Change(applied=(policy(READS),), removed=(rule("x", "*", "DISABLE").ref,))
        effects = {(each.port.port, each.effect) for each in predict_change(world, world.apply(change)).hops}
        assert effects == {(80, Effect.MAY_BREAK), (90, Effect.BREAKS)}

    def test_removed_policy_repairs(self):
        world = mesh(*SHOP, policy(A_ONLY))
        prediction = predict_change(world, world.apply(Change(removed=(policy(A_ONLY).ref,))))
        assert prediction.effects.keys() == {Effect.REPAIRED}

    def test_direct_traffic_is_refused(self):
        probed = replace(WEB, probe_ports=(8080,))
        (refusal,) = refusals(mesh(probed, SERVED, policy(A_ONLY)), [probed])
        assert (refusal.failure, str(refusal.decided_by)) == ("access-denied", "AuthorizationPolicy x/rules")
        limited = mesh(probed, SERVED, policy(operation(Attribute.PATH, "/api/*")))
        assert not refusals(limited, [probed]), "whether it denies the probe is not certain"
        change = Change(applied=(policy(operation(Attribute.PATH, "/api/*")),))
        world = mesh(probed, SERVED)
        assert [each.breaks for each in predict_change(world, world.apply(change)).refusals] == [False]
        assert refusal_remedy(refusal) == (
            "allow requests without an identity to port 8080 in AuthorizationPolicy x/rules"
        )


def test_too_many_values_deny_everything():
    def many(count: int, name: str, namespace: str = "x") -> AuthorizationPolicy:
        principals = source(Attribute.PRINCIPAL, "*", *(f"{n}*" for n in range(count - 2)))
        return policy(principals, name=name, namespace=namespace)

    half = MAX_VALUES // 2
    assert found(mesh(*SHOP, many(half, "a"), many(half, "b")))["a"] == "mtls auto-mtls"
    too_many = mesh(*SHOP, many(half, "a"), many(half + 1, "b"))
    assert set(found(too_many).values()) == {"fails access-denied"}
    (problem,) = without_effect(too_many).problems[policy(name="b").ref]
    assert "have 5001 values" in str(problem)
    with_root = mesh(*SHOP, many(half, "a", ROOT), many(half + 1, "b"))
    assert set(found(with_root).values()) == {"fails access-denied"}
    (problem,) = without_effect(with_root).problems[policy(name="b").ref]
    assert f"namespace {ROOT} and x have 5001 values" in str(problem)


def test_conditions_on_http_are_reported_if_there_is_a_tcp_port():
    def problems(*facts: Fact) -> list[str]:
        world = mesh(*facts, Namespace(meta=meta("Namespace", "", "x")))
        return [str(each) for each in without_effect(world).problems.get(policy().ref, ())]

    for action, words in ((Action.ALLOW, "allow nothing"), (Action.DENY, "denies without them")):
        (text,) = problems(*SHOP, policy(READS, action=action))
        assert "TCP port 90 of Service web" in text
        assert words in text
    assert problems(*SHOP, policy(A_ONLY)) == []
    assert problems(WEB, service("web", "x", HTTP), policy(READS)) == []
    (text,) = problems(*SHOP, policy(READS, app="other"))
    assert "app=other matches no pod" in text
    everywhere = mesh(*SHOP, policy(READS, namespace=ROOT))
    assert policy(namespace=ROOT).ref not in without_effect(everywhere).problems, "it is for all namespaces"


def test_rules_in_words():
    def condition(attribute: Attribute, *values: str, name: str = "", excluded: tuple[str, ...] = ()):
        return Condition(
            attribute, tuple(map(Pattern.parse, values)), tuple(map(Pattern.parse, excluded)), name
        )

    def words(rule: Rule) -> str:
        return describe(MeshConfig(), rule, Request(identity=A.identity("cluster.local"), port=8080))

    reads = condition(Attribute.METHOD, "GET")
    info = condition(Attribute.PATH, "/info*", excluded=("/info/x",))
    assert words(Rule(operations=((reads, info),))) == "GET /info* not /info/x"
    assert words(Rule(operations=((reads,), (info,)))) == "GET or /info* not /info/x"
    many = condition(Attribute.HOST, "a", "b", "c", "d", "e")
    assert words(Rule(operations=((many,),))) == "request.host a|b|c or 2 more"
    header = condition(Attribute.HEADER, "x", name="token")
    address = condition(Attribute.SOURCE_IP, "10.0.0.0/8")
    whom, others = (condition(Attribute.NAMESPACE, name) for name in "xy")
    assert words(Rule(((whom, address),), (), (header,))) == "header token x from 10.0.0.0/8"
    assert words(Rule(((others,), (address,)))) == "any request from 10.0.0.0/8", "the first cannot match"
    port = condition(Attribute.DESTINATION_PORT, "8080")
    assert words(Rule((), ((port, reads),))) == "GET", "the port is known"
