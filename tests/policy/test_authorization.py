"""Who may call: Istio's cases of selection, trust domains and rules, and what sidecars cannot enforce."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policy.world import ROOT, meta, pod
from tests.support.authorization import (
    Call,
    authorization_policy,
    is_allowed,
    is_dry_run,
    operation,
    random_policies,
    source,
    when,
)
from tests.support.manifests import Manifest
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, PatternKind, Rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import AuthorizationPolicy, MeshConfig, Pod
from xds.mesh.parse import parse
from xds.mesh.policy.authorization import (
    MAX_VALUES,
    Access,
    NamedRule,
    Request,
    Rules,
    SpiffePattern,
    decide,
    rules_of,
    spiffe_patterns,
    unenforceable,
)

ALLOWED, DENIED, DEPENDS = Access.ALLOWED, Access.DENIED, Access.DEPENDS
WEB = pod("web", "foo", version="v1")
ANY: dict[str, Any] = {}
"""A rule that matches every request."""


def facts(manifests: Iterable[Manifest]) -> list[AuthorizationPolicy]:
    read = [each.fact for manifest in manifests for each in parse(manifest, str)]
    assert all(isinstance(fact, AuthorizationPolicy) for fact in read)
    return read  # type: ignore[return-value]


def rules_for(manifests: Iterable[Manifest], *, http: bool = True, to: Pod = WEB, **config: Any) -> Rules:
    return rules_of(Mesh([to, *facts(manifests)], MeshConfig(**config)), to, http=http)


GET = Request(
    source_ip="10.1.0.1",
    remote_ip="10.1.0.1",
    destination_ip="10.1.0.2",
    port=80,
    sni="",
    host="web.foo",
    method="GET",
    path="/",
    headers={},
)
"""A request in plaintext of which everything is known."""


def from_(identity: str, **more: Any) -> Request:
    return replace(GET, identity=f"spiffe://{identity}", **more)


def a(account: str, namespace: str = "foo", **more: Any) -> Request:
    return from_(f"cluster.local/ns/{namespace}/sa/{account}", **more)


def get(**more: Any) -> Request:
    return replace(GET, **more)


# --- selection ---------------------------------------------------------------------------------------------

V1 = {"app": "web", "version": "v1"}
INSIDE = {**V1, "env": "dev"}


def allow(namespace: str = "bar", name: str = "one", **more: Any) -> Manifest:
    return authorization_policy(namespace, operation(methods=["GET"]), name=name, **more)


def deny(namespace: str = "bar", name: str = "one", **more: Any) -> Manifest:
    return allow(namespace, name, action="DENY", **more)


SELECTION: dict[str, tuple[Pod, list[Manifest], list[str], list[str] | None]] = {
    # The pod, the policies, and the policies that deny and that allow; None: no policy has to allow.
    "no policies": (pod("p", "foo"), [], [], None),
    "none in the pod's namespace": (pod("p", "foo"), [allow(), allow(name="two")], [], None),
    "one that allows": (pod("p", "bar"), [allow()], [], ["bar/one"]),
    "one that denies": (pod("p", "bar"), [deny()], ["bar/one"], None),
    "one that only audits": (pod("p", "bar"), [allow(action="AUDIT")], [], None),
    "one that asks somebody else denies": (pod("p", "bar"), [allow(action="CUSTOM")], ["bar/one"], None),
    "two of the namespace, one of another": (
        pod("p", "bar"),
        [allow("foo"), allow(), allow(name="two")],
        [],
        ["bar/one", "bar/two"],
    ),
    "all actions": (
        pod("p", "bar"),
        [allow(), deny(name="two"), allow(name="three", action="AUDIT"), allow(name="4", action="AUDIT")],
        ["bar/two"],
        ["bar/one"],
    ),
    "selector with all labels": (pod("p", "bar", **V1), [allow(selector=V1)], [], ["bar/one"]),
    "selector with some labels": (pod("p", "bar", **INSIDE), [allow(selector=V1)], [], ["bar/one"]),
    "selector with another value": (
        pod("p", "bar", **{**V1, "version": "v2"}),
        [allow(selector=V1)],
        [],
        None,
    ),
    "selector with a label that is missing": (pod("p", "bar", app="web"), [allow(selector=V1)], [], None),
    "labels match, namespace does not": (pod("p", "foo", **V1), [allow(selector=V1)], [], None),
    "root namespace": (pod("p", "bar"), [allow(ROOT)], [], [f"{ROOT}/one"]),
    "pod of the root namespace": (pod("p", ROOT), [allow(ROOT)], [], [f"{ROOT}/one"]),
    "both namespaces": (pod("p", "bar"), [allow(), allow(ROOT)], [], [f"{ROOT}/one", "bar/one"]),
    "selector in the root namespace": (
        pod("p", "bar", **V1),
        [allow(ROOT, selector=V1), deny(ROOT, "two", selector={"app": "x"})],
        [],
        [f"{ROOT}/one"],
    ),
    "the narrow one overrides nothing": (
        pod("p", "bar", **V1),
        [deny(), allow(name="two", selector=V1), deny(ROOT)],
        [f"{ROOT}/one", "bar/one"],
        ["bar/two"],
    ),
    "what is only tried is not enforced": (
        pod("p", "bar"),
        [allow(dry_run=True), deny(name="two", dry_run=True), deny(name="three")],
        ["bar/three"],
        None,
    ),
}


@pytest.mark.parametrize(("to", "policies", "denying", "allowing"), SELECTION.values(), ids=SELECTION)
def test_policies_are_selected_as_in_istio(to, policies, denying, allowing):
    def names(found: tuple[NamedRule, ...]) -> list[str]:
        return [f"{rule.policy.namespace}/{rule.policy.name}" for rule in found]

    found = rules_for(policies, to=to)
    assert names(found.deny) == denying
    assert (None if found.allow is None else names(found.allow)) == allowing
    assert {f"{ref.namespace}/{ref.name}" for ref in found.policies} == {*denying, *(allowing or ())}


@pytest.mark.parametrize("target", ["targetRef", "targetRefs"])
def test_policies_for_gateways_and_waypoints_apply_to_no_pod(target):
    reference = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gateway"}
    policy = deny()
    policy["spec"][target] = reference if target == "targetRef" else [reference]
    assert [each.fact for each in parse(policy, str)] == [None]


def test_pods_with_the_same_policies_share_rules():
    one, two = pod("one", "foo"), pod("two", "foo")
    mesh = Mesh([one, two, *facts([allow("foo"), deny("foo", "two", selector={"app": "none"})])])
    assert rules_of(mesh, one, http=True) is rules_of(mesh, two, http=True)
    for_http, for_tcp = (rules_of(mesh, one, http=http) for http in (True, False))
    assert (for_http.deny, for_http.policies) == (for_tcp.deny, for_tcp.policies)


def test_other_root_namespace():
    policies = [deny("config"), deny(ROOT)]
    assert [rule.policy.namespace for rule in rules_for(policies, root_namespace="config").deny] == ["config"]


def test_order_of_labels_does_not_matter():
    policies = [
        deny("foo", "b", selector={"x": "1"}),
        deny("foo", "a", selector={"y": "1"}),
        deny("foo", "c"),
    ]
    one, two = pod("p", "foo", x="1", y="1"), pod("p", "foo", y="1", x="1")
    assert [rule.policy.name for rule in rules_for(policies, to=one).deny] == ["a", "b", "c"]
    assert rules_for(policies, to=one) == rules_for(policies, to=two)
    assert hash(rules_for(policies, to=one)) == hash(rules_for(policies, to=two))


# --- identities --------------------------------------------------------------------------------------------

TRUST_DOMAINS: dict[str, tuple[str, list[str], list[str]]] = {
    # The mesh's trust domains, the principals that are allowed, and the clients that they mean.
    "one domain": ("cluster.local", ["cluster.local/ns/foo/sa/bar"], ["cluster.local/ns/foo/sa/bar"]),
    "all": ("cluster.local", ["*"], ["cluster.local/ns/foo/sa/bar", "cluster.local/ns/yyy/sa/zzz"]),
    "any domain": ("cluster.local", ["*/ns/foo/sa/bar"], ["cluster.local/ns/foo/sa/bar"]),
    "an alias": ("td2 td1", ["td1/ns/foo/sa/bar"], ["td2/ns/foo/sa/bar", "td1/ns/foo/sa/bar"]),
    "the domain of which there is an alias": (
        "td2 td1",
        ["td2/ns/foo/sa/bar"],
        ["td2/ns/foo/sa/bar", "td1/ns/foo/sa/bar"],
    ),
    "two principals of an alias": (
        "td1 cluster.local",
        ["cluster.local/ns/foo/sa/bar", "cluster.local/ns/yyy/sa/zzz"],
        [
            f"{domain}/ns/{rest}"
            for domain in ("td1", "cluster.local")
            for rest in ("foo/sa/bar", "yyy/sa/zzz")
        ],
    ),
    "suffixes name no domain": (
        "td1 cluster.local",
        ["*/ns/foo/sa/bar", "*sa/zzz"],
        [
            f"{domain}/ns/{rest}"
            for domain in ("td1", "cluster.local")
            for rest in ("foo/sa/bar", "yyy/sa/zzz")
        ],
    ),
    "two aliases": (
        "td2 td1 cluster.local",
        ["cluster.local/ns/foo/sa/bar", "td1/ns/yyy/sa/zzz"],
        [
            f"{domain}/ns/{rest}"
            for domain in ("td1", "td2", "cluster.local")
            for rest in ("foo/sa/bar", "yyy/sa/zzz")
        ],
    ),
    "a domain with a wildcard means the others as well": (
        "td2 foo-td1 cluster.local",
        ["*-td1/ns/foo/sa/bar"],
        [f"{domain}/ns/foo/sa/bar" for domain in ("td2", "foo-td1", "cluster.local")],
    ),
    "two domains with the wildcard's end": (
        "new-td old-td",
        ["*-td/ns/foo/sa/bar"],
        ["new-td/ns/foo/sa/bar", "old-td/ns/foo/sa/bar"],
    ),
    "a wildcard for none of the domains": ("td1 td2", ["*-td3/ns/foo/sa/bar"], []),
    "a domain of another mesh": ("td1 td2", ["some-td/ns/foo/sa/bar"], []),
    "one of the mesh and one of another": (
        "new-td td2 td3",
        ["td1/ns/yyy/sa/zzz", "td2/ns/foo/sa/bar"],
        [f"{domain}/ns/foo/sa/bar" for domain in ("new-td", "td2", "td3")],
    ),
    "no domain": ("new-td td2", ["/ns/foo/sa/bar"], []),
    "too short": ("cluster.local", ["sa/bar/ns/foo"], []),
    "cluster.local is every mesh": ("td1", ["cluster.local/ns/foo/sa/bar"], ["td1/ns/foo/sa/bar"]),
    "also with a wildcard at the end": ("td1", ["cluster.local/ns/foo/sa/*"], ["td1/ns/foo/sa/bar"]),
    "unless it is shorter": ("td1", ["cluster.local/ns/*"], []),
    "a prefix of a domain": (
        "cluster.local",
        ["cluster*"],
        ["cluster.local/ns/foo/sa/bar", "cluster.local/ns/yyy/sa/zzz"],
    ),
}
ACCOUNTS = ("foo/sa/bar", "yyy/sa/zzz")


@pytest.mark.parametrize(("domains", "principals", "expected"), TRUST_DOMAINS.values(), ids=TRUST_DOMAINS)
@pytest.mark.parametrize("key", ["principals", "source.principal"])
def test_principals_name_trust_domains_as_in_istio(domains, principals, expected, key):
    domain, *aliases = domains.split()
    config = {"trust_domain": domain, "trust_domain_aliases": tuple(aliases)}
    rule = when(key, *principals) if "." in key else source(principals=principals)
    found = rules_for([authorization_policy("foo", rule)], **config)
    known = [f"{each}/ns/{rest}" for each in domains.split() for rest in ACCOUNTS]
    assert [each for each in known if decide(MeshConfig(**config), found, from_(each)).access is ALLOWED] == [
        each for each in known if each in expected
    ]
    assert {*expected} <= {*known}


SA, NS = "cluster.local/ns/sa/sa/sa", "cluster.local/ns/ns/sa/ns"
IDENTITIES = (
    *("cluster.local/ns/foo/sa/bar", "cluster.local/ns/foo/sa/x.bar", "cluster.local/ns/xfoo/sa/bar"),
    *(SA, NS, "cluster.local/ns/sa/sa/ns", "cluster.local/ns/ns/sa/sa", "cluster.local/ns/bans/sa/a"),
)
FOO = "cluster.local/ns/foo/sa/bar"
MEANINGS: dict[str, tuple[dict[str, list[str]], set[str]]] = {
    "namespace": ({"namespaces": ["foo"]}, {FOO, "cluster.local/ns/foo/sa/x.bar"}),
    "start of a namespace": ({"namespaces": ["f*"]}, {FOO, "cluster.local/ns/foo/sa/x.bar"}),
    "end of a namespace": ({"namespaces": ["*oo"]}, {*IDENTITIES[:3]}),
    "every namespace": ({"namespaces": ["*"]}, {*IDENTITIES}),
    "a namespace called sa": ({"namespaces": ["sa"]}, {SA, "cluster.local/ns/sa/sa/ns"}),
    "ends with a": ({"namespaces": ["*a"]}, {SA, "cluster.local/ns/sa/sa/ns"}),
    "ends with s": (
        {"namespaces": ["*s"]},
        {NS, "cluster.local/ns/ns/sa/sa", "cluster.local/ns/bans/sa/a"},
    ),
    "ends with ns": (
        {"namespaces": ["*ns"]},
        {NS, "cluster.local/ns/ns/sa/sa", "cluster.local/ns/bans/sa/a"},
    ),
    "account": ({"serviceAccounts": ["foo/bar"]}, {FOO}),
    "account of the policy's namespace": ({"serviceAccounts": ["bar"]}, {FOO}),
    "accounts called as parts of the ID": ({"serviceAccounts": ["sa/ns", "ns/sa"]}, {*IDENTITIES[5:7]}),
    "not these accounts": (
        {"notServiceAccounts": ["sa/ns", "ns/sa", "sa/sa", "ns/ns", "bans/a"]},
        {*IDENTITIES[:3]},
    ),
    "the mesh": ({"trustDomains": ["cluster.local"]}, {*IDENTITIES}),
    "another mesh": ({"trustDomains": ["other"]}, set()),
    "not another mesh": ({"notTrustDomains": ["other"]}, {*IDENTITIES}),
    "end of a principal": ({"principals": ["*bar"]}, {*IDENTITIES[:3]}),
    "all of it after the wildcard": ({"principals": [f"*{FOO}"]}, {FOO}),
    "some of the scheme after the wildcard": ({"principals": [f"*//{FOO}", f"*/{FOO}"]}, set()),
    "start of a principal": (
        {"principals": ["cluster.local/ns/f*"]},
        {FOO, "cluster.local/ns/foo/sa/x.bar"},
    ),
    "the scheme in the prefix": ({"principals": ["spiffe*"]}, set()),
    "all of the source": ({"namespaces": ["foo"], "notPrincipals": [FOO]}, {"cluster.local/ns/foo/sa/x.bar"}),
}


def test_text_that_is_no_namespace_matches_no_identity():
    """The parser rejects it: in a SPIFFE ID, it would look like a namespace and its next segment."""
    rule = Rule(conditions=(Condition(Attribute.NAMESPACE, (Pattern.parse("foo/sa"),)),))
    policy = AuthorizationPolicy(meta=meta("AuthorizationPolicy", "foo", "rules"), rules=(rule,))
    found = rules_of(Mesh([WEB, policy]), WEB, http=True)
    assert {decide(MeshConfig(), found, from_(each)).access for each in IDENTITIES} == {DENIED}


@pytest.mark.parametrize(("conditions", "expected"), MEANINGS.values(), ids=MEANINGS)
def test_conditions_on_identities(conditions, expected):
    found = rules_for([authorization_policy("foo", source(**conditions))])
    assert {
        each for each in IDENTITIES if decide(MeshConfig(), found, from_(each)).access is ALLOWED
    } == expected


PLAINTEXT: dict[str, tuple[Manifest, Access]] = {
    "has no principal to allow": (authorization_policy("foo", source(principals=["*"])), DENIED),
    "has no namespace to allow": (authorization_policy("foo", source(namespaces=["*"])), DENIED),
    "has no principal to deny": (
        authorization_policy("foo", source(principals=["*"]), action="DENY"),
        ALLOWED,
    ),
    "has none of the principals": (
        authorization_policy("foo", source(notPrincipals=["*"]), action="DENY"),
        DENIED,
    ),
    "is of no domain": (authorization_policy("foo", source(notTrustDomains=["*"]), action="DENY"), DENIED),
}


@pytest.mark.parametrize(("policy", "expected"), PLAINTEXT.values(), ids=PLAINTEXT)
def test_plaintext(policy, expected):
    assert decide(MeshConfig(), rules_for([policy]), GET).access is expected


@pytest.mark.parametrize(
    ("values", "domains"),
    [
        (["new"], {"new", "old"}),
        (["old"], {"new", "old"}),
        (["o*"], {"old"}),
        (["*"], {"new", "old"}),
        (["cluster.local"], set()),
    ],
)
def test_trust_domains_mean_their_aliases(values, domains):
    config = {"trust_domain": "new", "trust_domain_aliases": ("old",)}
    for rule in (source(trustDomains=values), when("source.trustDomain", *values)):
        found = rules_for([authorization_policy("foo", rule)], **config)
        allowed = {
            domain
            for domain in ("new", "old")
            if decide(MeshConfig(**config), found, from_(f"{domain}/ns/a/sa/b")).access is ALLOWED
        }
        assert allowed == domains


@pytest.mark.parametrize("attribute", [each for each in Attribute if each.is_identity])
def test_namespaces_and_accounts_are_those_of_all_trust_domains(attribute):
    config = MeshConfig(trust_domain="new", trust_domain_aliases=("old",))
    text = {Attribute.SERVICE_ACCOUNT: "a/b", Attribute.TRUST_DOMAIN: "old", Attribute.NAMESPACE: "a"}
    pattern = Pattern.parse(text.get(attribute, "cluster.local/ns/a/sa/b"))
    found = spiffe_patterns(config, attribute, pattern)
    for domain in ("new", "old"):
        assert sum(each.matches(f"spiffe://{domain}/ns/a/sa/b") for each in found) == 1
    assert not any(each.matches("") for each in found)


# --- rules -------------------------------------------------------------------------------------------------

WITHOUT_RULES = authorization_policy("foo")


def http(*rules: dict[str, Any], name: str = "rules", **more: Any) -> Manifest:
    return authorization_policy("foo", *rules, name=name, **more)


HTTP: dict[str, tuple[list[Manifest], list[Request], list[Request]]] = {
    # The policies, requests that they allow, and requests that they deny.
    "allow, an empty rule": ([http(ANY)], [GET, a("x")], []),
    "allow, no rules": ([WITHOUT_RULES], [], [GET, a("x")]),
    "deny, an empty rule": ([http(ANY, action="DENY")], [], [GET, a("x")]),
    "deny and allow": (
        [
            http(source(principals=["*/bad", "*/odd"]), name="deny", action="DENY"),
            http(source(principals=["*/good", "*/odd"]), name="allow"),
        ],
        [a("good")],
        [a("bad"), a("odd"), a("other"), GET],
    ),
    "paths": (
        [http(operation(paths=["/exact", "/prefix/*", "*/suffix", "/t/{*}/x", "/all/{**}"]))],
        [
            get(path=path)
            for path in ("/exact", "/prefix/", "/prefix/a/b", "/a/suffix", "/t/a*/x", "/all/", "/all/a/b*")
        ],
        [
            get(path=path)
            for path in ("/", "/exact/", "/prefix", "/suffix/", "/t//x", "/t/a/b/x", "/all", "/t/a/x/")
        ],
    ),
    "not these paths": (
        [http(operation(notPaths=["/exact", "/prefix/*", "*/suffix", "/t/{*}"]))],
        [get(path=path) for path in ("/", "/prefix", "/t/a/b", "/exact/")],
        [get(path=path) for path in ("/exact", "/prefix/", "/a/suffix", "/t/a")],
    ),
    "only a template": (
        [http(operation(paths=["/{*}/{*}", "/{**}"], notPaths=["/x/{**}"]))],
        [get(path=path) for path in ("/", "/a", "/a/b", "/a//b", "/x")],
        [get(path=path) for path in ("/x/", "/x/a", '/"', "/a/[")],
    ),
    "not any path": ([http(operation(paths=["*"], notPaths=["*"]))], [], [GET, get(path="/x")]),
    "audit": ([http(ANY, action="AUDIT")], [GET], []),
    "custom": ([http(operation(paths=["/x"]), action="CUSTOM")], [GET], [get(path="/x")]),
    "custom, and one that allows": (
        [
            http(operation(paths=["/x"]), action="CUSTOM"),
            http(operation(methods=["GET"]), name="allow"),
        ],
        [GET],
        [get(path="/x"), get(method="PUT")],
    ),
    "custom for everything": ([http(ANY, action="CUSTOM")], [], [GET, a("x")]),
    "only tried": (
        [
            http(operation(paths=["/allow"]), name="1", dry_run=True),
            http(operation(paths=["/deny"]), name="2", action="DENY", dry_run=True),
        ],
        [GET, get(path="/deny")],
        [],
    ),
    "one tried and one enforced": (
        [
            http(operation(paths=["/allow"]), name="1", dry_run=True),
            http(operation(paths=["/another"]), name="2"),
        ],
        [get(path="/another")],
        [get(path="/allow"), GET],
    ),
    "many policies are alternatives": (
        [
            http(operation(methods=["PUT", "POST"]), name="1", selector=V1),
            http(operation(paths=["/v1", "/v2"]), name="2", selector={"app": "web"}),
            http(operation(hosts=["example.com", "Example.org"]), name="3", selector={"version": "v1"}),
            http(operation(ports=["81", "90"]), name="4"),
            http(source(principals=["cluster.local/ns/a/sa/b"]), name="5"),
            http(source(requestPrincipals=["issuer/subject"]), name="6"),
            http(source(namespaces=["one", "two"]), name="7"),
            http(source(ipBlocks=["1.2.3.4", "5.6.7.0/24"]), name="8"),
            http(when("request.headers[X-Abc]", "abc1", "abc2"), name="9"),
        ],
        [
            *(get(method="PUT"), get(path="/v2"), get(host="EXAMPLE.com"), get(host="example.org")),
            *(get(port=81), a("b", "a"), a("x", "two"), get(source_ip="5.6.7.255"), get(source_ip="1.2.3.4")),
            get(headers={"x-abc": "abc2"}),
        ],
        [
            *(GET, get(path="/v1/"), get(host="example.com:80"), get(port=8), a("c", "a"), a("x", "three")),
            *(get(source_ip="1.2.3.5"), get(headers={"x-abc": "abc"}), get(remote_ip="1.2.3.4")),
        ],
    ),
    "all parts of a rule": (
        [
            http(
                source(
                    principals=["*/sa/p"],
                    namespaces=["foo"],
                    ipBlocks=["10.1.0.0/16"],
                    notIpBlocks=["10.1.9.9"],
                )
                | operation(methods=["GET"], hosts=["*.foo"], ports=["80"], notPaths=["/no*"])
                | {
                    "when": [
                        {"key": "request.headers[x-a]", "values": ["h", "p-*", "*-s"], "notValues": ["p-s"]},
                        {"key": "destination.ip", "values": ["10.1.0.2"]},
                        {"key": "destination.port", "values": ["80", "81"]},
                        {"key": "remote.ip", "values": ["10.80.64.0/18"]},
                        {"key": "connection.sni", "values": ["x.example.com", "*.y"], "notValues": ["z.y"]},
                    ]
                }
            )
        ],
        [
            full := a("p", headers={"x-a": "h"}, remote_ip="10.80.64.1", sni="x.example.com"),
            replace(full, headers={"x-a": "p-x", "x-b": ""}, sni="a.y"),
        ],
        [
            *(
                replace(full, identity=f"spiffe://cluster.local/ns/{rest}")
                for rest in ("foo/sa/q", "bar/sa/p")
            ),
            *(replace(full, source_ip=address) for address in ("10.1.9.9", "10.2.0.1")),
            *(replace(full, **{key: "x"}) for key in ("method", "host", "sni")),
            *(replace(full, headers=headers) for headers in ({}, {"x-a": "p-s"}, {"x-b": "h"})),
            *(replace(full, port=81), replace(full, path="/not"), replace(full, destination_ip="10.1.0.3")),
            *(replace(full, remote_ip="10.80.128.1"), replace(full, sni="z.y"), replace(full, sni="")),
        ],
    ),
    "sources and operations are alternatives": (
        [
            http(
                {
                    "from": [{"source": {"principals": ["*/a"]}}, {"source": {"ipBlocks": ["10.9.0.0/16"]}}],
                    "to": [{"operation": {"methods": ["PUT"]}}, {"operation": {"paths": ["/x"]}}],
                }
            )
        ],
        [a("a", method="PUT"), a("a", path="/x"), get(source_ip="10.9.0.1", path="/x")],
        [a("a"), a("b", method="PUT"), get(path="/x")],
    ),
    "trust domains": (
        [http({"from": [{"source": {"trustDomains": ["x"]}}, {"source": {"notTrustDomains": ["bad*"]}}]})],
        [a("x"), GET],
        [],
    ),
    "principal and namespace": (
        [http(source(namespaces=["foo"]) | when("source.principal", "*/ns/foo/sa/a", "*-td/ns/foo/sa/b"))],
        [a("a")],
        [a("b"), a("a", "bar")],
    ),
    "presence": (
        [http(operation(hosts=["*"], methods=["*"]) | when("request.headers[x-a]", "*"))],
        [get(headers={"x-a": "1"}), get(headers={"x-a": ""}), get(headers={"x-a": ""}, host="")],
        [GET],
    ),
    "absence": (
        [http(when("request.headers[x-a]", excluded=("*",)))],
        [GET],
        [get(headers={"x-a": ""})],
    ),
    "names of headers that are other parts of the request": (
        [
            http(when("request.headers[:method]", "PUT"), name="1"),
            http(when("request.headers[:authority]", "a.*"), name="2"),
            http(when("request.headers[host]", "b"), name="3"),
        ],
        [get(method="PUT"), get(host="a.b"), get(host="b")],
        [GET, get(host="A.b"), get(headers={":method": "PUT", "host": "b"})],
    ),
    "without mutual TLS, SNI is empty": (
        [http(when("connection.sni", "*"))],
        [get(sni="x")],
        [GET],
    ),
    "IPv6": (
        [http(source(ipBlocks=["fd00::/64", "fd01::1"]))],
        [get(source_ip="fd00::9"), get(source_ip="fd01::1")],
        [get(source_ip="fd01::2"), GET],
    ),
    "every IPv4 address": ([http(source(ipBlocks=["0.0.0.0/0"]))], [GET], [get(source_ip="fd00::1")]),
    "every IPv6 address": ([http(source(ipBlocks=["::/0"]))], [get(source_ip="fd00::1")], [GET]),
    "IPv4 in IPv6, in the request": (
        [http(source(ipBlocks=["10.1.0.0/24"]))],
        [get(source_ip="::ffff:10.1.0.1")],
        [get(source_ip="::ffff:10.1.1.1"), get(source_ip="fd00::1")],
    ),
    "IPv4 in IPv6, in the policy": (
        [http(source(ipBlocks=["::ffff:10.1.0.0/120", "::ffff:10.9.9.9"]))],
        [GET, get(source_ip="10.9.9.9")],
        [get(source_ip="10.1.1.1"), get(source_ip="::ffff:10.1.1.1")],
    ),
}


@pytest.mark.parametrize(("policies", "allowed", "denied"), HTTP.values(), ids=HTTP)
def test_http_requests(policies, allowed, denied):
    found = rules_for(policies)
    assert [each for each in allowed if decide(MeshConfig(), found, each).access is not ALLOWED] == []
    assert [each for each in denied if decide(MeshConfig(), found, each).access is not DENIED] == []


NS1, NS2 = a("x", "ns-1"), a("x", "ns-2")
TOKEN = source(requestPrincipals=["id"])
TCP: dict[str, tuple[list[Manifest], list[Request], list[Request]]] = {
    "allow, the rules without attributes of HTTP": (
        [
            http(
                TOKEN | operation(methods=["GET"]),
                source(namespaces=["ns-1"]) | operation(ports=["8080"], methods=["GET"]),
                source(namespaces=["ns-2"], requestPrincipals=["id"]) | operation(ports=["9090"]),
                source(namespaces=["ns-1"]) | operation(ports=["80"]),
            )
        ],
        [NS1],
        [GET, NS2, replace(NS1, port=8080), replace(NS2, port=9090)],
    ),
    "allow, only attributes of HTTP": (
        [
            http(
                TOKEN | operation(methods=["GET"]), source(namespaces=["ns-1"]) | operation(hosts=["web.foo"])
            )
        ],
        [],
        [GET, NS1],
    ),
    "audit": ([http(operation(methods=["GET"]), action="AUDIT")], [GET], []),
    "custom": (
        [http(source(ipBlocks=["10.1.0.1"]) | operation(methods=["PUT"]), action="CUSTOM")],
        [get(source_ip="10.1.0.2")],
        [GET],
    ),
    "custom, only attributes of HTTP": ([http(operation(methods=["PUT"]), action="CUSTOM")], [], [GET, NS1]),
    "deny, only attributes of HTTP": ([http(operation(methods=["PUT"]), action="DENY")], [], [GET, NS1]),
    "deny, a source, and an operation of HTTP": (
        [http(source(namespaces=["ns-1"]) | operation(methods=["PUT"]), action="DENY")],
        [GET, NS2],
        [NS1, replace(NS1, port=8080)],
    ),
    "deny, a token, and a port": (
        [http(TOKEN | operation(ports=["81"]), action="DENY")],
        [GET],
        [get(port=81)],
    ),
    "deny, a token, a port and a method": (
        [
            http(
                source(namespaces=["ns-2"], requestPrincipals=["i"])
                | operation(ports=["80"], methods=["PUT"]),
                action="DENY",
            )
        ],
        [GET, NS1, replace(NS2, port=81)],
        [NS2],
    ),
    "deny, one of the sources is a token": (
        [
            http(
                {"from": [{"source": {"namespaces": ["ns-1"]}}, {"source": {"notRequestPrincipals": ["*"]}}]},
                action="DENY",
            )
        ],
        [],
        [GET, NS1],
    ),
    "deny, by a header": ([http(when("request.headers[:method]", "PUT"), action="DENY")], [], [GET]),
    "deny, by what there is": (
        [http(when("destination.port", "80"), action="DENY")],
        [get(port=81)],
        [GET],
    ),
    "deny, what Envoy's filters say": (
        [http(when("experimental.envoy.filters.a[b]", "c"), action="DENY")],
        [],
        [GET],
    ),
    "one tried and one enforced": (
        [http(operation(ports=["80"]), name="1", dry_run=True), http(operation(ports=["9000"]), name="2")],
        [get(port=9000)],
        [GET],
    ),
}


@pytest.mark.parametrize(("policies", "allowed", "denied"), TCP.values(), ids=TCP)
def test_connections_that_are_not_http(policies, allowed, denied):
    found = rules_for(policies, http=False)
    for requests, access in ((allowed, ALLOWED), (denied, DENIED)):
        for request in requests:
            bare = replace(request, host=None, method=None, path=None, headers=None)
            assert decide(MeshConfig(), found, bare).access is access, bare


MANY = authorization_policy("bar", operation(paths=[f"/{number}" for number in range(MAX_VALUES // 2)]))
PROPOSED = {
    "one policy": ([allow(dry_run=True)], [allow()]),
    "one of each": ([allow(), deny(name="two", dry_run=True)], [allow(), deny(name="two")]),
    "one of two": ([allow(), allow(name="two", dry_run=True)], [allow(), allow(name="two")]),
    "beside an audit": ([deny(dry_run=True), allow(name="two", action="AUDIT")], [deny()]),
    "no policy": ([allow(), deny(name="two")], None),
    "without one": ([allow(), allow(name="two", tries_deletion=True)], [allow()]),
    "without the only one": ([allow(tries_deletion=True)], []),
    "one instead of another": (
        [allow(tries_deletion=True), deny(name="two", dry_run=True)],
        [deny(name="two")],
    ),
    "elsewhere": ([allow(), deny("elsewhere", "two", dry_run=True)], None),
    "too many values together": ([MANY, allow(name="two", dry_run=True)], None),
    "too many values without the annotation": (
        [MANY, {**MANY, "metadata": deny(name="two", dry_run=True)["metadata"]}],
        [MANY, {**MANY, "metadata": deny(name="two")["metadata"]}],
    ),
}


@pytest.mark.parametrize("is_http", [True, False])
@pytest.mark.parametrize(("policies", "proposed"), PROPOSED.values(), ids=PROPOSED)
def test_policies_are_tried_together_with_those_that_are_enforced(policies, proposed, is_http):
    enforced = [policy for policy in policies if not is_dry_run(policy)]
    found = rules_for(policies, http=is_http, to=pod("p", "bar"))
    expected = None if proposed is None else rules_for(proposed, http=is_http, to=pod("p", "bar"))
    if not is_http and expected and (expected.deny, expected.allow) == (found.deny, found.allow):
        expected = None  # Other rules would end connections.
    assert found.proposed == expected
    assert {*found.served} == {*found.policies, *(expected.policies if expected else ())}
    bare = found._replace(proposed=None, digest=0)
    expected = rules_for(enforced, http=is_http, to=pod("p", "bar"))
    assert bare == expected._replace(proposed=None, digest=0)


UNENFORCEABLE = {
    "token": (TOKEN, True, True),
    "no token": (source(notRequestPrincipals=["*"]), True, True),
    "claim": (when("request.auth.claims[a]", "b"), True, True),
    "path": (operation(paths=["/"]), False, True),
    "header": (when("request.headers[a]", excluded=("b",)), False, True),
    "port": (operation(ports=["80"]), False, False),
    "identity": (source(principals=["*"]), False, False),
    "everything": (ANY, False, False),
}


@pytest.mark.parametrize(("rule", "for_http", "for_tcp"), UNENFORCEABLE.values(), ids=UNENFORCEABLE)
def test_what_cannot_be_enforced(rule, for_http, for_tcp):
    (policy,) = facts([http(rule)])
    assert (unenforceable(policy, http=True), unenforceable(policy, http=False)) == (for_http, for_tcp)
    for is_http, is_unenforceable in ((True, for_http), (False, for_tcp)):
        if is_unenforceable:
            assert rules_for([http(rule)], http=is_http).allow == ()
            (denying,) = rules_for([http(rule, action="DENY")], http=is_http).deny
            assert denying.rule == Rule()
        else:
            found = rules_for([http(rule)], http=is_http).allow
            assert found
            assert found[0].rule == policy.rules[0]


NOT_ACCEPTED = {
    "empty segment of a template": Condition(Attribute.PATH, (Pattern(PatternKind.TEMPLATE, "/a//{*}"),)),
    "long template": Condition(Attribute.PATH, (), (Pattern(PatternKind.TEMPLATE, f"/{'a' * 252}/{{*}}"),)),
    "control character in a header": Condition(Attribute.HEADER, (Pattern.parse("a"),), name="x\ry"),
}


@pytest.mark.parametrize("condition", NOT_ACCEPTED.values(), ids=NOT_ACCEPTED)
def test_what_envoy_does_not_accept_is_not_enforced(condition):
    """It would reject all rules of the pod, or crash."""
    (policy,) = facts([http(ANY)])
    for action, expected in ((Action.ALLOW, DENIED), (Action.DENY, DENIED)):
        changed = replace(policy, action=action, rules=(Rule(conditions=(condition,)),))
        found = rules_of(Mesh([WEB, changed]), WEB, http=True)
        assert decide(MeshConfig(), found, GET).access is expected
        assert not any(rule.rule.conditions for rule in (*found.deny, *(found.allow or ())))


# --- verdicts ----------------------------------------------------------------------------------------------


def names(*found: NamedRule) -> list[str]:
    return [rule.name for rule in found]


def test_verdict_names_the_rule_that_envoy_names():
    policies = [
        http(operation(paths=["/x"]), operation(paths=["/y*"]), name="b", action="DENY"),
        http(operation(paths=["/y"]), name="a", action="DENY"),
        http(operation(methods=["GET"]), ANY, name="c"),
    ]
    found = rules_for(policies)
    for request, access, name in (
        (get(path="/x"), DENIED, "ns[foo]-policy[b]-rule[0]"),
        (get(path="/y"), DENIED, "ns[foo]-policy[a]-rule[0]"),
        (get(path="/yz"), DENIED, "ns[foo]-policy[b]-rule[1]"),
        (GET, ALLOWED, "ns[foo]-policy[c]-rule[0]"),
        (get(method="PUT"), ALLOWED, "ns[foo]-policy[c]-rule[1]"),
    ):
        verdict = decide(MeshConfig(), found, request)
        assert (verdict.access, names(*verdict.rules)) == (access, [name])
    assert decide(MeshConfig(), rules_for([WITHOUT_RULES]), GET) == (DENIED, ())
    assert decide(MeshConfig(), rules_for([]), GET) == (ALLOWED, ())


NO, YES = operation(paths=["/no"]), operation(methods=["GET"])
UNKNOWN: dict[str, tuple[list[Manifest], dict[str, None], Access, list[str]]] = {
    "may be denied": ([http(NO, action="DENY")], {"path": None}, DEPENDS, ["rules"]),
    "may be denied, and is allowed": (
        [http(NO, name="no", action="DENY"), http(YES)],
        {"path": None},
        DEPENDS,
        ["no"],
    ),
    "may be allowed": ([http(YES)], {"method": None}, DEPENDS, ["rules"]),
    "may be allowed or denied": (
        [http(NO, name="no", action="DENY"), http(YES, name="yes")],
        {"path": None, "method": None},
        DEPENDS,
        ["no", "yes"],
    ),
    "is denied, whatever the rest": (
        [http(YES, name="no", action="DENY"), http(NO)],
        {"path": None},
        DENIED,
        ["no"],
    ),
    "is allowed, whatever the rest": ([http(NO, YES)], {"path": None}, ALLOWED, ["rules"]),
    "one condition fails": ([http(operation(paths=["/no"], ports=["81"]))], {"path": None}, DENIED, []),
    "no identity is known": ([http(source(principals=["*"]))], {"identity": None}, DEPENDS, ["rules"]),
    "no header is known": ([http(when("request.headers[a]", "b"))], {"headers": None}, DEPENDS, ["rules"]),
    "present or not": ([http(when("request.headers[a]", "*"))], {"headers": None}, DEPENDS, ["rules"]),
    "the path with its query": ([http(when("request.headers[:path]", "/*"))], {}, DEPENDS, ["rules"]),
    "no host is known": ([http(operation(hosts=["*"]))], {"host": None}, DEPENDS, ["rules"]),
    "no server name is known": ([http(when("connection.sni", "a"))], {"sni": None}, DEPENDS, ["rules"]),
    "no client's address is known": (
        [http(source(ipBlocks=["::/0"]))],
        {"source_ip": None},
        DEPENDS,
        ["rules"],
    ),
    "no client's client is known": (
        [http(source(remoteIpBlocks=["::/0"]))],
        {"remote_ip": None},
        DEPENDS,
        ["rules"],
    ),
    "no server's address is known": (
        [http(when("destination.ip", "::/0"))],
        {"destination_ip": None},
        DEPENDS,
        ["rules"],
    ),
}


@pytest.mark.parametrize(("policies", "unknown", "access", "deciding"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known(policies, unknown, access, deciding):
    verdict = decide(MeshConfig(), rules_for(policies), get(**unknown))
    assert verdict.access is access
    assert [rule.policy.name for rule in verdict.rules] == deciding


MASKED = ("identity", "source_ip", "remote_ip", "destination_ip", "sni", "host", "method", "path", "headers")
CLIENTS = ("10.1.0.5", "10.1.0.6", "10.1.1.7")
SERVER = pod("server", "full", app="web")
REQUESTS = st.builds(
    Request,
    identity=st.sampled_from(
        ["", *(f"spiffe://cluster.local/ns/{rest}" for rest in ("apps/sa/client", "sa/sa/ns", "ns/sa/sa"))]
    ),
    source_ip=st.sampled_from(CLIENTS),
    remote_ip=st.none(),
    destination_ip=st.just(SERVER.address),
    port=st.sampled_from([8080, 9000, 1]),
    sni=st.just(""),
    host=st.sampled_from(["web.full", "web.full:80", "other"]),
    method=st.sampled_from(["GET", "POST"]),
    path=st.sampled_from(["/", "/info/x", "/admin/a", "/admin/b/a"]),
    headers=st.sampled_from([{}, {"x-token": "a"}, {"x-token": "bb"}]),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 100_000),
    request=REQUESTS,
    masked=st.sets(st.sampled_from(MASKED)),
    is_http=st.booleans(),
)
def test_decision_equals_the_documents_and_holds_for_every_completion(seed, request, masked, is_http):
    """Whatever is not known, a request that is allowed or denied is so with every value of the rest."""
    policies = random_policies(Random(seed), [*CLIENTS, SERVER.address])
    found = rules_for(policies, http=is_http, to=SERVER)
    whole = replace(request, remote_ip=request.source_ip)
    call = Call(
        identity=whole.identity.removeprefix("spiffe://"),
        address=whole.source_ip,
        server=SERVER.address,
        port=whole.port,
        host=whole.host if is_http else "",
        method=whole.method if is_http else "",
        path=whole.path if is_http else "",
        headers=whole.headers if is_http else {},
    )
    expected = ALLOWED if is_allowed(policies, call, "full", SERVER.meta.labels) else DENIED
    assert decide(MeshConfig(), found, whole).access is expected
    partial = decide(MeshConfig(), found, replace(whole, **dict.fromkeys(masked)))
    assert partial.access in (expected, DEPENDS)
    assert partial.access is not DEPENDS or (masked and partial.rules)


def test_unsupported_conditions_never_reach_a_decision():
    condition = Condition(
        Attribute.UNSUPPORTED, (Pattern(PatternKind.PRESENT, ""),), name="requestPrincipals"
    )
    (named,) = rules_for([http(ANY)]).allow or ()
    rules = Rules(allow=(named._replace(rule=Rule(conditions=(condition,))),))
    with pytest.raises(AssertionError, match="unsupported"):
        decide(MeshConfig(), rules, GET)


def test_patterns_of_spiffe_ids():
    contains = SpiffePattern(Pattern(PatternKind.CONTAINS, "x/sa/"), unless_contains="/ns/sa/sa/")
    assert contains.matches("spiffe://d/ns/ax/sa/b")
    assert not contains.matches("spiffe://d/ns/a/sa/x")
