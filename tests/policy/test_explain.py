"""Explanations: the words, the objects that decide on each side, and those that they override."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.world import HTTP, ROOT, TCP, mesh, peer, pod, policy, rule, service, slices, tls
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    PROBE_PORT,
    EndpointAddress,
    Mode,
    Ref,
    ServedDiff,
)
from xds.mesh.model.traffic import TrafficPolicy
from xds.mesh.policy.explain import _FAILURES, _REASONS, explain, explanations
from xds.mesh.policy.mtls import Reason, Send
from xds.mesh.policy.reach import Failure

HOST = "b.apps.svc.cluster.local"
A, B, NAKED = pod("a", "apps"), pod("b", "apps"), pod("naked", "apps", sidecar=False)
OUT = service("out", "apps", HTTP)
WORLD = (A, B, NAKED, *(service(name, "apps") for name in ("a", "b", "naked")))


def groups(world: Mesh, client: str = "a", target: str = "b", ports=(HTTP,)):
    return explain(world, world.pod("apps", client), world.service("apps", target), ports)


def answer(world: Mesh, client: str = "a", target: str = "b"):
    (group,) = groups(world, client, target)
    return group.explanation


def names(refs) -> list[str]:
    return [str(ref) for ref in refs]


AUTO = "mutual TLS: auto mTLS is enabled, and the server's mode is PERMISSIVE"
TLS = "TLS from a DestinationRule (SIMPLE or MUTUAL)"
CASES = {
    "auto mTLS": ([], AUTO, AUTO, "mutual TLS and plaintext (PERMISSIVE)"),
    "server in DISABLE": (
        [peer("apps", "DISABLE")],
        "plaintext: the server's mode is DISABLE",
        "plaintext: the server's mode is DISABLE",
        "plaintext only (DISABLE)",
    ),
    "a rule against the policy": (
        [peer("apps", "STRICT"), rule("apps", HOST, "DISABLE")],
        "fails: the client sends plaintext, but the server accepts mutual TLS only",
        "plaintext: a DestinationRule sets DISABLE",
        "mutual TLS only (STRICT)",
    ),
    "TLS of the client's own": (
        [rule("apps", HOST, "SIMPLE")],
        f"fails: the client sends {TLS}, which the server's sidecar does not accept",
        f"{TLS}: a DestinationRule sets SIMPLE",
        "mutual TLS and plaintext (PERMISSIVE)",
    ),
    "a rule without TLS": (
        [rule("apps", HOST, policy=TrafficPolicy())],
        *[f"{AUTO} (DestinationRule apps/rule applies, but sets no TLS for port 80)"] * 2,
        "mutual TLS and plaintext (PERMISSIVE)",
    ),
}


@pytest.mark.parametrize(("facts", "summary", "client", "server"), CASES.values(), ids=CASES)
def test_words_for_both_sides(facts, summary, client, server):
    found = answer(mesh(*WORLD, *facts))
    assert (found.summary, found.client.summary, found.server.summary) == (summary, client, server)
    assert found.served == found.desired


def test_words_without_auto_mtls():
    found = answer(mesh(*WORLD, enable_auto_mtls=False))
    assert found.summary == "plaintext: auto mTLS is disabled, and no DestinationRule sets TLS"
    assert (found.client.decided_by, found.identities) == (None, ())


def test_client_without_sidecar_follows_no_rule():
    found = answer(mesh(*WORLD, rule("apps", HOST, "ISTIO_MUTUAL")), client="naked")
    assert found.summary == found.client.summary == "plaintext: the client has no sidecar"
    assert (found.client.decided_by, found.client.overridden) == (None, ())
    assert found.served == (Send.PLAINTEXT, Mode.PERMISSIVE)


def test_server_without_sidecar_is_named_as_the_reason():
    found = answer(mesh(*WORLD), target="naked")
    assert found.summary == "plaintext: the server has no sidecar"
    assert found.server == ("whatever the application accepts: the server has no sidecar", None, ())
    assert found.served == (Send.PLAINTEXT, None)
    failing = answer(mesh(*WORLD, rule("apps", "*", "ISTIO_MUTUAL")), target="naked")
    assert failing.summary == "fails: the client sends mutual TLS, but the server has no sidecar"


def test_address_and_port_without_sidecar_are_told_apart():
    probe = replace(HTTP, target=PROBE_PORT)
    world = mesh(*WORLD, service("probe", "apps", probe, app="b"), OUT, slices(OUT, "192.0.2.1"))
    (group,) = groups(world, target="probe", ports=(probe,))
    assert (
        group.explanation.summary == f"plaintext: the server's sidecar does not intercept port {PROBE_PORT}"
    )
    assert answer(world, target="out").summary == "plaintext: the server's address belongs to no known pod"


def test_overridden_policies_are_in_order_of_precedence():
    found = answer(
        mesh(
            *WORLD,
            peer("apps", "STRICT", name="lock", app="b"),
            peer("apps", "PERMISSIVE"),
            policy("apps", "DISABLE", name="all"),
        )
    )
    assert str(found.server.decided_by) == "PeerAuthentication apps/lock for the workload"
    assert names(found.server.overridden) == [
        "PeerAuthentication apps/default for the namespace",
        "Policy apps/all for the namespace",
        "MeshPolicy default for the mesh",
    ]
    assert found.client.decided_by == found.server.decided_by


SCOPES = {
    "port": (peer("apps", "STRICT", name="x", app="b", ports={8080: "DISABLE"}), "port 8080"),
    "workload": (peer("apps", "STRICT", name="x", app="b", ports={8080: None}), "the workload"),
    "unknown workload": (replace(peer("apps", "STRICT"), scope_unknown=True), "the workload"),
    "namespace": (peer("apps", "STRICT"), "the namespace"),
    "mesh": (peer(ROOT, "STRICT"), "the mesh"),
    "v1alpha1 service": (policy("apps", "STRICT", "b", name="b"), "the service"),
}


@pytest.mark.parametrize(("fact", "scope"), SCOPES.values(), ids=SCOPES)
def test_scope_of_the_deciding_object(fact, scope):
    assert answer(mesh(*WORLD, fact)).server.decided_by == (fact.ref, scope)


def test_overridden_rules_are_in_order_of_precedence():
    far = pod("far", "elsewhere")
    facts = [
        rule(ROOT, "*.local", "DISABLE", name="mesh"),
        rule("apps", HOST, "DISABLE", name="younger", age=5),
        rule("apps", HOST, "ISTIO_MUTUAL", name="older", age=10),
        rule("apps", "*.local", "DISABLE", name="wide"),
        rule("elsewhere", HOST, policy=TrafficPolicy(), name="no-tls"),
        rule("elsewhere", HOST, "DISABLE", name="for-others", selector={"app": "other"}),
    ]
    world = mesh(*WORLD, far, *facts)
    near = answer(world)
    assert str(near.client.decided_by) == f"DestinationRule apps/older for host {HOST}"
    assert names(near.client.overridden) == [
        f"DestinationRule apps/younger for host {HOST}",
        "DestinationRule apps/wide for host *.local",
        f"DestinationRule {ROOT}/mesh for host *.local",
    ]
    (group,) = explain(world, far, world.service("apps", "b"), (HTTP,))
    # A rule without TLS in the client's namespace hides all others.
    assert (
        "DestinationRule elsewhere/no-tls applies, but sets no TLS for port 80" in group.explanation.summary
    )
    assert str(group.explanation.client.decided_by) == "MeshPolicy default for the mesh"
    assert f"DestinationRule apps/older for host {HOST}" in names(group.explanation.client.overridden)


def test_expected_identities():
    found = answer(mesh(*WORLD))
    assert found.identities == ("spiffe://cluster.local/ns/apps/sa/b",)
    own = TrafficPolicy(tls=tls("ISTIO_MUTUAL", subject_alt_names=("spiffe://x/y",)))
    refused = answer(mesh(*WORLD, rule("apps", HOST, policy=own)))
    assert refused.identities == ("spiffe://x/y",)
    assert refused.summary == (
        "fails: the DestinationRule's subjectAltNames do not contain the server's identity"
    )


def test_server_of_no_known_pod_may_have_any_identity_of_the_mesh():
    out = replace(OUT, selector={})
    world = mesh(*WORLD, out, slices(out, "192.0.2.1"), rule("apps", "*", "ISTIO_MUTUAL"))
    assert answer(world, target="out").identities == ("spiffe://cluster.local/*",)


def test_endpoints_with_one_answer_are_grouped():
    twins = [pod(name, "apps", app="b") for name in ("b-2", "b-3")]
    bare = pod("b-4", "apps", sidecar=False, app="b")
    found = groups(mesh(*WORLD, *twins, bare), ports=(HTTP, TCP))
    assert sorted(
        (group.explanation.port.port, sorted(endpoint.pod.name for endpoint in group.endpoints))
        for group in found
    ) == [(80, ["b", "b-2", "b-3"]), (80, ["b-4"]), (90, ["b", "b-2", "b-3"]), (90, ["b-4"])]


def test_endpoints_that_cannot_differ_are_explained_once():
    twins = [replace(pod(name, "apps", app="b"), service_account="b") for name in ("b-2", "b-3")]
    bare = pod("b-4", "apps", sidecar=False, app="b")
    world = mesh(*WORLD, *twins, bare)
    found = list(explanations(world, A, world.service("apps", "b"), (HTTP,)))
    assert len(found) == 4
    assert len({id(explanation) for explanation, _ in found}) == 2


def test_port_without_ready_endpoint():
    none = service("none", "apps", HTTP)
    (group,) = groups(mesh(*WORLD, none), target="none")
    assert group.endpoints == ()
    assert group.explanation.summary == "fails: the service port has no ready endpoint"
    assert group.explanation.client is group.explanation.served is group.explanation.server.decided_by is None
    unknown = EndpointAddress(address="10.9.9.9", pod=Ref("Pod", "apps", "ghost"))
    (group,) = groups(mesh(*WORLD, none, slices(none, unknown)), target="none")
    assert (
        group.explanation.summary == "fails: no endpoint is ready, and an EndpointSlice names an unknown Pod"
    )
    assert str(group.explanation.server.decided_by) == "EndpointSlice apps/none-1"


SERVED = {
    "server and client": (
        ServedDiff(modes={(B.ref, 8080): Mode.PERMISSIVE}, mtls={(B.ref, 8080): False}),
        "a",
        (Send.PLAINTEXT, Mode.PERMISSIVE),
    ),
    "server only": (ServedDiff(modes={(B.ref, 8080): Mode.PERMISSIVE}), "a", (Send.MTLS, Mode.PERMISSIVE)),
    "client without a sidecar": (
        ServedDiff(modes={(B.ref, 8080): Mode.PERMISSIVE}),
        "naked",
        (Send.PLAINTEXT, Mode.PERMISSIVE),
    ),
    "a rule that is not served yet": (
        ServedDiff(rules={Ref("DestinationRule", "apps", "rule"): None}),
        "a",
        (Send.MTLS, Mode.STRICT),
    ),
}


@pytest.mark.parametrize(("served", "client", "expected"), SERVED.values(), ids=SERVED)
def test_served_state_differs_during_a_rollout(served, client, expected):
    more = [rule("apps", HOST, "DISABLE")] if served.rules else []
    world = mesh(*WORLD, peer("apps", "STRICT"), *more).with_served(served)
    found = answer(world, client)
    assert found.served == expected
    assert found.desired != found.served


def test_tls_of_a_rule_is_served_as_such():
    world = mesh(*WORLD, rule("apps", HOST, "SIMPLE"), peer("apps", "STRICT"))
    found = answer(world.with_served(ServedDiff(modes={(B.ref, 8080): Mode.PERMISSIVE})))
    assert found.served == (Send.TLS, Mode.PERMISSIVE)


def test_server_without_sidecar_during_a_rollout():
    found = answer(mesh(*WORLD).with_served(ServedDiff(mtls={(B.ref, 8080): False})), target="naked")
    assert found.served == found.desired == (Send.PLAINTEXT, None)


def test_every_reason_has_words():
    assert _FAILURES.keys() == set(Failure)
    assert _REASONS.keys() == set(Reason)
