"""Whether a pod gets a sidecar: what Istio's injector goes by."""

from __future__ import annotations

from xds.mesh.parse.reading import Field, shown

INJECT_LABEL = "sidecar.istio.io/inject"
"""Pod label, or annotation: `true` or `false`. The label counts before the annotation."""
TEMPLATES = "inject.istio.io/templates"

SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})
"""Never injected into: a cluster must be able to start without us."""

ALREADY_INJECTED = "it has a sidecar already"

PROXY = "xds-proxy"
INIT = "xds-init"
_ISTIO_CONTAINERS = frozenset({"istio-proxy", "istio-init", "istio-validation"})
_TRUE = frozenset({"y", "yes", "true", "on"})


def skip_reason(pod: Field, namespace: str) -> str:
    """Say why a pod that may be injected into is left as it is; empty: it gets a sidecar.

    Who calls has looked at the namespace's label: in a namespace that is not asked for, nothing comes this far.
    """
    spec = pod["spec"]
    names = _container_names(spec)
    if PROXY in names:
        return ALREADY_INJECTED
    if istio_names := sorted(names & _ISTIO_CONTAINERS):
        return f"it has Istio's container {istio_names[0]}: only one sidecar can intercept a pod's traffic"
    value = requested(pod)
    if value and not is_true(value):
        return f"{INJECT_LABEL} is {shown(value)}"
    if namespace in SYSTEM_NAMESPACES:
        return f"namespace {namespace} is the cluster's own"
    if spec["hostNetwork"].value is True:
        return "hostNetwork is true: interception would take the traffic of the whole node"
    system = spec["os"]["name"].value or spec["nodeSelector"]["kubernetes.io/os"].value or "linux"
    return "" if system == "linux" else f"it runs on {shown(system)}, and sidecars on Linux only"


def is_true(value: str) -> bool:
    """Tell whether what a pod says means that it is to have a sidecar, as YAML 1.1 understands words."""
    return value.lower() in _TRUE


def requested(pod: Field) -> str:
    """Return what the pod itself says about having a sidecar; empty: nothing."""
    meta = pod["metadata"]
    return (meta["labels"][INJECT_LABEL] or meta["annotations"][INJECT_LABEL]).text()


def _container_names(spec: Field) -> set[str]:
    lists = [spec[field].value for field in ("initContainers", "containers")]
    return {
        str(container.get("name"))
        for containers in lists
        if isinstance(containers, list)
        for container in containers
        if isinstance(container, dict)
    }
