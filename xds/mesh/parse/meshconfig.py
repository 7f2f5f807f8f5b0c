"""Parse mesh-wide settings from Istio's MeshConfig and from `--set` assignments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xds.mesh.model.objects import (
    ADMIN_PORT,
    HEALTH_PORT,
    MeshConfig,
    PathNormalization,
    Problem,
    Requirement,
    TlsSettings,
)
from xds.mesh.parse import names
from xds.mesh.parse.destinationrule import export_to
from xds.mesh.parse.loadbalancer import locality_lb
from xds.mesh.parse.reading import Field, Flaw, Locate, Log, nearest, shown

_MAX_SOCKET_LENGTH = 107  # maximum length in the kernel's sockaddr_un
_SOCKET = re.compile(rf"(?=.{{2,{_MAX_SOCKET_LENGTH}}}$)/[A-Za-z0-9._/@+-]*[A-Za-z0-9._@+-]")
_MIN_TIMEOUT = 0.001
"""Minimum timeout in seconds. Envoy treats shorter timeouts as 0."""
_FIELDS = (
    "enableAutoMtls trustDomain trustDomainAliases rootNamespace defaultDestinationRuleExportTo "
    "protocolDetectionTimeout connectTimeout outboundTrafficPolicy inboundTrafficPolicy proxyListenPort "
    "proxyInboundListenPort proxyHttpPort meshMTLS tlsDefaults sdsUdsPath "
    "localityLbSetting pathNormalization defaultServiceExportTo discoverySelectors"
)
_WITHOUT_EFFECT = (
    "accessLogEncoding accessLogFile accessLogFormat caCertificates certificates configSources "
    "defaultConfig defaultHttpRetryPolicy defaultProviders "
    "defaultVirtualServiceExportTo disableEnvoyListenerLog dnsRefreshRate "
    "enableEnvoyAccessLogService enablePrometheusMerge enableTracing extensionProviders h2UpgradePolicy "
    "hboneIdleTimeout ingressClass ingressControllerMode ingressSelector ingressService "
    "mixerCheckServer mixerReportServer disablePolicyChecks "
    "serviceScopeConfigs serviceSettings tcpKeepalive verifyCertificateAtClient "
    "thriftConfig authPolicy rdsRefreshDelay enableSdsTokenMount"
)
"""Valid Istio settings that have no effect in this control plane."""
_IN_A_RULE = "set it in a DestinationRule's connectionPool"
_INSTEAD = {
    "accessLogFile": "use xds observe to see the traffic of sidecars",
    "defaultConfig": "use annotations of pods, or flags of xds serve",
    "enablePrometheusMerge": "use the annotation prometheus.istio.io/merge-metrics of pods",
    "h2UpgradePolicy": _IN_A_RULE,
    "tcpKeepalive": _IN_A_RULE,
}
"""What to do instead of some of these settings."""

_SWITCHES = {
    "values.global.mtls.auto": "enable_auto_mtls",
    "values.global.mtls.enabled": "mtls_enabled",
    "values.xds.observe": "observe",
    "values.xds.ownKeys": "own_keys",
    "values.xds.podCertificates": "pod_certificates",
}
_PREFIX = "meshConfig."
_MAX_DIGITS = 20
"""Maximum number of digits of a number in `--set`; Python parses at most 4300."""


_COMPLIANCE_POLICY = "values.xds.compliancePolicy"
_CURVES = ("X25519MLKEM768", "X25519", "P-256", "P-384", "P-521")
_CIPHER_SUITES = (
    *(
        f"ECDHE-{key}-{cipher}"
        for key in ("ECDSA", "RSA")
        for cipher in (
            "AES128-GCM-SHA256",
            "AES256-GCM-SHA384",
            "CHACHA20-POLY1305",
            "AES128-SHA",
            "AES256-SHA",
        )
    ),
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
)
"""Names that Envoy's BoringSSL knows. Envoy would reject every listener and cluster with another name."""


def mesh_config(
    document: object, locate: Locate, base: MeshConfig | None = None, flaws: Sequence[Flaw] = ()
) -> tuple[MeshConfig, list[Problem]]:
    """Parse Istio's MeshConfig. Settings that it does not contain keep their values of `base`.

    The configuration is valid only if all problems are notices.
    """
    log = Log(locate, "mesh config")
    for path, what in flaws:
        log.add(path, what)
    config = _parse(Field(document, (), log), base or MeshConfig())
    return config, log.problems


def _parse(root: Field, base: MeshConfig) -> MeshConfig:
    root.mapping(f"{_FIELDS} {_WITHOUT_EFFECT}")
    for name in _WITHOUT_EFFECT.split():
        if root[name]:
            root[name].notice("has no effect here", _INSTEAD.get(name, ""))
    outbound = root["outboundTrafficPolicy"].mapping("mode")["mode"].one_of("ALLOW_ANY", "REGISTRY_ONLY")
    inbound = root["inboundTrafficPolicy"].mapping("mode")["mode"].one_of("PASSTHROUGH", "LOCALHOST")
    paths = root["pathNormalization"].mapping("normalization")["normalization"]
    normalization = paths.one_of("DEFAULT", *PathNormalization)
    fields: dict[str, Any] = {
        "enable_auto_mtls": root["enableAutoMtls"].boolean(),
        "trust_domain": root["trustDomain"].name(names.trust_domain) or None,
        "trust_domain_aliases": tuple(
            item.name(names.trust_domain) for item in root["trustDomainAliases"].items()
        )
        or None,
        "root_namespace": root["rootNamespace"].name(names.label) or None,
        "default_destination_rule_export_to": export_to(root["defaultDestinationRuleExportTo"]) or None,
        "default_service_export_to": export_to(root["defaultServiceExportTo"], nowhere=True) or None,
        "discovery_selectors": tuple(map(_requirements, root["discoverySelectors"].items())) or None,
        "protocol_detection_timeout": _detection_timeout(root["protocolDetectionTimeout"]),
        "connect_timeout": root["connectTimeout"].seconds(_MIN_TIMEOUT),
        "path_normalization": None if normalization in ("", "DEFAULT") else PathNormalization(normalization),
        "allow_any_outbound": {"ALLOW_ANY": True, "REGISTRY_ONLY": False}.get(outbound),
        "passthrough_inbound": {"PASSTHROUGH": True, "LOCALHOST": False}.get(inbound),
        "proxy_listen_port": root["proxyListenPort"].integer(1, 65535),
        "proxy_inbound_listen_port": root["proxyInboundListenPort"].integer(1, 65535),
        "proxy_http_port": root["proxyHttpPort"].integer(1, 65535),
        "mesh_tls": _mesh_tls(root["meshMTLS"], base.mesh_tls),
        "tls_defaults": _tls_defaults(root["tlsDefaults"], base.tls_defaults),
        "locality_lb": locality_lb(root["localityLbSetting"]),
        "sds_socket": _socket(root["sdsUdsPath"]),
    }
    config = replace(base, **{name: value for name, value in fields.items() if value is not None})
    ports = (config.proxy_listen_port, config.proxy_inbound_listen_port, config.proxy_http_port)
    if reserved := set(ports) & {ADMIN_PORT, HEALTH_PORT}:
        root.refuse(f"port {min(reserved)} is reserved for the sidecar's admin interface or health check")
    if len(set(ports)) < len(ports):
        root.refuse(
            "proxyListenPort, proxyInboundListenPort and proxyHttpPort "
            f"({', '.join(map(str, ports))}) must differ"
        )
    return config


def _requirements(selector: Field) -> tuple[Requirement, ...]:
    """Parse a label selector. One without requirements selects everything, as in Kubernetes."""
    selector.mapping("matchLabels matchExpressions", strict=True)
    labels = names.labels(selector["matchLabels"], select=True)
    return (
        *(Requirement(key, "In", (value,)) for key, value in labels.items()),
        *map(_requirement, selector["matchExpressions"].items()),
    )


def _requirement(expression: Field) -> Requirement:
    expression.mapping("key operator values", strict=True)
    operator = expression["operator"].required().one_of("In", "NotIn", "Exists", "DoesNotExist")
    values = tuple(item.name(names.label_value) for item in expression["values"].items())
    needs_values = operator in ("In", "NotIn")
    if operator and needs_values != bool(values):
        expression["values"].refuse(f"{'is required' if needs_values else 'must be empty'} with {operator}")
    return Requirement(expression["key"].required().name(names.label_key), operator, values)


def _mesh_tls(field: Field, base: TlsSettings) -> TlsSettings:
    settings = _tls_settings(field, base)
    version = field["minProtocolVersion"].one_of("TLS_AUTO", "TLSV1_2", "TLSV1_3")
    if version:
        minimum = "TLSV1_2" if version == "TLSV1_2" else "TLSV1_3"
        settings = settings._replace(min_version=minimum)
    if field["cipherSuites"].value and settings.min_version == "TLSV1_3":
        field["cipherSuites"].notice(
            "has no effect: TLS 1.3 has its own cipher suites", "minProtocolVersion: TLSV1_2 allows TLS 1.2"
        )
    return settings


def _tls_defaults(field: Field, base: TlsSettings) -> TlsSettings:
    settings = _tls_settings(field, base)
    if field["minProtocolVersion"]:
        field["minProtocolVersion"].notice("has no effect here, as in Istio")
    return settings


def _tls_settings(field: Field, base: TlsSettings) -> TlsSettings:
    field.mapping("minProtocolVersion ecdhCurves cipherSuites")
    return base._replace(
        cipher_suites=_names(field["cipherSuites"], _CIPHER_SUITES, base.cipher_suites, groups=True),
        curves=_names(field["ecdhCurves"], _CURVES, base.curves),
    )


def _names(
    field: Field, known: Sequence[str], base: tuple[str, ...], *, groups: bool = False
) -> tuple[str, ...]:
    """Parse a list of names. An empty list resets the setting to its default.

    Args:
        field: the list.
        known: all names.
        base: value if the field is not set.
        groups: whether BoringSSL also accepts groups of equal preference: [A|B].
    """
    if field.value is None:
        return base
    result: dict[str, None] = {}
    for item in field.items():
        name = item.text()
        is_group = groups and name.startswith("[") and name.endswith("]")
        group = name[1:-1].split("|") if is_group else [name]
        for part in group:
            if name and part not in known:
                item.refuse(
                    f"{shown(part)} is not known", nearest(part, known) or f"known: {', '.join(known)}"
                )
        if name in result:
            item.notice("is repeated")
        result[name] = None
    return tuple(result)


def _socket(field: Field) -> str | None:
    """Parse `unix:///PATH`, or `unix:/PATH` as in older Istio documentation.

    An empty string resets the setting.
    """
    if field.value is None:
        return None
    text = field.text()
    path = text.removeprefix("unix:").removeprefix("//")
    if text and (not text.startswith("unix:") or not _SOCKET.fullmatch(path)):
        field.refuse(
            f"{shown(text)} is not unix:///PATH with the path of a socket "
            f"(at most {_MAX_SOCKET_LENGTH} characters)"
        )
        return None
    return path


def _detection_timeout(field: Field) -> float | None:
    timeout = field.seconds()
    if timeout is not None and timeout < _MIN_TIMEOUT:
        field.refuse(
            "must be at least 1ms: with less, Envoy would wait forever "
            "for a client of a server-first protocol",
            "the default is 1s",
        )
    return timeout


def settings(assignments: Iterable[str], base: MeshConfig) -> tuple[MeshConfig, list[Problem]]:
    """Apply `--set KEY=VALUE` strings to `base`, in order. An unknown key is an error."""
    config = base
    problems: list[Problem] = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        log = Log(lambda _, text=assignment: f"--set {text}")  # type: ignore[misc]
        root = Field(_value(value), (), log)
        path = key.removeprefix(_PREFIX).split(".")
        if not equals or not key:
            root.refuse("is not of the form KEY=VALUE", "for example values.global.mtls.auto=true")
        elif key in _SWITCHES:
            is_on = root.boolean()
            switch: dict[str, Any] = {} if is_on is None else {_SWITCHES[key]: is_on}
            config = replace(config, **switch)
        elif key == _COMPLIANCE_POLICY:
            config = replace(config, fips=bool(root.one_of("fips-140-3")))
        elif key == "profile" or (key.startswith(_PREFIX) and path[0] in _WITHOUT_EFFECT.split()):
            root.notice("has no effect here")
        elif key.startswith(_PREFIX) and path[0] in _FIELDS.split():
            config, new_problems = mesh_config(_nested(path, root.value), log.locate, config)
            problems += [replace(problem, notice=False) for problem in new_problems]
        else:
            known = [*_SWITCHES, _COMPLIANCE_POLICY, *(_PREFIX + name for name in _FIELDS.split())]
            # Compare without the common prefix, which would make all keys similar.
            if key.startswith(_PREFIX):
                hint = nearest(path[0], _FIELDS.split()).replace("mean ", f"mean {_PREFIX}")
            else:
                hint = nearest(key, [*_SWITCHES, _COMPLIANCE_POLICY])
            root.refuse(f"{key} is not a setting", hint or f"known: {', '.join(known)}")
        problems += log.problems
    return config, problems


def merged(document: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Merge `--set` assignments into a document with Istio's MeshConfig.

    The assignments must be valid according to `settings`. `values.global.mtls.enabled` and
    `values.xds.observe` are left out, because MeshConfig has no fields for these install switches.
    """
    result = dict(document)
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key == "values.global.mtls.auto":
            result["enableAutoMtls"] = _value(value)
        elif key.startswith(_PREFIX):
            result = _merge(result, _nested(key.removeprefix(_PREFIX).split("."), _value(value)))
    return result


def _merge(base: Any, overlay: Any) -> Any:
    """Merge mappings recursively. Values of `overlay` override values of `base`."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {name: _merge(base.get(name), value) for name, value in overlay.items()}


def _nested(path: list[str], value: object) -> object:
    """Return `{"a": {"b": value}}` for the path `a.b`."""
    for name in reversed(path):
        value = {name: value}
    return value


def _value(text: str) -> object:
    """Parse a value as Helm does: a boolean, a number, `{a,b}` for a list, or a string."""
    if text in ("true", "false"):
        return text == "true"
    if len(text) <= _MAX_DIGITS and text.isdecimal():
        return int(text)
    if text.startswith("{") and text.endswith("}"):
        return [item.strip() for item in text[1:-1].split(",") if item.strip()]
    return text
