"""The data of the fake API server: resources, objects and events."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

CORE = {
    "namespaces": "Namespace",
    "services": "Service",
    "pods": "Pod",
    "serviceaccounts": "ServiceAccount",
    "configmaps": "ConfigMap",
    "secrets": "Secret",
}
OTHERS = (
    ("discovery.k8s.io", "endpointslices", "EndpointSlice"),
    ("coordination.k8s.io", "leases", "Lease"),
    ("events.k8s.io", "events", "Event"),
)
ISTIO = (
    ("authentication.istio.io", "v1alpha1", "policies", "Policy"),
    ("authentication.istio.io", "v1alpha1", "meshpolicies", "MeshPolicy"),
    ("security.istio.io", "v1", "peerauthentications", "PeerAuthentication"),
    ("networking.istio.io", "v1", "destinationrules", "DestinationRule"),
)


class Event(NamedTuple):
    version: int
    type: str
    object: dict[str, Any]


class Kind:
    """A resource type with its objects and events."""

    def __init__(self, group: str, plural: str, kind: str, versions: list[str]) -> None:
        self.group, self.plural, self.kind, self.versions = group, plural, kind, versions
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.events: deque[Event] = deque()

    @property
    def newest(self) -> int:
        return self.events[-1].version if self.events else 0


class Selection(NamedTuple):
    """The objects that a list or a watch selects."""

    kind: Kind
    api_version: str
    namespace: str
    name: str

    def has(self, obj: dict[str, Any]) -> bool:
        meta = obj["metadata"]
        return self.namespace in {"", meta.get("namespace", "")} and self.name in {"", meta["name"]}

    def objects(self) -> list[dict[str, Any]]:
        return [obj for _, obj in sorted(self.kind.objects.items()) if self.has(obj)]

    def typed(self, obj: dict[str, Any]) -> dict[str, Any]:
        return obj | {"kind": self.kind.kind, "apiVersion": self.api_version}
