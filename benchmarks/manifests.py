"""A mesh as kubectl-shaped files: services with pods behind them, in several namespaces, and its policies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from xds.mesh.envoy.names import NodeId

PORT = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """A folder with one file for each service: the Service and its pods, all of which have sidecars."""

    root: Path
    services: int
    endpoints: int
    """Of each service."""
    namespaces: int

    def write(self) -> None:
        """Write everything."""
        self.root.mkdir(parents=True, exist_ok=True)
        for service in range(self.services):
            self.write_service(service)

    def nodes(self, count: int, kinds: int) -> list[str]:
        """Return the node ids of `count` pods, as many from each of the first `kinds` namespaces.

        Sidecars of one namespace have their configuration in common, except for their own inbound side.
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
        each = -(-count // kinds)
        if any(len(pods) < each for pods in by_kind):
            raise SystemExit(f"{count} streams of {kinds} kinds: there are too few pods in a namespace")
        chosen = [pod for pods in by_kind for pod in pods[:each]][:count]
        return [
            str(NodeId(_address(*pod), f"svc-{pod[0]:04}-{pod[1]:02}", self._namespace(pod[0])))
            for pod in chosen
        ]

    def move_endpoint(self, there: bool) -> None:
        """Give another address to a pod of the last service, or the one it had."""
        self.write_service(self.services - 1, moved=there)

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
        """Write the file of one service; `moved`: its last pod has another address."""
        name = f"svc-{service:04}"
        about = {"namespace": self._namespace(service), "labels": {"app": name}}
        objects: list[object] = [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, **about},
                "spec": {
                    "clusterIP": f"10.96.{service // 250}.{service % 250 + 1}",
                    "selector": {"app": name},
                    "ports": [{"name": "http", "port": PORT, "targetPort": 8080}],
                },
            }
        ]
        for number in range(self.endpoints):
            elsewhere = moved and number == self.endpoints - 1
            objects.append(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{name}-{number:02}",
                        "namespace": about["namespace"],
                        "labels": {"app": name, "security.istio.io/tlsMode": "istio"},
                    },
                    "spec": {
                        "serviceAccountName": name,
                        "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}],
                    },
                    "status": {"podIP": "10.200.0.1" if elsewhere else _address(service, number)},
                }
            )
        self._replace(f"{name}.yaml", objects)

    def _namespace(self, service: int) -> str:
        return f"ns-{service % self.namespaces:02}"

    def _replace(self, name: str, objects: list[object]) -> None:
        # JSON is YAML. Renaming keeps half a file from being read.
        written = self.root / f".{name}"
        written.write_text("\n---\n".join(json.dumps(found, indent=1) for found in objects) + "\n")
        written.rename(self.root / name)


def _address(service: int, number: int) -> str:
    return f"10.{100 + service // 250}.{service % 250}.{number + 1}"
