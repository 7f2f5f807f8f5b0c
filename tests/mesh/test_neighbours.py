"""What somebody writes into a namespace of their own does not decide for the pods of another."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Mode
from xds.mesh.parse import parse
from xds.mesh.policy.mtls import effective_mode


def facts(*objects: dict[str, Any]) -> list[Any]:
    read = [each for one in objects for each in parse(one, str)]
    assert not [problem for each in read for problem in each.problems if not problem.notice]
    return [each.fact for each in read]


def named(kind: str, namespace: str, name: str, *, year: int = 2020, **rest: Any) -> dict[str, Any]:
    versions = {"EndpointSlice": "discovery.k8s.io/v1", "Policy": "authentication.istio.io/v1alpha1"}
    created = datetime(year, 1, 1, tzinfo=UTC).isoformat()
    meta = {
        "name": name,
        "namespace": namespace,
        "creationTimestamp": created,
        "labels": rest.pop("labels", {}),
    }
    return {"apiVersion": versions.get(kind, "v1"), "kind": kind, "metadata": meta, **rest}


def pod(namespace: str, name: str, address: str, mode: str = "istio") -> dict[str, Any]:
    status = {"podIP": address, "phase": "Running"}
    return named("Pod", namespace, name, labels={"security.istio.io/tlsMode": mode}, status=status)


def service(namespace: str, name: str, year: int) -> dict[str, Any]:
    return named("Service", namespace, name, year=year, spec={"ports": [{"port": 80, "targetPort": 8080}]})


def slice_of(
    namespace: str, owner: str, address: str, target: dict[str, str] | None = None
) -> dict[str, Any]:
    return named(
        *("EndpointSlice", namespace, f"{owner}-1"),
        labels={"kubernetes.io/service-name": owner},
        addressType="IPv4",
        ports=[{"port": 8080}],
        endpoints=[{"addresses": [address], **({"targetRef": target} if target else {})}],
    )


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
