"""Generate the manifests of a mesh: services and their pods in several namespaces, and a policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from xds.mesh.envoy.names import NodeId

PORT = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """A directory with one file for each service: the Service and its pods, all with sidecars."""

    root: Path
    services: int
    endpoints: int
    """Number of endpoints of each service."""
    namespaces: int

    def write(self) -> None:
        """Write all files."""
        self.root.mkdir(parents=True, exist_ok=True)
        for service in range(self.services):
            self.write_service(service)

    def nodes(self, count: int, kinds: int) -> list[str]:
        """Return the node IDs of `count` pods, evenly distributed over the first `kinds` namespaces.

        Sidecars of one namespace have the same configuration, except for inbound traffic.
        """
        by_kind = [
            [
                (service, number)
                for service in range(self.services)
                if service % self.namespaces == kind
                for number in range(self.endpoints)
            ]
            for kind in range(kinds)
        ]
        per_kind = -(-count // kinds)
        if any(len(pods) < per_kind for pods in by_kind):
            raise SystemExit(f"{count} streams of {kinds} kinds need more pods in each namespace")
        chosen = [pod for pods in by_kind for pod in pods[:per_kind]][:count]
        return [
            str(NodeId(_address(*pod), f"svc-{pod[0]:04}-{pod[1]:02}", self._namespace(pod[0])))
            for pod in chosen
        ]

    def move_endpoint(self, moved: bool) -> None:
        """Change the address of a pod of the last service, or restore it."""
        self.write_service(self.services - 1, moved=moved)

    def set_mode(self, mode: str) -> None:
        """Set the mode of the whole mesh: STRICT, PERMISSIVE or DISABLE."""
        policy = {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": "istio-system"},
            "spec": {"mtls": {"mode": mode}},
        }
        self._replace("policy.yaml", [policy])

    def write_service(self, service: int, *, moved: bool = False) -> None:
        """Write the file of a service. With `moved`, its last pod has another address."""
        name = f"svc-{service:04}"
        namespace = self._namespace(service)
        objects: list[object] = [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
                "spec": {
                    "clusterIP": f"10.96.{service // 250}.{service % 250 + 1}",
                    "selector": {"app": name},
                    "ports": [{"name": "http", "port": PORT, "targetPort": 8080}],
                },
            }
        ]
        for number in range(self.endpoints):
            has_moved = moved and number == self.endpoints - 1
            objects.append(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{name}-{number:02}",
                        "namespace": namespace,
                        "labels": {"app": name, "security.istio.io/tlsMode": "istio"},
                    },
                    "spec": {
                        "serviceAccountName": name,
                        "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}],
                    },
                    "status": {"podIP": "10.200.0.1" if has_moved else _address(service, number)},
                }
            )
        self._replace(f"{name}.yaml", objects)

    def _namespace(self, service: int) -> str:
        return f"ns-{service % self.namespaces:02}"

    def _replace(self, name: str, objects: list[object]) -> None:
        # JSON is valid YAML. Write atomically: the server must not read a partial file.
        temporary = self.root / f".{name}"
        temporary.write_text("\n---\n".join(json.dumps(item, indent=1) for item in objects) + "\n")
        temporary.rename(self.root / name)


def _address(service: int, number: int) -> str:
    return f"10.{100 + service // 250}.{service % 250}.{number + 1}"
