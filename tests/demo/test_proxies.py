"""The comparison of a sidecar's active configuration with the expected one."""

import pytest

from xds.mesh.envoy.dump import active_config, difference
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE


def endpoint(address, mode):
    metadata = {"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": mode}}}
    return {
        "endpoint": {"address": {"socket_address": {"address": address, "port_value": 8080}}},
        "metadata": metadata if mode else {},
        "health_status": "HEALTHY",
    }


DUMP = {
    "configs": [
        {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {}},
        {
            "static_clusters": [{"cluster": {"@type": CLUSTER, "name": "xds"}}],
            "dynamic_active_clusters": [{"version_info": "1", "cluster": {"@type": CLUSTER, "name": "a"}}],
            "dynamic_warming_clusters": [{"version_info": "2", "cluster": {"@type": CLUSTER, "name": "b"}}],
        },
        {
            "dynamic_listeners": [
                {"name": "x", "active_state": {"listener": {"@type": LISTENER, "name": "x", "port": 1}}},
                {"name": "y", "warming_state": {"listener": {"@type": LISTENER, "name": "y"}}},
                {"name": "z", "draining_state": {"listener": {"@type": LISTENER, "name": "z"}}},
            ]
        },
        {"dynamic_route_configs": [{"route_config": {"@type": ROUTE, "name": "r"}}]},
        {
            "dynamic_endpoint_configs": [
                {
                    "endpoint_config": {
                        "@type": ENDPOINT,
                        "cluster_name": "a",
                        "endpoints": [
                            {"lb_endpoints": [endpoint("127.10.2.1", "istio"), endpoint("127.10.2.2", "")]}
                        ],
                    }
                }
            ]
        },
    ]
}
ACTIVE = {
    (CLUSTER, "a"): {"name": "a"},
    (LISTENER, "x"): {"name": "x", "port": 1},
    (ROUTE, "r"): {"name": "r"},
    (ENDPOINT, "a"): {(("127.10.2.1",), 8080, "istio"), (("127.10.2.2",), 8080, "")},
}


def test_warming_and_draining_resources_are_not_active():
    assert active_config(DUMP) == ACTIVE


def test_equal_configurations_make_no_difference():
    assert difference(ACTIVE, ACTIVE) == ""


def test_missing_resource_is_named():
    assert difference(ACTIVE | {(LISTENER, "y"): {"name": "y"}}, ACTIVE) == "has no Listener y"


def test_changed_resource_is_named():
    changed = ACTIVE | {(LISTENER, "x"): {"name": "x", "port": 2}}
    assert difference(changed, ACTIVE) == "has a different Listener x"


def test_stale_resource_is_named():
    assert difference({}, {(CLUSTER, "a"): {"name": "a"}}) == "still has Cluster a"


@pytest.mark.parametrize("lingering", [(ROUTE, "r"), (ENDPOINT, "BlackHoleCluster")])
def test_static_and_draining_extras_make_no_difference(lingering):
    assert difference({}, {lingering: {}}) == ""
