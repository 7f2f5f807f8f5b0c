"""Whole meshes: Istio's reachability matrices, predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.world import (
    HTTP,
    ROOT,
    TCP,
    mesh,
    peer,
    pod,
    policy,
    reach,
    rule,
    service,
    slices,
    tls,
)
from tests.support.predictions import predict
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    EndpointAddress,
    Interception,
    TargetSelector,
)
from xds.mesh.model.traffic import Subset, TrafficPolicy
from xds.mesh.policy.destination import client_rule
from xds.mesh.policy.mtls import decide_for_mode, endpoint_mode
from xds.mesh.policy.reach import outcome

APPS = ("a", "b", "naked")
PODS = [pod(name, "apps", sidecar=name != "naked") for name in APPS]
WORLD = (*PODS, *(service(name, "apps") for name in APPS))
EVERY_PORT_OFF = {8080: "DISABLE", 9090: "DISABLE"}


def expect(world: Mesh, *, success, mtls) -> None:
    """`success` and `mtls`: (source is naked, target is naked) -> bool; None: Istio's test says nothing."""
    for (client, target), result in reach(world).items():
        source_naked, target_naked = client.startswith("naked"), target.startswith("naked")
        wanted = success(source_naked, target_naked)
        if wanted is None:
            continue
        assert (result != "fails") is wanted, (client, target, result)
        if wanted:
            assert (result == "mtls") is mtls(source_naked, target_naked), (client, target, result)


def neither(source: bool, target: bool) -> bool:
    return not source and not target


MATRIX = {
    "root STRICT, * ISTIO_MUTUAL": (
        [peer(ROOT, "STRICT"), rule(ROOT, "*", "ISTIO_MUTUAL")],
        lambda s, t: None if s and t else neither(s, t),
        neither,
    ),
    "root PERMISSIVE, * ISTIO_MUTUAL": (
        [peer(ROOT, "PERMISSIVE"), rule(ROOT, "*", "ISTIO_MUTUAL")],
        lambda s, t: None if s and t else not t,
        neither,
    ),
    "root DISABLE, * DISABLE": (
        [peer(ROOT, "DISABLE"), rule(ROOT, "*", "DISABLE")],
        lambda s, t: True,
        lambda s, t: False,
    ),
    "root PERMISSIVE, * DISABLE": (
        [peer(ROOT, "PERMISSIVE"), rule(ROOT, "*", "DISABLE")],
        lambda s, t: True,
        lambda s, t: False,
    ),
    "root STRICT": ([peer(ROOT, "STRICT")], lambda s, t: None if s and t else not s, neither),
    "root DISABLE": ([peer(ROOT, "DISABLE")], lambda s, t: True, lambda s, t: False),
    "nothing": ([], lambda s, t: True, neither),
    "* ISTIO_MUTUAL": ([rule(ROOT, "*", "ISTIO_MUTUAL")], lambda s, t: None if s and t else not t, neither),
    "namespace STRICT with every port DISABLE": (
        [peer("apps", "STRICT", name=name, app=name, ports=EVERY_PORT_OFF) for name in APPS],
        lambda s, t: True,
        lambda s, t: False,
    ),
    "workloads DISABLE, hosts DISABLE": (
        [peer("apps", "DISABLE", name=name, app=name) for name in APPS]
        + [rule("apps", f"{name}.apps.svc.cluster.local", "DISABLE", name=name) for name in APPS],
        lambda s, t: True,
        lambda s, t: False,
    ),
    # Istio 1.4 and 1.5
    "MeshPolicy STRICT, *.local ISTIO_MUTUAL": (
        [policy("", "STRICT"), rule(ROOT, "*.local", "ISTIO_MUTUAL")],
        lambda s, t: neither(s, t) or (s and t),
        neither,
    ),
    "MeshPolicy STRICT": ([policy("", "STRICT")], lambda s, t: t or not s, neither),
    "MeshPolicy {}": ([policy("", "DISABLE")], lambda s, t: True, lambda s, t: False),
    "ISTIO_MUTUAL except for targets without sidecar": (
        [rule("apps", f"{name}.apps.svc.cluster.local", "ISTIO_MUTUAL", name=name) for name in ("a", "b")],
        lambda s, t: True,
        neither,
    ),
}


@pytest.mark.parametrize(("facts", "success", "mtls"), MATRIX.values(), ids=MATRIX)
def test_reachability(facts, success, mtls):
    expect(mesh(*WORLD, *facts), success=success, mtls=mtls)


def test_mtls_enabled_matches_istio_global_mtls_on():
    expect(mesh(*WORLD, mtls_enabled=True), success=lambda s, t: neither(s, t) or (s and t), mtls=neither)


def test_strict_port_fails_for_plaintext_rule():
    world = mesh(
        *WORLD,
        policy("apps", "STRICT", TargetSelector(service="b", ports=("http",)), name="b-http"),
        rule(ROOT, "*.local", "DISABLE"),
    )
    failing = {pair for pair, result in reach(world).items() if result == "fails"}
    assert failing == {(f"{name}.apps", "b.apps:80") for name in APPS}


def test_alpha_policies_and_auto_mtls():
    world = mesh(
        *WORLD,
        policy("", "STRICT"),
        policy("apps", "DISABLE", "b", name="b"),
        policy("apps", "STRICT", TargetSelector(service="b", ports=("http",)), name="b-http"),
    )
    found = reach(world)
    assert all(result != "fails" for (client, _), result in found.items() if not client.startswith("naked"))
    naked = {target: result for (client, target), result in found.items() if client.startswith("naked")}
    assert naked["naked.apps:80"] == naked["b.apps:90"] == "plaintext"
    assert naked["a.apps:80"] == naked["b.apps:80"] == "fails"


def test_workload_policy_under_strict_namespace():
    world = mesh(
        *WORLD,
        peer("apps", "STRICT"),
        peer("apps", "DISABLE", name="b", app="b", ports={8080: "STRICT"}),
    )
    found = reach(world)
    assert found["a.apps", "b.apps:80"] == "mtls"
    assert found["a.apps", "b.apps:90"] == "plaintext"
    assert found["naked.apps", "b.apps:90"] == "plaintext"
    assert found["naked.apps", "b.apps:80"] == "fails"


MIGRATED = pod("istio", "apps", app="multi", version="vistio")
LEGACY = pod("legacy", "apps", sidecar=False, app="multi", version="vlegacy")
SUBSETS = tuple(Subset(name=name, labels={"version": name}) for name in ("vistio", "vlegacy"))


@pytest.mark.parametrize(
    ("mode", "vistio", "vlegacy"),
    [(None, "mtls", "plaintext"), ("DISABLE", "plaintext", "plaintext"), ("ISTIO_MUTUAL", "mtls", "mtls")],
)
def test_service_with_and_without_sidecars_gets(mode, vistio, vlegacy):
    """Under STRICT: what a sidecar gets in plaintext, and the application in mutual TLS, fails."""
    own = TrafficPolicy(tls=tls(mode)) if mode else None
    subsets = tuple(Subset(name=s.name, labels=s.labels, policy=own) for s in SUBSETS)
    host = "multi.apps.svc.cluster.local"
    world = mesh(
        *WORLD,
        MIGRATED,
        LEGACY,
        service("multi", "apps"),
        peer("apps", "STRICT"),
        rule("apps", host, policy=own, subsets=subsets),
    )
    multi = world.service("apps", "multi")
    used = client_rule(world, "apps", PODS[0].meta.labels, multi)
    servers = {e.pod.name: endpoint_mode(world, e) for e in world.endpoints(multi, HTTP)}
    assert decide_for_mode(world, used, HTTP, servers["istio"], "vistio").send == vistio
    assert decide_for_mode(world, used, HTTP, servers["legacy"], "vlegacy").send == vlegacy
    results = {o.endpoint.pod.name: str(o.result) for o in predict(world, [PODS[0]], [(multi, HTTP)])}
    assert (
        results
        == {
            None: {"istio": "mtls", "legacy": "plaintext"},
            "DISABLE": {"istio": "fails", "legacy": "plaintext"},
            "ISTIO_MUTUAL": {"istio": "mtls", "legacy": "fails"},
        }[mode]
    )


def test_istio_task():
    full = [pod("httpbin", "full"), pod("sleep", "full")]
    legacy = [pod("httpbin", "legacy", sidecar=False), pod("sleep", "legacy", sidecar=False)]
    partial = [pod("httpbin", "partial"), pod("nosidecar", "partial", sidecar=False, app="httpbin")]
    services = [service("httpbin", name, HTTP) for name in ("full", "partial", "legacy")]
    base = (*full, *legacy, *partial, *services)

    def row(client: str, *facts, **config) -> list[list[str]]:
        world = mesh(*base, *facts, **config)
        sleep = world.pod(client, "sleep")
        return [
            sorted(str(o.result) for o in predict(world, [sleep], [(world.service(ns, "httpbin"), HTTP)]))
            for ns in ("full", "partial", "legacy")
        ]

    mixed, off = ["mtls", "plaintext"], ["plaintext"]
    locked = policy("full", "STRICT", "httpbin", name="httpbin")
    opened = policy("full", "DISABLE", "httpbin", name="httpbin")
    override = rule("full", "httpbin.full.svc.cluster.local", "ISTIO_MUTUAL", name="httpbin-full-mtls")
    assert row("full") == [["mtls"], mixed, off]
    assert row("legacy") == [off, off * 2, off]
    assert row("full", locked) == [["mtls"], mixed, off]
    assert row("legacy", locked) == [["fails"], off * 2, off]
    assert row("full", opened) == [off, mixed, off]
    assert row("legacy", opened) == [off, off * 2, off]
    assert row("full", opened, override) == [["fails"], mixed, off]
    assert row("legacy", opened, override) == [off, off * 2, off]
    assert row("full", locked, enable_auto_mtls=False) == [["fails"], off * 2, off]


def one(world: Mesh, client: str, target: str) -> str:
    (found,) = predict(world, [world.pod("apps", client)], [(world.service("apps", target), HTTP)])
    decided_by = ", ".join(str(ref) for ref in found.decided_by)
    return f"{client} {target}: {found.result} {found.reason}; {decided_by}"


DISABLED = peer("apps", "DISABLE")
FOREIGN = tls("ISTIO_MUTUAL", subject_alt_names=("spiffe://cluster.local/ns/x/sa/y",))
RULE = "DestinationRule apps/rule"
FAILURES = {
    "plaintext meets STRICT": (
        [peer("apps", "STRICT")],
        "naked a: fails server-requires-mtls; PeerAuthentication apps/default",
    ),
    "mutual TLS meets plaintext": (
        [DISABLED, rule("apps", "*", "ISTIO_MUTUAL")],
        f"a b: fails server-plaintext; {RULE}, PeerAuthentication apps/default",
    ),
    "mutual TLS meets an application": (
        [rule("apps", "*", "ISTIO_MUTUAL")],
        f"a naked: fails endpoint-without-sidecar; {RULE}",
    ),
    "other TLS meets a sidecar": (
        [rule("apps", "*", "SIMPLE")],
        f"a b: fails tls-not-the-meshs; {RULE}, MeshPolicy default",
    ),
    "other TLS meets an application": (
        [rule("apps", "*", "MUTUAL")],
        f"a naked: fails tls-left-to-application; {RULE}",
    ),
    "other TLS meets a sidecar that looks inside": (
        [rule("apps", "*", "SIMPLE"), DISABLED],
        f"a b: fails tls-not-the-meshs; {RULE}, PeerAuthentication apps/default",
    ),
    "the identity is not among those that the rule accepts": (
        [rule("apps", "*", policy=TrafficPolicy(tls=FOREIGN))],
        f"a b: fails identity-refused; {RULE}, MeshPolicy default",
    ),
}


@pytest.mark.parametrize(("facts", "expected"), FAILURES.values(), ids=FAILURES)
def test_a_hop_fails_when(facts, expected):
    client, target = expected.partition(":")[0].split()
    assert one(mesh(*WORLD, *facts), client, target) == expected


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("DISABLE", "tls-left-to-application"),
        ("PERMISSIVE", "tls-left-to-application"),
        ("STRICT", "tls-not-the-meshs"),
    ],
)
def test_other_tls_is_forwarded_unless_strict(mode, reason):
    world = mesh(*WORLD, rule("apps", "*", "SIMPLE"), peer("apps", mode))
    (found,) = predict(world, [PODS[0]], [(world.service("apps", "b"), TCP)])
    assert (found.result, found.reason) == ("fails", reason)


CLOSED, SHOWN = ("fails", "port-of-sidecar"), ("plaintext", "endpoint-without-sidecar")


@pytest.mark.parametrize(
    ("target", "redirected", "none"),
    [
        *((port, CLOSED, CLOSED) for port in (15000, 15001, 15006)),
        (15002, ("mtls", "auto-mtls"), CLOSED),
        *((port, SHOWN, SHOWN) for port in (15020, 15021, 15090)),
    ],
)
def test_sidecar_ports_are_reported(target, redirected, none):
    port = replace(HTTP, target=target)
    for interception, expected in ((Interception.REDIRECT, redirected), (Interception.NONE, none)):
        server = replace(PODS[1], interception=interception)
        world = mesh(PODS[0], server, service("b", "apps", port), peer("apps", "PERMISSIVE"))
        (found,) = predict(world, [PODS[0]], [(world.service("apps", "b"), port)])
        assert (found.result, found.reason) == expected


def test_identity_accepted_by_the_rule_passes():
    accepted = ("spiffe://cluster.local/ns/apps/sa/b",)
    own = TrafficPolicy(tls=tls("ISTIO_MUTUAL", subject_alt_names=accepted))
    assert one(mesh(*WORLD, rule("apps", "*", policy=own)), "a", "b").startswith("a b: mtls")


def test_service_without_endpoints_is_reported():
    world = mesh(*WORLD, service("nobody", "apps"))
    assert one(world, "a", "nobody") == "a nobody: fails no-endpoint; "


def test_external_endpoint_gets_plaintext():
    outside = service("outside", "apps")
    listed = slices(outside, "192.0.2.1", EndpointAddress(address="192.0.2.2", ready=False), port=80)
    world = mesh(*WORLD, outside, listed)
    (found,) = predict(world, [PODS[0]], [(outside, HTTP)])
    assert (found.result, found.reason) == ("plaintext", "endpoint-without-sidecar")
    assert found.endpoint.address == "192.0.2.1"
    world = mesh(
        *WORLD,
        outside,
        listed,
        rule("apps", "*", policy=TrafficPolicy(tls=tls("ISTIO_MUTUAL", subject_alt_names=("x",)))),
    )
    assert (
        str(outcome(world, PODS[0], outside, HTTP, world.endpoints(outside, HTTP)[0]).reason)
        == "endpoint-without-sidecar"
    )
