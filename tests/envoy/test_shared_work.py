"""The work for a change depends on what it affects, not on the number of services, pods and clients."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.policy.world import HTTP, ROOT, mesh, peer, pod, policy, rule, service
from xds.codec import message_class
from xds.mesh.envoy import translate
from xds.mesh.envoy.endpoints import LoadTarget, assignment
from xds.mesh.envoy.service import _Builder
from xds.mesh.model.memory import MAX_UNUSED
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact
from xds.mesh.model.traffic import ConnectionPool, TrafficPolicy
from xds.mesh.policy import mtls
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, TYPE_PREFIX, Snapshot

NAMESPACES = ("a", "b", "c")
APPS = ("x", "y", "z", "w")
PODS = [pod(f"{app}-{n}", ns, app=app) for ns in NAMESPACES for app in APPS for n in (1, 2, 3)]
SERVICES = [service(app, ns, HTTP) for ns in NAMESPACES for app in APPS]
FIRST = PODS[0]
MOVED = replace(FIRST, address="10.9.9.9")


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
