"""Kubernetes objects, and the facts that they are parsed to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from xds.mesh.parse import parse


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


def service(
    namespace: str, name: str, address: str = "None", *, year: int = 2020, port: int = 80, **spec: Any
):
    spec |= {"clusterIP": address, "ports": [{"port": port, "targetPort": port}]}
    return named("Service", namespace, name, year=year, spec=spec)
