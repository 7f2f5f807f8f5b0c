"""Unused access of ALLOW policies: cases, and a naive reading of the manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.commands import xds
from tests.observe.records import response
from tests.observe.test_least_privilege import DAY, FRONT, MANIFESTS, WEB, facts, flow
from tests.policy.world import HTTP, ROOT, TCP, mesh, peer, pod, service
from tests.support.authorization import Call, authorization_policy, is_allowed, operation, source, when
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ContainerPort, Interception
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.record import Flow
from xds.mesh.observe.unused_access import UnusedRule, unused_access

BATCH = Client("jobs", "batch")
PODS = (
    replace(pod("web-1", "shop", app="web"), service_account="web"),
    replace(pod("web-2", "shop", app="web"), service_account="web"),
    pod("front", "shop"),
    pod("batch", "jobs"),
)
WORLD = (*PODS, service("web", "shop", HTTP, app="web"))
WEB_POD = {"selector": {"app": "web"}}
GONE = "cluster.local/ns/jobs/sa/gone"


def accounts(row: UnusedRule) -> tuple[str, ...]:
    return tuple(f"{each.namespace}/{name}" for each in row.clients for name in each.accounts)


def rows(world: Mesh, flows: list[Flow], *namespaces: str) -> list[tuple[Any, ...]]:
    """Return (index of the rule, whether it is used, servers, accounts, others)."""
    found = unused_access(world, flows, namespaces).rules
    return [(row.rule, row.is_used, ", ".join(row.servers), accounts(row), row.others) for row in found]


ADDRESS = Client("", "192.0.2.7")
CALLED = [flow(FRONT), flow(BATCH)]
SERVER = "web.shop:80"
CASES: dict[str, tuple[list[dict[str, Any]], list[Flow], list[tuple[Any, ...]]]] = {
    "all is used": ([source(namespaces=["jobs"]), source(serviceAccounts=["shop/front"])], CALLED, []),
    "a namespace of which one account called": (
        [source(namespaces=["shop"])],
        CALLED,
        [(0, True, SERVER, ("shop/web",), ())],
    ),
    "a rule that is not used": (
        [source(principals=["*/sa/batch"])],
        [flow(FRONT)],
        [(0, False, SERVER, ("jobs/batch",), ())],
    ),
    "identities that do not exist": (
        [
            source(principals=[GONE, "cluster.local/ns/shop/sa/front"], notNamespaces=["x"]),
            when("source.namespace", "old") | operation(methods=["GET"]),
        ],
        CALLED,
        [
            (0, True, SERVER, (), (f"source.principal {GONE}",)),
            (1, False, SERVER, (), ("source.namespace old",)),
        ],
    ),
    "an account that called and has no pod any more": (
        [source(principals=[GONE])],
        [flow(Client("jobs", "gone"))],
        [],
    ),
    "any client": (
        [{}],
        CALLED,
        [(0, True, SERVER, ("shop/web",), ("plaintext",))],
    ),
    "any client, in plaintext": (
        [{}],
        [flow(each, mode="PLAINTEXT") for each in (FRONT, Client("shop", "web"), ADDRESS)],
        [(0, True, SERVER, ("jobs/batch",), ())],
    ),
    "any client, in both ways": (
        [{}],
        [*CALLED, flow(FRONT, mode="PLAINTEXT")],
        [(0, True, SERVER, ("shop/web",), ())],
    ),
    "plaintext has no identity": (
        [source(principals=["*/sa/batch"])],
        [flow(BATCH, mode="PLAINTEXT")],
        [(0, False, SERVER, ("jobs/batch",), ())],
    ),
    "addresses": (
        [source(ipBlocks=["192.0.2.0/24", "198.51.100.0/24"])],
        [flow(ADDRESS, mode="PLAINTEXT")],
        [(0, True, SERVER, (), ("source.ip 198.51.100.0/24",))],
    ),
    "addresses of pods": (
        [source(ipBlocks=[f"{PODS[2].address}/32"])],
        [],
        [(0, False, SERVER, ("shop/front",), ("plaintext",))],
    ),
    "an address that is not known": (
        [source(ipBlocks=["192.0.2.0/24"])],
        [flow(Client("", "other addresses"), mode="PLAINTEXT")],
        [],
    ),
    "all rules that allow it are used": (
        [source(namespaces=["jobs"]), operation(methods=["GET"]) | source(serviceAccounts=["jobs/batch"])],
        [flow(BATCH)],
        [],
    ),
    "ports": (
        [source(namespaces=["jobs"]) | operation(ports=["7000", "8080"])],
        [flow(BATCH)],
        [(0, True, "port 7000 of web.shop", ("jobs/batch",), ())],
    ),
    "a called port that nothing names": (
        [source(namespaces=["jobs"])],
        [flow(BATCH, Target("shop", "pod/web-0", 7000))],
        [(0, True, SERVER, ("jobs/batch",), ())],
    ),
    "refused": (
        [source(namespaces=["jobs"])],
        [flow(BATCH, mode="REFUSED")],
        [(0, False, SERVER, ("jobs/batch",), ())],
    ),
    "what cannot be enforced permits nothing": ([source(requestPrincipals=["*"])], [], []),
}


@pytest.mark.parametrize(("rules", "flows", "expected"), CASES.values(), ids=CASES)
def test_rules(rules: list[dict[str, Any]], flows: list[Flow], expected: list[tuple[Any, ...]]) -> None:
    world = mesh(*WORLD, *facts(authorization_policy("shop", *rules, **WEB_POD)))
    assert rows(world, flows) == expected


ALL = authorization_policy("shop", source(namespaces=["shop", "jobs"]), **WEB_POD)
UNUSED = (0, False, SERVER, ("jobs/batch", "shop/front", "shop/web"), ())
WORLDS = {
    "dry run": (
        [*facts(ALL | {"metadata": ALL["metadata"] | {"annotations": {"istio.io/dry-run": "true"}}})],
        [],
    ),
    "deny": (
        facts(ALL, authorization_policy("shop", source(namespaces=["shop"]), action="DENY", name="deny")),
        [(0, False, SERVER, ("jobs/batch",), ())],
    ),
    "everything is denied": (facts(ALL, authorization_policy("shop", {}, action="DENY", name="deny")), []),
    "more values than a sidecar can receive": (
        facts(
            ALL, authorization_policy("shop", source(principals=[f"x/{n}" for n in range(5000)]), name="x")
        ),
        [],
    ),
    "strict": (
        [*facts(authorization_policy("shop", {}, **WEB_POD)), peer(ROOT, "STRICT")],
        [UNUSED],
    ),
    "plaintext only": (
        [*facts(authorization_policy("shop", {}, **WEB_POD)), peer(ROOT, "DISABLE")],
        [(0, False, SERVER, (), ("plaintext",))],
    ),
    "a port that bypasses the sidecar": (
        [
            *facts(ALL),
            *(
                replace(each, ports=(ContainerPort(port=7000),), interception=Interception.NONE)
                for each in PODS[:2]
            ),
        ],
        [UNUSED],
    ),
    "a port of a container": (
        [*facts(ALL), *(replace(each, ports=(ContainerPort(port=7000),)) for each in PODS[:2])],
        [(*UNUSED[:2], f"port 7000 of web.shop, {SERVER}", *UNUSED[3:])],
    ),
    "pods that have ended": ([*facts(ALL), *(replace(each, ended=True) for each in PODS[:2])], []),
    "a pod without an address": (
        [
            *facts(authorization_policy("shop", source(ipBlocks=["10.0.0.0/8"]), **WEB_POD)),
            replace(PODS[3], address=""),
        ],
        [(0, False, SERVER, ("shop/front", "shop/web"), ("plaintext",))],
    ),
}


@pytest.mark.parametrize(("more", "expected"), WORLDS.values(), ids=WORLDS)
def test_worlds(more: list[Any], expected: list[tuple[Any, ...]]) -> None:
    world = mesh(*{fact.ref: fact for fact in (*WORLD, *more)}.values())
    assert rows(world, []) == expected


def test_servers_with_equal_access_share_a_row() -> None:
    policies = facts(authorization_policy(ROOT, source(serviceAccounts=["shop/front"])))
    world = mesh(*WORLD, service("front", "shop", HTTP, TCP), service("batch", "jobs", HTTP), *policies)
    everywhere = "batch.jobs:80, front.shop:80, front.shop:90, web.shop:80"
    assert rows(world, []) == [(0, False, everywhere, ("shop/front",), ())]
    # The rule is used, although not in namespace jobs.
    assert rows(world, [flow(FRONT)], "jobs") == [(0, True, "batch.jobs:80", ("shop/front",), ())]


def test_workloads_without_an_allow_policy_are_counted() -> None:
    world = mesh(*WORLD, pod("bare", "jobs", sidecar=False), *facts(ALL))
    assert unused_access(world, []).unrestricted == 2
    assert unused_access(world, [], ["jobs"]).unrestricted == 1
    assert unused_access(world, [], ["jobs"]).checked == 0
    assert unused_access(world, []).checked == 1


# --- a naive reading of the manifests ----------------------------------------------------------------------

ATTRIBUTES = {
    "namespaces": "source.namespace",
    "principals": "source.principal",
    "serviceAccounts": "source.serviceAccount",
    "ipBlocks": "source.ip",
}
IDENTITIES = [
    *(("namespaces", value) for value in ("shop", "ghost", "jo*", "*s", "*")),
    *(("principals", value) for value in ("*/sa/front", "cluster.local/ns/ghost/*", GONE)),
    *(("serviceAccounts", value) for value in ("shop/front", "jobs/batch", "ghost/x")),
]
BLOCKS = [("ipBlocks", value) for value in ("192.0.2.0/24", "10.1.0.0/16", f"{PODS[2].address}/32")]
ADDRESSES = ("192.0.2.7", PODS[2].address, "8.8.8.8")
ACCOUNTS = [Client(each.namespace, each.service_account) for each in PODS[1:]]
GHOSTS = [Client("ghost", "x"), Client("ghost", "y"), Client("jobs", "gone")]
OTHERS = [Client(*each) for each in product(("shop", "jobs", "john", "pets", "ghost"), ("front", "other"))]
"""Accounts of each class that the rules can tell apart, beside those above."""
SERVERS = {
    8080: (WEB, "web.shop:80"),
    9090: (WEB._replace(port=90), "web.shop:90"),
    7000: (Target("shop", "pod/web-1", 7000), "port 7000 of web.shop"),
}


def rules(values: list[tuple[str, str]]) -> st.SearchStrategy[dict[str, Any]]:
    """A rule, each of whose sources has one condition."""

    def rule(chosen: list[tuple[str, str]], negated: bool, ports: list[str]) -> dict[str, Any]:
        names = {key: f"not{key[0].upper()}{key[1:]}" if negated else key for key in ATTRIBUTES}
        sources = [{"source": {names[key]: [value]}} for key, value in chosen]
        return ({"from": sources} if sources else {}) | (operation(ports=ports) if ports else {})

    chosen = st.lists(st.sampled_from(values), max_size=2, unique=True)
    ports = st.sampled_from([[], ["8080"], ["7000", "9090"]])
    return st.builds(rule, chosen, st.sampled_from([False, False, True]), ports)


ALLOWED = st.lists(rules(IDENTITIES + BLOCKS), min_size=1, max_size=2)
FLOWS = st.lists(
    st.builds(
        flow,
        st.sampled_from([*ACCOUNTS, *GHOSTS]),
        st.sampled_from([target for target, _ in SERVERS.values()]),
        st.sampled_from(["MTLS", "MTLS", "PLAINTEXT", "REFUSED"]),
        by_server=st.booleans(),
    )
    | st.builds(flow, st.just(ADDRESS), st.just(WEB), st.just("PLAINTEXT")),
    max_size=4,
)


class Sender(NamedTuple):
    """How a client calls."""

    client: Client
    identity: str
    address: str

    def matches(self, rule: dict[str, Any], port: int, *denied: dict[str, Any]) -> bool:
        policies = [
            authorization_policy("shop", rule),
            *(authorization_policy("shop", each, action="DENY") for each in denied),
        ]
        call = Call(self.identity, self.address, PODS[0].address, port, method="" if port == 9090 else "GET")
        return is_allowed(policies, call, "shop", {})


def senders(client: Client, *, mtls: bool = True, now: bool = True) -> Iterator[Sender]:
    """Yield how a client may call: from any address, if it has no pod or has called before."""
    own = [each.address for each in PODS if now and (each.namespace, each.service_account) == client]
    identity = f"cluster.local/ns/{client.namespace}/sa/{client.name}" if mtls else ""
    for address in own or ([client.name] if not client.namespace else ADDRESSES):
        yield Sender(client, identity, address)


class NaiveRule(NamedTuple):
    """A rule at a port, beside what DENY policies deny."""

    rule: dict[str, Any]
    port: int
    denied: list[dict[str, Any]]
    strict: bool

    def subjects(self, found: Iterable[Sender]) -> set[Client | str]:
        """Return the accounts whose calls the rule allows, and words for what they have."""
        accepted = [each for each in found if each.identity or not self.strict]
        allowed = [each for each in accepted if each.matches(self.rule, self.port, *self.denied)]
        values = [
            (f"{ATTRIBUTES[key]} {value}", source(**{key: [value]}))
            for each in self.rule.get("from", ())
            for key, [value] in each["source"].items()
            if key in ATTRIBUTES
        ]
        return {
            *(each.client for each in allowed if each.client.namespace),
            *(words for words, only in values if any(each.matches(only, self.port) for each in allowed)),
            *("plaintext" for each in allowed if not each.identity),
        }

    def given(self) -> set[Client | str]:
        """Return the existing accounts that it allows, and words for the clients that none of them is."""
        mine = self.subjects(sender for client in ACCOUNTS for sender in senders(client))
        clients = (*ACCOUNTS, *GHOSTS, *OTHERS)
        possible = [
            sender._replace(address=address)
            for sender in (
                *(each for client in clients for each in senders(client)),
                *senders(GHOSTS[0], mtls=False),
            )
            for address in ADDRESSES
        ]
        others = {each for each in self.subjects(possible) - mine if isinstance(each, str)}
        return others.union(each for each in mine if isinstance(each, Client))


@given(ALLOWED, ALLOWED, st.lists(rules(IDENTITIES), max_size=1), FLOWS, st.booleans())
def test_naive_reading(
    one: list[dict[str, Any]],
    other: list[dict[str, Any]],
    denied: list[dict[str, Any]],
    flows: list[Flow],
    strict: bool,
) -> None:
    allowed = {"one": one, "other": other}
    world = mesh(
        *PODS,
        service("web", "shop", HTTP, TCP, app="web"),
        *facts(
            *(authorization_policy("shop", *each, name=name, **WEB_POD) for name, each in allowed.items())
        ),
        *facts(*(authorization_policy("shop", each, action="DENY", name="deny") for each in denied)),
        peer(ROOT, "STRICT" if strict else "PERMISSIVE"),
    )
    calls = [
        (each.target, sender)
        for each in flows
        for mtls in [each.mode is TrafficMode.MTLS]
        if mtls or (each.mode is TrafficMode.PLAINTEXT and each.by_server)
        for sender in senders(each.client, mtls=mtls, now=False)
    ]
    expected, used_rules = {}, set()
    for name, index, rule in ((name, *each) for name, found in allowed.items() for each in enumerate(found)):
        for port, (target, server) in SERVERS.items():
            called = [sender for each, sender in calls if each == target]
            if port == 7000 and not called and "7000" not in str((one, other, denied)):
                continue
            naive = NaiveRule(rule, port, denied, strict)
            if used := naive.subjects(called):
                used_rules.add((name, index))
            if unused := naive.given() - used:
                expected[name, index, server] = unused
    rows = unused_access(world, flows).rules
    assert expected == {
        (row.policy.name, row.rule, server): {
            *(Client(*each.split("/")) for each in accounts(row)),
            *row.others,
        }
        for row in rows
        for server in row.servers
    }
    for row in rows:
        assert row.is_used is ((row.policy.name, row.rule) in used_rules)


# --- the command -------------------------------------------------------------------------------------------

SHOP = f"""{MANIFESTS}
---
apiVersion: v1
kind: Pod
metadata: {{name: front-1, namespace: shop, labels: {{app: front, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: front, containers: [{{name: front}}]}}
status: {{podIP: 10.0.0.2, phase: Running}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: web, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: Web_1}}}}
  rules:
  - from: [{{source: {{namespaces: [shop]}}}}]
  - from: [{{source: {{principals: [{GONE}]}}}}]
"""
PERIOD = "from 1970-01-02 00:00 UTC to 1970-01-03 00:00 UTC"
BARE = "workloads with a sidecar and without an ALLOW policy: 1\n"


def test_command(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(SHOP)
    file = tmp_path / "traffic.json"
    words = ("generate", "--manifests", tmp_path / "mesh.yaml", "--record", file, "--check")
    file.write_text(MessageToJson(response(DAY, 2 * DAY, flow(FRONT))))
    done = xds(*words)
    assert (done.exit_code, done.stderr) == (1, BARE)
    assert (
        done.stdout
        == f"""\
POLICY    RULE      SERVERS      UNUSED BY
shop/web  rules[0]  web.shop:80  shop/web
shop/web  rules[1]  web.shop:80  not used at all: source.principal {GONE}

2 of 2 rules of ALLOW policies allow access that was not used {PERIOD}
"""
    )
    done = xds(*words, "-o", "json")
    used, unused = (
        {
            "policy": "shop/web",
            "rule": 0,
            "isUsed": True,
            "serviceAccounts": ["shop/web"],
            "otherClients": [],
        },
        {
            "policy": "shop/web",
            "rule": 1,
            "isUsed": False,
            "serviceAccounts": [],
            "otherClients": [f"source.principal {GONE}"],
        },
    )
    assert (done.exit_code, json.loads(done.stdout)) == (
        1,
        {
            "since": "1970-01-02T00:00:00Z",
            "until": "1970-01-03T00:00:00Z",
            "gaps": [],
            "rules": [each | {"servers": ["web.shop:80"]} for each in (used, unused)],
            "checkedRules": 2,
            "unrestrictedWorkloads": 1,
        },
    )
    assert "--output has no effect without --check" in xds(*words[:-1], "-o", "json").stderr
    flows = [flow(each) for each in (FRONT, Client("shop", "web"), Client("jobs", "gone"))]
    file.write_text(MessageToJson(response(DAY, 2 * DAY, *flows)))
    done = xds(*words, "-n", "shop")
    assert (done.exit_code, done.stderr) == (0, BARE)
    assert done.stdout == f"0 of 2 rules of ALLOW policies allow access that was not used {PERIOD}\n"


def test_command_calls_nothing_unused_if_something_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(SHOP)
    file = tmp_path / "traffic.json"
    words = ("generate", "--manifests", tmp_path / "mesh.yaml", "--record", file, "--check")
    file.write_text(MessageToJson(response(DAY, 2 * DAY, enabled=False)))
    done = xds(*words)
    assert done.exit_code == 1
    assert (
        done.stderr
        == f"""\
the record is incomplete: observation is disabled
the record is incomplete: no traffic was recorded
{BARE}"""
    )
    assert "SERVERS      NOT OBSERVED\n" in done.stdout
    assert "not observed at all: shop/front, shop/web\n" in done.stdout
    assert done.stdout.endswith(
        "not known to be complete: 2 of 2 rules of ALLOW policies allow access that was not observed "
        f"{PERIOD}\n"
    )
    assert "used" not in done.stdout.lower()
    assert xds(*words, "--dry-run").exit_code == 2
    flows = [flow(each) for each in (FRONT, Client("shop", "web"), Client("jobs", "gone"))]
    file.write_text(MessageToJson(response(DAY, 2 * DAY, *flows)))
    kafka = (
        "\n---\n{apiVersion: kafka.strimzi.io/v1, kind: Kafka, metadata: {name: events, namespace: shop}}\n"
    )
    (tmp_path / "mesh.yaml").write_text(SHOP + kafka)
    done = xds(*words)
    assert done.exit_code == 1
    assert "Not considered: " in done.stderr
    assert done.stdout.startswith("not known to be complete: 0 of 2 rules ")
