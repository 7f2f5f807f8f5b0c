"""authentication.istio.io/v1alpha1 Policy and MeshPolicy: Istio's TestAuthNPolicies and the rules of 1.5."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.world import mesh, meta, pod, policy, service, slices
from xds.mesh.model.objects import Mode, Protocol, ServicePort, TargetSelector, UnknownService
from xds.mesh.policy.mtls import effective_mode

NS = "test-namespace"


def port(number: int, name: str = "") -> ServicePort:
    return ServicePort(port=number, target=number, name=name, protocol=Protocol.AUTO)


POLICIES = (
    policy(NS, "DISABLE"),
    policy(NS, "STRICT", "mtls-strict-svc-port", name="strict"),
    policy(
        NS, "PERMISSIVE", TargetSelector(service="mtls-permissive-svc-port", ports=(80,)), name="permissive"
    ),
    policy(NS, "DISABLE", "mtls-disable-svc", name="disable"),
    policy(NS, "STRICT", TargetSelector(service="mtls-strict-svc-named-port", ports=("http",)), name="named"),
)


@pytest.mark.parametrize(
    ("name", "namespace", "number", "expected", "because"),
    [
        ("mtls-strict-svc-port", NS, 80, "STRICT", "strict"),
        ("mtls-permissive-svc-port", NS, 80, "PERMISSIVE", "permissive"),
        ("mtls-permissive-svc-port", NS, 90, "DISABLE", "default"),
        ("mtls-disable-svc", NS, 80, "DISABLE", "disable"),
        ("mtls-strict-svc-port", "another-namespace", 80, "PERMISSIVE", "default"),
        ("mtls-default-svc-port", NS, 80, "DISABLE", "default"),
        ("mtls-strict-svc-named-port", NS, 80, "STRICT", "named"),
        ("mtls-strict-svc-named-port", NS, 90, "DISABLE", "default"),
    ],
)
def test_a_service_port_gets(name, namespace, number, expected, because):
    server = pod(name, namespace)
    world = mesh(*POLICIES, server, service(name, namespace, port(80, "http"), port(90)))
    found = effective_mode(world, server, number)
    assert (found.mode, found.decided_by.name) == (expected, because)


def test_policy_applies_to_pods_that_no_endpoint_slice_lists():
    leaving, other = pod("b", "ns"), pod("b-2", "ns", app="b")
    of = service("b", "ns", port(80))
    world = mesh(
        leaving, other, of, slices(of, other.address, port=80, name=""), policy("ns", "STRICT", "b", name="b")
    )
    assert effective_mode(world, leaving, 80).mode is Mode.STRICT
    assert effective_mode(world, other, 80).mode is Mode.STRICT


def test_port_policy_beats_older_service_policy():
    server = pod("b", "ns")
    world = mesh(
        server,
        service("b", "ns", port(80, "http"), port(90)),
        policy("ns", "DISABLE", "b", name="b", age=9),
        policy("ns", "STRICT", TargetSelector(service="b", ports=("http",)), name="b-http", age=1),
    )
    assert effective_mode(world, server, 80).mode is Mode.STRICT
    assert effective_mode(world, server, 90).mode is Mode.DISABLE


def test_oldest_policy_of_a_level_wins():
    server = pod("b", "ns")
    world = mesh(
        server,
        service("b", "ns", port(80)),
        policy("ns", "STRICT", "b", name="newer", age=1),
        policy("ns", "DISABLE", "b", name="older", age=2),
        policy("ns", "PERMISSIVE", "b", name="ageless"),
    )
    found = effective_mode(world, server, 80)
    assert found.decided_by.name == "older"
    assert [ref.name for ref in found.overridden] == ["newer", "ageless", "default"]


def test_target_may_be_a_full_host_name():
    server = pod("b", "ns")
    target = "b.ns.svc.cluster.local"
    world = mesh(server, service("b", "ns", port(80)), policy("ns", "STRICT", target, name="x"))
    assert effective_mode(world, server, 80).mode is Mode.STRICT


def test_oldest_service_decides_for_a_shared_port():
    server = pod("b", "ns")
    young = service("a-young", "ns", port(80), age=1, app="b")
    old = service("z-old", "ns", port(80), age=2, app="b")
    locked = policy("ns", "STRICT", "a-young", name="locked")
    assert effective_mode(mesh(server, young, old, locked), server, 80).mode is Mode.PERMISSIVE
    assert effective_mode(mesh(server, young, locked), server, 80).mode is Mode.STRICT


def test_port_of_no_service_follows_namespace_and_mesh():
    server = pod("b", "ns")
    assert effective_mode(mesh(server), server, 1).mode is Mode.PERMISSIVE
    assert effective_mode(mesh(server, policy("", "STRICT")), server, 1).mode is Mode.STRICT
    world = mesh(server, policy("", "STRICT"), policy("ns", "DISABLE"), policy("ns", "STRICT", "b", name="b"))
    assert effective_mode(world, server, 1).mode is Mode.DISABLE


def test_mesh_policy_replaces_the_default_one():
    server = pod("b", "ns")
    assert effective_mode(mesh(server), server, 80).decided_by.kind == "MeshPolicy"
    assert effective_mode(mesh(server, mtls_enabled=True), server, 80).mode is Mode.STRICT
    assert (
        effective_mode(mesh(server, policy("", "DISABLE"), mtls_enabled=True), server, 80).mode
        is Mode.DISABLE
    )


def test_unknown_targets_apply_to_every_port():
    server = pod("b", "ns")
    unknown = replace(policy("ns", "STRICT", name="unknown", age=5), scope_unknown=True)
    younger = policy("ns", "DISABLE", TargetSelector(service="b", ports=(80,)), name="young", age=1)
    older = policy("ns", "DISABLE", TargetSelector(service="b", ports=(80,)), name="old", age=9)
    facts = (server, service("b", "ns", port(80, "http")), policy("ns", "PERMISSIVE"))
    for number in (80, 90):
        found = effective_mode(mesh(*facts, unknown, younger), server, number)
        assert (found.mode, found.decided_by.name) == ("STRICT", "unknown")
    assert effective_mode(mesh(*facts, unknown, older), server, 80).mode is Mode.DISABLE
    assert effective_mode(mesh(*facts, unknown, older), server, 90).mode is Mode.STRICT


def test_policy_for_unknown_service_is_strict_for_every_port():
    server = pod("b", "ns")
    unknown = UnknownService(meta=meta("Service", "ns", "b"), service="b")
    front = service("front", "ns", port(80, "http"), app="b")
    facts = (server, front, unknown, policy("ns", "DISABLE", "front", name="front", age=9))
    assert effective_mode(mesh(*facts), server, 80).mode is Mode.DISABLE
    assert effective_mode(mesh(*facts, policy("ns", "DISABLE")), server, 90).mode is Mode.DISABLE
    world = mesh(*facts, policy("ns", "PERMISSIVE", "b", name="b"))
    for number in (80, 90):
        found = effective_mode(world, server, number)
        assert (found.mode, str(found.decided_by)) == ("STRICT", "Policy ns/b")
