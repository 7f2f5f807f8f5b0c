"""Decide whether a pod gets a sidecar, with the same rules as Istio's injector."""

from __future__ import annotations

from xds.mesh.parse.reading import Field, shown

INJECT_LABEL = "sidecar.istio.io/inject"
"""Pod label or annotation, `true` or `false`. The label takes precedence."""
NAMESPACE_LABEL = "istio-injection"
"""Namespace label, `enabled` or `disabled`."""
TEMPLATES = "inject.istio.io/templates"

SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})
"""Namespaces whose pods never get a sidecar. They must be able to start without the control plane."""

ALREADY_INJECTED = "it already has a sidecar"

PROXY = "xds-proxy"
INIT = "xds-init"
_ISTIO_CONTAINERS = frozenset({"istio-proxy", "istio-init", "istio-validation"})
_TRUE = frozenset({"y", "yes", "true", "on"})


def webhook_selects(pod: Field, namespace_label: str | None) -> bool:
    """Return whether the webhook is called for a pod (the selectors in `kube/install/webhook.yaml`).

    Args:
        pod: the pod or pod template.
        namespace_label: the namespace's label `istio-injection`; None if it has none.
    """
    if namespace_label is not None:
        return namespace_label == "enabled"
    return bool(pod["metadata"]["labels"][INJECT_LABEL].value == "true")


def skip_reason(pod: Field, namespace: str) -> str:
    """Return why a pod gets no sidecar; empty if it gets one.

    The caller has already checked the namespace's label.
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
        return f"namespace {namespace} is a system namespace"
    if spec["hostNetwork"].value is True:
        return "hostNetwork is true: interception would redirect the traffic of the whole node"
    system = spec["os"]["name"].value or spec["nodeSelector"]["kubernetes.io/os"].value or "linux"
    return "" if system == "linux" else f"it runs on {shown(system)}; sidecars require Linux"


def is_true(value: str) -> bool:
    """Return whether the value of a label or annotation is true (as in YAML 1.1)."""
    return value.lower() in _TRUE


def requested(pod: Field) -> str:
    """Return the value of the pod's injection label or annotation; empty if unset."""
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
