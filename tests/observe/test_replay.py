"""Recorded flows through a change: as each pair of pods says, and what is not known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policy.meshes import facts, meshes
from tests.policy.world import HTTP, TCP, meta, peer, pod, rule, service
from tests.support.authorization import Call, is_allowed, random_policies
from tests.support.predictions import predict
from xds.mesh.controlplane.replayed import replay_message
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, Rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import AuthorizationPolicy, Change, Fact, Pod, Ref
from xds.mesh.observe.edges import OTHER_ADDRESSES, Client, Target, TrafficMode
from xds.mesh.observe.record import Flow, Record
from xds.mesh.observe.replay import replay
from xds.mesh.observe.workloads import workload
from xds.mesh.parse import parse
from xds.mesh.policy.hops import clients_of
from xds.mesh.policy.mtls import enforced_mode
from xds.mesh.policy.prediction import Effect, predict_change
from xds.mesh.policy.reach import OUTSIDE, Answer, Outcome, Result, rank
from xds.mesh.v1 import policies_pb2 as pb

MTLS, PLAINTEXT, REFUSED, TLS = (
    TrafficMode.MTLS,
    TrafficMode.PLAINTEXT,
    TrafficMode.REFUSED,
    TrafficMode.TLS,
)
WEB, POD = Target("shop", "web", 80), Target("shop", "pod/web-7d4b9c6f8-b5v9q", 9999)
CLIENT, BARE, ADDRESS = Client("shop", "client"), Client("zoo", "bare"), Client("", "192.0.2.1")
WORLD = (
    pod("web-7d4b9c6f8-x2x4z", "shop", app="web"),
    pod("client", "shop"),
    pod("bare", "zoo", sidecar=False),
    service("web", "shop", HTTP),
)
DAY = 86400.0


def flow(
    client: Client, mode: TrafficMode = PLAINTEXT, target: Target = WEB, *, by_server: bool = True
) -> Flow:
    return Flow(target, client, mode, 10, 20, by_server and mode is not MTLS)


def allow(*conditions: Condition, action: Action = Action.ALLOW, name: str = "web") -> AuthorizationPolicy:
    rules = (Rule(conditions=conditions),) if conditions else ()
    return AuthorizationPolicy(meta=meta("AuthorizationPolicy", "shop", name), action=action, rules=rules)


def condition(attribute: Attribute, value: str) -> Condition:
    return Condition(attribute, (Pattern.parse(value),))


def changed(*change: Fact | Ref, world: Iterable[Fact] = WORLD) -> tuple[Mesh, Mesh]:
    before = Mesh(world)
    applied = tuple(one for one in change if not isinstance(one, Ref))
    return before, before.apply(
        Change(applied=applied, removed=tuple(one for one in change if isinstance(one, Ref)))
    )


def found(before: Mesh, after: Mesh, flows: Iterable[Flow]) -> dict[Flow, str]:
    """Return the result of each flow in a word."""
    flows = sorted(flows)
    result = replay(before, after, flows)
    words = {flow: change.effect.value for change in result.changes for flow in change.flows}
    words |= dict.fromkeys((flow for _, group in result.unknown for flow in group), "not known")
    assert result.flows == len(flows)
    assert sum(len(change.flows) for change in result.changes) + result.unknown_flows == len(words)
    return {flow: words.get(flow, "-") for flow in flows}


STRICT = peer("shop", "STRICT")
ONLY_SHOP = allow(condition(Attribute.NAMESPACE, "shop"))
ONLY_BLOCK = allow(condition(Attribute.SOURCE_IP, "192.0.2.0/24"))
ONLY_PATH = allow(condition(Attribute.PATH, "/x"))
FLOWS = {
    "nothing changes": ((), flow(CLIENT, MTLS), "-"),
    "strict: mutual TLS": ((STRICT,), flow(CLIENT, MTLS), "-"),
    "strict: without sidecar": ((STRICT,), flow(BARE), "breaks"),
    "strict: past the sidecar": ((STRICT,), flow(CLIENT), "breaks"),
    "strict: address": ((STRICT,), flow(ADDRESS), "breaks"),
    "strict: pod's port": ((STRICT,), flow(ADDRESS, target=POD), "breaks"),
    "strict: other pod's port": ((peer("shop", "STRICT", app="api"),), flow(ADDRESS, target=POD), "-"),
    "strict: refused before it was open": ((STRICT,), flow(BARE, REFUSED), "breaks"),
    "disable: mutual TLS": ((peer("shop", "DISABLE"),), flow(CLIENT, MTLS), "-"),
    "rule: no TLS any more": (
        (STRICT, rule("shop", "web.shop.svc.cluster.local", "DISABLE")),
        flow(CLIENT, MTLS),
        "breaks",
    ),
    "identity: allowed": ((ONLY_SHOP,), flow(CLIENT, MTLS), "-"),
    "identity: none": ((ONLY_SHOP,), flow(BARE), "breaks"),
    "identity: past the sidecar": ((ONLY_SHOP,), flow(CLIENT), "breaks"),
    "block: inside": ((ONLY_BLOCK,), flow(ADDRESS), "-"),
    "block: outside": ((ONLY_BLOCK,), flow(Client("", "198.51.100.1")), "breaks"),
    "block: not known": ((ONLY_BLOCK,), flow(OTHER_ADDRESSES), "may break"),
    "block: pod's port": ((ONLY_BLOCK,), flow(ADDRESS, target=POD), "-"),
    "block: pod": ((ONLY_BLOCK,), flow(BARE), "may break"),
    "path": ((ONLY_PATH,), flow(CLIENT, MTLS), "may break"),
    "path: pod's port": ((ONLY_PATH,), flow(ADDRESS, target=POD), "may break"),
    "nothing allowed": ((allow(),), flow(CLIENT, MTLS), "breaks"),
    "service deleted": ((Ref("Service", "shop", "web"),), flow(CLIENT, MTLS), "breaks"),
    "client deleted": ((Ref("Pod", "shop", "client"),), flow(CLIENT, MTLS), "not known"),
    "client unknown": ((), flow(Client("shop", "gone"), MTLS), "not known"),
    "service unknown": ((), flow(CLIENT, MTLS, Target("shop", "old", 80)), "not known"),
    "port unknown": ((), flow(CLIENT, MTLS, Target("shop", "web", 81)), "not known"),
    "pod unknown": ((), flow(ADDRESS, target=Target("shop", "pod/api-1", 81)), "not known"),
    "mutual TLS to a pod's port": ((), flow(CLIENT, MTLS, POD), "not known"),
    "account changes": (
        (replace(WORLD[1], service_account="other"), allow(condition(Attribute.PRINCIPAL, "*/sa/client"))),
        flow(CLIENT, MTLS),
        "breaks",
    ),
}


@pytest.mark.parametrize(("change", "recorded", "expected"), FLOWS.values(), ids=FLOWS)
def test_flow_through_a_change(change: tuple[Fact | Ref, ...], recorded: Flow, expected: str) -> None:
    assert found(*changed(*change), [recorded]) == {recorded: expected}


def test_plaintext_that_only_a_client_reports_may_go_to_pods_without_a_sidecar() -> None:
    world = (*WORLD, pod("web-2", "shop", sidecar=False, app="web"))
    for by_server, expected in ((False, "-"), (True, "breaks")):
        recorded = flow(CLIENT, by_server=by_server)
        assert found(*changed(STRICT, world=world), [recorded]) == {recorded: expected}


@pytest.mark.parametrize("replaced", [False, True])
def test_sidecars_that_sent_plaintext_because_of_disable_follow_the_mode(replaced: bool) -> None:
    world = (*WORLD, peer("shop", "DISABLE"))
    change = (WORLD[0].ref, pod("web-2", "shop", app="web")) if replaced else ()
    recorded = [flow(CLIENT), flow(BARE)]
    result = found(*changed(STRICT, *change, world=world), recorded)
    assert list(result.values()) == ["-", "breaks"]


def test_addresses_are_told_apart_by_blocks() -> None:
    recorded = [flow(Client("", f"{block}.1")) for block in ("192.0.2", "198.51.100", "203.0.113")]
    change = allow(condition(Attribute.SOURCE_IP, "198.51.100.0/24"))
    assert list(found(*changed(change), recorded).values()) == ["breaks", "-", "breaks"]


def test_what_failed_before_does_not_break() -> None:
    before, after = changed(ONLY_SHOP, world=(*WORLD, STRICT))
    result = replay(before, after, [flow(BARE, REFUSED), flow(CLIENT, MTLS)])
    assert (result.changes, result.unknown, result.failing) == ((), (), 1)


def test_service_without_a_ready_pod_is_not_known() -> None:
    world = (replace(WORLD[0], ready=False), *WORLD[1:])
    assert set(found(*changed(ONLY_SHOP, world=world), [flow(CLIENT, MTLS)]).values()) == {"not known"}


# --- what is safe -------------------------------------------------------------------------------------------


def message(
    *flows: Flow, change: tuple[Fact | Ref, ...], gaps: tuple[str, ...] = (), world=WORLD, not_considered=()
):
    before, after = changed(*change, world=world)
    record = Record(flows=tuple(sorted(flows)), since=0, until=DAY, gaps=gaps)
    return replay_message(record, before, after, predict_change(before, after), not_considered)


def test_safe_is_said_without_a_gap_only() -> None:
    safe = message(flow(CLIENT, MTLS), change=(ONLY_SHOP,))
    assert (safe.safe, list(safe.gaps)) == (True, [])
    assert (
        safe.summary
        == "safe: of 1 recorded flow from 1970-01-01 00:00 UTC to 1970-01-02 00:00 UTC, none breaks"
    )


NOT_SAFE = {
    "gap": (message(flow(CLIENT, MTLS), change=(ONLY_SHOP,), gaps=("a gap",)), "none breaks, but a gap"),
    "nothing recorded": (message(change=(ONLY_SHOP,)), "no traffic was recorded"),
    "unknown client": (message(flow(Client("shop", "gone"), MTLS), change=(ONLY_SHOP,)), "not known: 1"),
    "not considered": (
        message(flow(CLIENT, MTLS), change=(ONLY_SHOP,), not_considered=("2 Kafka",)),
        "2 Kafka",
    ),
    "may break": (message(flow(CLIENT, MTLS), change=(ONLY_PATH,)), "may break: 1"),
    "breaks": (message(flow(BARE), flow(CLIENT, MTLS), change=(STRICT,), gaps=("a gap",)), "break: 1"),
    "a probe": (
        message(
            flow(CLIENT, MTLS),
            change=(STRICT,),
            world=(replace(WORLD[0], probe_ports=(8080,)), *WORLD[1:]),
        ),
        "none breaks, but traffic that objects prove does",
    ),
    "pods without a sidecar": (
        message(
            flow(CLIENT, MTLS, Target("shop", "other", 80)),
            change=(Ref("Service", "shop", "web"),),
            world=(
                replace(WORLD[0], meta=meta("Pod", "shop", "web-1", app="web")),
                *WORLD[1:],
                service("other", "shop", HTTP, app="client"),
            ),
        ),
        "sidecars do not report, or not as such, would break: shop/web-7d4b9c6f8-x2x4z, zoo/bare -> web",
    ),
}


@pytest.mark.parametrize(("found", "words"), NOT_SAFE.values(), ids=NOT_SAFE)
def test_whatever_may_be_wrong_is_not_safe(found: pb.Replay, words: str) -> None:
    assert not found.safe
    assert found.summary.startswith("not ")
    assert words in found.summary


def test_gap_is_never_safe() -> None:
    for change in ((), (STRICT,), (ONLY_SHOP,), (allow(),), (Ref("Service", "shop", "web"),)):
        for recorded in ((), (flow(CLIENT, MTLS),), (flow(BARE),), (flow(ADDRESS, target=POD),)):
            assert not message(*recorded, change=change, gaps=("a gap",)).safe


ALIAS = service("alias", "shop", HTTP, app="web")
UNOBSERVED = {
    "bare server": (
        (pod("server", "zoo", sidecar=False), service("server", "zoo", HTTP)),
        ("zoo", "server"),
        2,
    ),
    "older alias": ((replace(ALIAS, meta=meta("Service", "shop", "alias", age=1)),), ("shop", "alias"), 0),
    "younger alias": (
        (
            replace(WORLD[3], meta=meta("Service", "shop", "web", age=2)),
            replace(ALIAS, meta=meta("Service", "shop", "alias", age=1)),
        ),
        ("shop", "alias"),
        2,
    ),
    "bare server that stays": (
        (pod("server", "zoo", sidecar=False), service("server", "zoo", HTTP)),
        None,
        0,
    ),
}


@pytest.mark.parametrize(("more", "deleted", "gaps"), UNOBSERVED.values(), ids=UNOBSERVED)
def test_traffic_that_is_not_observed_as_such(
    more: tuple[Fact, ...], deleted: tuple[str, str] | None, gaps: int
) -> None:
    world = {fact.ref: fact for fact in (*WORLD, *more)}
    change = (Ref("Service", *deleted),) if deleted else (peer("zoo", "STRICT"),)
    found = message(flow(CLIENT, MTLS), change=change, world=world.values())
    assert (len(found.gaps), found.safe) == (gaps, not gaps)


POSSIBLE = {
    "identity": (
        (allow(), STRICT),
        (Ref("AuthorizationPolicy", "shop", "web"),),
        (),
        {"shop/client", "shop/web-7d4b9c6f8-x2x4z"},
    ),
    "used": (
        (allow(),),
        (Ref("AuthorizationPolicy", "shop", "web"),),
        (flow(CLIENT, MTLS), flow(ADDRESS)),
        {"shop/web-7d4b9c6f8-x2x4z", "zoo/bare"},
    ),
    "outside": ((STRICT,), (Ref("PeerAuthentication", "shop", "default"),), (), {"zoo/bare", ""}),
    "tried": (
        (STRICT,),
        (Ref("PeerAuthentication", "shop", "default"),),
        (flow(BARE, REFUSED), flow(ADDRESS, REFUSED)),
        set(),
    ),
    "nothing": ((), (STRICT,), (), set()),
}


@pytest.mark.parametrize(("earlier", "change", "flows", "expected"), POSSIBLE.values(), ids=POSSIBLE)
def test_connections_that_become_possible(earlier, change, flows, expected: set[str]) -> None:
    result = message(*flows, change=change, world=(*WORLD, *earlier))
    clients = [item for hop in result.possible for item in hop.clients]
    names = {f"{item.namespace}/{account.name}" for item in clients for account in item.accounts}
    names |= {"" for hop in result.possible if not hop.clients}
    assert names == expected
    assert {f"{hop.service}:{hop.port}" for hop in result.possible} <= {"web.shop:80"}


# --- a naive reading: each pair of pods ---------------------------------------------------------------------


Outcomes: TypeAlias = dict[tuple[Ref, Ref, int], list[Outcome]]
"""The outcome at each endpoint, by client pod, Service and port."""


def outcomes(mesh: Mesh) -> Outcomes:
    by_call = defaultdict(list)
    for one in predict(mesh, [*clients_of(mesh), OUTSIDE]):
        by_call[one.client.ref, one.service.ref, one.port.port].append(one)
    return by_call


def at(one: Outcome) -> object:
    return one.endpoint and (one.endpoint.address, one.endpoint.port)


def pairs(
    mesh: Mesh, old: list[Outcome], new: list[Outcome] | None
) -> Iterator[tuple[Outcome, Outcome | None, bool]]:
    """Yield the outcomes of each endpoint after a change, and whether a sidecar was in front of it."""
    earlier = {at(one): one for one in old}
    sidecar = {at(one): bool(one.endpoint and enforced_mode(mesh, one.endpoint)) for one in old}
    best = max(old, key=lambda one: rank(answer(one)))
    for one in new or [None]:
        key = at(one) if one else "deleted"
        yield earlier.get(key, best), one, sidecar.get(key, any(sidecar.values()))


def answer(one: Outcome) -> Answer:
    return Answer(one.result, one.reason, one.decided_by, one.conditions)


def effect(old: Outcome, new: Outcome | None) -> str:
    """Return what becomes of a connection, in the words of the issue: worked, and is denied or fails."""
    if old.result is not Result.FAILS:
        if new is None or new.result is Result.FAILS:
            return "breaks"
        return "may break" if new.conditions and new.conditions != old.conditions else "-"
    unknown = old.reason == "tls-left-to-application"
    if unknown and (new is None or (new.result is Result.FAILS and new.reason != old.reason)):
        return "may break"
    return "not known" if old.reason in {"no-endpoint", "pod-unknown"} else "-"


def refused(old: Outcome, new: Outcome | None) -> bool:
    """Whether a server refuses a connection with and without the change, although it was seen."""
    return (
        old.result is Result.FAILS
        and old.reason != "access-denied"
        and (new is None or new.result is Result.FAILS)
    )


def naive(before: Mesh, old: Outcomes, new: Outcomes, alive: Collection[Ref], flow: Flow) -> str:
    """Return the worst result over all pods of a flow's client and all endpoints of its target."""
    target = Ref("Service", flow.target.namespace, flow.target.name)
    pods = [one for one in clients_of(before) if workload(one) == flow.client and one.ref in alive]
    if not pods and flow.client.namespace:
        return "not known"

    def calls(clients: Iterable[Pod]) -> list[tuple[Outcome, Outcome | None, bool]]:
        keys = [(one.ref, target, flow.target.port) for one in clients]
        return [pair for key in keys for pair in pairs(before, old[key], new.get(key))]

    expected = {MTLS: "mtls", PLAINTEXT: "plaintext", REFUSED: "plaintext"}.get(flow.mode)
    every = calls(pods)
    explaining = [
        pair
        for pair in every
        if (expected is None or pair[0].result == expected) and (pair[2] or not flow.by_server)
    ]
    if not explaining and flow.mode in {PLAINTEXT, REFUSED}:
        explaining = calls([OUTSIDE])
    results = {effect(one, other) for one, other, _ in explaining or every}
    if flow.mode is PLAINTEXT and flow.by_server and any(refused(*pair[:2]) for pair in explaining or every):
        results.add("not known")
    return next((word for word in ("breaks", "may break", "not known") if word in results), "-")


def with_valid_blocks(fact: Fact) -> Fact:
    """Return a fact without the IP blocks that Hypothesis invents, and that the parser would reject."""
    if not isinstance(fact, AuthorizationPolicy):
        return fact
    return replace(fact, rules=tuple(rule._replace(sources=(), operations=()) for rule in fact.rules))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(meshes(), facts(), st.data())
def test_flows_fare_as_each_pair_of_pods_does(before: Mesh, changed: list[Fact], data: st.DataObject) -> None:
    refs = [fact.ref for fact in before.facts()]
    removed = data.draw(st.lists(st.sampled_from(refs), max_size=2))
    before = Mesh([*map(with_valid_blocks, before.facts())], before.config)
    after = before.apply(Change(applied=tuple(map(with_valid_blocks, changed)), removed=tuple(removed)))
    clients = [*dict.fromkeys(map(workload, before.pods())), Client("", "192.0.2.1")]
    flows = [
        Flow(Target(each.namespace, each.name, port.port), client, mode, 1, 2, by_server)
        for each in before.services()
        for port in each.ports
        for client in clients
        for mode, by_server in (
            (MTLS, False),
            (TLS, False),
            (PLAINTEXT, False),
            (PLAINTEXT, True),
            (REFUSED, True),
        )
        if client.namespace or mode in {PLAINTEXT, REFUSED}
    ]
    result, old, new = found(before, after, flows), outcomes(before), outcomes(after)
    alive = {one.ref for one in clients_of(after)}
    for flow in flows:
        assert result[flow] == naive(before, old, new, alive, flow), flow


# --- Istio's documents: each request ------------------------------------------------------------------------

SERVER = pod("server", "full", app="web")
CALLERS = tuple(
    replace(pod(account, namespace), service_account=account)
    for namespace, account in (("apps", "client"), ("ns", "sa"), ("sa", "ns"))
)
ADDRESSES = tuple(one.address for one in CALLERS)
HTTP_CALLS = tuple(
    {"host": host, "method": method, "path": path, "headers": headers}
    for host in ("web.full", "web.full:80")
    for method in ("GET", "POST")
    for path in ("/", "/info/x", "/admin/a", "/admin/b/a")
    for headers in ({}, {"x-token": "a"}, {"x-token": "bb"})
)
SERVICE = service("web", "full", HTTP, replace(TCP, target=9000), app="web")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_flows_fare_as_each_request_does(old: int, new: int) -> None:
    """A flow that works loses no request, and one that breaks loses all, by Istio's documents."""
    sets = [random_policies(Random(seed), [*ADDRESSES, SERVER.address]) for seed in (old, new)]
    meshes = [
        Mesh([SERVER, SERVICE, *CALLERS, *(each.fact for one in policies for each in parse(one, str))])
        for policies in sets
    ]
    for caller in CALLERS:
        for client, mode in (
            (workload(caller), MTLS),
            (workload(caller), PLAINTEXT),
            (Client("", f"10.200.0.{ADDRESSES.index(caller.address)}"), PLAINTEXT),
        ):
            for port in SERVICE.ports:
                recorded = flow(client, mode, Target("full", "web", port.port))
                result = replay(*meshes, [recorded])
                address = caller.address if client.namespace else client.name
                identity = caller.identity("cluster.local").removeprefix("spiffe://") if mode is MTLS else ""
                before, after = (
                    [
                        is_allowed(
                            policies,
                            Call(identity, address, SERVER.address, int(port.target), **more),
                            "full",
                            SERVER.meta.labels,
                        )
                        for more in (HTTP_CALLS if port is HTTP else ({},))
                    ]
                    for policies in sets
                )
                assert not result.unknown
                if result.failing:
                    assert not any(before)
                elif not result.changes:
                    assert not any(was and not still for was, still in zip(before, after, strict=True))
                elif result.changes[0].effect is Effect.BREAKS:
                    assert not any(after)
