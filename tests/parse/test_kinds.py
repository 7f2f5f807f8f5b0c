"""What each kind of object says, as a fact."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from xds.mesh.model.loadbalancer import LoadBalancer, Simple
from xds.mesh.model.objects import (
    ContainerPort,
    DestinationRule,
    EndpointAddress,
    EndpointGroup,
    EndpointPort,
    Endpoints,
    Fact,
    Interception,
    Mode,
    ModePolicy,
    Namespace,
    Pod,
    Protocol,
    Ref,
    Service,
    ServiceAccount,
    ServicePort,
    TargetSelector,
)
from xds.mesh.model.traffic import (
    ClientTls,
    ConnectionPool,
    OutlierDetection,
    Subset,
    TlsMode,
    TrafficPolicy,
)
from xds.mesh.parse import UNENFORCED, Kind, Parsed, Path, dotted, parse


def where(path: Path) -> str:
    return f"in.yaml:{dotted(path)}"


def objects(text: str) -> list[Parsed]:
    return parse(yaml.safe_load(text), where)


def fact(text: str) -> Any:
    """The one fact that a text stands for, without a complaint."""
    [parsed] = objects(text)
    assert parsed.problems == ()
    assert parsed.fact is not None
    assert parsed.ref == parsed.fact.ref
    return parsed.fact


def notices(text: str) -> list[str]:
    """What is said about an object that is used all the same, or passed over."""
    [parsed] = objects(text)
    assert not parsed.refused
    return [str(problem) for problem in parsed.problems]


SERVICE = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {%s}}"
POD = "{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop}, spec: {}, status: {%s}}"
SLICE = (
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-x, namespace: shop,"
    " labels: {kubernetes.io/service-name: web}}, addressType: IPv4, %s}"
)
POLICY = (
    "{apiVersion: authentication.istio.io/v1alpha1, kind: Policy,"
    " metadata: {name: %s, namespace: shop}, spec: {%s}}"
)
PEER = (
    "{apiVersion: security.istio.io/v1, kind: PeerAuthentication,"
    " metadata: {name: web, namespace: shop}, spec: {%s}}"
)
RULE = (
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule,"
    " metadata: {name: web, namespace: shop}, spec: {host: %s}}"
)


def test_metadata() -> None:
    read = fact("""
        apiVersion: v1
        kind: Namespace
        metadata:
          name: shop
          labels: {istio-injection: enabled, empty: ""}
          annotations: {note: "free text: any"}
          creationTimestamp: "2020-01-01T01:00:00+01:00"
          uid: 0b0a
          resourceVersion: "7"
        spec: {finalizers: [kubernetes]}
        status: {phase: Active}
    """)
    assert isinstance(read, Namespace)
    assert read.ref == Ref("Namespace", "", "shop")
    assert read.meta.labels == {"istio-injection": "enabled", "empty": ""}
    assert read.meta.annotations == {"note": "free text: any"}
    assert read.meta.created == datetime(2020, 1, 1, tzinfo=UTC)
    assert read.meta.origin == read.meta.place == "in.yaml:"
    assert replace(read.meta, origin="").place == "resourceVersion 7"
    assert (
        fact("{apiVersion: v1, kind: Namespace, metadata: {name: a, resourceVersion: 7}}").meta.version == ""
    )


def test_service_account() -> None:
    read = fact("{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}, secrets: []}")
    assert read == ServiceAccount(meta=read.meta)


def test_service() -> None:
    read = fact("""
        apiVersion: v1
        kind: Service
        metadata:
          name: web
          namespace: shop
          annotations: {alpha.istio.io/canonical-serviceaccounts: "spiffe://a/ns/b/sa/c, spiffe://d/ns/e/sa/f"}
        spec:
          type: LoadBalancer
          clusterIP: 10.0.0.1
          clusterIPs: [10.0.0.1, "fd00::1"]
          publishNotReadyAddresses: true
          selector: {app: web}
          ports:
          - {name: http-web, port: 80, targetPort: web}
          - {name: db, port: 3306, nodePort: 30000}
          - {name: dns, port: 53, protocol: UDP}
          - {name: other, port: 9000, targetPort: 9001, protocol: TCP}
    """)
    assert read == Service(
        meta=read.meta,
        addresses=("10.0.0.1", "fd00::1"),
        families=(4, 6),
        published=True,
        selector={"app": "web"},
        ports=(
            ServicePort(port=80, target="web", name="http-web", protocol=Protocol.HTTP),
            ServicePort(port=3306, target=3306, name="db", protocol=Protocol.TCP),
            ServicePort(port=9000, target=9001, name="other"),
        ),
        publish_not_ready=True,
        service_accounts=("spiffe://a/ns/b/sa/c", "spiffe://d/ns/e/sa/f"),
    )


def test_headless_service_and_unknown_address() -> None:
    assert fact(SERVICE % "clusterIP: None, ports: [{port: 80}]").headless
    assert fact(SERVICE % "clusterIP: None").ports == ()
    unknown = fact(SERVICE % "ports: [{port: 80}]")
    assert not unknown.headless
    assert unknown.addresses == ()


def test_external_name_is_ignored() -> None:
    [parsed] = objects(SERVICE % "type: ExternalName, externalName: example.com")
    assert (parsed.ref, parsed.fact, parsed.refused) == (Ref("Service", "shop", "web"), None, False)
    assert "ExternalName is ignored" in str(parsed.problems[0])


@pytest.mark.parametrize(
    ("port", "protocol"),
    [
        ("port: 80, name: http", Protocol.HTTP),
        ("port: 80, name: http-web", Protocol.HTTP),
        ("port: 80, name: httpweb", Protocol.AUTO),
        ("port: 80, name: http2-web", Protocol.HTTP2),
        ("port: 80, name: grpc", Protocol.HTTP2),
        ("port: 80, name: grpc-web", Protocol.HTTP),
        ("port: 80, name: grpc-web-front", Protocol.HTTP),
        ("port: 80, name: https", Protocol.TCP),
        ("port: 80, name: tls-x", Protocol.TCP),
        ("port: 80, name: tcp", Protocol.TCP),
        ("port: 80, name: mongo-a", Protocol.TCP),
        ("port: 80, name: mysql", Protocol.TCP),
        ("port: 80, name: redis", Protocol.TCP),
        ("port: 80", Protocol.AUTO),
        ("port: 80, name: web", Protocol.AUTO),
        ("port: 25", Protocol.TCP),
        ("port: 53", Protocol.TCP),
        ("port: 3306, name: db", Protocol.TCP),
        ("port: 27017", Protocol.TCP),
        ("port: 3306, name: http", Protocol.HTTP),
        ("port: 80, name: tcp, appProtocol: http", Protocol.HTTP),
        ("port: 80, name: tcp, appProtocol: HTTP", Protocol.HTTP),
        ("port: 80, name: tcp, appProtocol: http2", Protocol.HTTP2),
        ("port: 80, name: http, appProtocol: grpc", Protocol.HTTP2),
        ("port: 80, name: http, appProtocol: https", Protocol.TCP),
        ("port: 80, name: http, appProtocol: tls", Protocol.TCP),
        ("port: 80, name: http, appProtocol: tcp", Protocol.TCP),
        ("port: 80, appProtocol: kubernetes.io/h2c", Protocol.HTTP2),
        ("port: 80, appProtocol: kubernetes.io/ws", Protocol.HTTP),
        ("port: 80, appProtocol: kubernetes.io/wss", Protocol.TCP),
        ("port: 80, name: http, appProtocol: example.com/own", Protocol.AUTO),
        ("port: 25, appProtocol: example.com/own", Protocol.TCP),
    ],
)
def test_protocol_of_a_port(port: str, protocol: Protocol) -> None:
    assert fact(SERVICE % f"ports: [{{{port}}}]").ports[0].protocol is protocol


def test_pod() -> None:
    read = fact("""
        apiVersion: v1
        kind: Pod
        metadata:
          name: web-0
          namespace: shop
          labels: {security.istio.io/tlsMode: istio}
          annotations:
            sidecar.istio.io/interceptionMode: NONE
            sidecar.xds/app-address: 127.0.0.2
        spec:
          serviceAccountName: web
          hostname: web-0
          subdomain: web
          initContainers:
          - {name: setup, image: x, ports: [{name: gone, containerPort: 1}]}
          - {name: proxy, image: x, restartPolicy: Always, ports: [{name: proxy, containerPort: 15090}]}
          containers:
          - name: web
            ports:
            - {name: http, containerPort: 8080}
            - {containerPort: 8081}
            - {name: dns, containerPort: 53, protocol: UDP}
        status:
          podIP: 10.1.0.1
          phase: Running
          conditions: [{type: Initialized, status: "False"}, {type: Ready, status: "True"}]
    """)
    assert read == Pod(
        meta=read.meta,
        address="10.1.0.1",
        service_account="web",
        ports=(
            ContainerPort(port=15090, name="proxy"),
            ContainerPort(port=8080, name="http"),
            ContainerPort(port=8081),
        ),
        hostname="web-0",
        subdomain="web",
        interception=Interception.NONE,
        app_address="127.0.0.2",
    )
    assert read.has_sidecar


@pytest.mark.parametrize(
    ("container", "ports"),
    [
        ("livenessProbe: {httpGet: {port: 8080}}, startupProbe: {httpGet: {port: 8080}}", (8080,)),
        ("readinessProbe: {grpc: {port: 9090}}, livenessProbe: {httpGet: {port: 8080}}", (8080, 9090)),
        ("livenessProbe: {httpGet: {port: web}}, ports: [{name: web, containerPort: 81}]", (81,)),
        ("livenessProbe: {httpGet: {port: web}}", ()),
        ("livenessProbe: {httpGet: {port: 80, host: 10.0.0.1}}", ()),
        ("livenessProbe: {tcpSocket: {port: 80}}, readinessProbe: {exec: {command: [x]}}", ()),
        ("livenessProbe: {httpGet: {port: 70000}}, readinessProbe: {grpc: 5}, startupProbe: x", ()),
    ],
)
def test_probe_ports_are_those_of_http_and_grpc(container: str, ports: tuple[int, ...]) -> None:
    read = fact(f"""
        apiVersion: v1
        kind: Pod
        metadata: {{name: web, namespace: shop}}
        spec: {{containers: [{{name: web, image: x, {container}}}]}}
    """)
    assert read.probe_ports == ports


@pytest.mark.parametrize(
    ("status", "ready", "ended"),
    [
        ("podIP: 10.1.0.1", True, False),
        ("phase: Running", True, False),
        ("phase: Pending", False, False),
        ("phase: Unknown", False, False),
        ("phase: Succeeded", False, True),
        ("phase: Failed", False, True),
        ("conditions: [{type: Ready, status: 'True'}]", True, False),
        ("conditions: [{type: Ready, status: 'False'}]", False, False),
        ("phase: Running, conditions: [{type: Ready, status: Unknown}]", False, False),
        ("phase: Pending, conditions: [{type: Ready, status: 'True'}]", False, False),
    ],
)
def test_pod_readiness(status: str, ready: bool, ended: bool) -> None:
    read = fact(POD % status)
    assert (read.ready, read.ended) == (ready, ended)


def test_deleted_pod_is_not_ready() -> None:
    text = POD % "phase: Running"
    assert not fact(
        text.replace("name: web-1,", "name: web-1, deletionTimestamp: '2020-01-01T00:00:00Z',")
    ).ready


def test_pod_address_and_account_fields() -> None:
    assert fact(POD % "podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]").address == "10.1.0.1"
    assert fact(POD % "").address == ""
    assert fact(POD % "").service_account == "default"
    assert fact((POD % "").replace("spec: {}", "spec: {serviceAccount: old}")).service_account == "old"


def test_tproxy_falls_back_to_redirect() -> None:
    text = (POD % "").replace(
        "name: web-1,", "name: web-1, annotations: {sidecar.istio.io/interceptionMode: TPROXY},"
    )
    [parsed] = objects(text)
    assert isinstance(parsed.fact, Pod)
    assert parsed.fact.interception is Interception.REDIRECT
    assert "TPROXY is not supported" in str(parsed.problems[0])


def test_endpoint_slice() -> None:
    read = fact(
        SLICE
        % """
        ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 53, protocol: UDP}],
        endpoints: [
          {addresses: [10.1.0.1], conditions: {ready: true}, zone: a, hostname: web-0,
           targetRef: {kind: Pod, name: web-1, namespace: shop}},
          {addresses: [10.1.0.2], conditions: {ready: false}, targetRef: {kind: Pod, name: web-2}},
          {addresses: [10.1.0.3], conditions: {ready: false, serving: true, terminating: true}},
          {addresses: [10.1.0.4], targetRef: {kind: Node, name: n}}]"""
    )
    assert read == Endpoints(
        meta=read.meta,
        service="web",
        groups=(
            EndpointGroup(
                addresses=(
                    EndpointAddress(
                        address="10.1.0.1", pod=Ref("Pod", "shop", "web-1"), hostname="web-0", zone="a"
                    ),
                    EndpointAddress(address="10.1.0.2", ready=False, pod=Ref("Pod", "shop", "web-2")),
                    EndpointAddress(address="10.1.0.4"),
                ),
                ports=(EndpointPort(port=8080, name="http"),),
            ),
        ),
    )


def test_endpoint_slice_without_service_or_addresses_is_ignored() -> None:
    assert (
        "do not name the Service"
        in notices((SLICE % "").replace("{kubernetes.io/service-name: web}", "{}"))[0]
    )
    assert "FQDN is ignored" in notices((SLICE % "").replace("IPv4", "FQDN"))[0]


def test_endpoints() -> None:
    read = fact("""
        apiVersion: v1
        kind: Endpoints
        metadata: {name: web, namespace: shop}
        subsets:
        - addresses: [{ip: 10.1.0.1, hostname: web-0, targetRef: {kind: Pod, name: web-1}}]
          notReadyAddresses: [{ip: 10.1.0.2}]
          ports: [{port: 8080}]
        - addresses: [{ip: 10.1.0.3}]
    """)
    assert read.service == "web"
    assert read.groups == (
        EndpointGroup(
            addresses=(
                EndpointAddress(address="10.1.0.1", hostname="web-0", pod=Ref("Pod", "shop", "web-1")),
                EndpointAddress(address="10.1.0.2", ready=False),
            ),
            ports=(EndpointPort(port=8080),),
        ),
        EndpointGroup(addresses=(EndpointAddress(address="10.1.0.3"),), ports=()),
    )


@pytest.mark.parametrize(
    ("peers", "mode"),
    [
        ("", Mode.DISABLE),
        ("peers: []", Mode.DISABLE),
        ("peers: [{mtls: {}}]", Mode.STRICT),
        ("peers: [{mtls: null}]", Mode.STRICT),
        ("peers: [{mtls: {mode: STRICT}}]", Mode.STRICT),
        ("peers: [{mtls: {mode: PERMISSIVE}}]", Mode.PERMISSIVE),
        ("peers: [{mtls: {mode: PERMISSIVE}}, {mtls: {}}]", Mode.PERMISSIVE),
    ],
)
def test_alpha_policy_mode(peers: str, mode: Mode) -> None:
    read = fact(POLICY % ("default", peers))
    assert read == ModePolicy(meta=read.meta, mode=mode)
    mesh = fact(
        (POLICY % ("default", peers))
        .replace("kind: Policy", "kind: MeshPolicy")
        .replace(", namespace: shop", "")
    )
    assert mesh.ref == Ref("MeshPolicy", "", "default")
    assert mesh.mode is mode


def test_alpha_policy_targets() -> None:
    targets = "targets: [{name: web}, {name: api, ports: [{number: 80}, {name: http}]}], peers: [{mtls: {}}]"
    assert fact(POLICY % ("web", targets)).targets == (
        TargetSelector(service="web"),
        TargetSelector(service="api", ports=(80, "http")),
    )


def test_jwt_peers_are_not_mutual_tls() -> None:
    [parsed] = objects(POLICY % ("default", "peers: [{jwt: {issuer: a}}], origins: [{jwt: {issuer: b}}]"))
    assert isinstance(parsed.fact, ModePolicy)
    assert parsed.fact.mode is Mode.DISABLE
    assert ["is ignored" in problem.what for problem in parsed.problems] == [True, True]


def test_peer_authentication() -> None:
    read = fact(
        PEER % "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT},"
        " portLevelMtls: {8080: {mode: DISABLE}, '8081': {mode: UNSET}, 8082: {}}"
    )
    assert read == ModePolicy(
        meta=read.meta,
        mode=Mode.STRICT,
        selector={"app": "web"},
        ports={8080: Mode.DISABLE, 8081: None, 8082: None},
    )


@pytest.mark.parametrize(
    "spec", ["", "mtls: {}", "mtls: null", "mtls: {mode: UNSET}", "selector: {matchLabels: {}}"]
)
def test_empty_peer_authentication_inherits(spec: str) -> None:
    read = fact(PEER % spec)
    assert read == ModePolicy(meta=read.meta)


def test_destination_rule() -> None:
    read = fact(
        RULE
        % """web, exportTo: ["."], workloadSelector: {matchLabels: {app: client}},
        trafficPolicy: {
          tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /ca, sni: a.b,
                subjectAltNames: ["spiffe://x"], insecureSkipVerify: true},
          connectionPool: {
            tcp: {maxConnections: 5, connectTimeout: 1.5s, tcpKeepalive: {probes: 3, time: 1h, interval: 75s},
                  maxConnectionDuration: 1h30m, idleTimeout: 0s},
            http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, maxRequestsPerConnection: 3,
                   maxRetries: 0, idleTimeout: 500ms, h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 9}},
          outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 2, interval: 10s,
                             consecutiveLocalOriginFailures: 4, splitExternalLocalOriginErrors: true,
                             baseEjectionTime: 30s, maxEjectionPercent: 100, minHealthPercent: 50},
          loadBalancer: {simple: LEAST_CONN},
          portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]},
        subsets: [{name: v1, labels: {version: v1}},
                  {name: v2, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}]"""
    )
    assert read == DestinationRule(
        meta=read.meta,
        host="web.shop.svc.cluster.local",
        export_to=(".",),
        selector={"app": "client"},
        policy=TrafficPolicy(
            tls=ClientTls(
                mode=TlsMode.MUTUAL,
                sni="a.b",
                subject_alt_names=("spiffe://x",),
                certificate="/c",
                private_key="/k",
                ca_certificates="/ca",
                insecure_skip_verify=True,
            ),
            connection_pool=ConnectionPool(
                max_connections=5,
                connect_timeout=1.5,
                tcp_keepalive=(3, 3600, 75),
                max_connection_duration=5400,
                tcp_idle_timeout=0,
                http1_max_pending_requests=1,
                http2_max_requests=2,
                max_requests_per_connection=3,
                http_idle_timeout=0.5,
                h2_upgrade=True,
                max_concurrent_streams=9,
            ),
            outlier_detection=OutlierDetection(
                consecutive_5xx=0,
                consecutive_gateway_errors=2,
                consecutive_local_origin_failures=4,
                split_external_local_origin_errors=True,
                interval=10,
                base_ejection_time=30,
                max_ejection_percent=100,
                min_health_percent=50,
            ),
            load_balancer=LoadBalancer(Simple.LEAST_REQUEST),
            ports={80: TrafficPolicy(load_balancer=LoadBalancer(Simple.RANDOM))},
        ),
        subsets=(
            Subset(name="v1", labels={"version": "v1"}),
            Subset(name="v2", policy=TrafficPolicy(tls=ClientTls(mode=TlsMode.ISTIO_MUTUAL))),
        ),
    )


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("web", "web.shop.svc.cluster.local"),
        ("web.full.svc.cluster.local", "web.full.svc.cluster.local"),
        ("'*'", "*"),
        ("'*.local'", "*.local"),
        ("'*.full.svc.cluster.local'", "*.full.svc.cluster.local"),
        ("www.example.com", "www.example.com"),
    ],
)
def test_destination_rule_host(written: str, host: str) -> None:
    assert fact(RULE % written).host == host


@pytest.mark.parametrize("written", ["web.full", "web.full.svc"])
def test_partial_host_name_gets_a_notice(written: str) -> None:
    [parsed] = objects(RULE % written)
    assert isinstance(parsed.fact, DestinationRule)
    assert parsed.fact.host == written
    assert "did you mean web.full.svc.cluster.local?" in str(parsed.problems[0])


@pytest.mark.parametrize(
    ("policy", "mode"),
    [("tls: {}", TlsMode.DISABLE), ("tls: null", None), ("", None), ("tls: {mode: SIMPLE}", TlsMode.SIMPLE)],
)
def test_empty_tls_is_plaintext_and_absent_tls_is_auto(policy: str, mode: TlsMode | None) -> None:
    read = fact(RULE % f"web, trafficPolicy: {{{policy}}}")
    assert (read.policy.tls and read.policy.tls.mode) == mode


def test_unsupported_settings_get_a_notice() -> None:
    said = notices(
        RULE % "web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, caCertificates: /ca}, tunnel: {}, "
        "connectionPool: {http: {useClientProtocol: true}}, outlierDetection: {consecutiveErrors: 5}}"
    )
    assert len(said) == 4
    assert all("ignored" in line for line in said)


@pytest.mark.parametrize("field", ["caCertificates", "clientCertificate", "privateKey"])
@pytest.mark.parametrize(
    "path",
    [
        "/dev/fd/15",
        "/dev/fd/../root/dev/zero",
        "/dev",
        "//dev/zero",
        "/./proc/1/root",
        "/sys/x",
        "/a/../dev/0",
        "/..",
    ],
)
def test_path_that_may_lead_to_a_device_is_refused(field: str, path: str) -> None:
    tls = json.dumps({"mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k"} | {field: path})
    [parsed] = objects(RULE % f"web, exportTo: [.], trafficPolicy: {{tls: {tls}}}")
    [problem] = parsed.problems
    assert f"spec.trafficPolicy.tls.{field} must not contain .. or be below /dev, /proc" in str(problem)
    assert parsed.refused


@pytest.mark.parametrize("path", ["/device/ca.pem", "/etc/..data/ca.pem", "/etc/dev/ca.pem", "/run/.../x"])
def test_path_of_a_mounted_file_is_accepted(path: str) -> None:
    rule = f"web, exportTo: [.], trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {path}}}}}"
    assert fact(RULE % rule).policy.tls.ca_certificates == path


@pytest.mark.parametrize("exported", ["", "exportTo: ['*'],", "exportTo: [team],"])
def test_exported_rule_with_files_gets_a_notice(exported: str) -> None:
    [said] = notices(RULE % f"web, {exported} trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: /ca}}}}")
    assert "clients in other namespaces do not read the files of the rule" in said


@pytest.mark.parametrize(
    "obj",
    [
        PEER % "selector: {matchLabels: {app: }}, mtls: {mode: STRICT}",
        RULE % "web, exportTo: [.], workloadSelector: {matchLabels: {app: }}",
        RULE % "web, subsets: [{name: v1, labels: {app: }}]",
    ],
)
def test_selector_without_a_value_is_refused(obj: str) -> None:
    """It would silently select nothing."""
    [parsed] = objects(obj)
    assert parsed.refused
    [problem] = parsed.problems
    assert ".app must be a string, not null" in str(problem)


def test_misspelled_field_gets_a_notice() -> None:
    [parsed] = objects(
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {port: 1}}"
    )
    assert any("spec.port is not a known field and is ignored" in str(p) for p in parsed.problems if p.notice)


def test_misspelled_security_field_is_refused() -> None:
    [parsed] = objects(PEER % "mtsl: {mode: STRICT}")
    assert parsed.refused
    [problem] = parsed.problems
    assert str(problem) == (
        "in.yaml:spec.mtsl: PeerAuthentication shop/web: spec.mtsl is not a known field (did you mean mtls?)"
    )


def test_namespace_defaults_to_default() -> None:
    [parsed] = objects("{apiVersion: v1, kind: ServiceAccount, metadata: {name: web}}")
    assert parsed.ref == Ref("ServiceAccount", "default", "web")
    assert parsed.fact is not None
    assert parsed.is_in_default
    assert not parsed.problems


def test_namespace_of_cluster_scoped_object_is_ignored() -> None:
    [parsed] = objects("{apiVersion: v1, kind: Namespace, metadata: {name: shop, namespace: shop}}")
    assert parsed.ref == Ref("Namespace", "", "shop")
    assert "is ignored: a Namespace is cluster-scoped" in str(parsed.problems[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}}",
            "Deployment web is ignored (only Pods are read",
        ),
        ("{apiVersion: v1, kind: Secret, metadata: {name: web}}", "Secret web is ignored"),
        ("{apiVersion: v1, kind: ConfigMap}", "ConfigMap is ignored"),
        (
            "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: web}}",
            "Service web is ignored",
        ),
        ("{apiVersion: kyverno.io/v1, kind: Policy, metadata: {name: web}}", "Policy web is ignored"),
        ("{apiVersion: networking.istio.io/v1, kind: WorkloadGroup}", "WorkloadGroup is ignored"),
    ],
)
def test_other_kinds_are_ignored_with_a_notice(text: str, said: str) -> None:
    [parsed] = objects(text)
    assert (parsed.ref, parsed.fact, parsed.refused) == (None, None, False)
    [problem] = parsed.problems
    assert said in str(problem)


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("networking.k8s.io/v1", "IngressClass"),
        ("gateway.networking.k8s.io/v1alpha2", "UDPRoute"),
        ("gateway.networking.k8s.io/v1alpha2", "HTTPRoute"),
        ("monitoring.rhobs/v1", "ServiceMonitor"),
        ("networking.x-k8s.io/v1alpha1", "HTTPRoute"),
    ],
)
def test_kinds_similar_to_those_of_callers_are_ignored(version: str, kind: str) -> None:
    [parsed] = objects(f"{{apiVersion: {version}, kind: {kind}, metadata: {{name: a, namespace: b}}}}")
    [problem] = parsed.problems
    assert (parsed.fact, parsed.refused, problem.notice) == (None, False, True)


def test_api_service_of_the_core_group_is_valid() -> None:
    [parsed] = objects("{apiVersion: apiregistration.k8s.io/v1, kind: APIService, metadata: {name: v1.}}")
    assert (parsed.fact, parsed.problems) == (None, ())


@pytest.mark.parametrize("kind", UNENFORCED, ids=lambda kind: kind.name)
def test_unenforced_kind_gets_a_warning(kind: Kind) -> None:
    denies = kind.group != "networking.istio.io"
    for version in kind.versions:
        for metadata, name in (("{name: x, namespace: ns}", " ns/x"), ("{name: x}", " x"), ("[]", "")):
            text = (
                f"{{apiVersion: {kind.group}/{version}, kind: {kind.name}, metadata: {metadata}, spec: []}}"
            )
            [parsed] = objects(text)
            assert (parsed.ref, parsed.fact, parsed.refused) == (None, None, False)
            [warning] = parsed.problems
            assert not warning.notice
            assert warning.what.startswith(f"{kind.name}{name}: NOT enforced: ")
            assert warning.what.endswith("requests that it would deny are allowed") is denies
            assert parsed.unenforced == kind.name


def test_list_is_unrolled() -> None:
    text = (
        f"{{apiVersion: v1, kind: List, items: [{POD % ''}, {SERVICE % 'clusterIP: None'}, {RULE % 'web'}]}}"
    )
    assert [parsed.fact.name for parsed in objects(text) if parsed.fact] == ["web-1", "web", "web"]


def test_typed_list_items_need_no_type() -> None:
    [parsed] = objects(
        "{apiVersion: v1, kind: PodList, metadata: {}, items: [{metadata: {name: a, namespace: b}}]}"
    )
    assert isinstance(parsed.fact, Pod)


def test_invalid_list_item_does_not_affect_others() -> None:
    bad, good = objects(f"{{apiVersion: v1, kind: List, items: [{SERVICE % ''}, {POD % ''}]}}")
    assert bad.refused
    assert bad.problems[0].where == "in.yaml:items[0].spec.ports"
    assert isinstance(good.fact, Pod)


def test_facts_are_equal_regardless_of_origin() -> None:
    document = yaml.safe_load(POD % "podIP: 10.1.0.1")
    facts: list[Fact | None] = [parse(document, lambda _, at=at: at)[0].fact for at in ("here", "there")]
    assert facts[0] == facts[1]


def test_text_flaws_belong_to_their_object() -> None:
    document = yaml.safe_load(f"{{apiVersion: v1, kind: List, items: [{POD % ''}, {RULE % 'web'}]}}")
    flaws = [(("items", 0, "spec"), "is set twice"), (("kind",), "is set twice")]
    listed, bad, good = parse(document, where, flaws)
    assert [str(problem) for problem in listed.problems] == ["in.yaml:kind: kind is set twice"]
    assert [str(problem) for problem in bad.problems] == [
        "in.yaml:items[0].spec: Pod shop/web-1: items[0].spec is set twice"
    ]
    assert bad.ref == Ref("Pod", "shop", "web-1")
    assert isinstance(good.fact, DestinationRule)


@pytest.mark.parametrize(
    ("value", "expected", "problem"),
    [
        ("", (), ""),
        (" ", (), ""),
        ("*", ("*",), ""),
        ("., *", ("*",), ""),
        (".", ("shop",), ""),
        ("., a ,b,", ("shop", "a", "b"), ""),
        ("~", ("~",), ""),
        ("., ~", ("~",), ""),
        (
            "., Team",
            ("*",),
            "metadata.annotations[\"networking.istio.io/exportTo\"] 'Team' is not a DNS label",
        ),
    ],
)
def test_annotation_says_which_namespaces_see_a_service(value, expected, problem) -> None:
    text = SERVICE % "clusterIP: None"
    document = yaml.safe_load(text)
    document["metadata"]["annotations"] = {"networking.istio.io/exportTo": value}
    [parsed] = parse(document, where)
    assert isinstance(parsed.fact, Service)
    assert parsed.fact.export_to == expected
    assert [problem in str(found) for found in parsed.problems] == [True] * bool(problem)


def test_ignored_parts_of_a_service_get_a_notice() -> None:
    assert "has no TCP port" in notices(SERVICE % "ports: [{port: 53, protocol: UDP}]")[0]
    annotated = (SERVICE % "clusterIP: None").replace(
        "name: web,", "name: web, annotations: {alpha.istio.io/kubernetes-serviceaccounts: a},"
    )
    assert "list full SPIFFE IDs in alpha.istio.io/canonical-serviceaccounts" in notices(annotated)[0]


@pytest.mark.parametrize(
    ("field", "ignored", "default", "hint"),
    [
        ("internalTrafficPolicy", "Local", "Cluster", "excludeOutboundIPRanges"),
        ("sessionAffinity", "ClientIP", "None", "consistentHash.useSourceIp"),
        ("trafficDistribution", "PreferClose", "null", "outlierDetection"),
    ],
)
def test_ignored_choices_of_endpoints_get_a_notice(field: str, ignored: str, default: str, hint: str) -> None:
    service = SERVICE % "clusterIP: 10.2.0.1, ports: [{port: 80}], %s: %s"
    [line] = notices(service % (field, ignored))
    assert f"{field} is ignored" in line
    assert hint in line
    assert notices(service % (field, default)) == []


def test_allow_tls_of_alpha_policy_is_ignored() -> None:
    [line] = notices(POLICY % ("default", "peers: [{mtls: {allowTls: true}}]"))
    assert "is ignored: a client certificate is always required when the sidecar terminates TLS" in line
