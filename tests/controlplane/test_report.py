"""What a report says about workloads, certificates and exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from google.protobuf.timestamp_pb2 import Timestamp

from tests.identity.companies import Company, key_pem, pem
from tests.policy.world import HTTP, mesh, meta, peer, pod, rule, service, tls
from xds.mesh.controlplane.certificates import Certificates
from xds.mesh.controlplane.report import exceptions
from xds.mesh.controlplane.report.certificates import inventory
from xds.mesh.controlplane.report.workloads import Facts, WorkloadReports
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.model.authorization import Attribute, Condition, Pattern, Rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    AuthorizationPolicy,
    Fact,
    MeshConfig,
    Mode,
    Problem,
    Ref,
    ServedDiff,
)
from xds.mesh.model.redirection import REDIRECT_NONE, Redirection
from xds.mesh.model.traffic import Subset, TrafficPolicy
from xds.mesh.model.workload import workloads_of
from xds.mesh.v1 import reports_pb2 as pb
from xds.mesh.v1.traffic_pb2 import TrafficEdge

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
AUTHORITY = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
WEB = service("web", "shop", HTTP)
FIRST, SECOND = pod("web-1", "shop", app="web"), pod("web-2", "shop", app="web")
STRICT = peer("shop", "STRICT")
PERMISSIVE = "mode PERMISSIVE accepts plaintext"
BYPASS = "connections of 1 of 1 pods bypass their sidecars, in plaintext"


def certificates(authority: Authority = AUTHORITY, *extra: bytes) -> Certificates:
    return Certificates(authority, extra, timedelta(hours=24), lambda: NOW)


def at(minute: int) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(NOW + timedelta(minutes=minute))
    return moment


def describe(
    world: Mesh, name: str = "web", acked: Mapping[str, int | None] = {}, **more: Any
) -> pb.ReportedWorkload:
    listeners = {("shop", name): None if minute is None else at(minute) for name, minute in acked.items()}
    facts = Facts(
        **{"mesh": world, "certificates": certificates(), "listeners": listeners, "changes": {}, **more}
    )
    return WorkloadReports(facts).describe(workloads_of(world.pods())["shop", name])


def of_workload(world: Mesh, name: str = "web") -> list[tuple[str, str, str]]:
    workload = workloads_of(world.pods())["shop", name]
    found = exceptions.of_workload(world, workload, describe(world, name))
    return [(each.kind, each.what, each.owner.kind) for each in found]


def allow(*accounts: str, **more: Any) -> AuthorizationPolicy:
    names = tuple(Pattern.parse(name) for name in accounts)
    sources = ((Condition(Attribute.SERVICE_ACCOUNT, names),),)
    return AuthorizationPolicy(
        meta=meta("AuthorizationPolicy", "shop", "web"), rules=(Rule(sources=sources),), **more
    )


# --- workloads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acked", "connected", "changes", "since", "is_change", "unknown"),
    [
        pytest.param({"web-1": 1, "web-2": 2}, (), {}, 2, False, "", id="the last ACK"),
        pytest.param({"web-1": 1, "web-2": 2}, (), {"web-1": "STRICT"}, 9, True, "", id="a rollout"),
        pytest.param(
            {"web-1": 1, "web-2": 2}, (), {"web-1": "PERMISSIVE"}, 2, False, "", id="an earlier one"
        ),
        pytest.param(
            {"web-1": 1, "web-2": None},
            (),
            {},
            0,
            False,
            "sidecars that have not ACKed their listener: 1",
            id="no ACK",
        ),
        pytest.param(
            {},
            ("web-1",),
            {},
            0,
            False,
            "sidecars connected to other replicas: 1, sidecars that are not connected: 1",
            id="elsewhere",
        ),
    ],
)
def test_mode_is_enforced_since(acked, connected, changes, since, is_change, unknown):
    changed = {(Ref("Pod", "shop", each), 8080): (Mode(mode), at(9)) for each, mode in changes.items()}
    keys = frozenset(("shop", each) for each in (*acked, *connected))
    found = describe(mesh(WEB, FIRST, SECOND, STRICT), acked=acked, connected=keys, changes=changed)
    port, others = found.ports
    assert (found.pods, found.sidecars, found.connected) == (2, 2, len(keys))
    assert (port.port, port.pods, port.acked) == (8080, 2, sum(each is not None for each in acked.values()))
    assert (port.mode, port.decided_by.kind) == (pb.ReportedPort(mode="STRICT").mode, "PeerAuthentication")
    assert (port.since, port.since_change) == (at(since) if since else Timestamp(), is_change)
    assert port.unknown_since == unknown
    assert (others.port, others.since_change) == (0, False)


def test_ports_with_other_modes_are_listed_apart():
    strict = peer("shop", "PERMISSIVE", ports={8080: "STRICT"}, name="web", app="web")
    found = describe(mesh(WEB, FIRST, SECOND, strict))
    assert [(each.port, each.mode) for each in found.ports] == [(8080, 3), (0, 2)]
    assert found.services == ["web.shop"]


def test_served_mode_is_shown_during_a_rollout():
    served = ServedDiff(modes={(FIRST.ref, 8080): Mode.PERMISSIVE})
    found = describe(mesh(WEB, FIRST, STRICT).with_served(served)).ports[0]
    assert (found.mode, found.desired_mode) == (2, 3)


def test_sidecars_own_ports_are_left_out():
    found = describe(mesh(FIRST, peer("shop", "PERMISSIVE", ports={15006: "STRICT"}, name="web", app="web")))
    assert [each.port for each in found.ports] == [0]


def test_allowed_clients_of_a_port():
    facts = (WEB, FIRST, pod("one", "shop"), pod("two", "shop"))

    def allowed(*more: Fact) -> list[tuple[str, str, list[str], str]]:
        return [
            (each.send, each.clients, [*each.accounts], each.why)
            for each in describe(mesh(*facts, *more)).ports[0].allowed
        ]

    assert allowed(STRICT) == [("mtls", "any service account", [], "no AuthorizationPolicy applies")]
    policy = allow("shop/one")
    assert allowed(STRICT, policy) == [
        ("mtls", "shop/one", ["shop/one"], "allowed by AuthorizationPolicy shop/web")
    ]
    plaintext, encrypted = allowed()
    assert plaintext[:2] == ("plaintext", "any client")
    assert encrypted[:2] == ("mtls", "any service account")
    assert allowed(STRICT, replace(policy, rules=())) == []


def test_observed_traffic_belongs_to_services_and_pods():
    def edge(service: str, port: int, client: str, requests: int = 0) -> TrafficEdge:
        return TrafficEdge(
            namespace="shop",
            service=service,
            port=port,
            client=client,
            client_namespace="shop",
            mode="MTLS",
            requests_per_day=requests,
            minutes=[1] * 60,
        )

    edges = [
        edge("web", 80, "a", 7),
        edge("web", 81, "another port"),
        edge("pod/web-1", 9000, "b"),
        edge("pod/web-7", 9000, "of a deleted pod"),
        edge("pod/other", 9000, "another pod"),
    ]
    found = describe(mesh(WEB, FIRST, SECOND, pod("other", "shop")), edges=edges).observed
    assert [(each.client, each.service, each.requests) for each in found] == [
        ("a", "web.shop:80", 7),
        ("b", "pod/web-1.shop:9000", 0),
        ("of a deleted pod", "pod/web-7.shop:9000", 0),
    ]


def test_certificates_of_a_workload():
    world, issuer = mesh(FIRST, SECOND), certificates()
    assert describe(world, certificates=issuer).certificates.known == 0
    issuer.record_certified(FIRST.key, NOW + timedelta(hours=3), NOW + timedelta(hours=1))
    found = describe(world, certificates=issuer).certificates
    assert found.identities == [f"spiffe://cluster.local/ns/shop/sa/web-{number}" for number in (1, 2)]
    assert (found.known, found.first_expiry, found.last_expiry) == (1, at(180), at(180))
    assert not found.HasField("first_renewal")


# --- exceptions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param((FIRST, STRICT), [], id="none"),
        pytest.param(
            (FIRST, SECOND, peer("shop", "PERMISSIVE")),
            [
                (
                    "plaintext",
                    f"{PERMISSIVE}: port 8080, all other ports",
                    "PeerAuthentication",
                )
            ],
            id="plaintext",
        ),
        pytest.param(
            (FIRST, peer("shop", "PERMISSIVE"), allow("shop/one")),
            [
                (
                    "plaintext",
                    f"{PERMISSIVE} that AuthorizationPolicies deny: port 8080, all other ports",
                    "PeerAuthentication",
                )
            ],
            id="denied plaintext",
        ),
        pytest.param(
            (FIRST, pod("web-2", "shop", sidecar=False, app="web"), STRICT),
            [("no-sidecar", "1 of 2 pods have no sidecar: web-2", "Pod")],
            id="no sidecar",
        ),
        pytest.param(
            (replace(FIRST, redirection=Redirection(exclude_inbound_ports=(8080,))), SECOND, STRICT),
            [
                (
                    "not-intercepted",
                    "port 8080 of 1 of 2 pods: not intercepted, and any client is accepted",
                    "Pod",
                )
            ],
            id="excluded port",
        ),
        pytest.param(
            (
                replace(
                    FIRST,
                    redirection=replace(REDIRECT_NONE, inbound_ports=None, exclude_outbound_ports=(3306,)),
                ),
                STRICT,
            ),
            [
                (
                    "not-intercepted",
                    f"{BYPASS}: to ports 3306 and to all networks",
                    "Pod",
                )
            ],
            id="outbound",
        ),
    ],
)
def test_exceptions_of_a_workload(facts, expected):
    assert of_workload(mesh(WEB, *facts)) == expected


def test_networks_that_bypass_sidecars_are_named():

    network = ip_network("10.0.0.0/8")
    redirection = Redirection(networks=(network,), exclude_networks=(ip_network("10.9.0.0/16"),))
    [(_, what, _)] = of_workload(mesh(replace(FIRST, redirection=redirection), STRICT))
    assert what.endswith("to 10.9.0.0/16 and to other networks than 10.0.0.0/8")


def test_mode_in_transition_is_an_exception():
    served = ServedDiff(modes={(FIRST.ref, 8080): Mode.PERMISSIVE})
    kinds = [kind for kind, *_ in of_workload(mesh(WEB, FIRST, STRICT).with_served(served))]
    assert kinds == ["in-transition", "plaintext"]


def test_exceptions_of_objects_and_settings():
    ports = TrafficPolicy(
        ports={80: TrafficPolicy(tls=tls("SIMPLE", insecure_skip_verify=True)), 81: TrafficPolicy()}
    )
    off = rule("shop", "db.shop.svc.cluster.local", "DISABLE", name="off")
    facts = (
        replace(off, meta=replace(off.meta, labels={exceptions.MANAGED_BY: "Helm"})),
        rule("shop", "mesh", "ISTIO_MUTUAL", name="mutual"),
        rule(
            "shop",
            "outside",
            policy=ports,
            subsets=(Subset(name="v1"), Subset(name="v2", policy=ports)),
            name="simple",
        ),
        allow("shop/one", dry_run=True),
        replace(allow("shop/one"), meta=meta("AuthorizationPolicy", "shop", "enforced")),
        rule("zoo", "other", "DISABLE"),
    )
    problems = (Problem(where="a.yaml:1", what="bad"), Problem(where="b.yaml:1", what="ignored", notice=True))
    world = mesh(*facts, enable_auto_mtls=False)
    found = [
        (each.kind, each.subject, each.what, each.managed_by)
        for each in exceptions.of_mesh(world, ["shop"], problems)
    ]
    simple = "clients send TLS of mode SIMPLE, not that of the mesh"
    assert found == [
        (
            "mesh-setting",
            "the mesh",
            "enableAutoMtls is false: clients without a DestinationRule for mutual TLS send plaintext",
            "",
        ),
        (
            "destination-rule",
            "db.shop.svc.cluster.local",
            "clients send plaintext: tls.mode is DISABLE",
            "Helm",
        ),
        ("destination-rule", "outside", f"{simple} on port 80, without verifying the server", ""),
        (
            "destination-rule",
            "outside",
            f"{simple} for subset v2 on port 80, without verifying the server",
            "",
        ),
        (
            "dry-run",
            "AuthorizationPolicy shop/web",
            "is not enforced: it has the annotation istio.io/dry-run",
            "",
        ),
        ("problem", "a.yaml:1", "bad", ""),
    ]
    assert "other" in {each.subject for each in exceptions.of_mesh(world, (), ())}


# --- certificates -----------------------------------------------------------------------------------------


def test_inventory_of_a_root():
    found = inventory(certificates(), MeshConfig())
    [root] = found.authorities
    certificate = AUTHORITY.certificate
    assert found.issuer == "the mesh CA, in the control plane"
    assert (found.lifetime.seconds, found.issued, found.known) == (86400, 0, 0)
    assert (root.role, root.subject, root.issuer) == ("signs", *[certificate.subject.rfc4514_string()] * 2)
    assert (root.key, root.signature) == ("EC secp256r1, 256 bits", "ecdsa-with-SHA256")
    assert root.not_after.ToDatetime(UTC) == certificate.not_valid_after_utc
    assert root.not_before.ToDatetime(UTC) == certificate.not_valid_before_utc
    assert int(root.serial, 16) == certificate.serial_number
    assert root.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()


def test_inventory_names_intermediates_and_trusted_roots():
    root = Company.root("root", NOW, key=rsa.generate_private_key(65537, 2048))
    upper = root.subsidiary("upper")
    lower = upper.subsidiary("lower")
    authority = Authority.load(pem(lower), key_pem(lower), NOW, root=pem(root), chain=pem(upper))
    other = Authority.create(PrivateKey.generate(), "old", NOW).root_pem
    found = inventory(certificates(authority, other), MeshConfig()).authorities
    names = [(each.role, each.subject, each.key) for each in found[:3]]
    key = "EC secp256r1, 256 bits"
    assert names == [
        ("signs", "CN=lower", key),
        ("intermediate", "CN=upper", key),
        ("trusted", "CN=root", "RSA, 2048 bits"),
    ]
    assert [each.role for each in found[3:]] == ["trusted"]


def test_inventory_of_another_issuer():
    class Signer:
        roots_pem, root_expiry, issued = AUTHORITY.root_pem, NOW, 3

    signed = Certificates(AUTHORITY, (), timedelta(hours=24), lambda: NOW, Signer())  # type: ignore[arg-type]
    found = inventory(signed, MeshConfig())
    assert (found.issuer, found.issued) == ("an external signer (--signer-command)", 3)
    assert not found.HasField("lifetime")
    assert [each.role for each in found.authorities] == ["trusted"]
    found = inventory(certificates(), MeshConfig(sds_socket="/run/spire.sock"))
    assert found.issuer.startswith("an SDS server at /run/spire.sock")
    assert not found.authorities
