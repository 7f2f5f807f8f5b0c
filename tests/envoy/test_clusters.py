"""Istio's TestBuildAutoMtlsSettings and TestApplyUpstreamTLSSettings: which TLS a cluster gets."""

from __future__ import annotations

from typing import Any

import pytest

from xds.codec import to_dict
from xds.mesh.envoy import clusters
from xds.mesh.envoy.features import ALL_FEATURES
from xds.mesh.model.loadbalancer import LoadBalancer, Simple
from xds.mesh.model.objects import MeshConfig, Protocol
from xds.mesh.model.traffic import (
    ClientTls,
    ConnectionPool,
    OutlierDetection,
    TlsMode,
    TrafficPolicy,
)

SANS = ("spiffe://cluster.local/ns/foo/sa/1",)


def cluster(
    tls: ClientTls | None = None,
    *,
    protocol: Protocol = Protocol.HTTP,
    auto: bool = True,
    identities: tuple[str, ...] = SANS,
    **policy,
) -> dict[str, Any]:
    spec = clusters.OutboundSpec(
        name="outbound|80||foo",
        sni="foo.com",
        protocol=protocol,
        policy=TrafficPolicy(tls=tls, **policy),
        identities=identities,
        features=ALL_FEATURES,
    )
    found = clusters.outbound(MeshConfig(enable_auto_mtls=auto), spec, ("DestinationRule ns/x",))
    return to_dict(found.type_url, found.body)


def context(socket: dict[str, Any]) -> dict[str, Any]:
    return socket["typed_config"]


def alpn(socket: dict[str, Any]) -> list[str]:
    return context(socket)["common_tls_context"].get("alpn_protocols", [])


def sans(socket: dict[str, Any]) -> list[dict[str, str]]:
    validation = context(socket)["common_tls_context"]["combined_validation_context"]
    matchers = validation["default_validation_context"]["match_typed_subject_alt_names"]
    assert {matcher["san_type"] for matcher in matchers} == {"URI"}
    return [matcher["matcher"] for matcher in matchers]


def test_auto_mtls_is_two_transport_socket_matches():
    found = cluster()
    assert "transport_socket" not in found
    istio, disabled = found["transport_socket_matches"]
    assert (istio["name"], istio["match"]) == ("tlsMode-istio", {"tlsMode": "istio"})
    assert (disabled["name"], disabled["match"]) == ("tlsMode-disabled", {})
    assert disabled["transport_socket"]["name"] == "envoy.transport_sockets.raw_buffer"
    assert alpn(istio["transport_socket"]) == ["istio"]
    assert context(istio["transport_socket"])["sni"] == "foo.com"
    assert sans(istio["transport_socket"]) == [{"exact": SANS[0]}]


def test_http2_offers_h2_too():
    istio, _ = cluster(protocol=Protocol.HTTP2)["transport_socket_matches"]
    assert alpn(istio["transport_socket"]) == ["istio", "h2"]


def test_unknown_identities_accept_the_trust_domain_only():
    istio, _ = cluster(identities=())["transport_socket_matches"]
    assert sans(istio["transport_socket"]) == [{"prefix": "spiffe://cluster.local/"}]


def test_without_auto_mtls_no_socket_is_set():
    found = cluster(auto=False)
    assert "transport_socket" not in found
    assert "transport_socket_matches" not in found


@pytest.mark.parametrize("auto", [True, False])
def test_rule_sets_one_socket_for_all_endpoints(auto):
    found = cluster(ClientTls(mode=TlsMode.ISTIO_MUTUAL), auto=auto)
    assert "transport_socket_matches" not in found
    assert sans(found["transport_socket"]) == [{"exact": SANS[0]}]
    assert alpn(found["transport_socket"]) == ["istio"]


def test_rule_sni_and_identities_win():
    tls = ClientTls(mode=TlsMode.ISTIO_MUTUAL, sni="custom.foo.com", subject_alt_names=("custom.foo.com",))
    socket = cluster(tls)["transport_socket"]
    assert context(socket)["sni"] == "custom.foo.com"
    assert sans(socket) == [{"exact": "custom.foo.com"}]


def test_disable_is_plaintext_for_all_endpoints():
    found = cluster(ClientTls(mode=TlsMode.DISABLE))
    assert "transport_socket" not in found
    assert "transport_socket_matches" not in found


def test_simple_verifies_by_file_or_by_the_system():
    socket = cluster(ClientTls(mode=TlsMode.SIMPLE, sni="foo.com", ca_certificates="/root.pem"))[
        "transport_socket"
    ]
    validation = context(socket)["common_tls_context"]["validation_context"]
    assert validation["trusted_ca"] == {"filename": "/root.pem"}
    assert alpn(socket) == []
    assert context(socket)["sni"] == "foo.com"
    socket = cluster(ClientTls(mode=TlsMode.SIMPLE), protocol=Protocol.HTTP2)["transport_socket"]
    assert context(socket)["common_tls_context"]["validation_context"] == {
        "trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"}
    }
    assert alpn(socket) == ["h2"]
    assert context(socket)["auto_host_sni"] is True
    assert context(socket)["auto_sni_san_validation"] is True


def test_simple_skips_verification_only_if_asked():
    socket = cluster(ClientTls(mode=TlsMode.SIMPLE, insecure_skip_verify=True))["transport_socket"]
    assert "validation_context" not in context(socket)["common_tls_context"]
    assert "auto_sni_san_validation" not in context(socket)


def test_mutual_sends_its_own_certificate():
    tls = ClientTls(mode=TlsMode.MUTUAL, certificate="/c.pem", private_key="/k.pem", subject_alt_names=("x",))
    common = context(cluster(tls)["transport_socket"])["common_tls_context"]
    assert common["tls_certificates"] == [
        {"certificate_chain": {"filename": "/c.pem"}, "private_key": {"filename": "/k.pem"}}
    ]
    names = common["validation_context"]["match_typed_subject_alt_names"]
    assert [(name["san_type"], name["matcher"]) for name in names] == [
        ("DNS", {"exact": "x"}),
        ("URI", {"exact": "x"}),
    ]


def options(found: dict[str, Any]) -> dict[str, Any]:
    (value,) = found["typed_extension_protocol_options"].values()
    return {key: part for key, part in value.items() if key != "@type"}


def test_upstream_protocol_is_that_of_the_port():
    assert "typed_extension_protocol_options" not in cluster()
    assert "typed_extension_protocol_options" not in cluster(protocol=Protocol.TCP)
    assert options(cluster(protocol=Protocol.HTTP2)) == {
        "explicit_http_config": {"http2_protocol_options": {}}
    }
    assert "use_downstream_protocol_config" in options(cluster(protocol=Protocol.AUTO))
    upgraded = cluster(connection_pool=ConnectionPool(h2_upgrade=True))
    assert "http2_protocol_options" in options(upgraded)["explicit_http_config"]


def test_connection_pool_limits():
    pool = ConnectionPool(
        max_connections=1,
        connect_timeout=0.25,
        http1_max_pending_requests=2,
        http2_max_requests=3,
        max_retries=4,
        max_requests_per_connection=5,
        http_idle_timeout=6,
        tcp_keepalive=(7, 8.0, 9.0),
    )
    found = cluster(connection_pool=pool)
    assert found["connect_timeout"] == "0.250s"
    assert found["circuit_breakers"]["thresholds"] == [
        {
            "max_connections": 1,
            "max_pending_requests": 2,
            "max_requests": 3,
            "max_retries": 4,
            "track_remaining": True,
        }
    ]
    assert options(found)["common_http_protocol_options"] == {
        "idle_timeout": "6s",
        "max_requests_per_connection": 5,
    }
    assert found["upstream_connection_options"]["tcp_keepalive"] == {
        "keepalive_probes": 7,
        "keepalive_time": 8,
        "keepalive_interval": 9,
    }


def test_outlier_detection_enforces_only_set_thresholds():
    found = cluster(
        outlier_detection=OutlierDetection(
            consecutive_5xx=7, consecutive_gateway_errors=0, min_health_percent=10
        )
    )
    detection = found["outlier_detection"]
    assert (detection["consecutive_5xx"], detection["enforcing_consecutive_5xx"]) == (7, 100)
    assert detection["enforcing_consecutive_gateway_failure"] == 0
    assert detection["enforcing_success_rate"] == 0
    assert found["common_lb_config"]["healthy_panic_threshold"] == {"value": 10.0}


@pytest.mark.parametrize(
    ("said", "policy"),
    [
        (None, "LEAST_REQUEST"),
        (LoadBalancer(Simple.UNSPECIFIED), "LEAST_REQUEST"),
        (LoadBalancer(Simple.ROUND_ROBIN), "ROUND_ROBIN"),
        (LoadBalancer(Simple.RANDOM), "RANDOM"),
        (LoadBalancer(Simple.PASSTHROUGH), "LEAST_REQUEST"),
    ],
)
def test_load_balancing_policy(said, policy):
    assert cluster(load_balancer=said).get("lb_policy", "ROUND_ROBIN") == policy


def test_unready_endpoints_get_no_requests():
    assert cluster()["common_lb_config"]["healthy_panic_threshold"] == {}
