"""Access to the API server of a Kubernetes cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from xds.cli.options import fail
from xds.mesh.kube.api import Json, KubeApi, KubeConfigError, KubeError
from xds.mesh.model.objects import Ref
from xds.mesh.sources.kubernetes import kube_resource


@asynccontextmanager
async def connect(kubeconfig: Path | None, context: str | None) -> AsyncIterator[KubeApi]:
    """Connect to the API server. Exit with status 1 if it rejects a request, 3 if it cannot be reached."""
    try:
        async with await KubeApi.connect(kubeconfig, context) as api:
            yield api
    except KubeConfigError as error:
        fail(str(error))
    except KubeError as error:
        fail(str(error), 1 if error.status else 3)


async def read_resource_version(ref: Ref, kubeconfig: Path | None, context: str | None) -> str:
    """Return the resourceVersion of an object. Exit with status 2 if it does not exist."""
    resource = kube_resource(ref.kind, ref.namespace)
    found: Json | None = None
    async with connect(kubeconfig, context) as api:
        for version in reversed(resource.versions):
            found = found or await api.find(f"{resource.path(version)}/{ref.name}")
    if found is None:
        fail(f"{ref} does not exist on the API server")
    return str(found["metadata"]["resourceVersion"])
