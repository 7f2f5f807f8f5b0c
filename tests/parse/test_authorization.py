"""AuthorizationPolicies: what is valid, what each condition means, and what replaces a rejected policy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parse.steps import assert_linear, assert_quick
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, PatternKind, Rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import DRY_RUN, TRY, AuthorizationPolicy, Meta, Pod, Problem, Ref
from xds.mesh.parse import KINDS, Parsed, dotted, parse, unreadable
from xds.mesh.policy.authorization import Access, Request, decide, rules_of

ALLOW, DENY, AUDIT, CUSTOM = Action
EMPTY: dict[str, Any] = {}


def read(spec: Any, annotations: Any = None, **more: Any) -> Parsed:
    """Parse a policy, as from a file."""
    meta = {"name": "web", "namespace": "shop", "annotations": annotations}
    document = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": meta,
        "spec": spec,
    }
    [parsed] = parse(document | more, dotted)
    return parsed


def valid(spec: Any, annotations: Any = None) -> AuthorizationPolicy:
    parsed = read(spec, annotations)
    assert not parsed.refused, parsed.problems
    assert isinstance(parsed.fact, AuthorizationPolicy)
    return parsed.fact


def rules(*items: Any, action: str = "ALLOW", **more: Any) -> dict[str, Any]:
    return {"action": action, "rules": list(items), **more}


def source(**conditions: Any) -> dict[str, Any]:
    return {"from": [{"source": conditions}]}


def to(**conditions: Any) -> dict[str, Any]:
    return {"to": [{"operation": conditions}]}


def when(key: Any, *values: Any, **more: Any) -> dict[str, Any]:
    return {"when": [{"key": key, **({"values": list(values)} if values else {}), **more}]}


def custom(*items: Any, **more: Any) -> dict[str, Any]:
    return rules(*items, action="CUSTOM", provider={"name": "external"}, **more)


LABELS = {"selector": {"matchLabels": {"app": "web"}}}
GATEWAY = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "entry"}

VALID: dict[str, Any] = {
    "nothing": EMPTY,
    "no spec": None,
    "labels without rules": LABELS,
    "a selector without labels": {"selector": {}},
    "no rules": rules(),
    "an empty rule": rules({}),
    "an empty rule that denies": rules({}, action="DENY"),
    "an empty rule that is audited": rules({}, action="AUDIT"),
    "audit without rules": rules(action="AUDIT"),
    "a provider": custom({}),
    "a provider, HTTP and addresses": custom({**source(ipBlocks=["10.0.0.0/8"]), **to(paths=["/a*"])}),
    "a provider and another filter": custom(when("experimental.envoy.filters.a[b]", "c")),
    "sources": rules(source(principals=["a/ns/b/sa/c"], namespaces=["b"], notIpBlocks=["10.0.0.1"])),
    "several sources": rules(
        {"from": [{"source": {"namespaces": ["a"]}}, {"source": {"principals": ["*"]}}]}
    ),
    "excluded sources": rules(source(notPrincipals=["a*"], notNamespaces=["*b"])),
    "addresses": rules(source(ipBlocks=["10.0.0.1", "10.1.0.0/16", "2001:db8::/32"], remoteIpBlocks=["::1"])),
    "service accounts": rules(source(serviceAccounts=["web", "shop/web.v1"], notServiceAccounts=["a/b"])),
    "trust domains": rules(source(trustDomains=["a.example", "b*"], notTrustDomains=["*c"])),
    "16 service accounts": rules(source(serviceAccounts=["web"] * 16)),
    "operations": rules(to(hosts=["a.example:*"], ports=["80", "0443"], methods=["GET"], paths=["/a"])),
    "excluded operations": rules(
        to(notHosts=["a"], notPorts=["80"], notMethods=["GET"], notPaths=["*.html"])
    ),
    "templates": rules(to(paths=["/{*}", "/a/{*}/b/{**}", "/a/{*}/"])),
    "only values": rules(when("source.ip", "10.0.0.1")),
    "only excluded values": rules(when("source.namespace", notValues=["a"])),
    "headers": rules(when("request.headers[X-Token]", "*"), when("request.headers[:method]", "GET")),
    "every key": rules(
        {
            "when": [
                {"key": key, "values": [value]}
                for key, value in {
                    "source.ip": "10.0.0.1",
                    "remote.ip": "10.0.0.0/8",
                    "source.namespace": "a",
                    "source.serviceAccount": "a/b",
                    "source.principal": "a/ns/b/sa/c",
                    "source.trustDomain": "a",
                    "destination.ip": "10.0.0.1",
                    "destination.port": "80",
                    "connection.sni": "a.example",
                }.items()
            ]
        }
    ),
    "512 rules": rules(*[EMPTY] * 512),
    "512 sources": rules({"from": [{"source": {"namespaces": ["a"]}}] * 512}),
}


@pytest.mark.parametrize("case", VALID)
def test_valid_policy_is_accepted(case: str) -> None:
    parsed = read(VALID[case])
    assert not parsed.refused, parsed.problems
    assert isinstance(parsed.fact, AuthorizationPolicy)


# Istio refuses these policies.
REFUSED: dict[str, tuple[Any, str]] = {
    "an action that there is not": ({"action": "PERMIT"}, "spec.action"),
    "a selector and a target": ({**LABELS, "targetRef": GATEWAY}, "spec.targetRef"),
    "a selector and targets": ({**LABELS, "targetRefs": [GATEWAY]}, "spec.targetRefs"),
    "a target and targets": ({"targetRef": GATEWAY, "targetRefs": [GATEWAY]}, "spec.targetRef"),
    "a target without a kind": ({"targetRefs": [{"name": "a"}]}, "spec.targetRefs[0].kind"),
    "a target without a name": ({"targetRef": {"kind": "Gateway"}}, "spec.targetRef.name"),
    "an empty target": ({"targetRef": {}}, "spec.targetRef.kind"),
    "a target of another namespace": (
        {"targetRefs": [GATEWAY | {"namespace": "a"}]},
        "targetRefs[0].namespace",
    ),
    "17 targets": ({"targetRefs": [GATEWAY] * 17}, "spec.targetRefs"),
    "a wildcard in a label": ({"selector": {"matchLabels": {"app": "w*"}}}, "spec.selector.matchLabels.app"),
    "a wildcard in a label's name": ({"selector": {"matchLabels": {"a*": "w"}}}, "spec.selector.matchLabels"),
    "a label without a name": ({"selector": {"matchLabels": {"": "w"}}}, "spec.selector.matchLabels"),
    "deny without rules": ({"action": "DENY"}, "spec.rules"),
    "a provider without rules": ({"action": "CUSTOM", "provider": {"name": "a"}}, "spec.rules"),
    "custom without a provider": (rules({}, action="CUSTOM"), "spec.provider.name"),
    "a provider without a name": (rules({}, action="CUSTOM", provider={"name": ""}), "spec.provider.name"),
    "a provider that allows": (rules({}, provider={"name": "a"}), "spec.provider"),
    "a provider that denies": (rules({}, action="DENY", provider={"name": "a"}), "spec.provider"),
    **{
        f"custom with {key}": (custom(source(**{key: [value]})), f"spec.rules[0].from[0].source.{key}")
        for key, value in {
            "namespaces": "a",
            "notNamespaces": "a",
            "principals": "a",
            "notPrincipals": "a",
            "requestPrincipals": "a",
            "notRequestPrincipals": "a",
            "serviceAccounts": "a",
            "trustDomains": "a",
        }.items()
    },
    **{
        f"custom with {key}": (custom(when(key, "a")), "spec.rules[0].when[0].key")
        for key in (
            *("source.namespace", "source.principal", "request.auth.principal", "request.auth.audiences"),
            *("request.auth.presenter", "request.auth.claims[iss]", "source.serviceAccount"),
        )
    },
    "a rule that is null": (rules(None), "spec.rules[0]"),
    "no sources": (rules({"from": []}), "spec.rules[0].from"),
    "a source that is null": (rules({"from": [None]}), "spec.rules[0].from[0]"),
    "an item without a source": (rules({"from": [{}]}), "spec.rules[0].from[0].source"),
    "a source without conditions": (rules(source()), "spec.rules[0].from[0].source"),
    "no operations": (rules({"to": []}), "spec.rules[0].to"),
    "an operation that is null": (rules({"to": [None]}), "spec.rules[0].to[0]"),
    "an item without an operation": (rules({"to": [{}]}), "spec.rules[0].to[0].operation"),
    "an operation without conditions": (rules(to()), "spec.rules[0].to[0].operation"),
    **{
        f"an empty value in {key}": (rules(source(**{key: ["a", ""]})), f"source.{key}[1]")
        for key in (
            *("principals", "requestPrincipals", "namespaces", "serviceAccounts", "trustDomains", "ipBlocks"),
            *("remoteIpBlocks", "notPrincipals", "notRequestPrincipals", "notNamespaces", "notIpBlocks"),
            *("notRemoteIpBlocks", "notServiceAccounts", "notTrustDomains"),
        )
    },
    **{
        f"an empty value in {key}": (rules(to(**{key: ["80", ""]})), f"operation.{key}[1]")
        for key in (
            *("hosts", "ports", "methods", "paths", "notHosts", "notPorts", "notMethods", "notPaths"),
        )
    },
    **{
        f"{value!r} in ipBlocks": (rules(source(ipBlocks=[value])), "source.ipBlocks[0]")
        for value in ("10.0.0", "10.0.0.0/33", "a", "10.0.0.0/a", "2001:db8::/129", "10.0.0.0/", "010.0.0.1")
    },
    "a bad address that is excluded": (rules(source(notRemoteIpBlocks=["1.2.3"])), "notRemoteIpBlocks[0]"),
    **{
        f"{value!r} in ports": (rules(to(ports=[value])), "operation.ports[0]")
        for value in ("http", "65536", "-1", "+80", "8080-8090", "8*", "\u0668\u0660", "9" * 6000)
    },
    "a bad port that is excluded": (rules(to(notPorts=["a"])), "operation.notPorts[0]"),
    "a named variable": (rules(to(paths=["/{*}/{name}"])), "operation.paths[0]"),
    "a variable with a pattern": (rules(to(paths=["/{name=*}/{*}"])), "operation.paths[0]"),
    "empty braces": (rules(to(paths=["/{}/{**}"])), "operation.paths[0]"),
    "a wildcard beside an operator": (rules(to(paths=["/{*}/*"])), "operation.paths[0]"),
    "two wildcards beside an operator": (rules(to(notPaths=["/**/{*}"])), "operation.notPaths[0]"),
    "17 service accounts": (rules(source(serviceAccounts=["web"] * 17)), "source.serviceAccounts"),
    "a wildcard in a service account": (rules(source(serviceAccounts=["a/*"])), "serviceAccounts[0]"),
    "a namespace without a service account": (rules(source(serviceAccounts=["a/"])), "serviceAccounts[0]"),
    "a service account of three parts": (rules(source(serviceAccounts=["a/b/c"])), "serviceAccounts[0]"),
    "service accounts and principals": (
        rules(source(serviceAccounts=["a"], principals=["b"])),
        "source.principals",
    ),
    "service accounts and namespaces": (
        rules(source(notServiceAccounts=["a"], notNamespaces=["b"])),
        "source.notNamespaces",
    ),
    "no key": (rules({"when": [{"values": ["a"]}]}), "spec.rules[0].when[0].key"),
    "an empty key": (rules(when("", "a")), "spec.rules[0].when[0].key"),
    "a key without values": (rules(when("source.ip")), "spec.rules[0].when[0]"),
    "a key with an empty value": (rules(when("source.principal", "")), "when[0].values[0]"),
    "a condition that is null": (rules({"when": [None]}), "spec.rules[0].when[0]"),
    **{
        f"the key {key}": (rules(when(key, "a")), "spec.rules[0].when[0].key")
        for key in (
            *("request.header[a]", "request.headers", "request.headers[]", "request.headers[a"),
            *("request.auth.claims", "request.auth.claims[]", "request.auth.claims[a]b", "source.name"),
            *("destination.labels[a]", "destination.name", "destination.namespace", "destination.user"),
            *("experimental.envoy.filters.a", "experimental.envoy.filters.a[]", "Source.ip", "source.ip "),
        )
    },
    **{
        f"{key} with {value!r}": (rules(when(key, value)), "spec.rules[0].when[0].values[0]")
        for key, value in {
            "source.ip": "1.2.3",
            "remote.ip": "a",
            "destination.ip": "10.0.0.0/40",
            "destination.port": "http",
            "source.serviceAccount": "*",
        }.items()
    },
    "513 rules": (rules(*[EMPTY] * 513), "spec.rules"),
    "513 sources": (rules({"from": [{"source": {"namespaces": ["a"]}}] * 513}), "spec.rules[0].from"),
    "513 operations": (rules({"to": [{"operation": {"ports": ["1"]}}] * 513}), "spec.rules[0].to"),
}

# Istio accepts these policies, but they are mistakes, and some would admit more than they seem to.
STRICTER: dict[str, tuple[Any, str]] = {
    "an unknown field": ({"rule": []}, "spec.rule"),
    "an unknown field of a rule": (rules({"form": []}), "spec.rules[0].form"),
    "an unknown field beside a source": (rules({"from": [{"source": {"namespaces": ["a"]}, "x": 1}]}), ".x"),
    "an unknown field of a source": (rules(source(principal=["a"])), "source.principal"),
    "an unknown field of an operation": (rules(to(methods=["GET"], path=["/"])), "operation.path"),
    "an unknown field of a condition": (rules(when("source.ip", "::1", value="a")), "when[0].value"),
    "an empty list of values": (rules(source(principals=[], namespaces=["a"])), "source.principals"),
    "an empty list of excluded values": (rules(when("source.ip", "::1", notValues=[])), "when[0].notValues"),
    "an empty list of conditions": (rules({"when": []}), "spec.rules[0].when"),
    "values that are null": (rules(source(principals=None, namespaces=["a"])), "source.principals"),
    "only values that are null": (rules(source(principals=None)), "source.principals"),
    "sources that are null": (rules({"from": None}), "spec.rules[0].from"),
    "operations that are null": (rules({"to": None}), "spec.rules[0].to"),
    "conditions that are null": (rules({"when": None}), "spec.rules[0].when"),
    "deny with an empty list of rules": (rules(action="DENY"), "spec.rules"),
    "port 0": (rules(to(ports=["0"])), "operation.ports[0]"),
    "513 conditions": (rules({"when": [when("source.ip", "::1")["when"][0]] * 513}), "spec.rules[0].when"),
    "a value of 4097 characters": (rules(to(methods=["a" * 4097])), "operation.methods[0]"),
    "a header of 4097 characters": (rules(when(f"request.headers[{'a' * 4097}]", "a")), "when[0].key"),
    "a name that no header has": (rules(when("request.headers[a b]", "a")), "when[0].key"),
    "two names of headers": (rules(when("request.headers[a][b]", "a")), "when[0].key"),
    "a wildcard in the middle": (rules(to(hosts=["a*b"])), "operation.hosts[0]"),
    "two wildcards": (rules(when("request.headers[a]", "*a*")), "when[0].values[0]"),
    "nothing but two wildcards": (rules(source(principals=["**"])), "source.principals[0]"),
    "a wildcard in the middle of a namespace": (rules(source(namespaces=["a*b"])), "source.namespaces[0]"),
    "a wildcard in the middle of a path": (rules(to(paths=["/a/*/b"])), "operation.paths[0]"),
    "a slash in a namespace": (rules(source(namespaces=["a/sa/b"])), "source.namespaces[0]"),
    "a slash at the end of a namespace": (rules(source(notNamespaces=["*a/"])), "source.notNamespaces[0]"),
    "a slash in a trust domain": (rules(source(trustDomains=["a/ns/b*"])), "source.trustDomains[0]"),
    "a capital letter in a namespace": (rules(when("source.namespace", "Shop")), "when[0].values[0]"),
    "a URI for a principal": (rules(source(principals=["spiffe://a/ns/b/sa/c"])), "source.principals[0]"),
    "a newline": (rules(to(methods=["GET\n"])), "operation.methods[0]"),
    "half of a character": (rules(when("request.headers[a]", "\ud800")), "when[0].values[0]"),
    **{
        f"the path {path}": (rules(to(paths=[path])), "operation.paths[0]")
        for path in (
            *(
                "/{name}",
                "/a}",
                "/a/{**}/b",
                "/{**}/{**}",
                "/a{*}",
                "{*}",
                "/{*}b",
                "/a//{*}",
                "//{*}",
                "/{*}//",
            ),
            *(
                "/{*}/..",
                "/{*}/%61",
                "/a/../b",
                "/a/./b*",
                "/..",
                "*/../a",
                "/%61dmin",
                "/%7e",
                "/a\\b",
                "/a?b=c",
            ),
            *("/a#b", "/a b", "/\u00e9", "/{*}/\u00e9"),
        )
    },
    "an address with a zone": (rules(source(ipBlocks=["fe80::1%eth0"])), "source.ipBlocks[0]"),
}


def anything(*values: Any) -> tuple[Any, ...]:
    return values


# Values of other types.
TYPES: dict[str, tuple[Any, str]] = {
    **{f"spec: {value!r}": (value, "spec") for value in anything("", "text", 1, [], [EMPTY], True)},
    **{
        f"{field}: {value!r}": ({field: value}, f"spec.{field}")
        for field in ("selector", "targetRef", "targetRefs", "rules", "action", "provider")
        for value in anything("", "text", 1, 0, True, [[]], [1])
    },
    **{
        f"{name}: {value!r}": (rules({name: value}), f"spec.rules[0].{name}")
        for name in ("from", "to", "when")
        for value in anything("", "a", 0, 1, True, {}, {"a": "b"}, [[]], [1], ["a"], [[[]]])
    },
    **{
        f"{name}.{key}: {value!r}": (rules({name: [{key: value}]}), f"spec.rules[0].{name}[0].{key}")
        for name, key in (("from", "source"), ("to", "operation"))
        for value in anything(None, "", "a", 0, 1, [], [[]])
    },
    **{
        f"{key}: {value!r}": (rules(source(**{key: value})), f"source.{key}")
        for key in ("principals", "namespaces", "serviceAccounts", "ipBlocks", "requestPrincipals")
        for value in anything("", "a", 0, 1, {}, {"a": "b"}, [1], [None], [[]], [["a"]], [{}], [True])
    },
    **{
        f"{key}: {value!r}": (rules(to(**{key: value})), f"operation.{key}")
        for key in ("hosts", "ports", "methods", "paths")
        for value in anything("80", 80, [80], [None], [["80"]], [80.5], {"80": "80"})
    },
    **{
        f"when: {item!r}": (rules({"when": [item]}), "spec.rules[0].when[0]")
        for item in anything(
            *({}, [], "a", 1, {"key": 1, "values": ["a"]}, {"key": ["source.ip"], "values": ["::1"]}),
            *({"key": None, "values": ["a"]}, {"key": "source.ip", "values": "::1"}),
            *({"key": "source.ip", "values": [1]}, {"key": "source.ip", "values": None}),
            *({"key": "source.ip", "values": {"a": "::1"}}, {"key": {}, "values": [[]]}),
        )
    },
}


@pytest.mark.parametrize("case", [*REFUSED, *STRICTER, *TYPES])
def test_invalid_policy_is_rejected(case: str) -> None:
    spec, place = (REFUSED | STRICTER | TYPES)[case]
    parsed = read(spec)
    assert parsed.refused
    assert parsed.fact is None
    problems = [problem.what for problem in parsed.problems if not problem.notice]
    assert any(place in problem for problem in problems), problems


def test_cases_are_distinct() -> None:
    assert not REFUSED.keys() & STRICTER.keys()
    assert not (REFUSED | STRICTER).keys() & TYPES.keys()


# --- what cannot be enforced --------------------------------------------------------------------------------

WIDER = "the rule denies requests without regard to this condition"
TOKENS = "sidecars do not verify JSON Web Tokens"


@pytest.mark.parametrize(("action", "hint"), [("ALLOW", "the rule allows nothing"), ("DENY", WIDER)])
@pytest.mark.parametrize(
    ("rule", "place", "why"),
    [
        (source(requestPrincipals=["a/b"]), "from[0].source.requestPrincipals", TOKENS),
        (source(notRequestPrincipals=["*"]), "from[0].source.notRequestPrincipals", TOKENS),
        (when("request.auth.principal", "a/b"), "when[0].key 'request.auth.principal'", TOKENS),
        (when("request.auth.audiences", "a"), "when[0].key 'request.auth.audiences'", TOKENS),
        (when("request.auth.presenter", "a"), "when[0].key 'request.auth.presenter'", TOKENS),
        (when("request.auth.claims[a]", "b"), "when[0].key 'request.auth.claims[a]'", TOKENS),
        (when("request.auth.claims[a][b]", "c"), "when[0].key 'request.auth.claims[a][b]'", TOKENS),
        (when("experimental.envoy.filters.a[b]", "c"), "when[0].key 'experimental.envoy.filters.a[b]'", ""),
    ],
)
def test_condition_that_cannot_be_enforced_is_a_problem(
    action: str, hint: str, rule: dict[str, Any], place: str, why: str
) -> None:
    parsed = read(rules(rule, action=action))
    assert not parsed.refused
    [problem] = parsed.problems
    assert not problem.notice
    what = f"spec.rules[0].{place} cannot be enforced" + (f": {why}" if why else "")
    assert (problem.what.partition(": ")[2], problem.hint) == (what, hint)
    assert isinstance(parsed.fact, AuthorizationPolicy)
    [kept] = parsed.fact.rules
    conditions = [*kept.conditions, *(each for source in kept.sources for each in source)]
    assert [condition.attribute for condition in conditions] == [Attribute.UNSUPPORTED]


@pytest.mark.parametrize(
    ("spec", "annotations", "what", "notice"),
    [
        (custom({}), None, "spec.action CUSTOM cannot be enforced", False),
        (rules({}, action="AUDIT"), None, "spec.action AUDIT has no effect", True),
        ({"targetRefs": [GATEWAY]}, None, "spec.targetRefs is not supported, so the policy has no", False),
        ({"targetRef": GATEWAY}, None, "spec.targetRef is not supported, so the policy has no", False),
        (
            EMPTY,
            {TRY: "delete"},
            f'metadata.annotations["{TRY}"] is set, so the deletion',
            True,
        ),
        (
            EMPTY,
            {TRY: "yes"},
            f"metadata.annotations[\"{TRY}\"] must be delete, not 'yes', so it has no",
            False,
        ),
        (EMPTY, {DRY_RUN: "true"}, f'metadata.annotations["{DRY_RUN}"] is set, so the policy is not', True),
    ],
)
def test_policy_that_is_not_enforced_is_reported(
    spec: Any,
    annotations: Any,
    what: str,
    notice: bool,
) -> None:
    parsed = read(spec, annotations)
    assert not parsed.refused
    [problem] = parsed.problems
    assert what in problem.what
    assert problem.notice == notice
    assert (parsed.fact is None) == ("targetRef" in what)


@pytest.mark.parametrize(("word", "dry_run"), [("true", True), ("T", True), ("1", True), ("False", False)])
def test_dry_run(word: str, *, dry_run: bool) -> None:
    assert valid(EMPTY, {DRY_RUN: word}).dry_run == dry_run


@pytest.mark.parametrize(
    ("spec", "word"), [(EMPTY, "yes"), (EMPTY, ""), (custom({}), "true"), (rules({}, action="AUDIT"), "true")]
)
def test_invalid_dry_run_is_rejected(spec: Any, word: str) -> None:
    assert DRY_RUN in str(read(spec, {DRY_RUN: word}).problems)
    assert read(spec, {DRY_RUN: word}).refused


@pytest.mark.parametrize(
    ("annotations", "tried"),
    [({TRY: "delete"}, True), ({TRY: "yes"}, False), ({TRY: "delete", DRY_RUN: "1"}, False)],
)
def test_deletion_is_tried(annotations: dict[str, str], *, tried: bool) -> None:
    fact = valid(EMPTY, annotations)
    assert (fact.tries_deletion, fact.is_enforced) == (tried, DRY_RUN not in annotations)


# --- what conditions mean -----------------------------------------------------------------------------------


def pattern(kind: PatternKind, text: str = "") -> Pattern:
    return Pattern(kind, text)


EXACT, PREFIX, SUFFIX, PRESENT, TEMPLATE, _ = PatternKind


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (source(principals=["a/ns/*"]), Condition(Attribute.PRINCIPAL, (pattern(PREFIX, "a/ns/"),))),
        (source(notNamespaces=["*-x"]), Condition(Attribute.NAMESPACE, (), (pattern(SUFFIX, "-x"),))),
        (
            source(serviceAccounts=["web"]),
            Condition(Attribute.SERVICE_ACCOUNT, (pattern(EXACT, "shop/web"),)),
        ),
        (source(serviceAccounts=["a/b"]), Condition(Attribute.SERVICE_ACCOUNT, (pattern(EXACT, "a/b"),))),
        (source(trustDomains=["*"]), Condition(Attribute.TRUST_DOMAIN, (pattern(PRESENT),))),
        (
            source(ipBlocks=["10.1.2.3"], notIpBlocks=["10.1.2.3/16"]),
            Condition(
                Attribute.SOURCE_IP, (pattern(EXACT, "10.1.2.3/32"),), (pattern(EXACT, "10.1.0.0/16"),)
            ),
        ),
        (
            source(ipBlocks=["2001:DB8::1"]),
            Condition(Attribute.SOURCE_IP, (pattern(EXACT, "2001:db8::1/128"),)),
        ),
        (source(ipBlocks=["::/0"]), Condition(Attribute.SOURCE_IP, (pattern(EXACT, "::/0"),))),
        (
            source(remoteIpBlocks=["::ffff:10.1.2.3", "::ffff:10.1.2.3/112", "::ffff:0:0/96"]),
            Condition(
                Attribute.REMOTE_IP,
                (pattern(EXACT, "10.1.2.3/32"), pattern(EXACT, "10.1.0.0/16"), pattern(EXACT, "0.0.0.0/0")),
            ),
        ),
        (to(hosts=["A.example:*"]), Condition(Attribute.HOST, (pattern(PREFIX, "a.example:"),))),
        (to(ports=["0080"]), Condition(Attribute.DESTINATION_PORT, (pattern(EXACT, "80"),))),
        (to(methods=["*"]), Condition(Attribute.METHOD, (pattern(PRESENT),))),
        (to(paths=["/a/{*}"]), Condition(Attribute.PATH, (pattern(TEMPLATE, "/a/{*}"),))),
        (to(paths=["/a/.*"]), Condition(Attribute.PATH, (pattern(PREFIX, "/a/."),))),
        (to(notPaths=["*/a"]), Condition(Attribute.PATH, (), (pattern(SUFFIX, "/a"),))),
        (when("connection.sni", "A.example"), Condition(Attribute.SNI, (pattern(EXACT, "a.example"),))),
        (when("request.headers[X-A]", "B"), Condition(Attribute.HEADER, (pattern(EXACT, "B"),), (), "x-a")),
        (
            when("source.serviceAccount", notValues=["web"]),
            Condition(Attribute.SERVICE_ACCOUNT, (), (pattern(EXACT, "shop/web"),)),
        ),
    ],
    ids=str,
)
def test_meaning_of_a_condition(rule: dict[str, Any], expected: Condition) -> None:
    [kept] = valid(rules(rule)).rules
    conditions = [each for alternatives in (*kept.sources, *kept.operations) for each in alternatives]
    assert [*conditions, *kept.conditions] == [expected]


def test_sources_and_operations_are_alternatives() -> None:
    rule = {
        "from": [{"source": {"namespaces": ["a"], "ipBlocks": ["::1"]}}, {"source": {"namespaces": ["b"]}}],
        **to(ports=["80"], methods=["GET"]),
        **when("source.ip", "::1"),
    }
    [kept] = valid(rules(rule)).rules
    assert [len(source) for source in kept.sources] == [2, 1]
    assert [len(operation) for operation in kept.operations] == [2]
    assert len(kept.conditions) == 1


# --- replacements of rejected policies ----------------------------------------------------------------------

BAD = {"source": {"ipBlocks": ["a"]}}
CLOSED: dict[str, tuple[Any, Any, dict[str, str] | None]] = {
    "a rule": ({"rules": [{"from": [BAD]}], **LABELS}, None, {"app": "web"}),
    "a rule of the namespace": ({"rules": [{"from": [BAD]}]}, None, {}),
    "the action": ({"action": "DENNY", **LABELS}, None, {"app": "web"}),
    "the provider": (rules({}, action="CUSTOM", **LABELS), None, {"app": "web"}),
    "an unknown field beside a selector": ({"rulez": [], **LABELS}, None, {"app": "web"}),
    "an unknown field that may be the selector": ({"selectr": LABELS["selector"]}, None, {}),
    "many unknown fields": ({**{f"x{number}": 1 for number in range(9)}, **LABELS}, None, {}),
    "the selector": ({"selector": {"matchLabel": {"app": "web"}}}, None, {}),
    "a label": ({"selector": {"matchLabels": {"app": "web", "tier": None}}}, None, {}),
    "the spec": ("ALLOW", None, {}),
    "a selector and targets": ({**LABELS, "targetRefs": [GATEWAY]}, None, {"app": "web"}),
    "the annotation": ({"rules": [{}], **LABELS}, {DRY_RUN: "yes"}, {"app": "web"}),
    "the type of the annotation": (LABELS, {DRY_RUN: True}, {"app": "web"}),
    "dry run of custom": (custom({}), {DRY_RUN: "true"}, {}),
    "a rule in dry run": ({"rules": [{"from": [BAD]}]}, {DRY_RUN: "true"}, None),
    "another annotation in dry run": (EMPTY, {DRY_RUN: "true", "a": 1}, None),
    "a rule of audit": (rules({"from": [BAD]}, action="AUDIT"), None, None),
    "dry run of audit": (rules({}, action="AUDIT"), {DRY_RUN: "true"}, None),
    "a target": ({"targetRefs": [GATEWAY | {"name": ""}]}, None, None),
    "nothing that is a target": ({"targetRef": {}}, None, {}),
    "a rule for a target": ({"targetRef": GATEWAY, "rules": [{"from": [BAD]}]}, None, None),
}


@pytest.mark.parametrize("case", CLOSED)
def test_rejected_policy_denies_its_pods(case: str) -> None:
    spec, annotations, selector = CLOSED[case]
    parsed = read(spec, annotations)
    assert parsed.refused
    assert (parsed.replacement is None) == (selector is None)
    if selector is None or parsed.replacement is None:
        return
    fact = parsed.replacement.fact
    assert isinstance(fact, AuthorizationPolicy)
    assert (fact.action, fact.selector, fact.rules, fact.dry_run) == (DENY, selector, (Rule(),), False)
    labels = f" with labels {', '.join(f'{key}={value}' for key, value in selector.items())}"
    assert (
        f"all requests to pods in namespace shop{labels if selector else ''} (if" in parsed.replacement.effect
    )


def test_unreadable_policy_denies_its_namespace() -> None:
    [kind] = [kind for kind in KINDS if kind.name == "AuthorizationPolicy"]
    parsed = unreadable(kind, Ref(kind.name, "shop", "web"), Problem(where="x", what="y"))
    assert parsed.replacement
    pods = [
        Pod(meta=Meta(ref=Ref("Pod", namespace, "web")), address="10.0.0.1")
        for namespace in ("shop", "other")
    ]
    mesh = Mesh([parsed.replacement.fact, *pods])
    for http in (True, False):
        decisions = [decide(mesh.config, rules_of(mesh, pod, http=http), Request(port=80)) for pod in pods]
        assert [decision.access for decision in decisions] == [Access.DENIED, Access.ALLOWED]


# --- hostile input ------------------------------------------------------------------------------------------

KEYS = [
    "request.auth.claims" + "[a]" * 30_000,
    "request.headers" + "[" * 90_000,
    "experimental.envoy." * 5000,
]


@pytest.mark.parametrize(
    "text", [*KEYS, *(key + "x" for key in KEYS), "{*}/" * 1000, "/{*}" * 1000, "%" * 4000]
)
def test_long_texts_are_parsed_quickly(text: str) -> None:
    spec = rules({**to(paths=[text] * 100), "when": [{"key": text, "values": [text]}] * 100})
    assert_quick(lambda: read(spec), 5.0)


def test_parsing_is_linear_in_sources() -> None:
    wide = {"principals": ["a*"], "notNamespaces": ["*b"], "ipBlocks": ["10.0.0.0/8"], "bad": 1}

    def work(size: int) -> None:
        read(rules(*[{"from": [{"source": wide}] * size, **to(paths=["/{*}", "*"])}] * 4))

    assert_linear(work, 100)


def test_largest_policy_is_parsed_quickly() -> None:
    parsed: list[Parsed] = []
    spec = rules(*[{"from": [{"source": {"principals": ["a/ns/b/sa/c"]}}] * 512}] * 512)
    assert_quick(lambda: parsed.append(read(spec)), 30.0)
    assert not parsed[0].refused
