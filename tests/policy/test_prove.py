"""Assertions: proven for every client that could exist, or with a counterexample that is true."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from random import Random
from string import ascii_lowercase, digits
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policy.meshes import meshes
from tests.policy.naive_access import (
    ADDRESSES,
    CLIENTS,
    IDENTITIES,
    SERVER,
    SERVICE,
    facts,
    naive_access,
    naive_client,
    without_requests,
)
from tests.policy.world import mesh, peer, pod, service
from tests.support.authorization import (
    authorization_policy,
    operation,
    random_policies,
    source,
    when,
)
from tests.support.predictions import predict
from xds.mesh.model.assertions import Assertion
from xds.mesh.model.authorization import Attribute, Pattern
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError
from xds.mesh.model.objects import Fact, Interception, MeshConfig
from xds.mesh.model.redirection import Redirection
from xds.mesh.parse.assertions import parse_assertions
from xds.mesh.policy.authorization import spiffe_patterns
from xds.mesh.policy.identities import account_of, representatives
from xds.mesh.policy.prove import Proof, Verdict, prove, unknown_clients
from xds.mesh.policy.reach import Result

HOLDS, FAILS, UNKNOWN = Verdict
DB, API, NAKED = pod("db", "prod"), pod("api", "shop"), pod("naked", "zoo", sidecar=False)
WORLD = (DB, API, NAKED, service("db", "prod"), peer("prod", "STRICT"))
TO = {"to": [{"services": ["db.prod:90"]}]}
API_ONLY = {"only": {"from": [{"serviceAccounts": ["shop/api"]}], **TO}}
SHOP_ONLY = {"only": {"from": [{"namespaces": ["shop"]}], **TO}}


def assertion(body: Mapping[str, Any]) -> Assertion:
    (found,), problems = parse_assertions({"assertions": [{"name": "it", **body}]}, str)
    assert not problems
    return found


def proven(world: Mesh, body: Mapping[str, Any]) -> Proof:
    return prove(world, assertion(body))


def seen(proof: Proof) -> list[tuple[str, str, str]]:
    """Return the accounts, or a new one, the servers and the reason of each counterexample."""
    return [
        (
            ", ".join(each.clients.accounts)
            or (each.clients.identity and f"new {account_of(each.clients.identity)}")
            or "plaintext",
            ", ".join(each.servers),
            each.why,
        )
        for each in proof.counterexamples
    ]


def _unnamed(identity: str) -> str:
    return f"new {account_of(identity)}" if identity else "plaintext"


def allow(*rules: Any, namespace: str = "prod", **more: Any) -> Fact:
    (found,) = facts([authorization_policy(namespace, *rules, **more)])
    return found


ALLOWED = "allowed by AuthorizationPolicy prod/rules"
PORT = "db.prod:90"
CASES: dict[str, tuple[Iterable[Fact], Mapping[str, Any], list[tuple[str, str, str]]]] = {
    # Facts beside WORLD, the assertion, and the counterexamples.
    "only its client": ([allow(source(serviceAccounts=["shop/api"]))], API_ONLY, []),
    "no policy": (
        [],
        API_ONLY,
        [("prod/db, zoo/naked", PORT, "no AuthorizationPolicy applies")],
    ),
    "another account of the namespace, which does not exist": (
        [allow(source(namespaces=["shop"]))],
        API_ONLY,
        [("new shop/other", PORT, ALLOWED)],
    ),
    "a namespace that a wildcard includes": (
        [allow(source(namespaces=["shop*"]))],
        SHOP_ONLY,
        [("new shopother/other", PORT, ALLOWED)],
    ),
    "the same account in every namespace": (
        [allow(source(principals=["*/sa/api"]))],
        SHOP_ONLY,
        [("new other/api", PORT, ALLOWED)],
    ),
    "a start of an account": (
        [allow(source(principals=["cluster.local/ns/shop/sa/ap*"]))],
        {"only": {"from": [{"serviceAccounts": ["shop/api"]}], **TO}},
        [("new shop/apother", PORT, ALLOWED)],
    ),
    "an account that is named in whole and in parts": (
        [allow(source(namespaces=["shop"], principals=["*/sa/api"]))],
        API_ONLY,
        [],
    ),
    "all but a namespace": (
        [allow(source(notNamespaces=["zoo"]))],
        {"deny": {"from": [{"namespaces": ["zoo"]}], **TO}},
        [],
    ),
    "all but one of two": (
        [allow(source(notNamespaces=["zoo"]))],
        {"deny": {"from": [{"namespaces": ["zoo", "shop"]}], **TO}},
        [("shop/api", PORT, ALLOWED)],
    ),
    "only some requests are still reached": (
        [
            allow(
                {**source(namespaces=["zoo"]), **operation(ports=["9090"]), **when("source.ip", "10.0.0.0/8")}
            )
        ],
        {"deny": {"from": [{"namespaces": ["zoo"]}], **TO}},
        [("zoo/naked", PORT, "if any request from 10.0.0.0/8 (AuthorizationPolicy prod/rules)")],
    ),
    "rules for another port": (
        [allow(source(namespaces=["zoo"]), operation(ports=["8080"]))],
        {"deny": {"from": [{"namespaces": ["shop"]}], **TO}},
        [],
    ),
    "a namespace of 63 characters that a wildcard includes": (
        [allow(source(namespaces=[f"{'a' * 62}*", "shop"]))],
        SHOP_ONLY,
        [(f"new {'a' * 63}/other", PORT, ALLOWED)],
    ),
    "one namespace with a start and an end that overlap": (
        [
            allow(source(notNamespaces=["*-customer-facing-services-eu-central-1"]), action="DENY"),
            allow(source(notNamespaces=["team-payments-production-customer*"]), name="start", action="DENY"),
        ],
        {"deny": TO},
        [
            (
                "new team-payments-production-customer-facing-services-eu-central-1/other",
                PORT,
                "no AuthorizationPolicy denies it",
            )
        ],
    ),
    "one namespace that is long enough, of which one account is allowed by name": (
        [allow(source(namespaces=[f"{'a' * 63}*"], notPrincipals=[f"cluster.local/ns/{'a' * 63}/sa/known"]))],
        {"deny": TO},
        [(f"new {'a' * 63}/other", PORT, ALLOWED)],
    ),
    "an account whose name is invalid": (
        [allow(source(principals=["*/A_B"])), replace(API, service_account="A_B")],
        {"deny": TO},
        [("shop/A_B", PORT, ALLOWED)],
    ),
    "an account of a foreign trust domain": (
        [allow(source(principals=["example.org/ns/shop/sa/api"]))],
        {"deny": TO},
        [],
    ),
    "nobody at all": ([allow()], {"deny": TO}, []),
    "plaintext reaches it, so anyone does": (
        [peer("prod", "PERMISSIVE")],
        {"deny": {"from": [{"namespaces": ["zoo"]}], **TO}},
        [
            (
                "plaintext",
                PORT,
                "mode PERMISSIVE (PeerAuthentication prod/default); no AuthorizationPolicy applies",
            ),
            ("zoo/naked", PORT, "no AuthorizationPolicy applies"),
        ],
    ),
    "policy denies plaintext, which the mode accepts": (
        [peer("prod", "PERMISSIVE"), allow(source(principals=["*"]))],
        {"encrypted": TO},
        [],
    ),
    "but the mode is not STRICT": (
        [peer("prod", "PERMISSIVE"), allow(source(principals=["*"]))],
        {"strict": TO},
        [("plaintext", PORT, "mode PERMISSIVE (PeerAuthentication prod/default)")],
    ),
    "exempt port": (
        [peer("prod", "STRICT", name="db", ports={9090: "PERMISSIVE"}, app="db")],
        {"encrypted": {"to": [{"namespaces": ["prod"]}]}},
        [
            (
                "plaintext",
                "port 9090 of db.prod",
                "mode PERMISSIVE (PeerAuthentication prod/db); no AuthorizationPolicy applies",
            )
        ],
    ),
    "port that bypasses the sidecar": (
        [replace(DB, redirection=Redirection(exclude_inbound_ports=(7000,)))],
        {"encrypted": {"to": [{"namespaces": ["prod"]}]}},
        [("plaintext", "port 7000 of db.prod", "no sidecar intercepts the port")],
    ),
    "mode NONE: ports without a Service have no listener": (
        [replace(DB, interception=Interception.NONE)],
        {"encrypted": {"to": [{"namespaces": ["prod"]}]}},
        [("plaintext", "other ports of db.prod", "no sidecar intercepts the port")],
    ),
    "pod that is not ready": (
        [replace(DB, ready=False)],
        SHOP_ONLY,
        [("prod/db, zoo/naked", PORT, "no AuthorizationPolicy applies")],
    ),
    "pod that has ended, which had no sidecar": (
        [allow(), replace(pod("job", "prod", sidecar=False, app="db"), ended=True)],
        {"deny": TO},
        [],
    ),
    "every port but those of a namespace": ([], {"strict": {"to": [{"notNamespaces": ["shop", "zoo"]}]}}, []),
    "pod without a sidecar": (
        [],
        {"strict": {"to": [{"namespaces": ["zoo"]}]}},
        [("plaintext", "other ports of naked.zoo", "no sidecar intercepts the port")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_counterexamples(case: str) -> None:
    added, body, expected = CASES[case]
    proof = proven(mesh(*{fact.ref: fact for fact in (*WORLD, *added)}.values()), body)
    assert seen(proof) == expected
    assert proof.verdict is (FAILS if expected else HOLDS)


def test_number_of_counterexamples_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xds.mesh.policy.prove.MAX_COUNTEREXAMPLES", 1)
    world = mesh(*WORLD, service("naked", "zoo"))
    found = proven(world, {"deny": {"to": [{"services": ["db.prod", "naked.zoo"]}]}})
    assert [each.clients.mode for each in found.counterexamples] == ["mtls"]
    assert (found.verdict, found.is_truncated) == (FAILS, True)
    assert not proven(world, {"deny": {"to": [{"services": ["db.prod:90"]}]}}).is_truncated


def test_what_is_not_known_does_not_hold() -> None:
    world = mesh(service("db", "prod"), peer("prod", "STRICT"), API, allow())
    assert proven(world, {"deny": TO})[1:4:2] == (UNKNOWN, ("pods of db.prod:90",))
    assert prove(mesh(*WORLD, allow()), assertion({"deny": TO}), is_complete=False)[1:4] == (
        UNKNOWN,
        (),
        (),
    )
    # A counterexample is one, whatever else there is.
    assert prove(mesh(*WORLD), assertion({"deny": TO}), is_complete=False).verdict is FAILS


@pytest.mark.parametrize(
    ("item", "unknown"),
    [
        ({"namespaces": ["empty"]}, "pods of namespaces empty"),
        ({"notNamespaces": ["prod", "shop", "zoo"]}, "pods of namespaces not prod, not shop, not zoo"),
        ({"services": ["none.empty:80"]}, "pods of none.empty:80"),
    ],
)
def test_item_without_pods_does_not_hold(item: Mapping[str, Any], unknown: str) -> None:
    world = mesh(*WORLD, service("none", "empty"))
    proof = proven(world, {"strict": {"to": [{"namespaces": ["prod"]}, item]}})
    assert proof[1:4] == (UNKNOWN, (), (unknown,))
    nothing = proven(mesh(service("none", "empty")), {"strict": {}})
    assert nothing[1:4] == (UNKNOWN, (), ("pods of the mesh",))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"strict": {"to": [{"services": ["db.prdo"]}]}}, "did you mean db.prod?"),
        ({"strict": {"to": [{"services": ["db.prod:91"]}]}}, "port 91 not found (service db.prod)"),
        ({"strict": {"to": [{"services": ["d.prod"]}]}}, "service d.prod not found"),
        ({"strict": {"to": [{"namespaces": ["prdo"]}]}}, "namespace prdo not found (to); did you mean prod?"),
        ({"strict": {"to": [{"namespaces": ["x*"]}]}}, "namespace x* not found (to); known: prod, shop, zoo"),
        ({"deny": {"from": [{"namespaces": ["zooo"]}], **TO}}, "namespace zooo not found (from)"),
        ({"deny": {"from": [{"serviceAccounts": ["zoo/nake"]}], **TO}}, "did you mean zoo/naked?"),
        ({"only": {"from": [{"notNamespaces": ["zooo"]}], **TO}}, "namespace zooo not found (from)"),
    ],
)
def test_assertion_about_nothing_is_an_error(body: Mapping[str, Any], error: str) -> None:
    def check() -> None:
        list(unknown_clients(mesh(*WORLD), assertion(body)))
        proven(mesh(*WORLD), body)

    with pytest.raises(UnknownNameError) as raised:
        check()
    assert error in str(raised.value)


def test_unknown_client_that_is_an_exception_is_a_notice() -> None:
    body = {"only": {"from": [{"namespaces": ["shopp"]}], **TO}}
    (message,) = unknown_clients(mesh(*WORLD), assertion(body))
    assert "did you mean shop?" in message
    assert not [*unknown_clients(mesh(*WORLD), assertion(SHOP_ONLY))]
    denied = {"deny": {"from": [{"notNamespaces": ["shopp"]}], **TO}}
    assert len(list(unknown_clients(mesh(*WORLD), assertion(denied)))) == 1


# --- every identity -----------------------------------------------------------------------------------------

DOMAINS = ("cluster.local", "ns")
SHORT = ["".join(letters) for size in (1, 2, 3, 4) for letters in product("as", repeat=size)] + ["ns", "asns"]
NAMES = (*SHORT, "q", "aqa", "sqs", "other", "new")
UNIVERSE = [f"{d}/ns/{n}/sa/{a}" for d in DOMAINS for n in NAMES for a in (*SHORT[:14], "q", "other", "new")]
"""Identities, also those that are likely to be made up."""


@st.composite
def identity_patterns(draw: st.DrawFn) -> tuple[Attribute, Pattern]:
    """A pattern with a part of an identity of the universe, and perhaps a wildcard."""
    attribute = draw(
        st.sampled_from(
            [Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.SERVICE_ACCOUNT, Attribute.TRUST_DOMAIN]
        )
    )
    names = st.sampled_from(["other", "new"]) | st.sampled_from(SHORT)
    identity = f"{draw(st.sampled_from(DOMAINS))}/ns/{draw(names)}/sa/{draw(names)}"
    domain, _, rest = identity.partition("/ns/")
    namespace, _, account = rest.partition("/sa/")
    match attribute:
        case Attribute.SERVICE_ACCOUNT:
            return attribute, Pattern.parse(f"{namespace}/{account}")
        case Attribute.PRINCIPAL:
            text = identity
        case Attribute.NAMESPACE:
            text = namespace
        case _:
            text = domain
    at = draw(st.integers(0, len(text)))
    return attribute, Pattern.parse(draw(st.sampled_from([text, f"{text[:at]}*", f"*{text[at:]}"])))


@settings(max_examples=300, deadline=None)
@given(st.lists(identity_patterns(), max_size=6), st.sampled_from([4, 63]))
def test_representatives_are_of_every_class(
    patterns: list[tuple[Attribute, Pattern]], max_length: int
) -> None:
    """Whatever patterns tell apart, among thousands of identities, they tell apart among these.

    With a small maximum length of names, most patterns leave no room for made-up names.
    """
    valid = re.compile(f"(?=.{{1,{max_length}}}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
    config = MeshConfig(trust_domain=DOMAINS[0], trust_domain_aliases=DOMAINS[1:])

    def classes(identities: Iterable[str]) -> set[tuple[bool, ...]]:
        compiled = [spiffe_patterns(config, *pattern) for pattern in patterns]
        return {
            tuple(any(one.matches(each) for one in several) for several in compiled) for each in identities
        }

    with pytest.MonkeyPatch.context() as patch:
        for limit in ("_LABEL", "_SUBDOMAIN"):
            patch.setattr(f"xds.mesh.policy.identities.{limit}", valid)
        found = list(representatives(config, patterns))
    universe = [f"spiffe://{each}" for each in UNIVERSE]
    existing = [each for each in universe if all(map(valid.fullmatch, account_of(each).split("/")))]
    assert classes(existing) <= classes(found)
    assert len(found) == len(set(found))


def test_representatives_include_names_that_all_longer_patterns_leave() -> None:
    longer = (Pattern.parse(f"as{letter}*") for letter in (*ascii_lowercase, *digits, "-"))
    patterns = [(Attribute.NAMESPACE, each) for each in (*longer, Pattern.parse("as*"), Pattern.parse("*s"))]
    accounts = {account_of(each) for each in representatives(MeshConfig(), patterns)}
    assert "as" in {account.partition("/")[0] for account in accounts}


# --- brute force --------------------------------------------------------------------------------------------

SOURCES = st.fixed_dictionaries(
    {},
    optional={
        "namespaces": st.lists(
            st.sampled_from(["apps", "ap*", "*ps", "outside", "*", "sa", "*s"]), min_size=1, max_size=2
        ),
        "notNamespaces": st.lists(st.sampled_from(["apps", "a*", "ns"]), min_size=1, max_size=1),
    },
) | st.just({"serviceAccounts": ["apps/client"]})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 100_000),
    mode=st.sampled_from(["STRICT", "PERMISSIVE", "DISABLE"]),
    claim=st.sampled_from(["only", "deny", "encrypted"]),
    items=st.lists(SOURCES.filter(bool), min_size=1, max_size=2),
    port=st.sampled_from([(80, 8080), (90, 9000)]),
    decides_requests=st.booleans(),
)
def test_verdict_equals_brute_force(seed, mode, claim, items, port, decides_requests) -> None:
    """A naive reading of the policies, for hundreds of clients and requests.

    If conditions on requests decide, some may be impossible together, so only one direction holds.
    """
    policies = random_policies(Random(seed), [*ADDRESSES, SERVER.address])
    policies = policies if decides_requests else without_requests(policies)
    world = mesh(SERVER, *CLIENTS, SERVICE, peer("full", mode), *facts(policies))
    about_clients = {} if claim == "encrypted" else {"from": items}
    proof = proven(world, {claim: {**about_clients, "to": [{"services": [f"web.full:{port[0]}"]}]}})

    def violates(identity: str) -> bool:
        if claim == "encrypted" and identity:
            return False
        is_selected = any(naive_client(item, identity) for item in items)
        is_concerned = not identity or is_selected is (claim == "deny")
        return is_concerned and naive_access(policies, mode, identity, port[1], all_requests=decides_requests)

    assert proof.verdict is not UNKNOWN
    if any(violates(identity) for identity in IDENTITIES):
        assert proof.verdict is FAILS
    for counterexample in proof.counterexamples:
        if not decides_requests:
            assert violates(counterexample.clients.identity.removeprefix("spiffe://")), counterexample


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=meshes())
def test_no_client_reaches_what_is_proven_closed(world: Mesh) -> None:
    """Every connection that is predicted to work contradicts the assertion that no such client connects."""
    verdicts: dict[tuple[str, str], Verdict] = {}
    for outcome in predict(world):
        service_name = f"{outcome.service.name}.{outcome.service.namespace}:{outcome.port.port}"
        if outcome.result is Result.FAILS or outcome.service.entry_host:
            continue
        account = f"{outcome.client.namespace}/{outcome.client.service_account}"
        key = (service_name, account)
        if key not in verdicts:
            body = {"deny": {"from": [{"serviceAccounts": [account]}], "to": [{"services": [service_name]}]}}
            verdicts[key] = proven(world, body).verdict
        assert verdicts[key] is FAILS, outcome
