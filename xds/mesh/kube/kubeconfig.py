"""Where kubeconfig files are. The client of the API server is separate, because it is slow to import."""

from __future__ import annotations

import os
from pathlib import Path


def kubeconfig_files(kubeconfig: Path | None = None) -> list[str]:
    """Return the given file, or else the files that kubectl would read. They may not exist."""
    defaults = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")
    return [str(kubeconfig)] if kubeconfig else defaults.split(os.pathsep)


def has_cluster() -> bool:
    """Whether this process runs in a pod, or a kubeconfig exists."""
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(Path(file).is_file() for file in kubeconfig_files())
