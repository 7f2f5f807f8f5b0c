"""A pod with several addresses is one endpoint, and one server in plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.mesh.objects import facts, named, pod, service
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.policy.prediction import predict_change

IPV4, IPV6 = "10.0.0.1", "fd00::1"
STRICT = named("PeerAuthentication", "ns", "default", spec={"mtls": {"mode": "STRICT"}})
STRICT["apiVersion"] = "security.istio.io/v1"


def dual_pod(first: str = IPV4) -> dict[str, Any]:
    made = pod("ns", "web", first)
    made["metadata"]["labels"]["app"] = "web"
    made["status"]["podIPs"] = [{"ip": first}, {"ip": IPV6 if first == IPV4 else IPV4}]
    return made


def slices(**ready: bool) -> list[dict[str, Any]]:
    """Return EndpointSlices with the pod's address of each IP version, by readiness."""
    return [
        named(
            *("EndpointSlice", "ns", f"web-{version.lower()}"),
            labels={"kubernetes.io/service-name": "web"},
            addressType=version,
            ports=[{"port": 80}],
            endpoints=[
                {
                    "addresses": [{"IPv4": IPV4, "IPv6": IPV6}[version]],
                    "conditions": {"ready": is_ready},
                    "targetRef": {"kind": "Pod", "name": "web"},
                }
            ],
        )
        for version, is_ready in ready.items()
    ]


def endpoints(*objects: dict[str, Any]) -> Sequence[Endpoint]:
    mesh = Mesh(facts(*objects))
    web = mesh.service("ns", "web")
    assert web
    return mesh.endpoints(web, web.ports[0])


def addresses(*objects: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(endpoint.address, *endpoint.more_addresses) for endpoint in endpoints(*objects)]


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        ({"IPv4": True, "IPv6": True}, [(IPV4, IPV6)]),
        ({"IPv4": True, "IPv6": False}, [(IPV4,)]),
        ({"IPv4": False, "IPv6": True}, [(IPV6,)]),
        ({"IPv4": False, "IPv6": False}, [(IPV4, IPV6)]),
        ({"IPv6": True}, [(IPV6,)]),
    ],
)
def test_slices_of_both_versions_are_one_endpoint(ready, expected):
    assert addresses(dual_pod(), service("ns", "web", "10.1.0.1"), *slices(**ready)) == expected


@pytest.mark.parametrize("is_listed", [True, False])
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"ipFamilies": ["IPv4", "IPv6"]}, [(IPV4, IPV6)]),
        ({"ipFamilies": ["IPv6", "IPv4"]}, [(IPV6, IPV4)]),
        ({"clusterIPs": ["fd01::1", "10.1.0.1"], "address": "fd01::1"}, [(IPV6, IPV4)]),
    ],
)
def test_first_version_of_the_service_comes_first(spec, expected, is_listed):
    web = service("ns", "web", **{"address": "None", **spec}, selector={"app": "web"})
    listed = slices(IPv4=True, IPv6=True) if is_listed else []
    assert addresses(dual_pod(), web, *listed) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"address": "10.1.0.1"}, [(IPV4,)]),
        ({"address": "fd01::1"}, [(IPV6,)]),
        ({"ipFamilies": ["IPv6"]}, [(IPV6,)]),
        ({}, [(IPV4,)]),
    ],
)
def test_selected_pod_has_the_versions_of_the_service(spec, expected):
    web = service("ns", "web", **{"address": "None", **spec}, selector={"app": "web"})
    assert addresses(dual_pod(), web) == expected


def test_unknown_ip_family_is_refused():
    with pytest.raises(AssertionError):
        facts(service("ns", "web", ipFamilies=["IPv5"]))


def test_pod_with_two_addresses_counts_once_in_a_plan():
    client = pod("ns", "client", "10.0.0.2", mode="")
    before = [dual_pod(), client, service("ns", "web", "10.1.0.1"), *slices(IPv4=True, IPv6=True)]
    found = predict_change(Mesh(facts(*before)), Mesh(facts(*before, STRICT)))
    assert [len(change.endpoints) for change in found.hops] == [1]
