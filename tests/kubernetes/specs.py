"""Edge cases of our kinds' specs, valid and invalid. `parse` decides which."""

from __future__ import annotations

ALPHA = "apiVersion: authentication.istio.io/v1alpha1\nkind: {}\nmetadata: {{name: {}}}\n"
PEER_HEAD = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: web}\n"
RULE_HEAD = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\n"
DEFAULT, WEB, MESH = (
    ALPHA.format(*of) for of in (("Policy", "default"), ("Policy", "web"), ("MeshPolicy", "default"))
)

SPECS = [
    (DEFAULT, "{}"),
    (DEFAULT, "{targets: [], peers: []}"),
    (DEFAULT, "{peers: [{mtls: }]}"),
    (DEFAULT, "{peers: [{mtls: {}}, {jwt: {issuer: x}}]}"),
    (DEFAULT, "{peers: [{mtls: {mode: STRICT, allowTls: true}}], peerIsOptional: true}"),
    (DEFAULT, "{peers: [{mtls: {allowTls: 1}}]}"),
    (DEFAULT, "{origins: [{jwt: {issuer: x}}], originIsOptional: true, principalBinding: USE_ORIGIN}"),
    (DEFAULT, "{peers: [{jwt: {}, mtls: {}, x: 1}]}"),
    (DEFAULT, "{peers: [{mtls: {mode: }}]}"),
    (DEFAULT, '{peers: [{mtls: {mode: ""}}]}'),
    (DEFAULT, "{peers: [{mtls: {mode: 1}}]}"),
    (DEFAULT, "{peers: [null]}"),
    (DEFAULT, "{peer: [{mtls: {}}]}"),
    (DEFAULT, "[]"),
    (DEFAULT, "text"),
    (WEB, "{}"),
    (WEB, "{targets: [{name: web}]}"),
    (WEB, "{targets: [{name: web, ports: [{number: 65535}, {name: http}]}]}"),
    (WEB, "{targets: [{name: web, ports: [{number: 65536}]}]}"),
    (WEB, "{targets: [{name: web, ports: [{number: 80.5}]}]}"),
    (WEB, '{targets: [{name: web, ports: [{number: "80"}]}]}'),
    (WEB, "{targets: [{name: web, ports: [{}]}]}"),
    (WEB, "{targets: [{name: web, ports: [{number: 80, nmae: x}]}]}"),
    (WEB, '{targets: [{name: web, ports: [{name: ""}]}]}'),
    (WEB, '{targets: [{name: ""}]}'),
    (WEB, "{targets: [{name: web, port: 80}]}"),
    (WEB, "{targets: [{name: web, labels: {}}]}"),
    (WEB, "{targets: [{name: Web}]}"),
    (WEB, f"{{targets: [{{name: {'w' * 64}}}]}}"),
    (MESH, "{}"),
    (MESH, "{peers: [{mtls: {mode: PERMISSIVE}}]}"),
    (MESH, "{targets: [], peers: []}"),
    (MESH, "{mode: STRICT}"),
    (PEER_HEAD, "{}"),
    (PEER_HEAD, "{mtls: {}}"),
    (PEER_HEAD, "{mtls: {mode: UNSET}}"),
    (PEER_HEAD, "{mtls: {mdoe: STRICT}}"),
    (PEER_HEAD, "{mtls: {mode: STRICT, more: 1}}"),
    (PEER_HEAD, "{mtls: {mode: strict}}"),
    (PEER_HEAD, "{selector: {}}"),
    (
        PEER_HEAD,
        "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: , 81: {}, 65535: {mode: DISABLE}}}",
    ),
    (PEER_HEAD, "{selector: {matchLabels: {app: }}, mtls: {mode: STRICT}}"),
    (PEER_HEAD, "{selector: {matchLabels: {app: 1}}}"),
    (PEER_HEAD, "{selector: {matchLabels: {app: a b}}}"),
    (PEER_HEAD, "{selector: {matchLabels: {a/b/c: d}}}"),
    (PEER_HEAD, f"{{selector: {{matchLabels: {{app: {'x' * 64}}}}}}}"),
    (PEER_HEAD, f"{{selector: {{matchLabels: {{{'x' * 64}: a}}}}}}"),
    (PEER_HEAD, "{selector: {matchLabels: {example.com/app: web}}}"),
    (PEER_HEAD, "{selector: {matchLabels: {app: web}, matchExpressions: []}}"),
    (PEER_HEAD, "{selector: {}, portLevelMtls: {80: {}}}"),
    (PEER_HEAD, "{selector: {matchLabels: {app: web}}, portLevelMtls: {0: {}}}"),
    (PEER_HEAD, "{selector: {matchLabels: {app: web}}, portLevelMtls: {65536: {}}}"),
    (PEER_HEAD, "{selector: {matchLabels: {app: web}}, portLevelMtls: {-1: {}}}"),
    (PEER_HEAD, '{selector: {matchLabels: {app: web}}, portLevelMtls: {"\u0668\u0660": {}}}'),
    (PEER_HEAD, "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mod: STRICT}}}"),
    (PEER_HEAD, "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: STRICT}}"),
    (RULE_HEAD, "{}"),
    (RULE_HEAD, "{host: web}"),
    (RULE_HEAD, '{host: ""}'),
    (RULE_HEAD, '{host: "*"}'),
    (RULE_HEAD, '{host: "*.local"}'),
    (RULE_HEAD, '{host: "*local"}'),
    (RULE_HEAD, "{host: http://web}"),
    (RULE_HEAD, f"{{host: {'.'.join(['w' * 60] * 5)}}}"),
    (RULE_HEAD, '{host: web, exportTo: ["*"]}'),
    (RULE_HEAD, '{host: web, exportTo: [".", shop]}'),
    (RULE_HEAD, '{host: web, exportTo: [""]}'),
    (RULE_HEAD, '{host: web, exportTo: ["."], workloadSelector: {matchLabels: {app: a}}}'),
    (RULE_HEAD, "{host: web, workloadSelector: {matchExpressions: []}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {tls: {}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {tls: }}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {tsl: {mode: DISABLE}}}"),
    (RULE_HEAD, "{host: web, traficPolicy: {tls: {mode: ISTIO_MUTUAL}}}"),
    (
        RULE_HEAD,
        "{host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: web.example, subjectAltNames: [a]}}}",
    ),
    (
        RULE_HEAD,
        (
            "{host: web, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /ca.pem, insecureSkipVerify: "
            "true}}}"
        ),
    ),
    (RULE_HEAD, "{host: web, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: ca.pem}}}"),
    (RULE_HEAD, '{host: web, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: "/c\\na"}}}'),
    (RULE_HEAD, '{host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: ""}}}'),
    (RULE_HEAD, "{host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: web}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: 'yes'}}}"),
    (RULE_HEAD, '{host: web, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: "", privateKey: /k}}}'),
    (RULE_HEAD, "{host: web, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k}}}"),
    (
        RULE_HEAD,
        "{host: web, trafficPolicy: {tunnel: {}, proxyProtocol: {version: V1}, retryBudget: {percent: 2}}}",
    ),
    (
        RULE_HEAD,
        "{host: web, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1h2m3.5s, idleTimeout: 0s}}}}",
    ),
    (RULE_HEAD, "{host: web, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 0s}}}}"),
    (
        RULE_HEAD,
        (
            "{host: web, trafficPolicy: {connectionPool: {tcp: {connectTimeout: .5s, tcpKeepalive: {time: "
            "1.s}}}}}"
        ),
    ),
    (RULE_HEAD, "{host: web, trafficPolicy: {connectionPool: {tcp: {idleTimeout: 1d}}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {connectionPool: {http: {maxRetries: 2147483648}}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {connectionPool: {http: {maxRetries: -1}}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: MAYBE}}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {connectionPool: {http: {newInIstio: 1}, quic: {}}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 4294967295}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 4294967296}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {outlierDetection: {interval: 0s}}}"),
    (
        RULE_HEAD,
        "{host: web, trafficPolicy: {outlierDetection: {consecutiveErrors: 5, minHealthPercent: 100}}}",
    ),
    (RULE_HEAD, "{host: web, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {loadBalancer: {simple: LEAST_CONN, localityLbSetting: {}}}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {portLevelSettings: [{tls: {}}]}}"),
    (RULE_HEAD, "{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tunnel: {}}]}}"),
    (
        RULE_HEAD,
        "{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}}, {port: {number: 81}}]}}",
    ),
    (RULE_HEAD, "{host: web, trafficPolicy: {portLevelSettings: {}}}"),
    (
        RULE_HEAD,
        (
            "{host: web, subsets: [{name: v1}, {name: v2, labels: {v: v2}, trafficPolicy: {tls: {mode: "
            "DISABLE}}}]}"
        ),
    ),
    (RULE_HEAD, "{host: web, subsets: [{name: v.1}]}"),
    (RULE_HEAD, "{host: web, subsets: [{name: v1, label: {v: v1}}]}"),
    (RULE_HEAD, "{host: web, subsets: [{name: v1, labels: {v: v 1}}]}"),
    (RULE_HEAD, "{host: web, subsets: [{name: v1, trafficPolicy: {tls: {mode: OFF}}}]}"),
]
