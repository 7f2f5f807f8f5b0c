"""What rollouts know of resources that validation holds back."""

from __future__ import annotations

from xds.mesh.rollout.held_back import HeldBack
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource

INBOUND = Resource.of(LISTENER, "in", b"", tag="8080S")
OUTBOUND, WEB = Resource.of(LISTENER, "out", b""), Resource.of(CLUSTER, "web", b"1")
ENDPOINTS, ROUTES = Resource.of(ENDPOINT, "api", b""), Resource.of(ROUTE, "web", b"")


def test_only_what_rollouts_depend_on_counts():
    held = HeldBack()
    assert (held.cluster_errors, held.listener_error) == ({}, "")
    held.update({OUTBOUND: "a", WEB: "b", ENDPOINTS: "c", ROUTES: "d"})
    assert (held.cluster_errors, held.listener_error) == ({"web": "b", "api": "c"}, "")
    held.update({INBOUND: "e"})
    assert held.listener_error == "e"


def test_a_repaired_resource_counts_until_its_type_is_answered():
    held = HeldBack()
    held.update({WEB: "old", INBOUND: "listener"})
    held.update({})
    held.forget_answered(lambda _: False)
    assert (held.cluster_errors, held.listener_error) == ({"web": "old"}, "listener")
    held.forget_answered(lambda type_url: type_url == CLUSTER)
    assert (held.cluster_errors, held.listener_error) == ({}, "listener")


def test_the_reason_of_the_latest_version_counts():
    held = HeldBack()
    held.update({WEB: "old"})
    held.update({Resource.of(CLUSTER, "web", b"2"): "new"})
    assert held.cluster_errors == {"web": "new"}
    held.forget_answered(lambda _: True)
    assert held.cluster_errors == {"web": "new"}


def test_versions_of_one_resource_do_not_accumulate():
    held = HeldBack()
    for version in range(10):
        held.update({Resource.of(CLUSTER, "web", str(version).encode()): f"reason {version}"})
    assert (held.cluster_errors, held._repaired) == ({"web": "reason 9"}, {})
    held.update({})
    assert held._repaired == {(CLUSTER, "web"): "reason 9"}
