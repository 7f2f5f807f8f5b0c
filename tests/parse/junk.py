"""Arbitrary values, and the places of an object to put them."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

from tests.sources.objects import ENDPOINTS, MESH_POLICY, PEER, POD, POLICY, RULE, SERVICE, SLICE

AUTHORIZATION = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "action": "DENY",
        "rules": [
            {
                "from": [
                    {"source": {"principals": ["a*"], "notIpBlocks": ["::1"], "trustDomains": ["a"]}},
                    {"source": {"serviceAccounts": ["a/b"]}},
                ],
                "to": [{"operation": {"paths": ["/a/{*}"], "ports": ["80"], "hosts": ["a"]}}],
                "when": [{"key": "request.headers[a]", "values": ["b"], "notValues": ["c"]}],
            }
        ],
    },
}
OBJECTS = [
    yaml.safe_load(text.replace("2020-01-01T00:00:00Z", "'2020-01-01T00:00:00Z'"))
    for text in (SERVICE, POD, SLICE, ENDPOINTS, POLICY, MESH_POLICY, PEER, RULE)
] + [AUTHORIZATION]
MESH = {
    "enableAutoMtls": True,
    "trustDomain": "a",
    "trustDomainAliases": ["b"],
    "defaultDestinationRuleExportTo": ["."],
    "defaultServiceExportTo": [".", "shop"],
    "protocolDetectionTimeout": "1s",
    "outboundTrafficPolicy": {"mode": "ALLOW_ANY"},
    "meshMTLS": {"minProtocolVersion": "TLSV1_2"},
}
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["", "None", "default", "*", ".", "-", "1s", "0s", "80", "10.0.0.1", "a" * 300, "STRICT", "é"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a document, with each of its keys."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += [(value, key), *places(inner)]
    return found
