"""What an operator decides about sidecars; what a pod decides about its own is in its annotations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xds.mesh.model.objects import MeshConfig
from xds.mesh.sidecar.settings import ADDRESS

DEFAULT_IMAGE = "xds:latest"
DEFAULT_ADDRESS = str(ADDRESS.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectionSettings:
    """How sidecars are to be."""

    image: str = DEFAULT_IMAGE
    """Of both containers; its entry point is `xds`."""
    pull_policy: str = ""
    """`Always`, `IfNotPresent` or `Never`; empty: what Kubernetes makes of the image's tag."""
    xds_address: str = DEFAULT_ADDRESS
    """HOST:PORT of the control plane."""
    sds: str = ""
    """`unix:///PATH` of another source of certificates, such as SPIRE's agent."""
    native: bool = True
    """The sidecar is a restartable init container (Kubernetes 1.29), not one of the pod's ordinary containers."""
    outbound_port: int = 15001
    inbound_port: int = 15006

    def with_mesh_config(self, mesh: MeshConfig) -> InjectionSettings:
        """Return these settings with what the mesh's say about sidecars."""
        return replace(
            self,
            outbound_port=mesh.proxy_listen_port,
            inbound_port=mesh.proxy_inbound_listen_port,
            sds=self.sds or (f"unix://{mesh.sds_socket}" if mesh.sds_socket else ""),
        )
