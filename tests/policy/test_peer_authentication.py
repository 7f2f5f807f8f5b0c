"""Istio's TestComposePeerAuthentication and its neighbours, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.world import ROOT, mesh, peer, pod, policy, service
from xds.mesh.model.objects import Mode
from xds.mesh.policy.mtls import effective_mode, ports_with_own_mode

FOO = pod("foo", "ns", version="v1")

COMPOSED = {
    "nothing said": ([], "PERMISSIVE"),
    "mesh STRICT": ([peer(ROOT, "STRICT")], "STRICT"),
    "mesh STRICT, namespace PERMISSIVE": ([peer(ROOT, "STRICT"), peer("ns", "PERMISSIVE")], "PERMISSIVE"),
    "a selector in the root namespace applies to nothing": ([peer(ROOT, "STRICT", app="foo")], "PERMISSIVE"),
    "namespace and workload say nothing": (
        [peer("ns", None), peer("ns", None, name="w", app="foo")],
        "PERMISSIVE",
    ),
    "namespace PERMISSIVE, mesh DISABLE": ([peer("ns", "PERMISSIVE"), peer(ROOT, "DISABLE")], "PERMISSIVE"),
    "the oldest of the mesh, the first by name of equals": (
        [
            peer(ROOT, "DISABLE", name="a", age=0),
            peer(ROOT, "PERMISSIVE", name="b", age=1),
            peer(ROOT, "STRICT", name="c", age=1),
        ],
        "PERMISSIVE",
    ),
    "the oldest of the namespace, the first by name of equals": (
        [
            peer("ns", "DISABLE", name="a", age=0),
            peer("ns", "PERMISSIVE", name="b", age=1),
            peer("ns", "STRICT", name="c", age=1),
        ],
        "PERMISSIVE",
    ),
    "the oldest of the workload": (
        [
            peer("ns", "DISABLE", name="a", age=0, app="foo"),
            peer("ns", "PERMISSIVE", name="b", age=1, app="foo"),
            peer("ns", "STRICT", name="c", age=2, app="other"),
        ],
        "PERMISSIVE",
    ),
    "one without an age is younger than any with one": (
        [peer("ns", "STRICT", name="a"), peer("ns", "DISABLE", name="z", age=0)],
        "DISABLE",
    ),
    "mesh UNSET": ([peer(ROOT, None)], "PERMISSIVE"),
    "mesh STRICT, workload UNSET": (
        [peer(ROOT, "STRICT"), peer("ns", None, name="w", app="foo")],
        "STRICT",
    ),
    "namespace STRICT, workload UNSET": (
        [peer("ns", "STRICT"), peer("ns", None, name="w", app="foo")],
        "STRICT",
    ),
    "mesh STRICT, namespace and workload UNSET": (
        [peer(ROOT, "STRICT"), peer("ns", None), peer("ns", None, name="w", app="foo")],
        "STRICT",
    ),
    "another namespace's counts for nothing": ([peer("other", "STRICT")], "PERMISSIVE"),
}


@pytest.mark.parametrize(("policies", "expected"), COMPOSED.values(), ids=COMPOSED)
def test_levels_are_composed_as_in_istio(policies, expected):
    assert effective_mode(mesh(FOO, *policies), FOO, 8080).mode == expected


def test_unknown_selector_applies_to_every_pod():
    unknown = replace(peer("ns", "STRICT", name="unknown", age=5), scope_unknown=True)
    younger = peer("ns", "DISABLE", name="young", age=1, app="foo", ports={8080: "PERMISSIVE"})
    older = peer("ns", "DISABLE", name="old", age=9, app="foo")
    other = pod("other", "elsewhere")
    namespace = peer("ns", "PERMISSIVE", age=10)
    found = effective_mode(mesh(FOO, unknown, younger, namespace), FOO, 8080)
    assert (found.mode, found.decided_by.name) == ("STRICT", "unknown")
    assert {ref.name for ref in found.overridden} >= {"young", "default"}
    assert effective_mode(mesh(FOO, unknown, older, namespace), FOO, 8080).mode is Mode.DISABLE
    assert effective_mode(mesh(other, unknown), other, 8080).mode is Mode.PERMISSIVE


def test_port_entry_wins_and_unset_inherits():
    world = mesh(
        FOO,
        peer(ROOT, "STRICT"),
        peer("ns", None, name="w", app="foo", ports={80: "DISABLE", 90: None, 100: None}),
    )
    assert [effective_mode(world, FOO, port).mode for port in (80, 90, 100, 8080)] == [
        "DISABLE",
        "STRICT",
        "STRICT",
        "STRICT",
    ]
    assert ports_with_own_mode(world, FOO) == (80, 90, 100)


INBOUND = {
    "none": ([], "PERMISSIVE"),
    "DISABLE": ([peer("ns", "DISABLE", app="foo")], "DISABLE"),
    "STRICT": ([peer("ns", "STRICT", app="foo")], "STRICT"),
    "older STRICT, newer DISABLE": (
        [peer("ns", "STRICT", name="a", age=1, app="foo"), peer("ns", "DISABLE", name="b", age=0, app="foo")],
        "STRICT",
    ),
    "newer DISABLE, older PERMISSIVE": (
        [
            peer("ns", "DISABLE", name="a", age=0, app="foo"),
            peer("ns", "PERMISSIVE", name="b", age=1, app="foo"),
        ],
        "PERMISSIVE",
    ),
    "DISABLE with port 8080 STRICT": ([peer("ns", "DISABLE", app="foo", ports={8080: "STRICT"})], "STRICT"),
    "UNSET with port 7070 STRICT": ([peer("ns", None, app="foo", ports={7070: "STRICT"})], "PERMISSIVE"),
}


@pytest.mark.parametrize(("policies", "expected"), INBOUND.values(), ids=INBOUND)
def test_port_8080_gets(policies, expected):
    assert effective_mode(mesh(FOO, *policies), FOO, 8080).mode == expected


def test_older_workload_policy_hides_newer_port_entries():
    world = mesh(
        FOO,
        peer("ns", "PERMISSIVE", name="old", age=9, app="foo"),
        peer("ns", "STRICT", name="new", age=1, app="foo", ports={8080: "DISABLE"}),
    )
    assert effective_mode(world, FOO, 8080).mode is Mode.PERMISSIVE
    assert ports_with_own_mode(world, FOO) == ()


def test_root_namespace_follows_mesh_policy_only():
    inside = pod("inside", ROOT)
    world = mesh(inside, peer(ROOT, "STRICT"), peer(ROOT, "DISABLE", name="w", app="inside"))
    assert effective_mode(world, inside, 80).mode is Mode.STRICT


def test_unset_mode_still_overrides_alpha_policy():
    world = mesh(FOO, service("foo", "ns"), policy("ns", "STRICT", "foo", name="foo"), peer("ns", None))
    found = effective_mode(world, FOO, 8080)
    assert (found.mode, str(found.decided_by)) == ("PERMISSIVE", "PeerAuthentication ns/default")
    assert [str(ref) for ref in found.overridden] == ["Policy ns/foo", "MeshPolicy default"]


def test_alpha_policy_applies_without_peer_authentication():
    world = mesh(
        FOO,
        service("foo", "ns"),
        policy("ns", "STRICT", "foo", name="foo"),
        peer("ns", "DISABLE", name="w", app="bar"),
    )
    assert effective_mode(world, FOO, 8080).mode is Mode.STRICT


def test_overridden_objects_are_listed_most_specific_first():
    world = mesh(
        FOO,
        peer("ns", "STRICT", name="w", age=1, app="foo"),
        peer("ns", "DISABLE", name="younger", age=0, app="foo"),
        peer("ns", "PERMISSIVE"),
        peer(ROOT, None),
    )
    found = effective_mode(world, FOO, 1)
    assert str(found.decided_by) == "PeerAuthentication ns/w"
    assert [str(ref) for ref in found.overridden] == [
        "PeerAuthentication ns/default",
        "PeerAuthentication istio-system/default",
        "PeerAuthentication ns/younger",
        "MeshPolicy default",
    ]


def test_pod_that_is_not_in_the_mesh_has_its_own_mode():
    known = pod("a", "n", version="v1")
    world = mesh(known, peer("n", "STRICT", name="w", version="v2"))
    assert effective_mode(world, known, 80).mode is Mode.PERMISSIVE
    assert effective_mode(world, pod("a", "n", version="v2"), 80).mode is Mode.STRICT
    assert effective_mode(world, known, 80).mode is Mode.PERMISSIVE
