"""Each registered kind is watched, granted, described and, if it is a policy, reviewed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from xds.mesh.kube.packaged import load_packaged
from xds.mesh.model.objects import POLICY_KINDS, TRAFFIC_KINDS, TrafficFact
from xds.mesh.parse import KINDS, Kind, Watch

NO_POLICIES = {
    *("Namespace", "Pod", "Service", "ServiceAccount", "EndpointSlice", "Endpoints", "WorkloadEntry"),
    *("ServiceEntry", "Ingress", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "PodMonitor"),
    *("ServiceMonitor", "APIService", "CustomResourceDefinition", "MutatingWebhookConfiguration"),
    "ValidatingWebhookConfiguration",
}
"""Kinds that say what there is. Each other kind that is read decides about connections: it is a policy."""
WATCHED = [kind for kind in KINDS if kind.watch is not Watch.NEVER]


@pytest.fixture(scope="module")
def granted() -> set[tuple[str, str, str]]:
    """API group, plural and verb of what the ClusterRole grants."""
    [role] = [
        obj
        for _, obj in load_packaged("install")
        if (obj["kind"], obj["metadata"]["name"]) == ("ClusterRole", "xds")
    ]
    return {
        (group, plural, verb)
        for rule in role["rules"]
        if "resourceNames" not in rule
        for group in rule["apiGroups"]
        for plural in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("kind", WATCHED, ids=lambda kind: kind.name)
def test_watched_kind_is_granted(kind: Kind, granted: set[tuple[str, str, str]]) -> None:
    assert {(kind.group, kind.plural, verb) for verb in ("list", "watch")} <= granted


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.has_status], ids=lambda kind: kind.name)
def test_status_of_a_kind_is_granted(kind: Kind, granted: set[tuple[str, str, str]]) -> None:
    assert (kind.group, f"{kind.plural}/status", "patch") in granted


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kind_is_described(kind: Kind) -> None:
    assert re.search(rf"\b{kind.name}\b", Path("docs/reference/kinds.md").read_text())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.consequence], ids=lambda kind: kind.name)
def test_policies_are_traffic_kinds(kind: Kind) -> None:
    """The reviewer of policies, `xds wait` and `xds plan` would pass over a policy that is not listed."""
    fact = get_type_hints(kind.read)["return"]
    is_policy = kind.name not in NO_POLICIES
    assert (kind.name in TRAFFIC_KINDS) == is_policy
    assert any(each in get_args(TrafficFact) for each in (fact, *get_args(fact))) == is_policy
    assert kind.make_replacement or not is_policy, "a rejected policy would fail open"


def test_plurals_are_those_of_kubernetes() -> None:
    plurals = {kind.name: kind.plural for kind in KINDS}
    assert plurals["Endpoints"] == "endpoints"
    assert plurals["Policy"] == "policies"
    assert plurals["Ingress"] == "ingresses"


def test_policies_that_decide_no_modes_are_known() -> None:
    """`xds wait` and conditions know these policies: `object_progress.py` and `conflicts.py`.

    For those that decide no modes, `xds wait` looks at the sources of resources, and for a Sidecar at all
    resources. DestinationRules and Sidecars override each other, and AuthorizationPolicies override nothing.
    """
    assert {*TRAFFIC_KINDS} - {*POLICY_KINDS} == {"DestinationRule", "AuthorizationPolicy", "Sidecar"}


@pytest.mark.parametrize("name", TRAFFIC_KINDS)
def test_policy_is_reviewed(name: str) -> None:
    [kind] = [kind for kind in KINDS if kind.name == name]
    [webhook] = [
        webhook
        for _, obj in load_packaged("install")
        if obj["kind"] == "ValidatingWebhookConfiguration"
        for webhook in obj["webhooks"]
    ]
    assert any(
        (kind.group in rule["apiGroups"] and kind.plural in rule["resources"])
        and {*kind.versions} == {*rule["apiVersions"]}
        for rule in webhook["rules"]
    )


@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if not (kind.built_in or kind.watch in {Watch.ADVISORY, Watch.UNENFORCED})],
    ids=lambda kind: kind.name,
)
def test_kind_has_a_definition(kind: Kind) -> None:
    [spec] = [obj["spec"] for _, obj in load_packaged("crds") if obj["spec"]["names"]["kind"] == kind.name]
    versions = {version["name"]: "status" in version.get("subresources", {}) for version in spec["versions"]}
    assert (spec["group"], spec["names"]["plural"]) == (kind.group, kind.plural)
    assert spec["scope"] == ("Namespaced" if kind.namespaced else "Cluster")
    assert {*versions} >= {*kind.versions}
    assert set(versions.values()) == {kind.has_status}
