"""Settings of the mesh, from MeshConfig and from --set."""

from __future__ import annotations

from typing import Any

import pytest

from xds.mesh.model.objects import MeshConfig, PathNormalization, Requirement, TlsSettings
from xds.mesh.parse import dotted, mesh_config, settings


def read(document: Any) -> tuple[MeshConfig, list[str]]:
    config, problems = mesh_config(document, lambda path: f"mesh.yaml:{dotted(path)}")
    return config, [("notice: " if problem.notice else "") + str(problem) for problem in problems]


def test_empty_settings_are_the_defaults() -> None:
    assert read({}) == (MeshConfig(), [])
    assert read(None) == (MeshConfig(), [])


def test_all_settings() -> None:
    config, problems = read(
        {
            "enableAutoMtls": False,
            "trustDomain": "shop.example",
            "trustDomainAliases": ["old.example"],
            "rootNamespace": "istio-config",
            "defaultDestinationRuleExportTo": ["."],
            "defaultServiceExportTo": ["~"],
            "discoverySelectors": [
                {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "x/y", "operator": "Exists"}]},
                {"matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}]},
                {},
            ],
            "protocolDetectionTimeout": "100ms",
            "connectTimeout": "1s",
            "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
            "inboundTrafficPolicy": {"mode": "LOCALHOST"},
            "pathNormalization": {"normalization": "MERGE_SLASHES"},
            "proxyListenPort": 1,
            "proxyInboundListenPort": 2,
            "proxyHttpPort": 3,
            "meshMTLS": {
                "minProtocolVersion": "TLSV1_2",
                "cipherSuites": ["ECDHE-ECDSA-AES128-GCM-SHA256", "[AES128-SHA|ECDHE-RSA-AES256-SHA]"],
                "ecdhCurves": ["X25519MLKEM768", "P-384"],
            },
            "tlsDefaults": {"cipherSuites": ["AES256-SHA"], "ecdhCurves": ["P-521"]},
            "sdsUdsPath": "unix:/run/spire/agent.sock",
        }
    )
    assert problems == []
    assert config == MeshConfig(
        enable_auto_mtls=False,
        trust_domain="shop.example",
        trust_domain_aliases=("old.example",),
        root_namespace="istio-config",
        default_destination_rule_export_to=(".",),
        default_service_export_to=("~",),
        discovery_selectors=(
            (Requirement("a", "In", ("b",)), Requirement("x/y", "Exists")),
            (Requirement("c", "In", ("d", "e")),),
            (),
        ),
        protocol_detection_timeout=0.1,
        connect_timeout=1,
        allow_any_outbound=False,
        passthrough_inbound=False,
        path_normalization=PathNormalization.MERGE_SLASHES,
        proxy_listen_port=1,
        proxy_inbound_listen_port=2,
        proxy_http_port=3,
        mesh_tls=TlsSettings(
            "TLSV1_2",
            ("ECDHE-ECDSA-AES128-GCM-SHA256", "[AES128-SHA|ECDHE-RSA-AES256-SHA]"),
            ("X25519MLKEM768", "P-384"),
        ),
        tls_defaults=TlsSettings("", ("AES256-SHA",), ("P-521",)),
        sds_socket="/run/spire/agent.sock",
    )


@pytest.mark.parametrize("said", ["unix:///run/a.sock", "unix:/run/a.sock", ""])
def test_sds_socket_forms(said: str) -> None:
    config, problems = mesh_config({"sdsUdsPath": said}, str, MeshConfig(sds_socket="/old"))
    assert problems == []
    assert config.sds_socket == ("/run/a.sock" if said else "")


@pytest.mark.parametrize(
    "said",
    [
        "/run/a.sock",
        "unix:",
        "unix:///",
        "unix://run/a.sock",
        "unix:///a b",
        "unix:///" + "a" * 107,
        "http:/x",
    ],
)
def test_invalid_sds_socket_is_refused(said: str) -> None:
    config, problems = read({"sdsUdsPath": said})
    assert config.sds_socket == ""
    assert "is not unix:///PATH" in problems[0]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (["a"], "mesh.yaml:: mesh config: must be a mapping, not a list"),
        ({"enableAutoMtls": "true"}, "enableAutoMtls must be true or false, not 'true' (without quotes)"),
        ({"trustDomain": "spiffe://a"}, "'spiffe://a' is not a trust domain"),
        ({"trustDomainAliases": "a"}, "trustDomainAliases must be a list, not 'a'"),
        ({"rootNamespace": "A"}, "rootNamespace 'A' is not a DNS label"),
        ({"defaultServiceExportTo": ["~", "a"]}, "'~' is no namespace and must be the only entry"),
        ({"discoverySelectors": {"a": "b"}}, "discoverySelectors must be a list, not a mapping"),
        ({"discoverySelectors": [{"a": "b"}]}, "discoverySelectors[0].a is not a known field"),
        ({"discoverySelectors": [{"matchLabels": {"a": None}}]}, "a must be a string, not null"),
        *(
            ({"discoverySelectors": [{"matchExpressions": [{"key": "a", **expression}]}]}, said)
            for expression, said in (
                ({}, "operator is required"),
                ({"operator": "in"}, "must be one of In, NotIn, Exists, DoesNotExist, not 'in'"),
                ({"operator": "In"}, "values is required with In"),
                ({"operator": "Exists", "values": ["b"]}, "values must be empty with Exists"),
                ({"operator": "Exists", "key": ""}, "key is required"),
            )
        ),
        ({"defaultDestinationRuleExportTo": ["~"]}, "[0] '~' is not a DNS label"),
        ({"protocolDetectionTimeout": "0s"}, "must be at least 1ms: with less, Envoy would wait forever"),
        ({"protocolDetectionTimeout": "1ns"}, "must be at least 1ms"),
        ({"protocolDetectionTimeout": "99999999h"}, "must be at most 2562047h"),
        ({"connectTimeout": "99999999999999h"}, "must be at most 2562047h"),
        ({"proxyListenPort": 15021}, "port 15021 is reserved for the sidecar's"),
        ({"protocolDetectionTimeout": 5}, "must be a duration such as 10s or 500ms, not 5 (write 5s)"),
        ({"connectTimeout": "0s"}, "connectTimeout must be at least 1ms, not 0s"),
        ({"outboundTrafficPolicy": {"mode": "DENY"}}, "must be one of ALLOW_ANY, REGISTRY_ONLY, not 'DENY'"),
        ({"proxyListenPort": 0}, "proxyListenPort must be a number from 1 to 65535, not 0"),
        ({"proxyListenPort": 15006}, "(15006, 15006, 15002) must differ"),
        ({"meshMTLS": {"minProtocolVersion": "TLSV1_1"}}, "must be one of TLS_AUTO, TLSV1_2, TLSV1_3"),
        ({"meshMTLS": {"ecdhCurves": "P-256"}}, "ecdhCurves must be a list, not 'P-256'"),
        ({"meshMTLS": {"ecdhCurves": ["P256"]}}, "'P256' is not known (did you mean P-256?)"),
        ({"meshMTLS": {"ecdhCurves": ["P-224"]}}, "'P-224' is not known"),
        ({"meshMTLS": {"ecdhCurves": [25519]}}, "ecdhCurves[0] must be a string, not 25519"),
        (
            {"meshMTLS": {"ecdhCurves": ["X25519", "X25519"]}},
            "notice: mesh.yaml:meshMTLS.ecdhCurves[1]: mesh config: meshMTLS.ecdhCurves[1] is repeated",
        ),
        (
            {"tlsDefaults": {"cipherSuites": ["[AES128-SHA|ECDHE-ECDSA-AES128-GCM-SHA265]"]}},
            "'ECDHE-ECDSA-AES128-GCM-SHA265' is not known (did you mean ECDHE-ECDSA-AES128-GCM-SHA256?)",
        ),
        (
            {"meshMTLS": {"cipherSuites": ["AES128-SHA"]}},
            "mesh config: meshMTLS.cipherSuites has no effect: TLS 1.3 has its own",
        ),
        (
            {"tlsDefaults": {"minProtocolVersion": "TLSV1_3"}},
            "mesh config: tlsDefaults.minProtocolVersion has no effect here, as in Istio",
        ),
        (
            {"trustdomain": "a"},
            "notice: mesh.yaml:trustdomain: mesh config: trustdomain is not a known field",
        ),
        ({"enableAutoMTLS": True}, "(did you mean enableAutoMtls?)"),
        (
            {"accessLogFile": "/dev/stdout"},
            "notice: mesh.yaml:accessLogFile: mesh config: accessLogFile has no effect",
        ),
    ],
)
def test_invalid_setting_is_reported(document: Any, said: str) -> None:
    _, [problem] = read(document)
    assert said in problem


def test_last_set_wins_over_the_file() -> None:
    base, _ = read({"trustDomain": "file", "connectTimeout": "3s"})
    config, problems = settings(
        [
            "values.global.mtls.auto=true",
            "values.global.mtls.enabled=true",
            "meshConfig.trustDomain=set",
            "meshConfig.trustDomainAliases={old,older}",
            "meshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY",
            "meshConfig.enableAutoMtls=false",
        ],
        base,
    )
    assert problems == []
    assert config == MeshConfig(
        enable_auto_mtls=False,
        mtls_enabled=True,
        trust_domain="set",
        trust_domain_aliases=("old", "older"),
        allow_any_outbound=False,
        connect_timeout=3,
    )


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("values.global.mtls.auto", "is not of the form KEY=VALUE"),
        ("values.global.mtls.auto=yes", "must be true or false, not 'yes'"),
        ("values.global.mtls.autos=true", "(did you mean values.global.mtls.auto?)"),
        ("mtls=true", "mtls is not a setting (known: values.global.mtls.auto, "),
        (
            "meshConfig.trustDomian=a",
            "meshConfig.trustDomian is not a setting (did you mean meshConfig.trustDomain?)",
        ),
        ("meshConfig.connectTimeout=0s", "must be at least 1ms"),
        ("meshConfig.protocolDetectionTimeout=0s", "must be at least 1ms"),
    ],
)
def test_invalid_assignment_is_refused(assignment: str, said: str) -> None:
    _, [problem] = settings([assignment], MeshConfig())
    assert not problem.notice
    assert problem.where == f"--set {assignment}"
    assert said in str(problem)


def test_other_install_settings_are_accepted() -> None:
    config, problems = settings(["profile=demo", "meshConfig.accessLogFile=/dev/stdout"], MeshConfig())
    assert config == MeshConfig()
    assert [problem.notice for problem in problems] == [True, True]


def test_text_flaws_are_reported() -> None:
    _, problems = mesh_config({}, dotted, None, [(("trustDomain",), "is set twice")])
    assert [(problem.notice, problem.what) for problem in problems] == [
        (False, "mesh config: trustDomain is set twice")
    ]


@pytest.mark.parametrize(
    ("said", "version"), [("TLS_AUTO", "TLSV1_3"), ("TLSV1_2", "TLSV1_2"), ("TLSV1_3", "TLSV1_3")]
)
def test_minimum_version_of_sidecars_is_1_3_unless_set(said: str, version: str) -> None:
    base = MeshConfig(mesh_tls=TlsSettings("TLSV1_2"))
    config, problems = mesh_config({"meshMTLS": {"minProtocolVersion": said}}, dotted, base)
    assert (config.mesh_tls.min_version, problems) == (version, [])
    assert MeshConfig().mesh_tls.min_version == "TLSV1_3"


def test_empty_list_resets_curves() -> None:
    config, problems = mesh_config(
        {"meshMTLS": {"ecdhCurves": []}}, dotted, MeshConfig(mesh_tls=TlsSettings(curves=("P-256",)))
    )
    assert (config.mesh_tls.curves, problems) == ((), [])


def test_compliance_policy_can_be_set() -> None:
    config, problems = settings(["values.xds.compliancePolicy=fips-140-3"], MeshConfig())
    assert (config.fips, problems) == (True, [])
    config, [problem] = settings(["values.xds.compliancePolicy=fips-140-2"], MeshConfig())
    assert not config.fips
    assert "must be one of fips-140-3, not 'fips-140-2' (did you mean fips-140-3?)" in str(problem)


def test_numbers_can_be_set() -> None:
    config, problems = settings(["meshConfig.proxyListenPort=16001"], MeshConfig())
    assert (config.proxy_listen_port, problems) == (16001, [])
