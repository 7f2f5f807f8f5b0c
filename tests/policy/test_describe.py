"""A pod from the server's side: its ports, what they accept, and who cannot reach them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.test_access import A_ONLY, READS, policy
from tests.policy.world import HTTP, mesh, peer, pod, rule, service
from xds.mesh.model.authorization import Action
from xds.mesh.policy.describe import OTHER_PORTS, describe

WEB = pod("web-1", "apps", app="web")
CLIENTS = (
    *(pod(f"old-{number}", "apps", sidecar=False, app="old") for number in (1, 2)),
    replace(pod("old-3", "apps", sidecar=False, app="old"), ended=True),
    pod("new", "apps", **{"app.kubernetes.io/name": "fresh"}),
)
WORLD = (WEB, *CLIENTS, service("web", "apps", HTTP), service("alias", "apps", HTTP, app="web"))


def ports(*facts):
    world = mesh(*WORLD, *facts)
    return {described.port: described for described in describe(world, world.pod("apps", "web-1"))}


def test_ports_list_services_and_mode():
    found = ports(peer("apps", "STRICT", name="lock", app="web", ports={9000: "DISABLE"}))
    assert list(found) == [8080, 9000, OTHER_PORTS]
    assert sorted(exposure.service.name for exposure in found[8080].exposures) == ["alias", "web"]
    assert [found[port].server.summary for port in found] == [
        "mutual TLS only (STRICT)",
        "plaintext only (DISABLE)",
        "mutual TLS only (STRICT)",
    ]
    assert str(found[9000].server.decided_by) == "PeerAuthentication apps/lock for port 9000"
    assert [str(ref) for ref in found[9000].server.overridden] == ["MeshPolicy default for the mesh"]
    assert (found[9000].exposures, found[OTHER_PORTS].refused) == ((), ())


def test_clients_that_fail_are_grouped_by_account_and_reason():
    assert ports()[8080].refused == ()
    naked = pod("old", "zoo", sidecar=False, app="old")
    found = ports(naked, peer("apps", "STRICT"), rule("apps", "web.apps.svc.cluster.local", "SIMPLE"))[8080]
    assert [
        (
            item.why,
            [
                (clients.namespace, account, [client.name for client in pods])
                for clients in item.clients
                for account, pods in clients.accounts.items()
            ],
        )
        for item in found.refused
    ] == [
        (
            (
                "the client sends TLS from a DestinationRule (SIMPLE or MUTUAL), which the server's "
                "sidecar does not accept"
            ),
            [("apps", "new", ["new"]), ("apps", "web-1", ["web-1"])],
        ),
        (
            "the client sends plaintext, but the server accepts mutual TLS only",
            [("apps", "old-1", ["old-1"]), ("apps", "old-2", ["old-2"]), ("zoo", "old", ["old"])],
        ),
    ]


def test_pod_without_sidecar_accepts_what_its_application_accepts():
    world = mesh(*WORLD, peer("apps", "STRICT", name="lock", app="old", ports={1: "STRICT"}))
    (described,) = describe(world, CLIENTS[0])
    assert described.port == OTHER_PORTS
    assert described.server.summary == "whatever the application accepts: the server has no sidecar"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([policy(A_ONLY, namespace="apps")], "; plaintext is denied (AuthorizationPolicy apps/rules)"),
        (
            [policy(READS, action=Action.DENY, namespace="apps")],
            (
                "; plaintext is allowed unless GET|HEAD for HTTP (AuthorizationPolicy apps/rules), "
                "not for TCP (AuthorizationPolicy apps/rules)"
            ),
        ),
        ([policy(A_ONLY, action=Action.DENY, namespace="apps")], ""),
        ([policy(namespace="other")], ""),
    ],
    ids=["denied", "some requests", "only a client with an identity", "other namespace"],
)
def test_other_ports_say_what_policies_deny(facts, expected):
    permissive = "mutual TLS and plaintext (PERMISSIVE)"
    assert ports(*facts)[OTHER_PORTS].server.summary == permissive + expected
    assert ports(*facts)[8080].server.summary == permissive
    assert ports(*facts, peer("apps", "STRICT"))[OTHER_PORTS].server.summary == "mutual TLS only (STRICT)"
