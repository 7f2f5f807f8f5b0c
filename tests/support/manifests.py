"""A folder of kubectl-shaped YAML, and short ways to say what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

SIDECAR_LABEL = "security.istio.io/tlsMode"


class Manifests:
    """The folder that `xds serve` follows. Files are replaced atomically, as editors and GitOps tools do."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, *objects: Manifest) -> None:
        """Create or replace a file."""
        new = self.directory / f".{name}.new"
        new.write_text(yaml.safe_dump_all(objects, sort_keys=False))
        new.replace(self.directory / f"{name}.yaml")

    def remove(self, name: str) -> None:
        """Delete a file."""
        (self.directory / f"{name}.yaml").unlink()


def pod(
    name: str,
    namespace: str,
    address: str,
    *,
    sidecar: bool = True,
    labels: Mapping[str, str] | None = None,
    account: str = "default",
    ports: Iterable[int] = (),
    annotations: Mapping[str, str] | None = None,
    subdomain: str = "",
    more_addresses: Iterable[str] = (),
) -> Manifest:
    """A running, ready Pod; with a `subdomain`, `POD.SUBDOMAIN` resolves to it."""
    tls = {SIDECAR_LABEL: "istio"} if sidecar else {}
    spec: dict[str, Any] = {
        "serviceAccountName": account,
        "containers": [{"name": "app", "ports": [{"containerPort": port} for port in ports]}],
    }
    if subdomain:
        spec |= {"hostname": name, "subdomain": subdomain}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _meta(name, namespace)
        | {"labels": {**(labels or {}), **tls}, "annotations": dict(annotations or {})},
        "spec": spec,
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": at} for at in (address, *more_addresses)],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def service(
    name: str,
    namespace: str,
    ports: Mapping[str, tuple[int, int]],
    *,
    address: str = "None",
    more_addresses: Iterable[str] = (),
    families: Iterable[int] = (),
    selector: Mapping[str, str] | None = None,
) -> Manifest:
    """A Service, headless unless it has an address; `ports`: name -> (port, target port)."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(name, namespace),
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address, *more_addresses],
            "ipFamilies": [f"IPv{family}" for family in families],
            "selector": dict(selector or {"app": name}),
            "ports": [
                {"name": port_name, "port": port, "targetPort": target}
                for port_name, (port, target) in ports.items()
            ],
        },
    }


def policy(name: str, namespace: str, mode: str | None, *targets: str) -> Manifest:
    """A v1alpha1 Policy; mode None: without peers, so plaintext."""
    spec: dict[str, Any] = {"peers": [{"mtls": {"mode": mode}}]} if mode else {}
    if targets:
        spec["targets"] = [{"name": target} for target in targets]
    return {
        "apiVersion": "authentication.istio.io/v1alpha1",
        "kind": "Policy",
        "metadata": _meta(name, namespace),
        "spec": spec,
    }


def peer_authentication(
    namespace: str,
    mode: str,
    *,
    name: str = "default",
    selector: Mapping[str, str] | None = None,
    ports: Mapping[int, str] | None = None,
) -> Manifest:
    """A v1 PeerAuthentication; in the root namespace `istio-system`, without a selector, it is the mesh's."""
    spec: dict[str, Any] = {"mtls": {"mode": mode}}
    if selector:
        spec["selector"] = {"matchLabels": dict(selector)}
    if ports:
        spec["portLevelMtls"] = {port: {"mode": port_mode} for port, port_mode in ports.items()}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": _meta(name, namespace),
        "spec": spec,
    }


def destination_rule(name: str, namespace: str, host: str, tls_mode: str) -> Manifest:
    """A DestinationRule that says what TLS clients of a host send."""
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "DestinationRule",
        "metadata": _meta(name, namespace),
        "spec": {"host": host, "trafficPolicy": {"tls": {"mode": tls_mode}}},
    }


def workload_entry(name: str, namespace: str, address: str, **spec: Any) -> Manifest:
    """A WorkloadEntry; `spec`: its other fields."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": _meta(name, namespace),
        "spec": {"address": address, **spec},
    }


def service_entry(
    name: str, namespace: str, host: str, ports: Mapping[str, int], *, location: str, **spec: Any
) -> Manifest:
    """A ServiceEntry with static endpoints; a port's name is its protocol; `spec`: its other fields."""
    numbered = [{"number": number, "name": name, "protocol": name.upper()} for name, number in ports.items()]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": _meta(name, namespace),
        "spec": {
            "hosts": [host],
            "ports": numbered,
            "location": location,
            "resolution": "STATIC",
            **spec,
        },
    }


def _meta(name: str, namespace: str) -> dict[str, Any]:
    return {"name": name, "namespace": namespace}
