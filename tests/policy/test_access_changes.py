"""Access that clients gain and lose, against brute force."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policy.naive_access import (
    ADDRESSES,
    CLIENTS,
    IDENTITIES,
    SERVER,
    SERVICE,
    facts,
    naive_access,
    without_requests,
)
from tests.policy.world import HTTP, mesh, peer, pod, service, slices
from tests.support.authorization import authorization_policy, operation, random_policies, source
from xds.mesh.model.objects import EndpointAddress, Fact, Ref
from xds.mesh.policy.access_changes import AccessEffect, access_changes, unknown_servers

GAINED, MAY_BE_GAINED, LOST = AccessEffect
DB, API, NAKED = pod("db", "prod", color="db"), pod("api", "shop"), pod("naked", "zoo", sidecar=False)
WORLD = (DB, API, NAKED, service("db", "prod"), peer("prod", "STRICT"))
BLUE, GREEN = (pod(color, "prod", app="db", color=color) for color in ("blue", "green"))
REPLICAS = [pod(f"web-6d9f8b6c5-{name}", "prod", app="db", color="green") for name in ("bcdfg", "hjklm")]
BY_POLICY = "(AuthorizationPolicy prod/rules)"
GETS = operation(methods=["GET"], ports=["8080"])
EXTERNAL = service("external", "prod")
BOTH = "db.prod:80, db.prod:90"
DISABLED = "before: mode DISABLE (PeerAuthentication prod/default); no AuthorizationPolicy applies"
PERMISSIVE = "mode PERMISSIVE (PeerAuthentication prod/default)"
BY_RULES = "allowed by AuthorizationPolicy prod/rules"


def allow(*rules: Any, **more: Any) -> Fact:
    (found,) = facts([authorization_policy("prod", *rules, **more)])
    return found


def closed(color: str) -> Fact:
    """A policy that denies everything to the pods of a color."""
    return allow(name=color, selector={"color": color})


SHOP = allow(source(namespaces=["shop"]))
CASES: dict[str, tuple[Iterable[Fact], Iterable[Fact], list[tuple[str, str, str, str]]]] = {
    # Facts beside WORLD before and after; effect, clients, servers and reason of each change.
    "nothing": ([SHOP], [SHOP], []),
    "plaintext is lost, and what identities had only by it": (
        [peer("prod", "DISABLE")],
        [SHOP],
        [
            (LOST, "any client", BOTH, DISABLED),
            (LOST, "prod/db, zoo/naked", BOTH, DISABLED),
        ],
    ),
    "first policy": (
        [],
        [SHOP],
        [(LOST, "prod/db, zoo/naked", BOTH, "before: no AuthorizationPolicy applies")],
    ),
    "no policy any more": (
        [SHOP],
        [],
        [(GAINED, "prod/db, zoo/naked", BOTH, "no AuthorizationPolicy applies")],
    ),
    "another account": (
        [SHOP],
        [allow(source(namespaces=["shop"]), source(serviceAccounts=["zoo/naked"]))],
        [(GAINED, "zoo/naked", BOTH, BY_RULES)],
    ),
    "wildcard for what does not exist": (
        [SHOP],
        [allow(source(namespaces=["shop*"]))],
        [(GAINED, "shopother/other (does not exist yet)", BOTH, BY_RULES)],
    ),
    "plaintext": (
        [],
        [peer("prod", "PERMISSIVE")],
        [(GAINED, "any client", BOTH, f"{PERMISSIVE}; no AuthorizationPolicy applies")],
    ),
    "plaintext, which no identity had": (
        [allow()],
        [peer("prod", "PERMISSIVE")],
        [(GAINED, "any client", BOTH, f"{PERMISSIVE}; no AuthorizationPolicy applies")],
    ),
    "no sidecar any more": (
        [],
        [replace(DB, meta=replace(DB.meta, labels={"app": "db"}))],
        [(GAINED, "any client", BOTH, "no sidecar intercepts the port")],
    ),
    "fewer requests": (
        [SHOP],
        [allow({**source(namespaces=["shop"]), **operation(methods=["GET"])})],
        [(LOST, "shop/api", BOTH, f"before: {BY_RULES}")],
    ),
    "other requests": (
        [allow(operation(methods=["GET"], ports=["8080"]))],
        [allow(operation(methods=["PUT"], ports=["8080"]))],
        [
            (
                MAY_BE_GAINED,
                "any service account",
                "db.prod:80",
                f"if PUT {BY_POLICY}; before: if GET {BY_POLICY}",
            )
        ],
    ),
    "the same requests by another name": (
        [allow(GETS)],
        [allow(GETS, name="renamed")],
        [],
    ),
    "the same requests by another number": (
        [allow(GETS)],
        [allow({**source(namespaces=["none"]), **operation(methods=["PUT"])}, GETS)],
        [
            (
                MAY_BE_GAINED,
                "none/other (does not exist yet)",
                "db.prod:80",
                f"if PUT {BY_POLICY}; if GET {BY_POLICY}; before: if GET {BY_POLICY}",
            )
        ],
    ),
    "all other requests": (
        [allow(GETS)],
        [allow(GETS, action="DENY")],
        [
            (GAINED, "any service account", "db.prod:90", "no AuthorizationPolicy denies it"),
            (
                MAY_BE_GAINED,
                "any service account",
                "db.prod:80",
                f"unless GET {BY_POLICY}; before: if GET {BY_POLICY}",
            ),
        ],
    ),
    "new service": (
        [SHOP],
        [SHOP, service("other", "prod", app="db")],
        [(GAINED, "shop/api", "other.prod:80, other.prod:90", BY_RULES)],
    ),
    "removed service": (
        [SHOP, service("other", "prod", app="db")],
        [SHOP],
        [(LOST, "shop/api", "other.prod:80, other.prod:90", f"before: {BY_RULES}")],
    ),
    "endpoint that opens beside an open one": (
        [BLUE, closed("blue")],
        [BLUE],
        [(GAINED, "any service account", BOTH, "no AuthorizationPolicy applies")],
    ),
    "endpoint that opens while another one closes": (
        [BLUE, GREEN, closed("blue")],
        [BLUE, GREEN, closed("green")],
        [
            (GAINED, "any service account", BOTH, "no AuthorizationPolicy applies"),
            (LOST, "any service account", BOTH, "before: no AuthorizationPolicy applies"),
        ],
    ),
    "new endpoint, which is open beside a closed one": (
        [closed("db")],
        [closed("db"), BLUE],
        [(GAINED, "any service account", BOTH, "no AuthorizationPolicy applies")],
    ),
    "new pod of a workload that is closed beside an open one": (
        [REPLICAS[0], closed("green")],
        [REPLICAS[1], closed("green")],
        [],
    ),
    "removed endpoint, which was closed": ([BLUE, closed("blue")], [], []),
    "removed endpoint, which was open beside a closed one": (
        [closed("db"), BLUE],
        [closed("db")],
        [(LOST, "any service account", BOTH, "before: no AuthorizationPolicy applies")],
    ),
    "addresses without a pod": (
        [EXTERNAL, slices(EXTERNAL, "192.0.2.1")],
        [EXTERNAL, slices(EXTERNAL, "192.0.2.2")],
        [],
    ),
}


def test_only_lost_access_is_no_gain() -> None:
    assert [effect.is_gain for effect in (GAINED, MAY_BE_GAINED, LOST)] == [True, True, False]


@pytest.mark.parametrize("case", CASES)
def test_changes(case: str) -> None:
    before, after, expected = CASES[case]
    worlds = [mesh(*{fact.ref: fact for fact in (*WORLD, *added)}.values()) for added in (before, after)]
    found = [
        (each.effect, str(each.clients), ", ".join(each.servers), each.why)
        for each in access_changes(*worlds)
    ]
    assert found == expected


def test_service_ports_without_known_pods_are_left_out() -> None:
    listed = EndpointAddress(address="192.0.2.1", pod=Ref("Pod", "prod", "gone"))
    outside = replace(service("outside", "prod"), selector={}, entry_host="example.org")
    world = mesh(*WORLD, service("empty", "prod", HTTP), EXTERNAL, slices(EXTERNAL, listed), outside)
    assert [*unknown_servers(world)] == [
        "pods of empty.prod:80",
        "pods of external.prod:80",
        "Pod prod/gone, which EndpointSlice prod/external-1 lists",
        "pods of external.prod:90",
    ]


MODES = st.sampled_from(["STRICT", "PERMISSIVE", "DISABLE"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seeds=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), modes=st.tuples(MODES, MODES))
def test_changes_equal_brute_force(seeds: tuple[int, int], modes: tuple[str, str]) -> None:
    """A naive reading of both states, for hundreds of clients: who can connect only in one of them."""
    policies = [
        without_requests(random_policies(Random(seed), [*ADDRESSES, SERVER.address])) for seed in seeds
    ]
    worlds = [
        mesh(SERVER, *CLIENTS, SERVICE, peer("full", mode), *facts(each))
        for mode, each in zip(modes, policies, strict=True)
    ]
    changes = access_changes(*worlds)
    for port, target in ((80, 8080), (90, 9000)):

        def reaches(state: int, identity: str, target: int = target) -> bool:
            return any(
                naive_access(policies[state], modes[state], sent, target, all_requests=False)
                for sent in {identity, ""}
            )

        expected = set()
        for identity in IDENTITIES:
            old, new = reaches(0, identity), reaches(1, identity)
            if old != new:
                expected.add((GAINED if new else LOST, bool(identity)))
        found = [each for each in changes if f"web.full:{port}" in each.servers]
        # What plaintext gains, all identities do, and it is reported only once.
        plaintext = {each.effect for each in found if not each.clients.identity}
        assert {(effect, False) for effect in plaintext} == {each for each in expected if not each[1]}
        identities = {(each.effect, True) for each in found if each.clients.identity}
        assert identities == {
            (effect, each)
            for effect, each in expected
            if each and (effect is LOST or effect not in plaintext)
        }
        for each in found:
            identity = each.clients.identity.removeprefix("spiffe://")
            assert reaches(1, identity) is (each.effect is GAINED)
            assert reaches(0, identity) is (each.effect is LOST)
