"""What replaces a rejected object: STRICT over the scope that could be read, never less."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import yaml

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    DestinationRule,
    Fact,
    Meta,
    Mode,
    ModePolicy,
    Pod,
    Problem,
    Ref,
    TargetSelector,
    UnknownService,
)
from xds.mesh.model.traffic import ClientTls, TlsMode, TrafficPolicy
from xds.mesh.parse import KINDS, Parsed, parse, unreadable
from xds.mesh.policy.mtls import effective_mode

OLDEST = datetime.min.replace(tzinfo=UTC)


def read(kind: str, version: str, spec: str, name: str = "x", more: str = "") -> Parsed:
    namespace = "" if kind == "MeshPolicy" else "namespace: ns, "
    text = (
        f"{{apiVersion: {version}, kind: {kind}, metadata: {{{namespace}name: {name}{more}}}, spec: {spec}}}"
    )
    [parsed] = parse(yaml.safe_load(text), str)
    assert parsed.refused
    assert parsed.fact is None
    return parsed


def closed(parsed: Parsed) -> Fact:
    assert parsed.replacement
    assert parsed.with_replacement().fact is parsed.replacement.fact
    said = [problem.what for problem in parsed.with_replacement().problems if not problem.notice]
    assert said[0].endswith(f"; until it is repaired, {parsed.replacement.effect}")
    assert len(said) == len([problem for problem in parsed.problems if not problem.notice])
    return parsed.replacement.fact


PEERS: dict[str, tuple[str, dict[str, str], bool]] = {
    "mode": ("{mtls: {mode: STRICTT}}", {}, True),
    "empty selector": ("{selector: {}, mtls: {mode: STRICTT}}", {}, True),
    "mode of a workload": ("{selector: {matchLabels: {a: b}}, mtls: {mode: 1}}", {"a": "b"}, True),
    "unknown field beside a selector": ("{selector: {matchLabels: {a: b}}, mtsl: {}}", {"a": "b"}, True),
    "port of a workload": (
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: X}}}",
        {"a": "b"},
        True,
    ),
    "selector": ("{selector: {matchLabel: {a: b}}, mtls: {mode: STRICT}}", {}, False),
    "a selector's label": ("{selector: {matchLabels: {a: b, c: {}}}, mtls: {mode: STRICT}}", {}, False),
    "unknown field that may be the selector": (
        "{selectr: {matchLabels: {a: b}}, mtls: {mode: STRICT}}",
        {},
        False,
    ),
    "ports without a selector": ("{portLevelMtls: {80: {mode: STRICT}}}", {}, False),
    "spec": ("STRICT", {}, False),
}


@pytest.mark.parametrize("case", PEERS)
def test_refused_peer_authentication_is_strict(case: str) -> None:
    spec, selector, known = PEERS[case]
    fact = closed(read("PeerAuthentication", "security.istio.io/v1", spec))
    assert isinstance(fact, ModePolicy)
    assert (fact.mode, fact.ports) == (Mode.STRICT, {})
    assert (fact.selector, fact.scope_unknown) == (selector, not known)


POLICIES: dict[str, tuple[str, str, tuple[TargetSelector, ...], bool]] = {
    "mode of the namespace": ("default", "{peers: [{mtls: {mode: X}}]}", (), True),
    "mode of a service": (
        "x",
        "{targets: [{name: web}], peers: [{mtls: {mode: X}}]}",
        (TargetSelector(service="web"),),
        True,
    ),
    "unknown field beside targets": (
        "x",
        "{targets: [{name: web}], peer: []}",
        (TargetSelector(service="web"),),
        True,
    ),
    "unknown field that may be targets": ("default", "{target: [{name: web}], peers: []}", (), False),
    "target": ("x", "{targets: [{name: web.ns}], peers: []}", (), False),
    "port of a target": ("x", "{targets: [{name: web, ports: [{number: x}]}], peers: []}", (), False),
    "no target": ("x", "{peers: [{mtls: {}}]}", (), False),
    "targets of default": ("default", "{targets: [{name: web}]}", (), False),
}


@pytest.mark.parametrize("case", POLICIES)
def test_refused_policy_is_strict(case: str) -> None:
    name, spec, targets, known = POLICIES[case]
    fact = closed(read("Policy", "authentication.istio.io/v1alpha1", spec, name))
    assert isinstance(fact, ModePolicy)
    assert (fact.mode, fact.targets, fact.scope_unknown) == (Mode.STRICT, targets, not known)


@pytest.mark.parametrize("spec", ["{peers: [{mtsl: {}}]}", "{targets: [{name: web}]}", "[]"])
def test_refused_mesh_policy_is_strict(spec: str) -> None:
    fact = closed(read("MeshPolicy", "authentication.istio.io/v1alpha1", spec, "default"))
    assert isinstance(fact, ModePolicy)
    assert (fact.mode, fact.targets) == (Mode.STRICT, ())


def test_mesh_policy_of_another_name_overrides_the_one_named_default() -> None:
    """The problem says that STRICT applies to the whole mesh."""
    fact = closed(read("MeshPolicy", "authentication.istio.io/v1alpha1", "{peers: [{mtls: {}}]}", "strict"))
    default = ModePolicy(
        meta=Meta(ref=Ref("MeshPolicy", "", "default"), created=OLDEST + timedelta(days=1)), mode=Mode.DISABLE
    )
    pod = Pod(meta=Meta(ref=Ref("Pod", "ns", "web")), address="10.0.0.1")
    decision = effective_mode(Mesh([default, fact, pod]), pod, 80)
    assert (decision.mode, decision.decided_by) == (Mode.STRICT, fact.ref)


WEB = "web.ns.svc.cluster.local"
RULES: dict[str, tuple[str, str, tuple[str, ...], dict[str, str] | None]] = {
    "mode": ("{host: web, trafficPolicy: {tls: {mode: X}}}", WEB, (), None),
    "namespaces": ("{host: web, exportTo: [., X]}", WEB, ("*",), None),
    "readable namespaces": ("{host: web, exportTo: [.], subsets: 1}", WEB, (".",), None),
    "host": ("{host: 1}", "*", (), None),
    "host that is none": ("{host: we_b}", "*", (), None),
    "clients": ("{host: web, workloadSelector: {matchLabel: {a: b}}}", WEB, (), {}),
    "readable clients": ("{host: web, x: 1, workloadSelector: {matchLabels: {a: b}}}", WEB, (), {"a": "b"}),
    "label that is named like a part": (
        "{host: web, subsets: [{name: a, labels: {connectionPool: {}}}]}",
        WEB,
        (),
        None,
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_refused_destination_rule_is_mutual_tls(case: str) -> None:
    spec, host, export_to, selector = RULES[case]
    fact = closed(read("DestinationRule", "networking.istio.io/v1", spec))
    assert isinstance(fact, DestinationRule)
    assert fact.policy == TrafficPolicy(tls=ClientTls(mode=TlsMode.ISTIO_MUTUAL))
    assert (fact.host, fact.export_to, fact.selector) == (host, export_to, selector)


def test_valid_tls_stays_if_other_settings_are_refused() -> None:
    tls = "tls: {mode: SIMPLE, sni: a.example}"
    spec = f"{{host: web, trafficPolicy: {{{tls}, connectionPool: {{tcp: {{connectTimeout: soon}}}}}}}}"
    fact = closed(read("DestinationRule", "networking.istio.io/v1", spec))
    assert isinstance(fact, DestinationRule)
    assert fact.policy
    assert fact.policy.tls == ClientTls(mode=TlsMode.SIMPLE, sni="a.example")


def test_valid_subsets_stay_without_their_policies() -> None:
    spec = "{host: web, x: 1, subsets: [{name: a, labels: {v: a}, trafficPolicy: {tls: {}}}]}"
    fact = closed(read("DestinationRule", "networking.istio.io/v1", spec))
    assert isinstance(fact, DestinationRule)
    assert [(each.name, each.labels, each.policy) for each in fact.subsets] == [("a", {"v": "a"}, None)]


@pytest.mark.parametrize(
    ("age", "created"),
    [("yesterday", OLDEST), ("2020-01-01T00:00:00Z", datetime(2020, 1, 1, tzinfo=UTC))],
)
def test_policy_of_unknown_age_counts_as_oldest(age: str, created: datetime) -> None:
    more = f", creationTimestamp: '{age}'"
    fact = closed(read("PeerAuthentication", "security.istio.io/v1", "{mtls: {mode: X}}", more=more))
    assert fact.meta.created == created


def test_list_items_fail_closed_separately() -> None:
    peer = {
        "metadata": {"name": "a", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "x": 1},
    }
    listed = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthenticationList", "items": [peer]}
    [parsed] = parse(listed, str)
    fact = closed(parsed)
    assert isinstance(fact, ModePolicy)
    assert (fact.selector, fact.scope_unknown) == ({"a": "b"}, False)


def test_object_with_only_a_name_fails_closed() -> None:
    found = {}
    for kind in KINDS:
        parsed = unreadable(
            kind, Ref(kind.name, "ns" if kind.namespaced else "", "x"), Problem(where="x", what="y")
        )
        if parsed.replacement:
            found[kind.name] = closed(parsed)
    peer, policy, rule = (found[name] for name in ("PeerAuthentication", "Policy", "DestinationRule"))
    assert isinstance(peer, ModePolicy)
    assert isinstance(policy, ModePolicy)
    assert isinstance(rule, DestinationRule)
    assert peer.scope_unknown
    assert policy.scope_unknown
    assert rule.host == "*"
    assert found.keys() == {
        "AuthorizationPolicy",
        "PeerAuthentication",
        "Policy",
        "MeshPolicy",
        "DestinationRule",
        "Service",
        "Endpoints",
        "Sidecar",
    }
    assert {fact.meta.created for name, fact in found.items() if "Service" not in name} >= {OLDEST}


def test_services_with_unknown_ports_are_named() -> None:
    service = closed(read("Service", "v1", "{ports: [{port: http}]}", "web"))
    assert service == UnknownService(meta=service.meta, service="web")
    labels = ", labels: {kubernetes.io/service-name: web}"
    listed = closed(read("EndpointSlice", "discovery.k8s.io/v1", "1, addressType: X", "web-1", labels))
    assert listed == UnknownService(meta=listed.meta, service="web")
    assert read("EndpointSlice", "discovery.k8s.io/v1", "1, addressType: X").replacement is None


def test_hint_precedes_the_effect() -> None:
    parsed = read(
        "MeshPolicy", "authentication.istio.io/v1alpha1", "{peers: [{mtls: {mode: STRCT}}]}", "default"
    )
    [problem] = parsed.with_replacement().problems
    assert "not 'STRCT' (did you mean STRICT?); until it is repaired, STRICT applies" in problem.what
    assert problem.hint == ""
