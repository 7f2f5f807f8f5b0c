"""The view of access: allowed clients of each workload, and its new policy."""

from __future__ import annotations

from tests.observe.records import response
from tests.observe.test_least_privilege import facts
from tests.policy.world import HTTP, ROOT, mesh, pod, service
from tests.support.authorization import authorization_policy, source
from xds.mesh.controlplane.page.access_view import MAX_CLIENTS, view
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.record import Flow

WEB = Target("shop", "web", 80)
WORLD = (
    pod("web", "shop", app="web"),
    pod("api", "shop", app="api"),
    service("web", "shop", HTTP, app="web"),
)


def flow(name: str, mode: TrafficMode = TrafficMode.MTLS) -> Flow:
    return Flow(WEB, Client("shop", name), mode, 10, 20, mode is TrafficMode.PLAINTEXT)


def test_rows_have_the_clients_and_what_the_policy_denies() -> None:
    found = view(mesh(*WORLD), response(0, 60, flow("api"), flow("gone")))
    assert (found["accounts"], found["seconds"], found["gaps"]) == (2, 60, [])
    assert found["comments"][0].startswith("# Allows the traffic that was observed from 1970-01-01 00:00 UTC")
    unused, row = found["rows"]
    assert (unused["workload"], unused["reason"]) == ("api.shop", "no traffic to it was observed")
    assert row["rules"] == [
        {"ports": [8080], "clients": ["shop/api", "shop/gone"], "moreClients": 0, "isOpen": False}
    ]
    assert (row["workload"], row["reason"], row["denied"]) == ("web.shop", "", 1)
    assert row["policy"].startswith("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n")


def test_policy_of_an_open_port_denies_nobody() -> None:
    found = view(mesh(*WORLD), response(0, 60, flow("api"), flow("api", TrafficMode.PLAINTEXT)))
    row = found["rows"][1]
    assert row["rules"] == [{"ports": [8080], "clients": ["shop/api"], "moreClients": 0, "isOpen": True}]
    assert row["denied"] == 0


def test_further_clients_are_counted() -> None:
    flows = [flow(f"client-{number:02}") for number in range(MAX_CLIENTS + 3)]
    [rule] = view(mesh(*WORLD), response(0, 60, *flows))["rows"][1]["rules"]
    assert (len(rule["clients"]), rule["moreClients"]) == (MAX_CLIENTS, 3)


def test_unused_access_has_rules_of_today() -> None:
    shop, root = (
        authorization_policy(namespace, source(serviceAccounts=["shop/api", "shop/web"]))
        for namespace in ("shop", ROOT)
    )
    found = view(mesh(*WORLD, *facts(shop, root)), response(0, 60, flow("api")))
    web = {
        "isUsed": True,
        "rule": 0,
        "servers": ["web.shop:80"],
        "namespaces": ["shop"],
        "unusedBy": "shop/web",
    }
    assert found["unused"] == [{"policy": f"{ROOT}/rules"} | web, {"policy": "shop/rules"} | web]
