"""Localities of pods: region, zone and sub-zone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

LOCALITY_LABEL = "istio-locality"
"""Pod label with the pod's locality: `region.zone.subzone`, or with slashes as in Istio's manifests."""

TOPOLOGY_LABELS = (
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
)
"""Pod labels with the parts of the locality. Kubernetes 1.35 copies the first two from the node."""

Locality: TypeAlias = tuple[str, str, str]
"""Region, zone and sub-zone; empty if unknown."""


def locality_of(labels: Mapping[str, str]) -> Locality:
    """Return the locality of a pod with these labels."""
    if text := labels.get(LOCALITY_LABEL):
        region, zone, sub_zone = (*text.split("/" if "/" in text else "."), "", "")[:3]
    else:
        region, zone, sub_zone = (labels.get(label, "") for label in TOPOLOGY_LABELS)
    return region, zone, sub_zone


def label_of(labels: Mapping[str, str], locality: Locality, label: str) -> str:
    """Return the value of a label, or the part of the locality that it stands for; empty if absent."""
    if label in TOPOLOGY_LABELS:
        return locality[TOPOLOGY_LABELS.index(label)]
    return labels.get(label, "")
