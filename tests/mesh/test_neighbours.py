"""What somebody writes into a namespace of their own does not decide for the pods of another."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mesh.objects import facts, named, pod, slice_of
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Mode
from xds.mesh.policy.mtls import effective_mode


def service(namespace: str, name: str, year: int) -> dict[str, Any]:
    return named("Service", namespace, name, year=year, spec={"ports": [{"port": 80, "targetPort": 8080}]})


def policy(namespace: str, name: str, peers: list[Any]) -> dict[str, Any]:
    return named("Policy", namespace, name, spec={"targets": [{"name": name}], "peers": peers})


@pytest.mark.parametrize("target", [None, {"kind": "Pod", "namespace": "shop", "name": "web"}])
def test_foreign_service_does_not_decide_for_a_pod(target: Any) -> None:
    mesh = Mesh(
        facts(
            pod("shop", "web", "10.1.0.1"),
            *(service("shop", "web", 2021), policy("shop", "web", [{"mtls": {}}])),
            slice_of("shop", "web", "10.1.0.1", {"kind": "Pod", "name": "web"}),
            *(service("evil", "web", 2019), policy("evil", "web", [])),
            slice_of("evil", "web", "10.1.0.1", target),
        )
    )
    web = mesh.pod("shop", "web")
    assert web
    assert [each.service.namespace for each in mesh.exposures(web)] == ["shop"]
    assert effective_mode(mesh, web, 8080).mode is Mode.STRICT


def test_shared_address_belongs_to_listing_namespace() -> None:
    mesh = Mesh(
        facts(
            *(pod("evil", "web", "10.1.0.1", mode="disabled"), pod("shop", "web", "10.1.0.1")),
            *(service("shop", "web", 2021), slice_of("shop", "web", "10.1.0.1")),
            *(service("zoo", "web", 2021), slice_of("zoo", "web", "10.1.0.1")),
        )
    )

    def owner(namespace: str) -> str:
        found = mesh.service(namespace, "web")
        assert found
        [endpoint] = mesh.endpoints(found, found.ports[0])
        assert endpoint.pod
        return endpoint.pod.namespace

    assert owner("shop") == "shop"
    assert owner("zoo") == "evil", "of pods that are all elsewhere, the first by name"
