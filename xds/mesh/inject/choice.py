"""Whether a pod gets a sidecar: what Istio's injector goes by."""

from __future__ import annotations

from xds.mesh.parse.reading import Field, shown

INJECT = "sidecar.istio.io/inject"
"""Pod label, or annotation: `true` or `false`. The label counts before the annotation."""
TEMPLATES = "inject.istio.io/templates"

SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})
"""Never injected into: a cluster must be able to start without us."""

HAS_ONE = "it has a sidecar already"

PROXY = "xds-proxy"
INIT = "xds-init"
_ISTIO_CONTAINERS = frozenset({"istio-proxy", "istio-init", "istio-validation"})
_YES = frozenset({"y", "yes", "true", "on"})


def why_not(pod: Field, namespace: str) -> str:
    """Say why a pod that may be injected into is left as it is; empty: it gets a sidecar.

    Who calls has looked at the namespace's label: in a namespace that is not asked for, nothing comes this far.
    """
    spec = pod["spec"]
    names = _container_names(spec)
    if PROXY in names:
        return HAS_ONE
    if istios := sorted(names & _ISTIO_CONTAINERS):
        return f"it has Istio's container {istios[0]}: only one sidecar can intercept a pod's traffic"
    wanted = wish(pod)
    if wanted and not is_yes(wanted):
        return f"{INJECT} is {shown(wanted)}"
    if namespace in SYSTEM_NAMESPACES:
        return f"namespace {namespace} is the cluster's own"
    if spec["hostNetwork"].value is True:
        return "hostNetwork is true: interception would take the traffic of the whole node"
    system = spec["os"]["name"].value or spec["nodeSelector"]["kubernetes.io/os"].value or "linux"
    return "" if system == "linux" else f"it runs on {shown(system)}, and sidecars on Linux only"


def is_yes(wish: str) -> bool:
    """Tell whether what a pod says means that it is to have a sidecar, as YAML 1.1 understands words."""
    return wish.lower() in _YES


def wish(pod: Field) -> str:
    """Return what the pod itself says about having a sidecar; empty: nothing."""
    meta = pod["metadata"]
    return (meta["labels"][INJECT] or meta["annotations"][INJECT]).text()


def _container_names(spec: Field) -> set[str]:
    lists = [spec[field].value for field in ("initContainers", "containers")]
    return {
        str(container.get("name"))
        for containers in lists
        if isinstance(containers, list)
        for container in containers
        if isinstance(container, dict)
    }
