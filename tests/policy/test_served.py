"""What clients are served, for many clients and endpoints at once."""

from __future__ import annotations

from tests.policy.world import HTTP, mesh, peer, pod, rule, service
from xds.mesh.model.objects import Mode, ServedDiff
from xds.mesh.policy.destination import served_rule_key
from xds.mesh.policy.mtls import sends_mtls, sends_mtls_each

WEB = service("web", "ns", HTTP)


def test_clients_with_equal_keys_are_served_the_same_rules():
    selecting = rule("ns", WEB.host, "DISABLE", selector={"app": "a"})
    held = rule("old", WEB.host, "DISABLE")
    world = mesh(WEB, selecting).with_served(ServedDiff(rules={held.ref: held}))
    assert served_rule_key(world, "ns", {"app": "a"}) == ("ns", (selecting.ref,))
    assert served_rule_key(world, "ns", {"app": "b"}) == ("ns", ())
    assert served_rule_key(world, "old", {}) == ("old", ())
    assert served_rule_key(world, "other", {}) == served_rule_key(world, "another", {"app": "a"}) == ("", ())


def test_endpoints_are_decided_for_as_one_by_one():
    pods = [pod(f"web-{n}", "ns", app="web") for n in range(3)]
    pods += [pod("web-s", "ns", app="web", only="s"), pod("web-p", "ns", sidecar=False, app="web")]
    world = mesh(WEB, *pods, peer("ns", "DISABLE"), peer("ns", "STRICT", name="s", only="s"))
    world = world.with_served(
        ServedDiff(modes={(pods[0].ref, 8080): Mode.STRICT}, mtls={(pods[0].ref, 8080): True})
    )
    endpoints = world.endpoints(WEB, HTTP)
    found = sends_mtls_each(world, None, HTTP, endpoints)
    assert found == tuple(sends_mtls(world, None, HTTP, endpoint) for endpoint in endpoints)
    assert dict(zip([each.pod.name for each in endpoints], found, strict=True)) == {
        "web-0": True,
        "web-1": False,
        "web-2": False,
        "web-s": True,
        "web-p": False,
    }
