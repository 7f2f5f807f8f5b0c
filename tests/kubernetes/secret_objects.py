"""Secrets in the cluster."""

from __future__ import annotations

from base64 import b64encode

from tests.kubernetes.environment.cluster import Cluster
from xds.mesh.kube.api import KubeError


async def put(
    cluster: Cluster, namespace: str, name: str, data: dict[str, bytes], kind: str = "Opaque"
) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets"
    body = {
        "metadata": {"name": name},
        "type": kind,
        "data": {key: b64encode(value).decode() for key, value in data.items()},
    }
    try:
        await cluster.api.create(path, body)
    except KubeError as error:
        if error.reason != "AlreadyExists":
            raise
        await cluster.api.replace(f"{path}/{name}", body)
