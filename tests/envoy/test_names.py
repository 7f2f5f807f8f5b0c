from __future__ import annotations

import pytest

from xds.mesh.envoy.names import NodeId, inbound, outbound, sni


def test_node_id_round_trip():
    node = NodeId("10.0.0.1", "web-0.with.dots", "ns")
    assert str(node) == "sidecar~10.0.0.1~web-0.with.dots.ns~ns.svc.cluster.local"
    assert NodeId.parse(str(node)) == node


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web.ns",
        "router~10.0.0.1~web.ns~ns.svc.cluster.local",
        "sidecar~10.0.0.1~web.ns",
        "sidecar~~web.ns~ns.svc.cluster.local",
        "sidecar~10.0.0.1~web~ns.svc.cluster.local",
        "sidecar~10.0.0.1~web.ns~other.svc.cluster.local",
        "sidecar~10.0.0.1~web.ns~ns.svc.cluster.local~more",
    ],
)
def test_invalid_node_id_is_refused(text):
    with pytest.raises(ValueError, match=r"sidecar~ADDRESS~POD.NAMESPACE~NAMESPACE.svc"):
        NodeId.parse(text)


def test_clusters_and_sni_are_named_as_in_istio():
    assert outbound("httpbin.full.svc.cluster.local", 8000) == "outbound|8000||httpbin.full.svc.cluster.local"
    assert outbound("a.b", 80, "v1") == "outbound|80|v1|a.b"
    assert inbound(80) == "inbound|80||"
    assert sni("httpbin.full.svc.cluster.local", 8000) == "outbound_.8000_._.httpbin.full.svc.cluster.local"
