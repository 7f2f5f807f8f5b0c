"""Injection settings of the operator. Annotations of a pod override some of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xds.mesh.model.objects import MeshConfig
from xds.mesh.sidecar.settings import ADDRESS

DEFAULT_IMAGE = "xds:latest"
DEFAULT_ADDRESS = str(ADDRESS.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectionSettings:
    """Injection settings of the operator."""

    image: str = DEFAULT_IMAGE
    """Image of both containers. Its entry point is `xds`."""
    pull_policy: str = "IfNotPresent"
    """`Always`, `IfNotPresent` or `Never`."""
    xds_address: str = DEFAULT_ADDRESS
    """HOST:PORT of the control plane."""
    sds: str = ""
    """`unix:///PATH` of another SDS server, such as SPIRE's agent; empty for the control plane."""
    own_keys: bool = True
    """Whether sidecars make their private keys themselves. Not with another SDS server."""
    pod_certificates: bool = False
    """Whether all nodes support `podCertificate` volumes, so that the kubelet keeps keys and certificates."""
    native: bool = True
    """Whether the sidecar is a restartable init container (Kubernetes 1.29) instead of an ordinary one."""
    outbound_port: int = 15001
    """Port of the outbound listener."""
    inbound_port: int = 15006
    """Port of the inbound listener."""

    def with_mesh_config(self, mesh: MeshConfig) -> InjectionSettings:
        """Return these settings with the ports and SDS socket of a MeshConfig."""
        return replace(
            self,
            outbound_port=mesh.proxy_listen_port,
            inbound_port=mesh.proxy_inbound_listen_port,
            own_keys=mesh.own_keys,
            sds=self.sds or (f"unix://{mesh.sds_socket}" if mesh.sds_socket else ""),
        )
