"""Names in Istio's format: clusters, SNI and node IDs."""

from __future__ import annotations

from typing import NamedTuple

from xds.mesh.model.families import Family
from xds.mesh.model.objects import CLUSTER_DOMAIN

PASSTHROUGH = "PassthroughCluster"
"""Cluster for outbound traffic to unknown destinations; keeps the original destination."""
INBOUND_PASSTHROUGH = "InboundPassthroughCluster"
"""Cluster for inbound traffic to ports without a Service; keeps the original destination."""
BLACK_HOLE = "BlackHoleCluster"
"""Cluster without endpoints, for refused traffic."""
IDENTITY = "IdentityCluster"
"""Cluster without endpoints. Its TLS settings make every sidecar fetch its secrets at startup (ADR 0006)."""

CONTROL_PLANE = "xds-grpc"
"""Static cluster of the control plane, in the bootstrap."""

OWN_CERTIFICATE = "xds-own-certificate"
"""Static cluster in the bootstrap: the SDS server of `xds proxy`, on a Unix socket in the pod."""
OWN_KEY_FEATURE = "xds-mesh.own-key"
"""Client feature of a node whose `xds proxy` makes its key and serves its certificate."""

POD_CERTIFICATE_FEATURE = "xds-mesh.pod-certificate"
"""Client feature of a node whose kubelet keeps its key and certificate in a file."""

ADMIN_CLUSTER = "admin"
"""Static cluster of Envoy's admin interface, in the bootstrap."""

HTTP_PROXY = "http_proxy"
"""Name of the listener and the route configuration of a sidecar's HTTP proxy."""

PASSTHROUGH_SOURCES: dict[Family, str] = {4: "127.0.0.6", 6: "::6"}
"""Source address of a sidecar's connections to its application. Interception excludes it."""


def outbound(host: str, port: int, subset: str = "") -> str:
    """Return the name of a service port's cluster, `outbound|PORT|SUBSET|HOST`.

    For the cluster of a single endpoint, `subset` is its address.
    """
    return f"outbound|{port}|{subset}|{host}"


def parse_outbound(name: str) -> tuple[str, str, str]:
    """Return the port, subset and host in the name of a service port's cluster; empty for other clusters."""
    kind, _, rest = name.partition("|")
    port, _, rest = rest.partition("|")
    subset, _, host = rest.partition("|")
    return (port, subset, host) if kind == "outbound" else ("", "", "")


def inbound(port: int) -> str:
    """Return the name of the cluster for a port of the sidecar's application."""
    return f"inbound|{port}||"


def sni(host: str, port: int, subset: str = "") -> str:
    """Return the TLS server name that clients send for a service port."""
    return f"outbound_.{port}_.{subset}_.{host}"


class NodeId(NamedTuple):
    """A sidecar's node ID: `sidecar~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.DOMAIN`."""

    address: str
    """Address of the pod."""
    pod: str
    """Name of the pod."""
    namespace: str
    """Namespace of the pod."""

    def __str__(self) -> str:
        return f"sidecar~{self.address}~{self.pod}.{self.namespace}~{self.namespace}.svc.{CLUSTER_DOMAIN}"

    @classmethod
    def parse(cls, text: str) -> NodeId:
        """Parse a node ID.

        Raises:
            ValueError: the node ID has another format.
        """
        kind, _, remainder = text.partition("~")
        address, _, remainder = remainder.partition("~")
        qualified_name, _, domain = remainder.partition("~")
        pod, _, namespace = qualified_name.rpartition(".")
        if (
            kind != "sidecar"
            or not (address and pod and namespace)
            or domain.split(".", 1)[0] != namespace
            or "~" in domain
        ):
            raise ValueError(
                f"node id {text!r} is not of the form "
                f"sidecar~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.{CLUSTER_DOMAIN}"
            )
        return cls(address, pod, namespace)
