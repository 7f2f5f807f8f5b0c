"""Every distinct content is encoded once, whoever needs it and whatever changes around it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.policy.world import HTTP, ROOT, mesh, peer, pod, rule, service
from xds.codec import encode_counts
from xds.mesh.envoy import outbound, routes
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, Interception
from xds.mesh.model.traffic import ConnectionPool, Subset, TrafficPolicy
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.observation import Generations, Observed, Report
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, TYPE_PREFIX

TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE)
NAMESPACES = ("a", "b", "c")
APPS = ("enc-x", "enc-y", "enc-z")
PODS = [
    pod(f"{app}-{number}", namespace, app=app)
    for namespace in NAMESPACES
    for app in APPS
    for number in (1, 2)
]
SERVICES = [
    replace(service(app, namespace), addresses=(f"10.97.{first}.{second}",))
    for first, namespace in enumerate(NAMESPACES)
    for second, app in enumerate(APPS)
]

Contents = set[tuple[str, str, str]]


@pytest.fixture(autouse=True)
def forget_what_does_not_depend_on_the_mesh() -> None:
    outbound.http_listener.cache_clear()
    routes.route_configuration.cache_clear()


def count(world: Mesh) -> tuple[Contents, Counter[str]]:
    """Translate for every pod: what there is, and what was encoded for it, by type."""
    before = encode_counts.copy()
    snapshots = [translate(world, each) for each in world.pods()]
    contents = {
        (type_url, found.name, found.version)
        for snapshot in snapshots
        for type_url in TYPES
        for found in snapshot.of(type_url).values()
    }
    made = encode_counts - before
    return contents, Counter({url: made[url.removeprefix(TYPE_PREFIX)] for url in TYPES})


def distinct(contents: Contents) -> Counter[str]:
    return Counter({url: sum(found[0] == url for found in contents) for url in TYPES})


def domain(number: int) -> str:
    """A trust domain that no other test has, so that nothing is in a cache."""
    return f"encodings-{number}.example"


def test_shared_resources_are_encoded_once():
    contents, made = count(mesh(*PODS, *SERVICES, trust_domain=domain(1)))
    assert made == distinct(contents)
    assert made[ENDPOINT] == len(SERVICES) * 2


def test_clients_with_own_rules_share_the_rest():
    pool = TrafficPolicy(connection_pool=ConnectionPool(max_connections=7))
    host = "enc-x.a.svc.cluster.local"
    rules = (
        rule("b", host, policy=pool, subsets=(Subset(name="v1", labels={"v": "1"}),)),
        rule("c", host, policy=pool, name="other"),
    )
    contents, made = count(mesh(*PODS, *SERVICES, *rules, trust_domain=domain(2)))
    assert made[ENDPOINT] == distinct(contents)[ENDPOINT]
    assert made[CLUSTER] == distinct(contents)[CLUSTER]


def test_subsets_of_many_ports_have_a_limit():
    """One rule of one namespace must not delay the changes of all others."""
    ports = tuple(replace(HTTP, port=number, name=f"p{number}") for number in range(1, 1001))
    host = "enc-x.a.svc.cluster.local"
    web = replace(SERVICES[0], ports=ports)
    for count, clusters in ((1, 2000), (2, 1000)):
        subsets = tuple(Subset(name=f"v{number}", labels={}) for number in range(count))
        found = translate(mesh(*PODS, web, rule("a", host, subsets=subsets)), PODS[0]).of(CLUSTER)
        assert sum(name.endswith(f"|{host}") for name in found) == clusters


def test_pods_without_interception_share_resources():
    pods = [replace(each, interception=Interception.NONE) for each in PODS]
    contents, made = count(mesh(*pods, *SERVICES, trust_domain=domain(3)))
    assert made[ENDPOINT] == distinct(contents)[ENDPOINT]
    assert made[CLUSTER] == distinct(contents)[CLUSTER]


CHANGES: dict[str, tuple[tuple[Fact, ...], dict[str, int]]] = {
    "an endpoint moves": ((replace(PODS[0], address="10.9.9.9"),), {ENDPOINT: 2}),
    "a pod is labelled": (
        (replace(PODS[0], meta=replace(PODS[0].meta, labels={**PODS[0].meta.labels, "v": "1"})),),
        {},
    ),
    "mutual TLS only, everywhere": ((peer(ROOT, "STRICT"),), {LISTENER: 1}),
    "plaintext, everywhere": ((peer(ROOT, "DISABLE"),), {LISTENER: 1, ENDPOINT: len(SERVICES) * 2}),
    "plaintext in a namespace": ((peer("a", "DISABLE"),), {LISTENER: 1, ENDPOINT: len(APPS) * 2}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_encodes_only_what_differs(what: str):
    facts, expected = CHANGES[what]
    config = {"trust_domain": domain(10 + list(CHANGES).index(what))}
    before = mesh(*PODS, *SERVICES, **config)
    contents, _ = count(before)
    after, made = count(before.apply(Change(applied=facts)))
    assert +made == +distinct(after - contents) == Counter(expected)


def test_same_content_has_same_bytes():
    before = mesh(*PODS, *SERVICES, trust_domain=domain(30))
    strict = before.apply(Change(applied=(peer(ROOT, "DISABLE"),)))
    count(before)
    count(strict)
    back = strict.apply(Change(removed=(peer(ROOT, "DISABLE").ref,)))
    assert count(back)[0] == count(mesh(*PODS, *SERVICES, trust_domain=domain(30)))[0]


def test_rollout_steps_encode_only_what_differs():
    rollouts = RolloutDriver(30.0)
    facts = (*PODS, *SERVICES, peer("a", "DISABLE"))
    config = replace(mesh().config, trust_domain=domain(4))
    at = Observed(Report(servers=Generations({each.ref: 0 for each in PODS})))
    world = rollouts.first_mesh(Change(applied=facts, config=config), at, 0.0)
    before, _ = count(world)
    # Two meshes are made, one after the other, and only the second one is translated.
    world = rollouts.apply(world, Change(applied=(peer("a", "STRICT"),)), at, 0.0)
    assert world.served.modes
    after, made = count(world)
    assert made == distinct(after - before)
    assert made[CLUSTER] == made[ENDPOINT] == 0
