"""Connect to the API server of a Kubernetes cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from xds.cli.options import fail
from xds.mesh.kube.api import KubeApi, KubeConfigError, KubeError


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
