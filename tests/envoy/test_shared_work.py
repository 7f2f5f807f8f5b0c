"""The work for a change depends on what it affects, not on the number of services, pods and clients."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.policy.world import HTTP, ROOT, mesh, meta, peer, pod, policy, rule, service
from xds.codec import message_class
from xds.mesh.envoy import translate
from xds.mesh.envoy.endpoints import LoadTarget, assignment
from xds.mesh.envoy.inbound import NAME as VIRTUAL_INBOUND
from xds.mesh.envoy.service import _Builder
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, Rule
from xds.mesh.model.memory import MAX_UNUSED
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import AuthorizationPolicy, Change, Fact
from xds.mesh.model.traffic import ConnectionPool, TrafficPolicy
from xds.mesh.policy import mtls
from xds.snapshot import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, TYPE_PREFIX, Snapshot

NAMESPACES = ("a", "b", "c")
APPS = ("x", "y", "z", "w")
PODS = [pod(f"{app}-{n}", ns, app=app) for ns in NAMESPACES for app in APPS for n in (1, 2, 3)]
SERVICES = [service(app, ns, HTTP) for ns in NAMESPACES for app in APPS]
FIRST = PODS[0]
MOVED = replace(FIRST, address="10.9.9.9")


def guard(namespace: str, name: str = "new", **selector: str) -> AuthorizationPolicy:
    """A policy that denies everything."""
    return AuthorizationPolicy(
        meta=meta("AuthorizationPolicy", namespace, name),
        action=Action.DENY,
        selector=selector,
        rules=(Rule(),),
    )


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count decisions about modes, builds of a service's parts, and builds of a pod's own resources."""
    done: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            done[what] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(mtls, "_effective_mode", "decisions")
    count(translate, "_build_own", "pods")
    for part in ("clusters", "assignments", "addresses"):
        count(_Builder, part, part)
    return done


def snapshots(world: Mesh) -> dict[str, Snapshot]:
    return {f"{each.namespace}/{each.name}": translate.translate(world, each) for each in world.pods()}


def test_first_translation_builds_each_service_once(work: Counter[str]) -> None:
    snapshots(mesh(*PODS, *SERVICES))
    assert work == {
        "decisions": len(NAMESPACES),
        "pods": len(PODS),
        "clusters": len(SERVICES),
        "assignments": len(SERVICES),
        "addresses": 2 * len(SERVICES),  # Clients in the service's namespace use its short name as well.
    }


CHANGES: dict[str, tuple[Fact, dict[str, int]]] = {
    "an endpoint moves": (
        MOVED,
        {"decisions": 1, "pods": 1, "clusters": 1, "assignments": 1, "addresses": 2},
    ),
    "mode of the mesh": (
        peer(ROOT, "DISABLE"),
        {"decisions": len(NAMESPACES), "pods": len(PODS), "assignments": len(SERVICES)},
    ),
    "mode of a namespace": (
        peer("a", "STRICT"),
        {"decisions": 1, "pods": len(APPS) * 3, "assignments": len(APPS)},
    ),
    "mode of a workload": (
        peer("a", "STRICT", app="x"),
        # Two ports of the workload, and all ports of all other pods.
        {"decisions": 3, "pods": len(APPS) * 3, "assignments": len(APPS)},
    ),
    "mode of a service": (
        policy("a", "STRICT", "x"),
        {"decisions": len(APPS) + 1, "pods": len(APPS) * 3, "assignments": len(APPS)},
    ),
    "settings of clients": (
        rule("a", SERVICES[0].host, policy=TrafficPolicy(connection_pool=ConnectionPool(max_connections=7))),
        # Clients in the rule's namespace, and in others: the rule is exported to all.
        {"decisions": 1, "clusters": 1, "assignments": 1, "addresses": 2},
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_repeats_only_the_work_it_affects(work: Counter[str], what: str) -> None:
    fact, expected = CHANGES[what]
    before = mesh(*PODS, *SERVICES)
    snapshots(before)
    after = before.apply(Change(applied=(fact,)))
    work.clear()
    snapshots(after)
    assert work == expected


GUARDED = guard("a", "old", app="none"), guard(ROOT, "old", app="none")
POLICIES: dict[str, tuple[tuple[Fact, ...], Fact, int]] = {
    # The policies before, the new one, and the number of pods that it changes.
    "first of a namespace": ((), guard("a", app="x"), 3),
    "first of the root namespace": ((), guard(ROOT, app="x"), 9),
    "another one for a workload": (GUARDED, guard("a", app="x"), 3),
    "another one for a namespace": (GUARDED, guard("a"), 12),
    "another one for a workload of the mesh": (GUARDED, guard(ROOT, app="x"), 9),
    "another one for the mesh": (GUARDED, guard(ROOT), len(PODS)),
    "another one for no pod": (GUARDED, guard("a", app="nothing"), 0),
    "other rules": ((guard("a", app="x"),), replace(guard("a", app="x"), rules=()), 3),
    "another selector": ((guard("a", app="x"),), guard("a", app="y"), 6),
}


@pytest.mark.parametrize(("existing", "new", "pods"), POLICIES.values(), ids=POLICIES)
def test_authorization_policy_translates_only_the_pods_it_selects(
    work: Counter[str], existing: tuple[Fact, ...], new: Fact, pods: int
) -> None:
    before = mesh(*PODS, *SERVICES, *existing)
    snapshots(before)
    work.clear()
    after = before.apply(Change(applied=(new,)))
    snapshots(after)
    assert work == Counter(decisions=work["decisions"], pods=pods)
    if new.ref not in {fact.ref for fact in existing}:
        work.clear()
        snapshots(after.apply(Change(removed=(new.ref,))))
        assert work == Counter(decisions=work["decisions"], pods=pods)


def test_rules_for_http_change_no_listener() -> None:
    """Envoy would drain the connections of a listener that changes."""

    def rules(*methods: str) -> AuthorizationPolicy:
        values = tuple(Pattern.parse(method) for method in methods)
        on_http = Rule(operations=((Condition(Attribute.METHOD, values),),))
        return replace(guard("a", app="x"), action=Action.ALLOW, rules=(on_http,))

    get, put = (
        snapshots(mesh(*PODS, *SERVICES, guard("a", "old", app="none"), rules(method)))
        for method in ("GET", "PUT")
    )
    none = snapshots(mesh(*PODS, *SERVICES))
    for name in (f"a/{FIRST.name}", "a/y-1"):
        assert get[name].of(LISTENER).version == put[name].of(LISTENER).version
    assert get["a/y-1"].of(LISTENER).version == none["a/y-1"].of(LISTENER).version
    assert (
        get[f"a/{FIRST.name}"].of(EXTENSION_CONFIG).version
        != put[f"a/{FIRST.name}"].of(EXTENSION_CONFIG).version
    )
    assert get["a/y-1"].of(EXTENSION_CONFIG).version == put["a/y-1"].of(EXTENSION_CONFIG).version
    found = [each[name].of(LISTENER)[VIRTUAL_INBOUND] for each in (get, put) for name in ("a/x-1", "a/x-2")]
    assert len({id(resource.body) for resource in found}) == 1
    assert get["b/x-1"].of(EXTENSION_CONFIG).version == none["a/y-1"].of(EXTENSION_CONFIG).version


def test_unchanged_sets_stay_the_same_objects() -> None:
    before = mesh(*PODS, *SERVICES)
    old = snapshots(before)
    moved = snapshots(before.apply(Change(applied=(MOVED,))))
    strict = snapshots(before.apply(Change(applied=(peer(ROOT, "STRICT"),))))
    for name, snapshot in old.items():
        for type_url in (CLUSTER, LISTENER, ROUTE):
            assert moved[name].of(type_url) is snapshot.of(type_url)
        assert moved[name].of(ENDPOINT).version != snapshot.of(ENDPOINT).version
        for type_url in (CLUSTER, ENDPOINT, ROUTE):
            assert strict[name].of(type_url).root is snapshot.of(type_url).root
        assert strict[name].of(LISTENER).root is snapshot.of(LISTENER).root
        assert strict[name].of(LISTENER).version != snapshot.of(LISTENER).version


def test_clients_of_all_namespaces_share_sets() -> None:
    made = snapshots(mesh(*PODS, *SERVICES)).values()
    for type_url, count in {CLUSTER: 1, ENDPOINT: 1, LISTENER: 1, ROUTE: len(NAMESPACES)}.items():
        assert len({id(each.of(type_url).root) for each in made}) == count


def test_kind_without_clients_is_forgotten() -> None:
    world = mesh(*PODS, *SERVICES)
    translate.translate(world, FIRST)
    kinds = len(world.memory._carried)
    for number in range(MAX_UNUSED + 1):
        world = world.apply(Change(applied=(replace(FIRST, address=f"10.9.8.{number}"),)))
    assert kinds > 0
    assert not world.memory._carried
    assert ENDPOINT in translate.translate(world, FIRST).types


@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8:1234:5678:9abc:def0:1234:5678"])
@pytest.mark.parametrize("port", [1, 127, 128, 65535])
def test_joined_assignment_equals_an_encoded_one(address: str, port: int) -> None:
    targets = [
        LoadTarget(priority, region, zone, sub_zone, address, port, ready, mtls, weight)
        for priority, weight in ((0, 0), (1, 300))
        for region, zone in (("", ""), ("r", "z" * 200))
        for sub_zone, mtls in (("", False), ("istio", True))
        for ready in (True, False)
    ]
    found = assignment("c" * 300, targets, ())
    message: Any = message_class(ENDPOINT.removeprefix(TYPE_PREFIX)).FromString(found.body)
    assert message.SerializeToString(deterministic=True) == found.body
    assert len(message.endpoints) == 8
    assert [group.priority for group in message.endpoints] == [0] * 4 + [1] * 4
    assert [group.load_balancing_weight.value for group in message.endpoints] == [0] * 4 + [600] * 4
    socket = message.endpoints[0].lb_endpoints[0].endpoint.address.socket_address
    assert (socket.address, socket.port_value) == (address, port)


def test_joined_routes_equal_encoded_ones() -> None:
    for found in translate.translate(mesh(*PODS, *SERVICES), FIRST).of(ROUTE).values():
        message: Any = message_class(ROUTE.removeprefix(TYPE_PREFIX)).FromString(found.body)
        assert message.SerializeToString(deterministic=True) == found.body
        assert len(message.virtual_hosts) == len(SERVICES) + 1
        assert message.HasField("validate_clusters")
