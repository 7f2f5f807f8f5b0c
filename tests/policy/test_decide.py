"""One hop at a time: what is sent, why, and who decided."""

from __future__ import annotations

import pytest

from tests.policy.world import HTTP, ROOT, mesh, only_endpoint, peer, pod, policy, rule, service
from xds.mesh.model.traffic import Subset, TrafficPolicy
from xds.mesh.policy.destination import client_rule
from xds.mesh.policy.mtls import decide, decide_for_mode, endpoint_mode

CLIENT, BARE_CLIENT = pod("client", "ns"), pod("bare-client", "ns", sidecar=False)
SERVER, BARE = pod("server", "ns"), pod("bare", "ns", sidecar=False)
HOST = "server.ns.svc.cluster.local"
BASE = (CLIENT, BARE_CLIENT, SERVER, BARE, service("server", "ns"), service("bare", "ns"))

LOCKED, OPENED = policy("ns", "STRICT", "server", name="p"), policy("ns", "DISABLE", "server", name="p")
MUTUAL, OPEN, SIMPLE = (rule("ns", "*", mode) for mode in ("ISTIO_MUTUAL", "DISABLE", "SIMPLE"))
SAYS_NOTHING = rule("ns", "*", policy=TrafficPolicy())
WORKLOAD = peer("ns", "STRICT", name="w", app="server")
PORT = peer("ns", "STRICT", name="w", app="server", ports={8080: "DISABLE"})
OFF = {"enable_auto_mtls": False}

CASES = {
    "both have sidecars": ([], {}, "client server: mtls auto-mtls MeshPolicy default"),
    "the server has none": ([], {}, "client bare: plaintext endpoint-without-sidecar None"),
    "the client has none": ([], {}, "bare-client server: plaintext client-without-sidecar None"),
    "a policy says plaintext": ([OPENED], {}, "client server: plaintext server-plaintext Policy ns/p"),
    "a policy says STRICT": ([LOCKED], {}, "client server: mtls auto-mtls Policy ns/p"),
    "workload STRICT in a mesh that is plaintext (istio#56084)": (
        [peer(ROOT, "DISABLE"), WORKLOAD],
        {},
        "client server: mtls auto-mtls PeerAuthentication ns/w",
    ),
    "the port is plaintext": (
        [PORT],
        {},
        "client server: plaintext server-plaintext PeerAuthentication ns/w",
    ),
    "auto mTLS is off": ([], OFF, "client server: plaintext auto-mtls-off None"),
    "a rule says ISTIO_MUTUAL, whatever the server": (
        [MUTUAL],
        OFF,
        "client bare: mtls destination-rule DestinationRule ns/rule",
    ),
    "a rule says DISABLE": ([OPEN], {}, "client server: plaintext destination-rule DestinationRule ns/rule"),
    "a rule says SIMPLE": ([SIMPLE], {}, "client server: tls destination-rule DestinationRule ns/rule"),
    "a rule says nothing about TLS": ([SAYS_NOTHING], {}, "client server: mtls auto-mtls MeshPolicy default"),
    "a rule that a client without a sidecar cannot follow": (
        [MUTUAL],
        {},
        "bare-client server: plaintext client-without-sidecar None",
    ),
    "mutual TLS installed for the mesh": (
        [],
        {"mtls_enabled": True},
        "client server: mtls destination-rule DestinationRule istio-system/default",
    ),
}


@pytest.mark.parametrize(("facts", "config", "expected"), CASES.values(), ids=CASES)
def test_a_client_sends(facts, config, expected):
    client, target = expected.partition(":")[0].split()
    world = mesh(*BASE, *facts, **config)
    found = decide(
        world, world.pod("ns", client), world.service("ns", target), HTTP, only_endpoint(world, "ns", target)
    )
    assert f"{client} {target}: {found.send} {found.reason} {found.decided_by}" == expected


def test_port_settings_without_tls_use_auto_mtls():
    ported = TrafficPolicy(tls=rule("", "", "DISABLE").policy.tls, ports={80: TrafficPolicy()})
    world = mesh(*BASE, rule("ns", HOST, policy=ported))
    service_ = world.service("ns", "server")
    endpoint = only_endpoint(world, "ns", "server")
    assert decide(world, CLIENT, service_, HTTP, endpoint).send == "mtls"
    assert decide(world, CLIENT, service_, service_.ports[1], endpoint).send == "plaintext"


def test_subset_overrides_and_inherits_fields():
    subsets = (
        Subset(name="open", policy=rule("", "", "DISABLE").policy),
        Subset(name="same"),
    )
    base = rule("", "", "ISTIO_MUTUAL").policy
    world = mesh(*BASE, rule("ns", HOST, policy=base, subsets=subsets))
    used = client_rule(world, "ns", {}, world.service("ns", "server"))
    args = world, used, HTTP, endpoint_mode(world, only_endpoint(world, "ns", "server"))
    sends = [decide_for_mode(*args, subset).send for subset in ("", "open", "same")]
    assert sends == ["mtls", "plaintext", "mtls"]


def test_objects_overridden_by_the_rule_are_named():
    world = mesh(*BASE, rule("ns", HOST, "DISABLE"), policy("ns", "STRICT", "server", name="p"))
    found = decide(world, CLIENT, world.service("ns", "server"), HTTP, only_endpoint(world, "ns", "server"))
    assert [str(ref) for ref in found.overridden] == ["Policy ns/p", "MeshPolicy default"]
