"""Why a request is allowed or denied: the policies that apply, and the rule that nearly allows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.world import HTTP, ROOT, TCP, mesh, peer, pod, rule, service
from tests.support.authorization import authorization_policy as policy
from tests.support.authorization import operation, source, when
from tests.support.manifests import Manifest
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Protocol, ServicePort
from xds.mesh.parse import parse
from xds.mesh.policy.access_explanation import AccessExplanation
from xds.mesh.policy.authorization import MAX_VALUES, Access, Request
from xds.mesh.policy.explain import explain
from xds.mesh.policy.reach import Failure

AUTO = ServicePort(port=85, target=8585, name="any", protocol=Protocol.AUTO)
FACTS = (
    pod("web", "x"),
    pod("a", "x"),
    pod("naked", "x", sidecar=False),
    service("web", "x", HTTP, TCP, AUTO, app="web"),
)
A, WEB = "cluster.local/ns/x/sa/a", "cluster.local/ns/x/sa/web"
RESULTS = {True: "matches", False: "does not match", None: "depends"}


def world(*policies: Manifest, facts: tuple[Any, ...] = ()) -> Mesh:
    return mesh(*FACTS, *facts, *(parsed.fact for each in policies for parsed in parse(each, str)))


def request(**known: Any) -> Request:
    return Request(port=0, headers=known.pop("headers", {}), **known)


GET = request(method="GET", path="/info", host="web.x")
POST = request(method="POST", path="/other", host="web.x", headers={"x-token": "b", "x-empty": ""})


def ask(found: Mesh, asked: Request | None = None, *, client: str = "a", port: ServicePort = HTTP):
    (explained,) = explain(found, found.pod("x", client), found.service("x", "web"), [port], asked)
    return explained.explanation


def access(*policies: Manifest, **asked: Any) -> AccessExplanation:
    found = ask(world(*policies), **asked).access
    assert found
    return found


def nearest(*policies: Manifest, **asked: Any) -> list[str]:
    """Return the name and number of the nearest rule, and its fields."""
    found = access(*policies, **asked)
    assert found.access is Access.DENIED
    if found.nearest is None:
        return []
    fields = [
        f"{field.field} {field.expected}: {RESULTS[field.matches]}, is {field.actual}"
        for field in found.nearest.fields
    ]
    return [f"{found.nearest.policy.name} {found.nearest.rule}", *fields]


READS = operation(methods=["GET", "HEAD"], paths=["/info*"])
A_READS = source(principals=[A]) | READS

VERDICTS: dict[str, tuple[list[Manifest], dict[str, Any], tuple[Access, str, tuple[str, ...]]]] = {
    "an ALLOW rule matches": (
        [policy("x", A_READS)],
        {"asked": GET},
        (Access.ALLOWED, "auto-mtls", ("ALLOW rules: matches",)),
    ),
    "no ALLOW rule matches": (
        [policy("x", A_READS)],
        {"asked": POST},
        (Access.DENIED, "access-denied", ("ALLOW rules: does not match",)),
    ),
    "the request is not known": (
        [policy("x", A_READS)],
        {},
        (Access.DEPENDS, "auto-mtls", ("ALLOW rules: depends",)),
    ),
    "only the path is known": (
        [policy("x", A_READS)],
        {"asked": request(path="/info")},
        (Access.DEPENDS, "auto-mtls", ("ALLOW rules: depends",)),
    ),
    "a path that is not allowed is known": (
        [policy("x", A_READS)],
        {"asked": request(path="/")},
        (Access.DENIED, "access-denied", ("ALLOW rules: does not match",)),
    ),
    "a DENY policy of the root namespace matches, although an ALLOW policy does": (
        [policy("x", A_READS), policy(ROOT, READS, action="DENY", name="no")],
        {"asked": GET},
        (Access.DENIED, "access-denied", ("DENY no: matches", "ALLOW rules: matches")),
    ),
    "what is not enforced comes last": (
        [
            policy("x", {}, dry_run=True, name="a"),
            policy("x", READS, action="AUDIT", name="b"),
            policy("x", action="ALLOW", name="c"),
            policy("x", READS, action="CUSTOM", name="d"),
        ],
        {"asked": POST},
        (
            Access.DENIED,
            "access-denied",
            (
                "ALLOW c: does not match",
                "CUSTOM d: does not match",
                "ALLOW a: matches, not enforced",
                "AUDIT b: does not match, not enforced",
            ),
        ),
    ),
    "no policy is enforced": (
        [policy("x", dry_run=True)],
        {"asked": GET},
        (Access.ALLOWED, "auto-mtls", ("ALLOW rules: does not match, not enforced",)),
    ),
    "a policy for other pods": (
        [policy("x", {}), policy("x", name="other", selector={"app": "other"})],
        {},
        (Access.ALLOWED, "auto-mtls", ("ALLOW rules: matches",)),
    ),
    "a connection to a port without a protocol": (
        [policy("x", READS)],
        {"port": AUTO},
        (Access.DEPENDS, "auto-mtls", ("ALLOW rules: depends",)),
    ),
    "a request to a port without a protocol": (
        [policy("x", READS)],
        {"port": AUTO, "asked": GET},
        (Access.ALLOWED, "auto-mtls", ("ALLOW rules: matches",)),
    ),
    "a request to a TCP port": (
        [policy("x", READS)],
        {"port": TCP, "asked": GET},
        (Access.DENIED, "access-denied", ("ALLOW rules: does not match",)),
    ),
    "a DENY on a TCP port loses its conditions on HTTP": (
        [policy("x", READS, action="DENY")],
        {"port": TCP, "asked": POST},
        (Access.DENIED, "access-denied", ("DENY rules: matches",)),
    ),
    "a client without an identity": (
        [policy("x", A_READS)],
        {"client": "naked"},
        (Access.DENIED, "access-denied", ("ALLOW rules: does not match",)),
    ),
}


@pytest.mark.parametrize(("policies", "asked", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_policies_that_apply_are_listed(policies, asked, expected):
    found = ask(world(*policies), **asked)
    assert found.access
    listed = tuple(
        f"{each.action} {each.ref.name}: {RESULTS[each.matches]}{'' if each.enforced else ', not enforced'}"
        for each in found.access.policies
    )
    assert (found.access.access, found.reason, listed) == expected


NEAREST: dict[str, tuple[list[Manifest], dict[str, Any], list[str]]] = {
    "method": (
        [policy("x", A_READS)],
        {"asked": request(method="POST", path="/info")},
        [
            "rules 0",
            f"from.principals {A}: matches, is {A}",
            "to.methods GET|HEAD: does not match, is POST",
            "to.paths /info*: matches, is /info",
        ],
    ),
    "the rule with fewer differences": (
        [policy("x", source(principals=["x"]) | READS, source(namespaces=["x"]) | READS)],
        {"asked": request(method="POST", path="/info")},
        [
            "rules 1",
            f"from.namespaces x: matches, is {A}",
            "to.methods GET|HEAD: does not match, is POST",
            "to.paths /info*: matches, is /info",
        ],
    ),
    "the rule of another policy": (
        [policy("x", source(principals=["x"]) | READS), policy("x", operation(methods=["PUT"]), name="put")],
        {"asked": POST},
        ["put 0", "to.methods PUT: does not match, is POST"],
    ),
    "the nearest item of from and of to": (
        [
            policy(
                "x",
                {
                    "from": [{"source": {"principals": ["x"]}}, {"source": {"serviceAccounts": ["a"]}}],
                    "to": [
                        {"operation": {"hosts": ["a"], "methods": ["GET"]}},
                        {"operation": {"hosts": ["WEB.X"], "notMethods": ["POST"], "ports": ["8080"]}},
                    ],
                },
            )
        ],
        {"asked": POST},
        [
            "rules 0",
            f"from.serviceAccounts x/a: matches, is {A}",
            "to.hosts web.x: matches, is web.x",
            "to.ports 8080: matches, is 8080",
            "to.notMethods POST: does not match, is POST",
        ],
    ),
    "values that are excluded": (
        [policy("x", source(namespaces=["x*"], notNamespaces=["x", "y"]))],
        {},
        [
            "rules 0",
            f"from.namespaces x*: matches, is {A}",
            f"from.notNamespaces x|y: does not match, is {A}",
        ],
    ),
    "headers and what is not known": (
        [
            policy(
                "x",
                {
                    "when": [
                        *when("request.headers[X-Token]", "a", excluded=("c",))["when"],
                        *when("request.headers[x-no]", "a")["when"],
                        *when("request.headers[x-empty]", "a")["when"],
                        *when("request.headers[:path]", "/a")["when"],
                        *when("source.ip", "10.0.0.0/8")["when"],
                        *when("source.trustDomain", excluded=("other",))["when"],
                    ]
                },
            )
        ],
        {"asked": POST},
        [
            "rules 0",
            "when.request.headers[x-token] a: does not match, is b",
            "when.request.headers[x-token] not c: matches, is b",
            "when.request.headers[x-no] a: does not match, is absent",
            "when.request.headers[x-empty] a: does not match, is empty",
            "when.request.headers[:path] /a: depends, is not known",
            "when.source.ip 10.0.0.0/8: depends, is not known",
            f"when.source.trustDomain not other: matches, is {A}",
        ],
    ),
    "plaintext": (
        [policy("x", A_READS)],
        {"client": "naked"},
        [
            "rules 0",
            f"from.principals {A}: does not match, is absent: the client sends plaintext",
            "to.methods GET|HEAD: depends, is not known",
            "to.paths /info*: depends, is not known",
        ],
    ),
    "tokens": (
        [policy("x", source(requestPrincipals=["*"], namespaces=["x"]), when("request.auth.claims[a]", "b"))],
        {"asked": GET},
        [
            "rules 0",
            f"from.namespaces x: matches, is {A}",
            "from.requestPrincipals *: does not match, is not enforceable on this port",
        ],
    ),
    "claims": (
        [policy("x", when("request.auth.claims[a]", "b"))],
        {},
        ["rules 0", "when.request.auth.claims[a] b: does not match, is not enforceable on this port"],
    ),
    "TCP": (
        [policy("x", READS)],
        {"port": TCP},
        [
            "rules 0",
            "to.methods GET|HEAD: does not match, is not enforceable on this port",
            "to.paths /info*: does not match, is not enforceable on this port",
        ],
    ),
    "a port": (
        [policy("x", operation(ports=["80"]))],
        {},
        ["rules 0", "to.ports 80: does not match, is 8080"],
    ),
    "neither a dry run nor a policy that allows nothing": (
        [policy("x", {}, dry_run=True, name="tried"), policy("x")],
        {},
        [],
    ),
    "a rule that denies": ([policy("x", A_READS), policy("x", {}, action="DENY", name="no")], {}, []),
    "too many values": (
        [policy("x", *[source(principals=[f"{rule}-{n}" for n in range(511)]) for rule in range(10)])],
        {},
        [],
    ),
}


@pytest.mark.parametrize(("policies", "asked", "expected"), NEAREST.values(), ids=NEAREST)
def test_nearest_rule_says_what_differs(policies, asked, expected):
    assert nearest(*policies, **asked) == expected


def test_too_many_values_are_too_many():
    (policies, _, _) = NEAREST["too many values"]
    assert (
        sum(len(rule["from"][0]["source"]["principals"]) for rule in policies[0]["spec"]["rules"])
        > MAX_VALUES
    )


def test_connection_that_fails_before_is_explained_too():
    found = ask(world(policy("x", source(principals=[WEB])), facts=(peer("x", "STRICT"),)), client="naked")
    assert (found.reason, found.access.access) == (Failure.SERVER_REQUIRES_MTLS, Access.DENIED)
    rejecting = rule("x", "*", "DISABLE")
    found = ask(world(policy("x", {}), facts=(peer("x", "STRICT"), rejecting)))
    assert (found.reason, found.access.access) == (Failure.SERVER_REQUIRES_MTLS, Access.ALLOWED)


def test_pods_with_other_policies_are_explained_apart():
    facts = (replace(pod("web-2", "x", app="web", tried="yes"), service_account="web"),)
    tried = policy("x", name="tried", dry_run=True, selector={"tried": "yes"})
    found = world(policy("x", {}), tried, facts=facts)
    groups = explain(found, found.pod("x", "a"), found.service("x", "web"), [HTTP], GET)
    names = [(len(each.explanation.access.policies), each.endpoints[0].pod.name) for each in groups]
    assert sorted(names) == [(1, "web"), (2, "web-2")]


def test_no_policy_needs_no_explanation():
    assert ask(world()).access is None
    bare = world(policy("x", {}), facts=(pod("bare", "x", sidecar=False), service("bare", "x", HTTP)))
    (explained,) = explain(bare, bare.pod("x", "a"), bare.service("x", "bare"), [HTTP])
    assert explained.explanation.access is None
