"""Workloads: pods of one namespace that run the same application."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import Pod

WorkloadKey: TypeAlias = tuple[str, str]
"""Namespace and name of a workload."""

NAME_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
"""Labels with the name of a pod's application, most specific first. Istio uses the same order."""
_GENERATED = re.compile(r"(-[bcdfghjklmnpqrstvwxz2456789]{6,10})?-[bcdfghjklmnpqrstvwxz2456789]{5}$|-\d+$")
"""Suffix that a ReplicaSet, a DaemonSet, a Job or a StatefulSet appends to its pods' names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Pods of one namespace that run the same application."""

    namespace: str
    """Namespace of the pods."""
    name: str
    """Name of the workload (`workload_key`)."""
    pods: tuple[Pod, ...]
    """The pods, in natural order."""

    @property
    def key(self) -> WorkloadKey:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def sidecars(self) -> int:
        """Number of pods with a sidecar."""
        return sum(pod.has_sidecar for pod in self.pods)


def workload_key(pod: Pod) -> WorkloadKey:
    """Return the workload of a pod: the name that a label gives its application, or else its owner's."""
    named = next((name for label in NAME_LABELS if (name := pod.meta.labels.get(label))), "")
    return pod.namespace, named or owner_name(pod.name)


def owner_name(pod_name: str) -> str:
    """Return the name of the workload that created a pod: the pod's name without a generated suffix."""
    return _GENERATED.sub("", pod_name.rpartition("/")[2])


def workloads_of(pods: Iterable[Pod]) -> dict[WorkloadKey, Workload]:
    """Return the workloads of pods, in natural order of their namespaces and names."""
    found: dict[WorkloadKey, list[Pod]] = {}
    for pod in pods:
        found.setdefault(workload_key(pod), []).append(pod)
    return {
        key: Workload(
            namespace=key[0],
            name=key[1],
            pods=tuple(sorted(found[key], key=lambda pod: natural_key(pod.name))),
        )
        for key in sorted(found, key=lambda key: natural_key(*key))
    }
