"""Generate the objects of a mesh: services and their pods in several namespaces, and a policy."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients import MOVING, marker

from xds.mesh.envoy.names import NodeId

PORT = 8000
ROOT_NAMESPACE = "istio-system"


@dataclass(slots=True, kw_only=True)
class Mesh:
    """Services, each with the same number of pods with sidecars."""

    services: int
    endpoints: int
    """Number of endpoints of each service."""
    namespaces: int
    visible: int = 0
    """Number of services that clients see; 0 for all."""
    restarts: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How often each pod was replaced, by the number of its service and its own number."""
    moves: dict[int, int] = field(default_factory=dict)
    """Number of the last move of each moving pod, by service."""

    @property
    def moving(self) -> range:
        """The services with a moving pod."""
        return range(min(self.services, MOVING, self.visible or MOVING))

    def pods(self, count: int) -> list[tuple[int, int]]:
        """Return the first `count` pods, all of a service before those of the next."""
        pods = [(service, number) for service in range(self.services) for number in range(self.endpoints)]
        if count > len(pods):
            raise SystemExit(
                f"{count} streams need more pods than {len(pods)}: raise --services or --endpoints"
            )
        return pods[:count]

    def node(self, service: int, number: int) -> NodeId:
        """Return the node of a pod's sidecar."""
        restarts = self.restarts[service, number]
        # A new pod has another name and another address.
        address = f"10.{100 + 32 * (restarts % 2) + service // 250}.{service % 250}.{number + 1}"
        name = f"{self.name(service)}-{number:02}" + (f"-{restarts}" if restarts else "")
        return NodeId(address, name, self.namespace(service))

    def move(self, number: int) -> int:
        """Move the pod of the next service, and return the service. The number is part of the new address."""
        service = number % len(self.moving)
        self.moves[service] = number
        return service

    def moving_node(self, service: int) -> NodeId:
        """Return the address and the names of a service's moving pod."""
        address = marker(self.moves.get(service, service))
        return NodeId(address, f"{self.name(service)}-moving", self.namespace(service))

    def name(self, service: int) -> str:
        """Return the name of a service, and of its service account."""
        return f"svc-{service:04}"

    def namespace(self, service: int) -> str:
        """Return the namespace of a service."""
        return f"ns-{service % self.namespaces:02}"

    def nodes(self, service: int) -> list[NodeId]:
        """Return the nodes of all pods of a service. The moving pod is the last."""
        nodes = [self.node(service, number) for number in range(self.endpoints)]
        return [*nodes, self.moving_node(service)] if service in self.moving else nodes

    def service(self, service: int) -> dict[str, Any]:
        """Return a Service."""
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.name(service),
                "namespace": self.namespace(service),
                "labels": {"app": self.name(service)},
            },
            "spec": {
                "clusterIP": f"10.96.{service // 250 + 1}.{service % 250 + 1}",
                "selector": {"app": self.name(service)},
                "ports": [{"name": "http", "port": PORT, "targetPort": 8080}],
            },
        }

    def pod(self, service: int, node: NodeId) -> dict[str, Any]:
        """Return a Pod with a sidecar."""
        labels = {"app": self.name(service), "security.istio.io/tlsMode": "istio"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": node.pod, "namespace": node.namespace, "labels": labels},
            "spec": {
                "serviceAccountName": self.name(service),
                "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}],
            },
            "status": {"podIP": node.address},
        }

    def policy(self, mode: str) -> dict[str, Any]:
        """Return the policy of the whole mesh. The mode is STRICT, PERMISSIVE or DISABLE."""
        return {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": ROOT_NAMESPACE},
            "spec": {"mtls": {"mode": mode}},
        }

    def authorization(self, number: int) -> dict[str, Any]:
        """Return an AuthorizationPolicy for the pods of one service."""
        service = number % self.services
        callers = [f"cluster.local/ns/{self.namespace(other)}/sa/{self.name(other)}" for other in range(10)]
        return {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": f"policy-{number:04}", "namespace": self.namespace(service)},
            "spec": {
                "selector": {"matchLabels": {"app": self.name(service)}},
                "rules": [
                    {
                        "from": [{"source": {"principals": callers}}],
                        "to": [{"operation": {"methods": ["GET"], "paths": [f"/api/{number}/*"]}}],
                    }
                ],
            },
        }

    def sidecar(self) -> dict[str, Any]:
        """Return a Sidecar for the whole mesh: clients see the first services."""
        names = range(self.visible)
        hosts = [f"*/{self.name(each)}.{self.namespace(each)}.svc.cluster.local" for each in names]
        return {
            "apiVersion": "networking.istio.io/v1",
            "kind": "Sidecar",
            "metadata": {"name": "default", "namespace": ROOT_NAMESPACE},
            "spec": {"egress": [{"hosts": hosts}]},
        }


@dataclass(slots=True, kw_only=True)
class Manifests(Mesh):
    """A folder with one file for each service: the Service and its pods."""

    root: Path

    def write(self) -> None:
        """Write the files of the services."""
        self.root.mkdir(parents=True, exist_ok=True)
        for service in range(self.services):
            self.write_service(service)
        if self.visible:
            self._replace("sidecar.yaml", [self.sidecar()])

    def write_service(self, service: int) -> None:
        """Write the file of a service."""
        nodes = [self.node(service, number) for number in range(self.endpoints)]
        objects = [self.service(service), *(self.pod(service, node) for node in nodes)]
        self._replace(f"{self.name(service)}.yaml", objects)

    def write_authorization(self, count: int) -> None:
        """Write the files of AuthorizationPolicies."""
        for number in range(count):
            self._replace(f"authorization-{number:04}.yaml", [self.authorization(number)])

    def write_moving_pod(self, service: int) -> None:
        """Write the file of a service's moving pod."""
        self._replace(f"{self.name(service)}-moving.yaml", [self.pod(service, self.moving_node(service))])

    def write_policy(self, mode: str) -> None:
        """Write the policy of the whole mesh."""
        self._replace("policy.yaml", [self.policy(mode)])

    def _replace(self, name: str, objects: list[dict[str, Any]]) -> None:
        # JSON is valid YAML. Write atomically: the server must not read a partial file.
        temporary = self.root / f".{name}"
        temporary.write_text("\n---\n".join(json.dumps(item, indent=1) for item in objects) + "\n")
        temporary.rename(self.root / name)
