"""Names on Envoy's side, as Istio writes them: clusters, SNI, node ids."""

from __future__ import annotations

from typing import NamedTuple

from xds.mesh.model.objects import CLUSTER_DOMAIN

PASSTHROUGH = "PassthroughCluster"
"""Outbound traffic to no known service, to where it was going anyway."""
INBOUND_PASSTHROUGH = "InboundPassthroughCluster"
"""Inbound traffic to a port of no service, to that port."""
BLACK_HOLE = "BlackHoleCluster"
"""Traffic that goes nowhere: it has no endpoint."""
IDENTITY = "IdentityCluster"
"""Carries no traffic; its TLS settings make every sidecar hold its certificate and the roots from the start."""

HTTP_PROXY = "http_proxy"
"""Listener and route configuration of a sidecar that the application uses as its HTTP proxy."""

PASSTHROUGH_SOURCE = "127.0.0.6"
"""Source address of what a sidecar forwards to its application: interception leaves it alone."""


def outbound(host: str, port: int, subset: str = "") -> str:
    """Return the cluster that leads to a service port, `outbound|PORT|SUBSET|HOST`.

    In the place of a subset stands an address for the cluster that leads to that one endpoint.
    """
    return f"outbound|{port}|{subset}|{host}"


def inbound(port: int) -> str:
    """Return the cluster that leads to a port of the sidecar's own application."""
    return f"inbound|{port}||"


def sni(host: str, port: int, subset: str = "") -> str:
    """Return what a client asks for in its TLS hello."""
    return f"outbound_.{port}_.{subset}_.{host}"


class NodeId(NamedTuple):
    """What a sidecar's node id says: `sidecar~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.DOMAIN`."""

    address: str
    pod: str
    namespace: str

    def __str__(self) -> str:
        return f"sidecar~{self.address}~{self.pod}.{self.namespace}~{self.namespace}.svc.{CLUSTER_DOMAIN}"

    @classmethod
    def parse(cls, text: str) -> NodeId:
        """Read a node id.

        Raises:
            ValueError: it has another form; the message says which is expected.
        """
        kind, _, rest = text.partition("~")
        address, _, rest = rest.partition("~")
        name, _, domain = rest.partition("~")
        pod, _, namespace = name.rpartition(".")
        if (
            kind != "sidecar"
            or not (address and pod and namespace)
            or domain.split(".", 1)[0] != namespace
            or "~" in domain
        ):
            raise ValueError(
                f"node id {text!r} is not of the form sidecar~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.{CLUSTER_DOMAIN}"
            )
        return cls(address, pod, namespace)
