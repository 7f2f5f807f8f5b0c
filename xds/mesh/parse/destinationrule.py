"""Parse DestinationRules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from xds.mesh.model.objects import CLUSTER_DOMAIN, DestinationRule, Fact, Meta
from xds.mesh.model.traffic import (
    ClientTls,
    ConnectionPool,
    OutlierDetection,
    Subset,
    TlsMode,
    TrafficPolicy,
    reads_files,
)
from xds.mesh.parse import names
from xds.mesh.parse.core import TOP
from xds.mesh.parse.fail_closed import FailClosed, oldest
from xds.mesh.parse.loadbalancer import load_balancer
from xds.mesh.parse.reading import Field, Log, shown

_POLICY = "tls connectionPool outlierDetection loadBalancer"
_UNSUPPORTED = {
    "tunnel": "connections go to the endpoints directly",
    "proxyProtocol": "servers get the client's identity in X-Forwarded-Client-Cert",
    "compression": "applications compress their responses themselves",
    "retryBudget": "limit retries with connectionPool.http.maxRetries",
}
"""Unsupported parts of a traffic policy, and what to do instead."""
_NOT_TLS = {"connectionPool", "outlierDetection", "loadBalancer"}
"""Parts of a traffic policy that do not affect encryption."""
_LABELS = {"labels", "matchLabels"}
"""Mappings with arbitrary keys."""
_UNSAFE_PATH = re.compile(r".*/\.\.(/|$)|(/\.?)*/(dev|proc|sys)(/|$)")
"""Paths that may lead to devices and other files of the kernel."""
_MIN_TIMEOUT = 0.001
_MAX_KEEPALIVE = 2**31 // 3600 * 3600.0
"""Maximum of keepalive times, in seconds. The kernel's setting is a 32-bit integer."""


def destination_rule(obj: Field, meta: Meta) -> DestinationRule:
    """Parse a DestinationRule."""
    obj.mapping(f"{TOP} spec status", strict=True)
    spec = obj["spec"].mapping("host trafficPolicy subsets exportTo workloadSelector", strict=True)
    rule = DestinationRule(
        meta=meta,
        host=_host(spec["host"].required(), meta.ref.namespace),
        policy=_policy(spec["trafficPolicy"]),
        subsets=tuple(_subsets(spec["subsets"], ejects=bool(spec["trafficPolicy"]["outlierDetection"]))),
        export_to=export_to(spec["exportTo"], private=bool(spec["workloadSelector"])),
        selector=names.selected(spec["workloadSelector"]),
    )
    if rule.export_to != (".",) and rule.selector is None and reads_files(rule.policy, rule.subsets):
        spec["exportTo"].notice(
            "is not '.': clients in other namespaces do not read the files of the rule, and send mutual TLS"
            " (ISTIO_MUTUAL) instead, unless this is the root namespace",
            "write exportTo: ['.'], and create a rule in each namespace of clients",
        )
    return rule


def _host(field: Field, namespace: str) -> str:
    """Resolve a host. A name without a dot is a Service in the rule's namespace.

    Any other host is used unchanged.
    """
    host = field.name(names.host)
    if "." not in host and host not in ("", "*"):
        return f"{host}.{namespace}.svc.{CLUSTER_DOMAIN}"
    name, _, domain = host.partition(".")
    if domain and (domain.endswith(".svc") or "." not in domain) and name != "*":
        full = f"{name}.{domain.removesuffix('.svc')}.svc.{CLUSTER_DOMAIN}"
        field.notice(f"{host} is used unchanged and matches no service", f"did you mean {full}?")
    return host


def export_to(field: Field, *, private: bool = False, nowhere: bool = False) -> tuple[str, ...]:
    """Parse `exportTo`: names of namespaces, `.` (the object's own) or `*` (all).

    Args:
        field: the list.
        private: whether the rule has a workloadSelector, and so cannot be exported.
        nowhere: whether `~` (no namespace) is valid.
    """
    namespaces: dict[str, None] = {}
    special = (".", "*", "~") if nowhere else (".", "*")
    for item in field.items():
        text = item.required().text()
        if text not in special and (error := names.label(text)):
            item.refuse(f"{shown(text)} {error}", "write a namespace, '.' (the rule's own) or '*' (all)")
        if text in namespaces:
            item.refuse(f"{shown(text)} is listed twice")
        if private and text != ".":
            item.refuse(
                "must be '.', because a rule with a workloadSelector applies only to its own namespace"
            )
        namespaces[text] = None
    if "*" in namespaces and len(namespaces) > 1:
        field.refuse("'*' is every namespace and must be the only entry")
    if "~" in namespaces and len(namespaces) > 1:
        field.refuse("'~' is no namespace and must be the only entry")
    return tuple(namespaces)


def _policy(field: Field, *, ejects: bool = False) -> TrafficPolicy | None:
    """Parse a traffic policy. `ejects` is whether it inherits an outlierDetection."""
    if not field.mapping(f"{_POLICY} {' '.join(_UNSUPPORTED)} portLevelSettings", strict=True):
        return None
    ports: dict[int, TrafficPolicy] = {}
    for item in field["portLevelSettings"].items():
        item.mapping(f"port {_POLICY} compression", strict=True)
        port = item["port"].required().mapping("number")
        if port and not port["number"]:
            port["number"].refuse("is required", "write the number of a Service port")
        number = port["number"].port()
        if port["number"] and number in ports:
            port["number"].refuse(f"{number} is set twice")
        ports[number] = _settings(item, {})
        _report_unsupported(item, "compression")
        _report_idle_failover(item)
    _report_unsupported(field, *_UNSUPPORTED)
    _report_idle_failover(field, ejects=ejects)
    return _settings(field, ports)


def _report_unsupported(field: Field, *unsupported: str) -> None:
    for name in unsupported:
        if field[name]:
            field[name].notice("is not supported and is ignored", _UNSUPPORTED[name])


def _report_idle_failover(field: Field, *, ejects: bool = False) -> None:
    setting = field["loadBalancer"]["localityLbSetting"]
    fails_over = setting["failover"] or setting["failoverPriority"]
    if fails_over and not (ejects or field["outlierDetection"] or setting["distribute"]):
        setting.notice("has no effect without outlierDetection", "add outlierDetection to the policy")


def _settings(field: Field, ports: dict[int, TrafficPolicy]) -> TrafficPolicy:
    return TrafficPolicy(
        tls=_tls(field["tls"]),
        connection_pool=_connection_pool(field["connectionPool"]),
        outlier_detection=_outlier_detection(field["outlierDetection"]),
        load_balancer=load_balancer(field["loadBalancer"]),
        ports=ports,
    )


def _tls(field: Field) -> ClientTls | None:
    """Parse TLS settings. `{}` means DISABLE, the first value of the enumeration."""
    if not field.mapping(
        "mode clientCertificate privateKey caCertificates credentialName subjectAltNames sni "
        "insecureSkipVerify caCrl",
        strict=True,
    ):
        return None
    mode = field["mode"].choice(TlsMode) or TlsMode.DISABLE
    client_files = (field["clientCertificate"], field["privateKey"])
    if field["credentialName"].value:
        # Istio's sidecars would silently send plaintext.
        field["credentialName"].refuse(
            "names a Secret, which only gateways can read; a sidecar would have to send plaintext",
            "mount the Secret into the pod and give the paths in caCertificates"
            + (", clientCertificate and privateKey" if mode is TlsMode.MUTUAL else ""),
        )
    elif mode is TlsMode.MUTUAL:
        for path in client_files:
            if not path.value:
                path.refuse("is required in mode MUTUAL", "write a path in the sidecar, or use ISTIO_MUTUAL")
    if mode in (TlsMode.ISTIO_MUTUAL, TlsMode.DISABLE):
        for path in (*client_files, field["caCertificates"]):
            if path.value:
                path.notice(f"is ignored in mode {mode}", "use mode MUTUAL for your own certificates")
    if field["caCrl"].value:
        field["caCrl"].refuse("is not supported; revoked certificates would be accepted")
    return ClientTls(
        mode=mode,
        sni=field["sni"].name(names.host),
        subject_alt_names=tuple(item.required().text() for item in field["subjectAltNames"].items()),
        certificate=_file(field["clientCertificate"]),
        private_key=_file(field["privateKey"]),
        ca_certificates=_file(field["caCertificates"]),
        insecure_skip_verify=field["insecureSkipVerify"].boolean() or False,
    )


def _file(field: Field) -> str:
    """Parse a path in the sidecar's file system. Errors do not quote the value, because it may be a key."""
    text = field.text()
    if text and (not text.startswith("/") or not text.isprintable()):
        field.refuse("must be an absolute path in the sidecar's file system", "not the content of the file")
        return ""
    if _UNSAFE_PATH.match(text):
        field.refuse(
            "must not contain .. or be below /dev, /proc or /sys, because Envoy could read without end",
            "write the path of a mounted Secret or ConfigMap",
        )
        return ""
    return text


def _connection_pool(field: Field) -> ConnectionPool | None:
    if not field.mapping("tcp http"):
        return None
    tcp = field["tcp"].mapping("maxConnections connectTimeout tcpKeepalive maxConnectionDuration idleTimeout")
    http = field["http"].mapping(
        "http1MaxPendingRequests http2MaxRequests maxRequestsPerConnection maxRetries "
        "idleTimeout h2UpgradePolicy useClientProtocol maxConcurrentStreams http2KeepAlive"
    )
    if http["http2KeepAlive"]:
        http["http2KeepAlive"].notice("is not supported and is ignored", "use tcp.tcpKeepalive")
    if http["useClientProtocol"].boolean():
        http["useClientProtocol"].notice(
            "is not supported and is ignored",
            "a Service port without a declared protocol keeps the client's; or use h2UpgradePolicy",
        )
    keepalive = tcp["tcpKeepalive"].mapping("probes time interval")
    upgrade = http["h2UpgradePolicy"].one_of("DEFAULT", "DO_NOT_UPGRADE", "UPGRADE")
    return ConnectionPool(
        max_connections=_set(tcp["maxConnections"]),
        connect_timeout=tcp["connectTimeout"].seconds(_MIN_TIMEOUT),
        tcp_keepalive=(
            _set(keepalive["probes"]),
            keepalive["time"].seconds(maximum=_MAX_KEEPALIVE),
            keepalive["interval"].seconds(maximum=_MAX_KEEPALIVE),
        )
        if keepalive
        else None,
        max_connection_duration=tcp["maxConnectionDuration"].seconds(_MIN_TIMEOUT),
        tcp_idle_timeout=tcp["idleTimeout"].seconds(),
        http1_max_pending_requests=_set(http["http1MaxPendingRequests"]),
        http2_max_requests=_set(http["http2MaxRequests"]),
        max_requests_per_connection=_set(http["maxRequestsPerConnection"]),
        max_retries=_set(http["maxRetries"]),
        http_idle_timeout=http["idleTimeout"].seconds(),
        h2_upgrade={"DO_NOT_UPGRADE": False, "UPGRADE": True}.get(upgrade),
        max_concurrent_streams=_set(http["maxConcurrentStreams"]),
    )


def _set(field: Field) -> int | None:
    """Parse a limit; 0 means unset."""
    return field.integer(0, 2**31 - 1) or None


def _outlier_detection(field: Field) -> OutlierDetection | None:
    if not field.mapping(
        "consecutive5xxErrors consecutiveGatewayErrors consecutiveLocalOriginFailures "
        "consecutiveErrors splitExternalLocalOriginErrors interval baseEjectionTime "
        "maxEjectionPercent minHealthPercent"
    ):
        return None
    if field["consecutiveErrors"].value is not None:
        field["consecutiveErrors"].notice("is deprecated and ignored", "write consecutive5xxErrors")
    return OutlierDetection(
        consecutive_5xx=field["consecutive5xxErrors"].integer(),
        consecutive_gateway_errors=field["consecutiveGatewayErrors"].integer(),
        consecutive_local_origin_failures=field["consecutiveLocalOriginFailures"].integer(),
        split_external_local_origin_errors=field["splitExternalLocalOriginErrors"].boolean() or False,
        interval=field["interval"].seconds(_MIN_TIMEOUT),
        base_ejection_time=field["baseEjectionTime"].seconds(_MIN_TIMEOUT),
        max_ejection_percent=field["maxEjectionPercent"].integer(0, 100),
        min_health_percent=field["minHealthPercent"].integer(0, 100),
    )


def _subsets(field: Field, *, ejects: bool) -> Iterator[Subset]:
    seen: set[str] = set()
    for item in field.items():
        item.mapping("name labels trafficPolicy", strict=True)
        name = item["name"].required().name(names.label)
        if name and name in seen:
            item["name"].refuse(f"{shown(name)} is the name of two subsets")
        seen.add(name)
        policy = _policy(item["trafficPolicy"], ejects=ejects)
        yield Subset(name=name, labels=names.labels(item["labels"], select=True), policy=policy)


def destination_rule_fail_closed(meta: Meta, parsed: Fact | None, log: Log) -> FailClosed:
    """Return the replacement of a rejected DestinationRule: ISTIO_MUTUAL for its host, or for all hosts.

    If only settings unrelated to TLS are invalid, the rule is used with the defaults of these settings.
    """
    rule = parsed if isinstance(parsed, DestinationRule) else DestinationRule(meta=meta, host="")
    if log.refusals and all(_NOT_TLS & set(path) and not _LABELS & set(path) for path in log.refusals):
        return FailClosed(rule, "its other settings apply, and invalid settings have their default values")
    host = rule.host if rule.host and log.is_readable("spec", "host") else "*"
    fact = DestinationRule(
        meta=oldest(meta, log),
        host=host,
        policy=TrafficPolicy(tls=ClientTls(mode=TlsMode.ISTIO_MUTUAL)),
        subsets=tuple(replace(subset, policy=None) for subset in rule.subsets)
        if log.is_readable("spec", "subsets")
        else (),
        export_to=rule.export_to if log.is_readable("spec", "exportTo") else ("*",),
        selector=rule.selector if log.is_readable("spec", "workloadSelector") else {},
    )
    destination = "any host" if host == "*" else host
    return FailClosed(fact, f"clients that it applies to send mutual TLS (ISTIO_MUTUAL) to {destination}")
