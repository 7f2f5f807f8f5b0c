"""Labels that decide which pods get a sidecar, and labels of Istio that have no effect here."""

from __future__ import annotations

from collections.abc import Mapping

INJECT_LABEL = "sidecar.istio.io/inject"
"""Pod label or annotation, `true` or `false`. The label takes precedence."""
NAMESPACE_LABEL = "istio-injection"
"""Namespace label, `enabled` or `disabled`."""
POD_SECURITY_LABEL = "pod-security.kubernetes.io/enforce"
"""Namespace label: level of the Pod Security Standards that the API server enforces for new pods."""

_REVISION = "istio.io/rev"
_AMBIENT = {"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": ""}
"""Labels of ambient mode, with the value that adds pods to the mesh; empty for any value but `none`."""


def unused_label(labels: Mapping[str, str]) -> str:
    """Return a label, as KEY=VALUE, that adds pods to a mesh of Istio but not to this one; empty if none.

    Args:
        labels: labels of a Namespace or pod.
    """
    if labels.get(_REVISION):
        return f"{_REVISION}={labels[_REVISION]}"
    for key, expected in _AMBIENT.items():
        value = labels.get(key, "none")
        if value != "none" and value == (expected or value):
            return f"{key}={value}"
    return ""
