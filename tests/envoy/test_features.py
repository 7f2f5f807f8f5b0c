"""Features of Envoys, by what their nodes say, and the TLS settings that fit them."""

from __future__ import annotations

import json

import pytest

from xds.codec import to_json_dict
from xds.mesh.envoy import common
from xds.mesh.envoy.features import (
    ALL_FEATURES,
    DEFAULT_CURVES,
    FIPS_CIPHER_SUITES,
    FIPS_CURVES,
    NO_FEATURES,
    Features,
    describe_tls,
    features_of,
    served_config,
)
from xds.mesh.model.objects import MeshConfig, TlsSettings
from xds.protocol.wire import Node

FIPS_BUILD = Features(post_quantum=False, compliance_policies=True, denials=True)


def node(
    version: str = "1.40.0", library: str = "BoringSSL", name: str = "envoy", features: tuple[str, ...] = ()
) -> Node:
    return Node(
        id="n",
        user_agent_name=name,
        user_agent_version=version,
        tls_library=library,
        client_features=features,
    )


WITH_KEY = node(features=("envoy.lb.x", "xds-mesh.own-key"))


@pytest.mark.parametrize(
    ("nodes", "features"),
    [
        ([], NO_FEATURES),
        ([node()], ALL_FEATURES),
        ([node("1.37.0")], ALL_FEATURES),
        ([node("1.34.0")], ALL_FEATURES._replace(denials=False)),
        ([node("2.0.0")], ALL_FEATURES),
        ([node("1.33.9")], NO_FEATURES),
        ([node("")], NO_FEATURES),
        ([node("latest")], NO_FEATURES),
        ([node(library="")], NO_FEATURES._replace(denials=True)),
        ([node(library="OpenSSL")], NO_FEATURES._replace(denials=True)),
        ([node(library="BoringSSL-FIPS")], FIPS_BUILD),
        ([node(name="gRPC C-core")], NO_FEATURES),
        ([node(), node("1.33.0")], NO_FEATURES),
        ([node(), node("", "", "grpcurl"), node("", "", "")], ALL_FEATURES),
        ([node(), node(library="BoringSSL-FIPS")], FIPS_BUILD),
        ([WITH_KEY], ALL_FEATURES._replace(own_key=True)),
        ([node("1.30.0", features=("xds-mesh.own-key",))], NO_FEATURES._replace(own_key=True)),
        (
            [node(features=("xds-mesh.pod-certificate",))],
            ALL_FEATURES._replace(pod_certificate=True),
        ),
        # An older sidecar of the same pod has no key of its own.
        ([WITH_KEY, node()], ALL_FEATURES),
    ],
)
def test_unknown_builds_have_no_features(nodes: list[Node], features: Features) -> None:
    assert features_of(nodes) == features


@pytest.mark.parametrize(
    ("curves", "features", "served"),
    [
        ((), ALL_FEATURES, DEFAULT_CURVES),
        ((), NO_FEATURES, ("X25519", "P-256")),
        (("P-384", "X25519MLKEM768"), ALL_FEATURES, ("P-384", "X25519MLKEM768")),
        (("P-384", "X25519MLKEM768"), NO_FEATURES, ("P-384",)),
        # Rejected by such an Envoy, which is better than its default curves.
        (("X25519MLKEM768",), NO_FEATURES, ("X25519MLKEM768",)),
    ],
)
def test_unsupported_curve_is_left_out(curves, features, served) -> None:
    config = served_config(MeshConfig(mesh_tls=TlsSettings("TLSV1_3", curves=curves)), features)
    assert config.mesh_tls.curves == served
    assert config.tls_defaults.curves == ()


def test_fips_overrides_settings_and_never_allows_tls_1_3_without_the_policy() -> None:
    own = TlsSettings("TLSV1_3", ("AES128-SHA",), ("X25519",))
    config = MeshConfig(mesh_tls=own, tls_defaults=own, fips=True)
    served, older = served_config(config, FIPS_BUILD), served_config(config, NO_FEATURES)
    assert served.fips
    assert served.mesh_tls == served.tls_defaults == TlsSettings("TLSV1_2", FIPS_CIPHER_SUITES, FIPS_CURVES)
    assert not older.fips
    assert older.mesh_tls == older.tls_defaults == served.mesh_tls._replace(max_version="TLSV1_2")


@pytest.mark.parametrize(
    ("config", "client", "servers", "said"),
    [
        (MeshConfig(), ALL_FEATURES, [ALL_FEATURES], "TLS 1.3; curves X25519MLKEM768, X25519, P-256"),
        (MeshConfig(), ALL_FEATURES, [ALL_FEATURES, NO_FEATURES], "TLS 1.3; curves X25519, P-256"),
        (
            MeshConfig(fips=True),
            ALL_FEATURES,
            [FIPS_BUILD],
            "TLS 1.3 or 1.2, FIPS 140-3; curves P-256, P-384",
        ),
        (MeshConfig(fips=True), NO_FEATURES, [FIPS_BUILD], "TLS 1.2, FIPS 140-3; curves P-256, P-384"),
        (
            MeshConfig(mesh_tls=TlsSettings("TLSV1_2", curves=("X25519MLKEM768", "P-384"))),
            ALL_FEATURES,
            [],
            "TLS 1.3 or 1.2; curves X25519MLKEM768, P-384",
        ),
    ],
)
def test_tls_of_a_hop_is_what_both_sides_share(config, client, servers, said) -> None:
    assert describe_tls(config, client, servers) == said


@pytest.mark.parametrize(
    ("socket", "own_key", "source"),
    [
        ("", False, "ads"),
        ("", True, "api_config_source"),
        ("/run/spire/agent.sock", True, "google_grpc"),
    ],
)
def test_source_of_the_certificate(socket: str, own_key: bool, source: str) -> None:
    config = served_config(MeshConfig(sds_socket=socket), ALL_FEATURES._replace(own_key=own_key))
    certificate, roots = to_json_dict(common.certificate(config)), to_json_dict(common.roots(config))
    assert source in json.dumps(certificate)
    assert ("xds-own-certificate" in json.dumps(certificate)) == (own_key and not socket)
    assert "xds-own-certificate" not in json.dumps(roots)
