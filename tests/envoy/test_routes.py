"""Which names lead where, with and without interception."""

from __future__ import annotations

from tests.policy.world import mesh, pod, service
from xds.codec import to_dict
from xds.mesh.envoy import routes
from xds.mesh.envoy.translate import translate
from xds.mesh.model.objects import Protocol


def domains(*hosts: routes.Host, **more) -> dict[str, str]:
    """Domain -> where its last route leads."""
    found = routes.route_configuration("r", hosts, **{"allow_any": True, **more})
    result = {}
    for host in to_dict(found.type_url, found.body)["virtual_hosts"]:
        last = host["routes"][-1]
        for domain in host["domains"]:
            assert result.setdefault(domain, None) is None
            result[domain] = (
                last["route"]["cluster"] if "route" in last else last["direct_response"]["status"]
            )
    return result


WEB = service("web", "ns")


def test_all_names_of_a_service_route_to_it():
    names = routes.service_names(WEB, same_namespace=True)
    found = domains(routes.Host(names, 80, "c"))
    full = [
        "web.ns.svc.cluster.local",
        "web.ns.svc.cluster.local.",
        "web.ns.svc",
        "web.ns",
        "web",
        *WEB.addresses,
    ]
    assert found == {
        **dict.fromkeys([*full, *(f"{name}:80" for name in full)], "c"),
        "*": "PassthroughCluster",
    }


def test_short_name_works_in_its_namespace_only():
    assert "web" not in routes.service_names(WEB, same_namespace=False)


def test_duplicate_name_goes_to_first_service():
    pod_host = routes.Host(("web.ns",), 80, "pod", is_endpoint=True)
    first, second = routes.Host(("web.ns", "x"), 80, "first"), routes.Host(("X", "y"), 80, "second")
    assert domains(pod_host, first, second) == {
        "web.ns": "first",
        "web.ns:80": "first",
        "x": "first",
        "x:80": "first",
        "y": "second",
        "y:80": "second",
        "*": "PassthroughCluster",
    }


def test_registry_only_refuses_unknown_hosts():
    assert domains(allow_any=False) == {"*": 502}


def test_http_proxy_routes_by_host_and_port_only():
    found = domains(
        routes.Host(("web.ns",), 80, "web"),
        routes.Host(("db.ns",), 5432, "db", Protocol.TCP),
        routes.Host(("fd00::1",), 81, "six"),
        proxied=True,
    )
    assert found == {
        "web.ns": "web",
        "web.ns:80": "web",
        "db.ns:5432": 502,
        "[fd00::1]:81": "six",
        "*": 502,
    }


def test_routes_have_no_timeout_and_safe_retries():
    found = routes.route_configuration("r", (routes.Host(("web.ns",), 80, "c"),), allow_any=True)
    route = to_dict(found.type_url, found.body)["virtual_hosts"][0]["routes"][0]["route"]
    assert route["timeout"] == "0s"
    assert "5xx" not in route["retry_policy"]["retry_on"]


def test_equal_proxies_share_objects():
    replicas = [pod(f"web-{n}", "ns", app="web") for n in range(2)]
    world = mesh(*replicas, WEB, service("other", "elsewhere"))
    one, two = (translate(world, replica) for replica in replicas)
    assert all(
        one.types[type_url] is two.types[type_url] for type_url in one.types if "Secret" not in type_url
    )
