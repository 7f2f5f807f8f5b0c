"""Which observed traffic contradicts a change, and which ports accept plaintext after it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.world import HTTP, TCP, peer, pod, service
from xds.mesh.controlplane.traffic_comparison import ObservedPeriod, observation_message
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, Mode
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.merged import Missing
from xds.mesh.observe.strict import SeenTraffic, find_contradictions, last_seen, policy_ports, times_by_target
from xds.mesh.policy.prediction import predict_change, scope_of

NOON = 1_000_000 * 600.0
DAY = 86400.0
LEGACY = Client("legacy", "cron")
WEB = Target("shop", "web", 80)
PODS = (
    pod("web-7d4b9c6f8-x2x4z", "shop", app="web"),
    pod("client", "shop"),
    pod("old", "zoo", sidecar=False),
)
MESH = (*PODS, service("web", "shop", HTTP), peer("shop", "PERMISSIVE"))


def seen(target: Target = WEB, mode: str = "plaintext", *, by_server: bool = True) -> SeenTraffic:
    return SeenTraffic(LEGACY, target, TrafficMode(mode), NOON - 60, NOON - 10, by_server)


def found(*traffic: SeenTraffic, change: Fact, mesh: tuple[Fact, ...] = MESH):
    before = Mesh(mesh)
    applied = Change(applied=(change,))
    after = before.apply(applied)
    return find_contradictions(before, after, scope_of(applied, before, after), traffic)


@pytest.mark.parametrize("mode", ["plaintext", "refused"])
def test_plaintext_to_a_port_that_becomes_strict_contradicts(mode: str):
    result = found(seen(mode=mode), change=peer("shop", "STRICT"))
    assert (result.refused, result.admitted) == ((seen(mode=mode),), ())
    assert {port for _, port in result.locked} == {8080}


@pytest.mark.parametrize(
    ("change", "mesh"),
    [
        (peer("zoo", "STRICT"), MESH),
        (peer("shop", "STRICT", name="client", app="client"), MESH),
        (peer("shop", "PERMISSIVE"), MESH),
        (peer("shop", "STRICT"), (*MESH[:-1], peer("shop", "STRICT"))),
        (peer("shop", "STRICT", name="web", app="web", ports={8080: "PERMISSIVE"}), MESH),
    ],
    ids=["other namespace", "other workload", "no change", "already", "exempt port"],
)
def test_traffic_to_other_ports_does_not_contradict(change: Fact, mesh: tuple[Fact, ...]):
    assert found(seen(), change=change, mesh=mesh).refused == ()


def test_pod_that_was_replaced_still_counts_by_its_workload():
    target = Target("shop", "pod/web-7d4b9c6f8-b5v9q", 9999)
    assert found(seen(target), change=peer("shop", "STRICT")).refused == (seen(target),)
    other = Target("shop", "pod/api-7d4b9c6f8-b5v9q", 9999)
    assert found(seen(other), change=peer("shop", "STRICT")).refused == ()


def test_traffic_that_only_a_client_reports_may_go_to_endpoints_without_a_sidecar():
    by_client = seen(by_server=False)
    assert found(by_client, change=peer("shop", "STRICT")).refused == (by_client,)
    mixed = (*MESH, pod("web-2", "shop", sidecar=False, app="web"))
    assert found(by_client, change=peer("shop", "STRICT"), mesh=mixed).refused == ()
    assert found(seen(), change=peer("shop", "STRICT"), mesh=mixed).refused == (seen(),)


def test_refused_traffic_is_admitted_by_permissive():
    locked = (*MESH[:-1], peer("shop", "STRICT"))
    refused = seen(mode="refused")
    result = found(refused, seen(), change=peer("shop", "PERMISSIVE"), mesh=locked)
    assert (result.refused, result.admitted, len(result.opened)) == ((), (refused,), 1)


def test_ports_that_stay_open_are_listed_with_their_reason():
    port_level = replace(peer("shop", None, name="web", app="web", ports={9090: "DISABLE"}), mode=None)
    before = Mesh(
        (*MESH, service("tcp", "shop", TCP, app="web"), port_level, pod("bare", "shop", sidecar=False))
    )
    strict = peer("shop", "STRICT")
    ports = policy_ports(before, before.apply(Change(applied=(strict,))), [strict.ref])
    assert ports.strict == 1
    bare, exempt = ports.plaintext
    assert (bare.port, bare.mode, list(bare.clients[0].accounts)) == (0, None, ["bare"])
    assert (exempt.port, exempt.mode, str(exempt.decided_by)) == (
        9090,
        Mode.DISABLE,
        "PeerAuthentication shop/web",
    )
    assert not exempt.was_strict


def test_policy_of_a_workload_concerns_only_its_pods():
    before = Mesh((*MESH, pod("bare", "shop", sidecar=False)))
    strict = peer("shop", "STRICT", name="web", app="web")
    ports = policy_ports(before, before.apply(Change(applied=(strict,))), [strict.ref])
    assert (ports.strict, ports.plaintext) == (1, ())


def test_hop_says_when_its_clients_were_last_seen():
    before = Mesh(MESH)
    after = before.apply(Change(applied=(peer("shop", "STRICT"),)))
    [hop] = [hop for hop in predict_change(before, after).hops if hop.effect.worsens]
    old = seen()._replace(client=Client("zoo", "old"))
    assert last_seen(hop, times_by_target([seen(), old]), after) == NOON - 10
    assert last_seen(hop, times_by_target([seen()]), after) is None


# --- what is safe -------------------------------------------------------------------------------------------


CONNECTED = frozenset({("shop", PODS[0].name)})
CRON = Client("legacy", "cron")
SEEN = SeenTraffic(
    CRON, Target("shop", "web", 80), TrafficMode.PLAINTEXT, NOON - 60, NOON - 10, by_server=True
)
COMPLETE = ObservedPeriod(seconds=7 * DAY, now=NOON, since=NOON - 8 * DAY, connected=CONNECTED)


def message(observed: ObservedPeriod, change: Fact | None = None):
    before = Mesh(tuple(fact for fact in MESH if fact.namespace == "shop"))
    applied = Change(applied=(change or peer("shop", "STRICT"),))
    after = before.apply(applied)
    contradictions = find_contradictions(before, after, None, observed.seen)
    return observation_message(observed, contradictions, predict_change(before, after), strict_ports=1)


def test_complete_observation_without_plaintext_is_safe():
    found = message(COMPLETE)
    assert (found.safe, list(found.gaps), found.locked_ports) == (True, [], 1)
    assert found.summary == "safe to lock: no plaintext traffic was observed for 7 days"


@pytest.mark.parametrize(
    ("changes", "gap"),
    [
        ({"since": NOON - 3 * 3600}, "observed for only 3h of 7d"),
        ({"seconds": 30 * DAY, "since": 0.0}, "traffic is remembered for only 7d"),
        ({"last_dropped": NOON - 60}, "reports of sidecars were dropped, the last 1m ago"),
        (
            {"incomplete": {"shop": NOON - 60}},
            "reports of sidecars were dropped or malformed in shop: these sidecars may have seen more",
        ),
        (
            {"missing_replicas": [Missing("xds-2", "refused")]},
            "the traffic of replica xds-2 is missing: refused",
        ),
        (
            {"connected": frozenset()},
            "sidecars are not connected, and may have seen more: web-7d4b9c6f8-x2x4z.shop",
        ),
        (
            {"returned": {("shop", PODS[0].name): NOON - 60}},
            "sidecars were disconnected for a while, and may have seen more: web-7d4b9c6f8-x2x4z.shop",
        ),
        (
            {"seen": [SEEN._replace(target=Target("shop", "web-old", 80))]},
            "plaintext was sent to services that no longer exist: web-old.shop",
        ),
    ],
)
def test_incomplete_observation_is_not_safe(changes: dict, gap: str):
    found = message(replace(COMPLETE, **changes))
    assert not found.safe
    assert [text for text in found.gaps if text.startswith(gap)]
    assert found.summary.startswith("not known to be safe: ")


def test_incomplete_report_of_another_namespace_does_not_matter():
    """A sidecar cannot prevent that other namespaces are locked."""
    assert message(replace(COMPLETE, incomplete={"evil": NOON - 60})).safe


def test_drop_before_the_period_does_not_matter():
    assert message(replace(COMPLETE, last_dropped=NOON - 7 * DAY - 1)).safe


def test_observed_plaintext_is_not_safe_and_named():
    found = message(replace(COMPLETE, seen=[seen()]))
    assert not found.safe
    assert found.summary == "not safe to lock: plaintext traffic of legacy/cron was observed"
    [edge] = found.plaintext
    assert (edge.client, edge.last_seen.ToSeconds()) == ("cron", NOON - 10)


def test_change_that_makes_no_port_strict_needs_no_observation():
    found = message(replace(COMPLETE, since=NOON, seen=[seen()]), peer("shop", "DISABLE"))
    assert (found.safe, found.summary) == (True, "no port becomes STRICT")


def test_disabled_observation_is_not_safe():
    found = message(replace(COMPLETE, enabled=False))
    assert (found.enabled, found.safe, list(found.gaps)) == (False, False, ["observation is disabled"])
    assert found.locked_ports == 1
