"""Valid objects of every kind, and mistakes in them with the error of each."""

from __future__ import annotations

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels: {app: web}
spec:
  selector: {app: web}
  clusterIP: 10.0.0.1
  ports:
  - name: http
    port: 80
    targetPort: 8080
  - name: admin
    port: 81
    targetPort: admin
"""
POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  creationTimestamp: 2020-01-01T00:00:00Z
  labels:
    app: web
  annotations:
    sidecar.istio.io/interceptionMode: NONE
    sidecar.xds/app-address: 127.0.0.1
spec:
  serviceAccountName: web
  containers:
  - name: web
    ports:
    - {name: http, containerPort: 8080}
    - {name: admin, containerPort: 8081}
status:
  phase: Running
  podIP: 10.1.0.1
"""
SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-x
  namespace: shop
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
endpoints:
- addresses: [10.1.0.1]
  conditions: {ready: true}
  targetRef: {kind: Pod, name: web-1}
ports:
- {name: http, port: 8080}
"""
ENDPOINTS = """\
apiVersion: v1
kind: Endpoints
metadata: {name: web, namespace: shop}
subsets:
- addresses:
  - ip: 10.1.0.1
  ports:
  - {name: http, port: 8080}
"""
POLICY = """\
apiVersion: authentication.istio.io/v1alpha1
kind: Policy
metadata:
  name: web
  namespace: shop
spec:
  targets:
  - name: web
    ports:
    - number: 80
  peers:
  - mtls:
      mode: STRICT
"""
MESH_POLICY = """\
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata:
  name: default
spec:
  peers:
  - mtls: {}
"""
PEER = """\
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata:
  name: web
  namespace: shop
spec:
  selector:
    matchLabels: {app: web}
  mtls:
    mode: STRICT
  portLevelMtls:
    8080:
      mode: DISABLE
"""
RULE = """\
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata:
  name: web
  namespace: shop
spec:
  host: web
  exportTo: ["."]
  trafficPolicy:
    tls:
      mode: MUTUAL
      clientCertificate: /etc/certs/cert.pem
      privateKey: /etc/certs/key.pem
    connectionPool:
      tcp: {connectTimeout: 1s, maxConnections: 10}
    outlierDetection: {interval: 10s, maxEjectionPercent: 50}
    loadBalancer: {simple: ROUND_ROBIN}
    portLevelSettings:
    - port: {number: 80}
      tls: {mode: DISABLE}
  subsets:
  - name: v1
    labels: {version: v1}
"""
# Valid object, text to replace, replacement, line of the error, part of its message.
BAD = [
    # the YAML text
    (SERVICE, "kind: Service", "kind: Service: x", 2, "mapping values are not allowed"),
    (SERVICE, "  name: web\n", "\tname: web\n", 4, "indent with spaces, not tabs"),
    (SERVICE, "{app: web}\nspec", "{app: web\nspec", 7, "cannot be read as YAML"),
    (SERVICE, "name: web", 'name: "web', 4, "cannot be read as YAML: while scanning a quoted scalar"),
    (SERVICE, "name: web", "name: *web", 4, "cannot be read as YAML: found undefined alias"),
    (SERVICE, "name: web", "name: web\x01", 4, "the character 1 is not allowed"),
    (SERVICE, "  name: web\n", "  name: web\n  name: shop\n", 5, "metadata.name is set twice"),
    (POD, "    app: web\n", "    app: web\n    app: web\n", 9, "metadata.labels.app is set twice"),
    (SERVICE, "name: web", "name: !secret web", 4, "metadata.name has the unsupported tag !secret"),
    (SERVICE, "{app: web}\nspec", "&l {app: *l}\nspec", 6, "metadata.labels.app contains itself"),
    (SERVICE, "{app: web}\nspec", "{[a, b]: c}\nspec", 6, "has a key that is neither a string nor"),
    (SERVICE, "{app: web}\nspec", "{<<: [1]}\nspec", 6, "merges (<<) a value that is not a mapping"),
    (SERVICE, "port: 81", "port: 0x" + "f" * 5000, 15, "spec.ports[1].port is not a number"),
    (SERVICE, "port: 81", "port: 1" + "0" * 5000, 15, "spec.ports[1].port is not a number"),
    # fields of every object
    (SERVICE, SERVICE, "- just\n- a list\n", 1, "is not a Kubernetes object"),
    (SERVICE, SERVICE, "just text\n", 1, "is not a Kubernetes object"),
    (SERVICE, "kind: Service\n", "", 1, "kind is required"),
    (SERVICE, "apiVersion: v1\n", "", 1, "apiVersion is required"),
    (SERVICE, "apiVersion: v1", "apiVersion: 1", 1, "apiVersion must be a string, not 1 (put it in quotes)"),
    (SERVICE, "apiVersion: v1", "apiVersion: v2", 1, "v2 has no kind Service (write apiVersion: v1)"),
    (RULE, "io/v1alpha3", "io/v1alpha1", 1, "write apiVersion: networking.istio.io/v1alpha3 or networking"),
    (SERVICE, "kind: Service", "kind: Sevice", 2, "Sevice does not exist in v1 (did you mean Service?)"),
    (PEER, "kind: PeerAuth", "kind: peerAuth", 2, "(did you mean PeerAuthentication?)"),
    (SERVICE, "  name: web\n", "", 3, "metadata.name is required"),
    (SERVICE, "  name: web\n", "  generateName: web-\n", 3, "generateName has no effect in a file"),
    (POD, "metadata:\n", "metadata: []\nmeta:\n", 3, "metadata must be a mapping, not a list"),
    (SERVICE, "name: web", "name: Web", 4, "metadata.name 'Web' is not a DNS label"),
    (SERVICE, "name: web", "name: 1web", 4, "'1web' does not start with a letter"),
    (SERVICE, "name: web", "name: 17", 4, "metadata.name must be a string, not 17 (put it in quotes)"),
    (POD, "name: web-1", "name: web_1", 4, "'web_1' is not a DNS name"),
    (SERVICE, "namespace: shop", "namespace: my.shop", 5, "metadata.namespace 'my.shop' is not a DNS label"),
    (SERVICE, "labels: {app: web}", "labels: {app: 1.0}", 6, "must be a string, not 1.0 (put it in"),
    (SERVICE, "labels: {app: web}", "labels: {app: on}", 6, "must be a string, not true (put it in"),
    (SERVICE, "labels: {app: web}", "labels: {app: a b}", 6, "'a b' is not a label's value"),
    (SERVICE, "labels: {app: web}", "labels: {a/b/c: d}", 6, """labels["a/b/c"] is not a label's name"""),
    (SERVICE, "labels: {app: web}", "labels: [app]", 6, "metadata.labels must be a mapping, not a list"),
    (POD, "2020-01-01T00:00:00Z", "yesterday", 6, "creationTimestamp 'yesterday' is not a time such as"),
    (POD, "2020-01-01T00:00:00Z", "2020-01-01T00:00:00", 6, "is not a time such as 2020-01-31T12:00:00Z"),
    # Service
    (SERVICE, "  ports:\n", "  ports: {}\n  prots:\n", 10, "spec.ports must be a list, not a mapping"),
    (SERVICE, "  ports:\n", "  ports:\n  -\n", 11, "spec.ports[0] is empty"),
    (SERVICE, "port: 80\n", "port: 0\n", 12, "spec.ports[0].port must be a number from 1 to 65535, not 0"),
    (SERVICE, "port: 80\n", "port: 65536\n", 12, "must be a number from 1 to 65535, not 65536"),
    (SERVICE, "port: 80\n", 'port: "80"\n', 12, "from 1 to 65535, not '80' (without quotes)"),
    (SERVICE, "port: 80\n", "protocol: TCP\n", 11, "spec.ports[0].port is required"),
    (SERVICE, "port: 80\n", "port: 80\n    protocol: HTTP\n", 13, "protocol must be one of TCP, UDP, SCTP"),
    (SERVICE, "targetPort: 8080", 'targetPort: "8080"', 13, "in quotes is a port name, not a port number"),
    (SERVICE, "targetPort: 8080", "targetPort: Web", 13, "targetPort 'Web' is not a port name"),
    (SERVICE, "name: admin", "name: http", 14, "'http' is the name of two ports of this Service"),
    (SERVICE, "- name: admin\n    ", "- ", 14, "is required when a Service has more than one port"),
    (SERVICE, "port: 81", "port: 80", 15, "spec.ports[1].port 80 is listed twice for TCP"),
    (SERVICE, "name: admin", "name: Admin", 14, "spec.ports[1].name 'Admin' is not a DNS label"),
    (SERVICE, "10.0.0.1", "10.0.0.256", 9, "spec.clusterIP '10.0.0.256' is not an IP address"),
    (SERVICE, "10.0.0.1", "none", 9, "is not an IP address (write None for a headless Service)"),
    (SERVICE, "10.0.0.1", "10.0.0.1\n  clusterIPs: [10.0.0.2]", 10, "must begin with the clusterIP 10.0.0.1"),
    (SERVICE, "10.0.0.1", "10.0.0.1\n  type: Headless", 10, "spec.type must be one of ClusterIP, NodePort"),
    (SERVICE, "selector: {app", "selector: {matchLabels: {app: web}, app", 8, "labels directly below"),
    (SERVICE, SERVICE[SERVICE.index("  ports") :], "", 7, "spec.ports is required (only a headless Service"),
    # Pod
    (POD, "podIP: 10.1.0.1", "podIP: localhost", 21, "status.podIP 'localhost' is not an IP address"),
    (POD, "podIP: 10.1.0.1", "podIPs: [10.1.0.1]", 21, "status.podIPs[0] must be a mapping, not '10.1.0.1'"),
    (POD, "podIP: 10.1.0.1", "podIPs: [{}]", 21, "status.podIPs[0].ip is required"),
    (POD, "podIP: 10.1.0.1", "conditions: [Ready]", 21, "must be a mapping, not 'Ready'"),
    (POD, "podIP: 10.1.0.1", "conditions: [{type: A, status: true}]", 21, "must be a string, not true"),
    (POD, "phase: Running", "phase: Runing", 20, "status.phase must be one of Pending, Running"),
    (POD, "name: admin,", "name: http,", 18, "'http' is the name of two ports of this container"),
    (POD, "8081", "99999", 18, "must be a number from 1 to 65535, not 99999"),
    (POD, "Mode: NONE", "Mode: OFF", 10, 'interceptionMode"] must be a string, not false (put it in quotes)'),
    (POD, "Mode: NONE", "Mode: none", 10, "must be one of REDIRECT, NONE, not 'none' (did you mean NONE?)"),
    (POD, "127.0.0.1", "localhost", 11, """["sidecar.xds/app-address"] 'localhost' is not an IP address"""),
    (POD, "  containers:\n", "  containers: web\n  x:\n", 14, "spec.containers must be a list, not 'web'"),
    # EndpointSlice, Endpoints
    (SLICE, "addressType: IPv4", "addressType: IPv6", 9, "is not an IPv6 address, as addressType requires"),
    (SLICE, "addressType: IPv4\n", "", 1, "addressType is required"),
    (SLICE, "addresses: [10.1.0.1]", "addresses: []", 9, "endpoints[0].addresses is required"),
    (SLICE, "ready: true", 'ready: "true"', 10, "ready must be true or false, not 'true' (without quotes)"),
    (ENDPOINTS, "ip: 10.1.0.1", "ip: web-1", 6, "subsets[0].addresses[0].ip 'web-1' is not an IP address"),
    (ENDPOINTS, "{name: http, port", "{prot", 8, "subsets[0].ports[0].port is required"),
    (SLICE, "- {name: http, port: 8080}", "- {port: 80}\n- {name: a, port: 81}", 13, "more than one port"),
    (SLICE, "- {name: http, port: 8080}", "- {name: a, port: 80}\n- {name: a, port: 81}", 14, "of two ports"),
    # Policy, MeshPolicy
    (POLICY, "mode: STRICT", "mode: STRCT", 13, "one of STRICT, PERMISSIVE, not 'STRCT' (did you mean"),
    (POLICY, "mode: STRICT", "mode: DISABLE", 13, "(for plaintext, remove spec.peers)"),
    (POLICY, "  name: web\n  namespace", "  name: default\n  namespace", 7, "targets must be absent"),
    (POLICY, POLICY[POLICY.index("  targets") : POLICY.index("  peers")], "", 4, "must be default, not web"),
    (POLICY, "- name: web\n", "- name: web.shop.svc.cluster.local\n", 8, "(write web in a Policy in the"),
    (POLICY, "- number: 80", "- 80", 10, "must be a mapping, not 80 (write '- number: 8000' or"),
    (POLICY, "- number: 80", "- {number: 80, name: http}", 10, "must have a number or a name, and not both"),
    (POLICY, "- name: web\n", "- {}\n  - name: web\n", 8, "spec.targets[0].name is required"),
    (POLICY, "- mtls:\n      mode: STRICT", "- {}", 12, "has no authentication method (write mtls"),
    (POLICY, "peers:\n  - mtls", "peers:\n    mtls", 11, "spec.peers must be a list, not a mapping"),
    (POLICY, "- name: web\n", "- labels: {a: b}\n    name: web\n", 8, "selects workloads by labels"),
    (MESH_POLICY, "name: default", "name: mesh", 4, "must be default, not mesh: a mesh has one MeshPolicy"),
    (MESH_POLICY, "spec:\n", "spec:\n  targets: [{name: web}]\n", 6, "must be absent in a MeshPolicy"),
    # PeerAuthentication
    (PEER, "mode: STRICT", "mode: MUTUAL", 10, "one of UNSET, DISABLE, PERMISSIVE, STRICT, not 'MUTUAL'"),
    (PEER, "mtls:\n    mode: STRICT", "mtls: STRICT", 9, "a mapping, not 'STRICT' (write mode: STRICT"),
    (PEER, "  selector:\n    matchLabels: {app: web}\n", "", 9, "portLevelMtls needs a selector"),
    (PEER, "    8080:", "    http:", 12, "spec.portLevelMtls.http must be a port of the workload, a number"),
    (PEER, "    8080:\n      mode: DISABLE\n", "    {}\n", 11, "must contain at least one valid port"),
    (PEER, "matchLabels:", "matchExpressions:", 8, "is not supported in a selector (write matchLabels)"),
    # DestinationRule
    (RULE, "host: web", "hosts: web", 6, "spec.host is required"),
    (RULE, "host: web", "host: web.*.local", 7, "spec.host 'web.*.local' is not a host name"),
    (RULE, "mode: MUTUAL", "mode: mutual", 11, "not 'mutual' (did you mean MUTUAL?)"),
    (RULE, "      clientCertificate: /etc/certs/cert.pem\n", "", 10, "is required in mode MUTUAL"),
    (RULE, "      privateKey: /etc/certs/key.pem\n", "", 10, "privateKey is required in mode MUTUAL"),
    (RULE, "privateKey: /etc/certs/key.pem", "credentialName: web", 13, "would have to send plaintext"),
    (RULE, "privateKey:", "caCrl: /crl.pem\n      privateKey:", 13, "revoked certificates would be accepted"),
    (RULE, "connectTimeout: 1s", "connectTimeout: 1", 15, "must be a duration such as 10s or 500ms, not 1"),
    (RULE, "connectTimeout: 1s", "connectTimeout: -1s", 15, "a duration such as 10s or 500ms, not '-1s'"),
    (RULE, "connectTimeout: 1s", "connectTimeout: 1us", 15, "must be at least 1ms, not 1us"),
    (RULE, "maxConnections: 10", "maxConnections: many", 15, "a number from 0 to 2147483647, not 'many'"),
    (RULE, "Percent: 50", "Percent: 150", 16, "maxEjectionPercent must be a number from 0 to 100, not 150"),
    (RULE, "ROUND_ROBIN", "ROUNDROBIN", 17, "(did you mean ROUND_ROBIN?)"),
    (RULE, "ROUND_ROBIN", "RANDOM, consistentHash: {useSourceIp: true}", 17, "consistentHash"),
    (RULE, "port: {number: 80}", "port: {}", 19, "portLevelSettings[0].port.number is required"),
    (RULE, "- port: {number: 80}", "- port: {number: 80}\n    - port: {number: 80}", 20, "80 is set twice"),
    (RULE, "- name: v1\n", "- name: v1\n  - name: v1\n", 23, "'v1' is the name of two subsets"),
    (RULE, "- name: v1\n    ", "- ", 22, "spec.subsets[0].name is required"),
    (RULE, "exportTo: [", 'exportTo: ["*", ', 8, "'*' is every namespace and must be the only entry"),
    (RULE, "exportTo: [", 'exportTo: [".", ', 8, "'.' is listed twice"),
    (RULE, 'exportTo: ["."]', "exportTo: [Shop]", 8, "spec.exportTo[0] 'Shop' is not a DNS label"),
    (POD, "2020-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", 6, "is not a time such as"),
    (POD, "2020-01-01T00:00:00Z", "9999-12-31T23:59:59-05:00", 6, "is not a time such as"),
    (POD, "app-address: 127.0.0.1", "app-address: 10.1.0.1", 11, "the sidecar would send requests to itself"),
    (POD, "podIP: 10.1.0.1", "podIP: 127.0.0.1", 11, "the sidecar would send requests to itself"),
    (PEER, "  selector:", "  selectr:", 7, "spec.selectr is not a known field (did you mean selector?)"),
    (PEER, "spec:", "specs:", 6, "specs is not a known field (did you mean spec?)"),
    (POLICY, "peers:", "peer:", 11, "spec.peer is not a known field (did you mean peers?)"),
    (RULE, "privateKey: /etc", "privatKey: /etc", 13, "is not a known field (did you mean privateKey?)"),
    (RULE, "privateKey: /etc", "privateKey: etc", 13, "privateKey must be an absolute path"),
    (RULE, "connectTimeout: 1s", "connectTimeout: 99999999999999h", 15, "must be at most 2562047h"),
    (RULE, "maxConnections: 10", "tcpKeepalive: {time: 2562047h}", 15, "time must be at most 596523h"),
    (RULE, "mode: MUTUAL", 'mode: MUTUAL\n      subjectAltNames: [""]', 12, "subjectAltNames[0] is required"),
    (RULE, 'exportTo: ["."]', 'exportTo: "."', 8, "spec.exportTo must be a list, not '.'"),
    (RULE, 'exportTo: ["."]', 'exportTo: ["*"]\n  workloadSelector: {matchLabels: {a: b}}', 8, "must be '.'"),
]
