"""Decide whether a pod gets a sidecar, with the same rules as Istio's injector."""

from __future__ import annotations

from typing import NamedTuple

from xds.mesh.model.injection import INJECT_LABEL
from xds.mesh.model.objects import TLS_MODE_LABEL
from xds.mesh.parse.reading import Field, shown

TEMPLATES = "inject.istio.io/templates"

SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})
"""Namespaces whose pods never get a sidecar. They must be able to start without the control plane."""

PROXY = "xds-proxy"
INIT = "xds-init"
GATEWAY_REMEDY = "as a gateway, use a pod that runs xds proxy"
_ISTIO_PROXY = "istio-proxy"
_ISTIO_CONTAINERS = frozenset({_ISTIO_PROXY, "istio-init", "istio-validation"})
_PLACEHOLDERS = (None, "", "auto")
"""Images of a container with which Istio's injector merges its own."""
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


class Skip(NamedTuple):
    """Why a pod gets no sidecar."""

    reason: str
    """The reason."""
    remedy: str = ""
    """How to get a sidecar nevertheless; empty if there is no way."""
    is_expected: bool = False
    """Whether the pod needs none: it opts out, or already has one."""

    def __str__(self) -> str:
        return f"{self.reason} ({self.remedy})" if self.remedy else self.reason


def skip(pod: Field, namespace: str) -> Skip | None:
    """Return why a pod gets no sidecar; None if it gets one.

    The caller has already checked the namespace's label.
    """
    spec = pod["spec"]
    if PROXY in _images(spec):
        return Skip("it already has a sidecar", is_expected=True)
    if found := istio_container(pod):
        return found
    value = requested(pod)
    if value and not is_true(value):
        return Skip(f"{INJECT_LABEL} is {shown(value)}", is_expected=True)
    if namespace in SYSTEM_NAMESPACES:
        return Skip(f"namespace {namespace} is a system namespace")
    if spec["hostNetwork"].value is True:
        return Skip("hostNetwork is true: interception would redirect the traffic of the whole node")
    system = spec["os"]["name"].value or spec["nodeSelector"]["kubernetes.io/os"].value or "linux"
    return None if system == "linux" else Skip(f"it runs on {shown(system)}; sidecars require Linux")


def istio_container(pod: Field) -> Skip | None:
    """Return why a pod with a container of Istio gets no sidecar; None if it has no such container."""
    images = _images(pod["spec"])
    names = sorted(images.keys() & _ISTIO_CONTAINERS)
    if not names:
        return None
    if images.keys() == {_ISTIO_PROXY}:
        return Skip("it runs only Istio's proxy, which this control plane does not configure", GATEWAY_REMEDY)
    if images.get(_ISTIO_PROXY, _ISTIO_PROXY) in _PLACEHOLDERS:
        return Skip(
            "its container istio-proxy changes the sidecar of Istio, which is not injected here",
            "remove the container; annotations such as sidecar.istio.io/proxyCPU configure the sidecar",
        )
    return Skip(
        f"it has Istio's container {names[0]}: only one sidecar can intercept a pod's traffic",
        f"remove the parts that Istio's injection added, also the label {TLS_MODE_LABEL}",
    )


def requests_sidecar(pod: Field) -> bool:
    """Return whether a pod requests a sidecar itself: by a label, an annotation, or a container to merge."""
    return is_true(requested(pod)) or _images(pod["spec"]).get(_ISTIO_PROXY, _ISTIO_PROXY) in _PLACEHOLDERS


def is_true(value: str) -> bool:
    """Return whether the value of a label or annotation is true (as in YAML 1.1)."""
    return value.lower() in _TRUE


def requested(pod: Field) -> str:
    """Return the value of the pod's injection label or annotation; empty if unset."""
    meta = pod["metadata"]
    return (meta["labels"][INJECT_LABEL] or meta["annotations"][INJECT_LABEL]).text()


def _images(spec: Field) -> dict[str, object]:
    """Return the image of each container, by name; None for a container without an image."""
    lists = [spec[field].value for field in ("initContainers", "containers")]
    return {
        str(container.get("name")): container.get("image")
        for containers in lists
        if isinstance(containers, list)
        for container in containers
        if isinstance(container, dict)
    }
