"""Bad objects and their effects. The rules are in docs/reference/problems.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

SYSTEM, SHOP, EVIL = "istio-system", "shop", "evil"

PEER = "security.istio.io/v1beta1 PeerAuthentication"
AUTHORIZATION = "security.istio.io/v1beta1 AuthorizationPolicy"
RULE = "networking.istio.io/v1beta1 DestinationRule"
POLICY = "authentication.istio.io/v1alpha1 Policy"
MESH_POLICY = "authentication.istio.io/v1alpha1 MeshPolicy"
WEB = "selector: {matchLabels: {app: web}}"
ONLY_CLIENT = f"{{{WEB}, rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/client]}}}}]}}]}}"
STRICT = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}"


Good: TypeAlias = tuple[str, str, str, str]
"""Kind, namespace, name and spec."""


@dataclass(frozen=True, slots=True)
class Case:
    """A bad object and its expected effect."""

    title: str
    kind: str
    """apiVersion and kind."""
    body: str | Callable[[], Any]
    """The spec, or a mapping with other fields of the object."""
    message: str = ""
    """Part of the problem's message; empty for a valid object without effect."""
    good: str = ""
    """A valid spec that the bad one replaces."""
    namespace: str = SHOP
    name: str = "web"
    metadata: str = "{}"
    closed: Good | None = None

    @property
    def fails_closed_as(self) -> Good:
        """A valid object with the same effect as this one when it has no valid version."""
        return self.closed or (STRICT_SHOP if self.kind == PEER else RULE_WEB)


STRICT_SHOP = (PEER, SHOP, "closed", "{mtls: {mode: STRICT}}")
STRICT_WEB = (PEER, SHOP, "closed", STRICT)
POLICY_SHOP = (POLICY, SHOP, "default", "{peers: [{mtls: {}}]}")
POLICY_EVIL = (POLICY, EVIL, "default", "{peers: [{mtls: {}}]}")
POLICY_WEB = (POLICY, SHOP, "closed", "{targets: [{name: web}], peers: [{mtls: {}}]}")
STRICT_MESH = (MESH_POLICY, "", "default", "{peers: [{mtls: {}}]}")
DENY_SHOP = (AUTHORIZATION, SHOP, "web", "{action: DENY, rules: [{}]}")
DENY_WEB = (AUTHORIZATION, SHOP, "web", f"{{{WEB}, action: DENY, rules: [{{}}]}}")
"""The name of a policy is a part of the names of its rules."""
RULE_WEB = (RULE, SHOP, "closed", "{host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}")
RULE_ALL = (RULE, SHOP, "closed", '{host: "*", trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}')
RULE_TIME = (RULE, SHOP, "closed", "{host: web}")

REFUSED = [
    # PeerAuthentication
    Case("a mode that there is not", PEER, "{mtls: {mode: STRCT}}", "did you mean STRICT?", STRICT),
    Case("a mode in lower case", PEER, "{mtls: {mode: strict}}", "mode must be one of", STRICT),
    Case("a number for a mode", PEER, "{mtls: {mode: 1}}", "mode must be one of", STRICT),
    Case("a list for a mode", PEER, "{mtls: {mode: [STRICT]}}", "mode must be one of UNSET, DISABLE", STRICT),
    Case(
        "control characters in a mode", PEER, '{mtls: {mode: "STRICT\\e[31m\\n"}}', "must be one of", STRICT
    ),
    Case(
        "a mode of a megabyte", PEER, lambda: {"mtls": {"mode": "STRICT" * 170_000}}, "must be one of", STRICT
    ),
    Case("a spec that is text", PEER, "STRICT", "spec must be a mapping, not 'STRICT'", STRICT),
    Case("a spec that is a list", PEER, "[]", "spec must be a mapping, not a list", STRICT),
    Case("a misspelled field", PEER, "{mtsl: {mode: STRICT}}", "did you mean mtls?", STRICT),
    Case("a mode where the mapping should be", PEER, "{mtls: STRICT}", "write mode: STRICT below it", STRICT),
    Case(
        "a selector that is none",
        PEER,
        "{selector: {matchExpressions: []}}",
        "not supported in a selector",
        STRICT,
    ),
    Case(
        "labels that are a list",
        PEER,
        "{selector: {matchLabels: [app]}}",
        "must be a mapping, not a list",
        STRICT,
    ),
    Case(
        "a label that is a mapping", PEER, "{selector: {matchLabels: {app: {}}}}", "must be a string", STRICT
    ),
    Case(
        "a huge label",
        PEER,
        lambda: {"selector": {"matchLabels": {"a": "b" * 10_000}}},
        "label's value",
        STRICT,
    ),
    Case(
        "ports without a selector", PEER, "{portLevelMtls: {80: {mode: DISABLE}}}", "needs a selector", STRICT
    ),
    Case(
        "ports that are none",
        PEER,
        (
            '{selector: {matchLabels: {app: web}}, portLevelMtls: {0: {}, 65536: {}, http: {}, "-1": {}, '
            '"8\\0": {}}}'
        ),
        "must be a port of the workload",
        STRICT,
        closed=STRICT_WEB,
    ),
    Case("nesting that has no end", PEER, "{mtls: ENDLESS}", "must be", STRICT),
    Case("a field nested without end that nobody knows", PEER, "{x: ENDLESS}", "not a known field", STRICT),
    # AuthorizationPolicy
    Case(
        "a misspelled action",
        AUTHORIZATION,
        f"{{{WEB}, action: DENNY, rules: [{{}}]}}",
        "did you mean DENY?",
        ONLY_CLIENT,
        closed=DENY_WEB,
    ),
    Case(
        "a list of clients without a value",
        AUTHORIZATION,
        f"{{{WEB}, rules: [{{from: [{{source: {{principals: }}}}]}}]}}",
        "source.principals must have an item",
        ONLY_CLIENT,
        closed=DENY_WEB,
    ),
    Case(
        "a misspelled selector",
        AUTHORIZATION,
        "{selectors: {matchLabels: {app: web}}, action: DENY, rules: [{}]}",
        "did you mean selector?",
        ONLY_CLIENT,
        closed=DENY_SHOP,
    ),
    Case(
        "a slash in a namespace of clients",
        AUTHORIZATION,
        f"{{{WEB}, rules: [{{from: [{{source: {{namespaces: [shop/sa/client]}}}}]}}]}}",
        "source.namespaces[0]",
        ONLY_CLIENT,
        closed=DENY_WEB,
    ),
    Case(
        "a template that would terminate Envoy",
        AUTHORIZATION,
        f'{{{WEB}, rules: [{{to: [{{operation: {{paths: ["/a//{{*}}"]}}}}]}}]}}',
        "is not a path template",
        ONLY_CLIENT,
        closed=DENY_WEB,
    ),
    Case(
        "a key of 300 kilobytes",
        AUTHORIZATION,
        lambda: {"rules": [{"when": [{"key": f"request.auth.claims{'[a]' * 100_000}x", "values": ["a"]}]}]},
        "is not a known key",
        ONLY_CLIENT,
        closed=DENY_SHOP,
    ),
    Case(
        "too many rules",
        AUTHORIZATION,
        lambda: {"rules": [{}] * 100_000},
        "must have at most 512 items, not 100000",
        ONLY_CLIENT,
        closed=DENY_SHOP,
    ),
    Case(
        "clients nested without end",
        AUTHORIZATION,
        "{rules: [{from: [{source: {principals: ENDLESS}}]}]}",
        "source.principals must be a list",
        ONLY_CLIENT,
        closed=DENY_SHOP,
    ),
    # Policy, MeshPolicy
    Case(
        "peers that are a mapping",
        POLICY,
        "{targets: [{name: web}], peers: {mtls: {}}}",
        "spec.peers must be a list",
        closed=POLICY_WEB,
    ),
    Case(
        "a policy for no service",
        POLICY,
        "{peers: [{mtls: {}}]}",
        "must be default, not web",
        closed=POLICY_SHOP,
    ),
    Case(
        "a misspelled peers: plaintext otherwise",
        POLICY,
        "{targets: [{name: web}], peer: []}",
        "did you mean peers?",
        closed=POLICY_WEB,
    ),
    Case(
        "another namespace's service in a policy",
        POLICY,
        "{targets: [{name: web.shop.svc.cluster.local}]}",
        "must be the name of a Service",
        namespace=EVIL,
        closed=POLICY_EVIL,
    ),
    Case(
        "a port of 1e300",
        POLICY,
        "{targets: [{name: web, ports: [{number: 1.0e+300}]}]}",
        "must be a number from 1",
        closed=POLICY_SHOP,
    ),
    Case(
        "a second MeshPolicy",
        MESH_POLICY,
        "{peers: []}",
        "must be default, not web: a mesh has one",
        namespace="",
        closed=STRICT_MESH,
    ),
    Case(
        "a MeshPolicy for a service",
        MESH_POLICY,
        "{targets: [{name: web}]}",
        "must be absent",
        namespace="",
        name="default",
        closed=STRICT_MESH,
    ),
    # DestinationRule
    Case(
        "a TLS mode that there is not",
        RULE,
        "{host: web, trafficPolicy: {tls: {mode: OFF}}}",
        "must be one of DISABLE",
    ),
    Case(
        "a host that is a number",
        RULE,
        "{host: 17, trafficPolicy: {tls: {}}}",
        "host must be a string",
        closed=RULE_ALL,
    ),
    Case(
        "a rule for nothing",
        RULE,
        "{trafficPolicy: {tls: {mode: DISABLE}}}",
        "spec.host is required",
        closed=RULE_ALL,
    ),
    Case("a misspelled tls", RULE, "{host: web, trafficPolicy: {tsl: {mode: SIMPLE}}}", "did you mean tls?"),
    Case(
        "two subsets of one name",
        RULE,
        "{host: web, subsets: [{name: a}, {name: a}]}",
        "the name of two subsets",
    ),
    Case("NUL in a subset's name", RULE, '{host: web, subsets: [{name: "v\\0"}]}', "is not a DNS label"),
    Case(
        "one port set twice",
        RULE,
        "{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}}, {port: {number: 80}}]}}",
        "set twice",
    ),
    Case(
        "all namespaces and one of them", RULE, '{host: web, exportTo: ["*", shop]}', "must be the only entry"
    ),
    Case(
        "a time that is none",
        RULE,
        "{host: web, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 9999999999999h}}}}",
        "at most 2562047h",
        closed=RULE_TIME,
    ),
    Case(
        "1e300 connections",
        RULE,
        "{host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1.0e+300}}}}",
        "must be a number from 0",
        closed=RULE_TIME,
    ),
    Case(
        "a private key where its path should be",
        RULE,
        (
            "{host: web, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c, privateKey: "
            '"MC4CAQAwBQYDK2VwBCIEI"}}}'
        ),
        "must be an absolute path",
    ),
    Case(
        "a device where a file should be",
        RULE,
        "{host: web, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /dev/fd/15}}}",
        "must not contain .. or be below /dev",
    ),
    Case(
        "a Secret that only gateways read",
        RULE,
        "{host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: web}}}",
        "a sidecar would have to send plaintext",
    ),
]
HARMLESS = [
    Case("a selector of nothing", PEER, "{selector: {matchLabels: {app: nobody}}, mtls: {mode: DISABLE}}"),
    Case(
        "a selector in the root namespace",
        PEER,
        "{selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}",
        namespace=SYSTEM,
    ),
    Case("a policy of another namespace", PEER, "{mtls: {mode: DISABLE}}", namespace=EVIL),
    Case(
        "an authorization of another namespace",
        AUTHORIZATION,
        "{action: DENY, rules: [{}]}",
        namespace=EVIL,
    ),
    Case(
        "another namespace's service in a rule",
        RULE,
        "{host: web.shop.svc.cluster.local, exportTo: ['*'], trafficPolicy: {tls: {mode: DISABLE}}}",
        namespace=EVIL,
    ),
    Case("a rule that waits for a service that never was", RULE, "{host: nobody, trafficPolicy: {tls: {}}}"),
    Case(
        "a younger object that contradicts",
        PEER,
        "{selector: {matchLabels: {app: older}}, mtls: {mode: DISABLE}}",
    ),
    Case("a name of 253 characters", PEER, STRICT.replace("web", "nobody"), name="a" * 253),
    Case(
        "annotations of 250 kilobytes",
        PEER,
        STRICT.replace("web", "nobody"),
        metadata=json.dumps({"annotations": {"note": "x" * 250_000}}),
    ),
    Case(
        "an object that owns itself",
        PEER,
        STRICT.replace("web", "nobody"),
        metadata="{ownerReferences: [{apiVersion: security.istio.io/v1beta1, kind: PeerAuthentication, "
        "name: web, uid: 00000000-0000-0000-0000-000000000000}]}",
    ),
    Case(
        "an EndpointSlice of a service that is not there",
        "discovery.k8s.io/v1 EndpointSlice",
        "{addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.1.0.1]}]}",
        metadata="{labels: {kubernetes.io/service-name: nobody}}",
    ),
    Case(
        "an EndpointSlice of another namespace with our pod's address",
        "discovery.k8s.io/v1 EndpointSlice",
        "{addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.1.0.1], "
        "targetRef: {kind: Pod, namespace: shop, name: web}}]}",
        metadata="{labels: {kubernetes.io/service-name: elder}}",
        namespace=EVIL,
    ),
]
