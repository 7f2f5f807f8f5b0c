"""Who decides nothing, and who decides instead."""

from __future__ import annotations

import pytest

from tests.policy.world import ROOT, mesh, peer, pod, policy, rule, service
from xds.mesh.model.objects import Ref
from xds.mesh.model.traffic import Subset, TrafficPolicy
from xds.mesh.policy import conflicts
from xds.mesh.policy.conflicts import Overridden, overridden

WEB = [pod("web", "ns"), service("web", "ns")]


def pa(namespace: str, name: str = "default") -> Ref:
    return Ref("PeerAuthentication", namespace, name)


def dr(name: str, namespace: str = "ns") -> Ref:
    return Ref("DestinationRule", namespace, name)


CASES = {
    "the younger of two for a namespace": (
        [peer("ns", "STRICT", name="old", age=9), peer("ns", "DISABLE", name="young", age=1)],
        {pa("ns", "young"): Overridden((pa("ns", "old"),), "")},
    ),
    "one that still decides elsewhere": (
        [peer(ROOT, "STRICT"), peer("ns", "DISABLE"), pod("x", "other")],
        {},
    ),
    "one that decides for a port": (
        [
            peer("ns", "STRICT", name="w", app="web"),
            peer("ns", "STRICT", name="p", ports={8080: "DISABLE"}, app="web"),
        ],
        {pa("ns", "w"): Overridden((pa("ns", "p"),), "")},
    ),
    "one that leaves it to others": ([peer(ROOT, "STRICT"), peer("ns", None)], {}),
    "one that is about nobody": ([peer("ns", "STRICT", app="nobody")], {}),
    "an alpha policy where a PeerAuthentication speaks": (
        [peer("ns", "STRICT"), policy("ns", "DISABLE", "web")],
        {Ref("Policy", "ns", "default"): Overridden((pa("ns"),), "")},
    ),
    "one that only pods without a sidecar would follow": (
        [peer("bare", "STRICT", name="a"), peer("bare", "STRICT", name="b"), pod("x", "bare", sidecar=False)],
        {},
    ),
}


@pytest.mark.parametrize(("facts", "wanted"), CASES.values(), ids=CASES)
def test_policy_that_decides_no_port_is_overridden(facts, wanted) -> None:
    assert overridden(mesh(*WEB, *facts)) == wanted


def test_search_ends_when_each_policy_decides_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check follows each change. For all ports of 10,000 pods, it would take 0.25 s."""
    decisions = []
    decide = conflicts.effective_mode
    monkeypatch.setattr(conflicts, "effective_mode", lambda *args: decisions.append(args) or decide(*args))
    pods = [pod(f"web-{number}", namespace) for number in range(50) for namespace in ("a", "b")]
    unmatched = [peer("c", "STRICT", app="nobody"), pod("x", "c")]
    facts = [*pods, *unmatched, peer("a", "STRICT"), peer(ROOT, "STRICT"), peer("b", None)]
    assert overridden(mesh(*facts)) == {}
    assert len(decisions) < 60


HOST = "web.ns.svc.cluster.local"
V1, V2 = Subset(name="v1", labels={"v": "1"}), Subset(name="v2", labels={"v": "2"})

RULES = {
    "the younger of two for a host": (
        [
            rule("ns", HOST, "DISABLE", name="old", age=9),
            rule("ns", HOST, "ISTIO_MUTUAL", name="young", age=1),
        ],
        {dr("young"): Overridden((dr("old"),), "")},
    ),
    "the younger of two, of which one has subsets of its own": (
        [
            rule("ns", HOST, "DISABLE", name="old", age=9, subsets=(V1,)),
            rule("ns", HOST, "ISTIO_MUTUAL", name="young", age=1, subsets=(V1, V2)),
        ],
        {dr("young"): Overridden((dr("old"),), "its trafficPolicy, its subset v1")},
    ),
    "by two": (
        [
            rule("ns", HOST, name="a", age=9, subsets=(V1,)),
            rule("ns", HOST, name="b", age=8, subsets=(V2,)),
            rule("ns", HOST, name="c", age=1, subsets=(V1, V2)),
        ],
        {dr("c"): Overridden((dr("a"), dr("b")), "")},
    ),
    "those that are merged": (
        [rule("ns", HOST, "DISABLE", name="a"), rule("ns", HOST, name="b", subsets=(V1,))],
        {},
    ),
    "for other clients, another host or namespace": (
        [
            rule("ns", HOST, "DISABLE", name="a"),
            rule("ns", HOST, "DISABLE", name="b", selector={"app": "x"}),
            rule("ns", HOST, "DISABLE", name="c", export_to=(".",)),
            rule("ns", "*.local", "DISABLE", name="d"),
            rule("other", HOST, "DISABLE", name="a"),
        ],
        {},
    ),
    "the same clients": (
        [
            rule("ns", HOST, policy=TrafficPolicy(), name=name, selector={"app": "x", "v": "1"})
            for name in ("a", "b")
        ],
        {dr("b"): Overridden((dr("a"),), "")},
    ),
}


@pytest.mark.parametrize(("facts", "wanted"), RULES.values(), ids=RULES)
def test_rule_is_overridden_by_older_rule(facts, wanted) -> None:
    assert overridden(mesh(*facts)) == wanted
