"""Access to the other replicas: their addresses from Leases, and channels to them.

Replicas authenticate each other with certificates that each issues to itself from the mesh CA: the server by
the DNS name of the control plane's Service, the client as the control plane's service account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import grpc
import grpc.aio

from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.identity.keys import IdentityError
from xds.mesh.identity.rotation import Authorities
from xds.mesh.identity.server_tls import service_names
from xds.mesh.kube.replica_leases import ReplicaLeases
from xds.mesh.model.objects import spiffe_id

MAX_MESSAGE_BYTES = 4 << 20
"""Maximum size of a message of another replica, in bytes."""


class Peers:
    """The other replicas. Implements `xds.mesh.controlplane.replica_traffic.ReplicaAccess`."""

    def __init__(
        self,
        leases: ReplicaLeases,
        namespace: str,
        identity: IdentityPattern | None,
        authorities: Callable[[], Authorities],
        trust_domain: Callable[[], str],
    ) -> None:
        """Create the access.

        Args:
            leases: the Leases of the replicas.
            namespace: namespace of the control plane.
            identity: the control plane's service account; None if it is unknown. Then no replica admits
                another one.
            authorities: returns the CA and the trusted roots.
            trust_domain: returns the trust domain of the mesh.
        """
        self._leases = leases
        self._server_name = service_names(namespace)[0]
        self._identity = identity
        self._authorities = authorities
        self._trust_domain = trust_domain

    @property
    def name(self) -> str:
        """The name of this replica."""
        return self._leases.replica

    def addresses(self) -> Mapping[str, str]:
        """Return the address of each other replica that listens, as IP:PORT; empty if it is not known."""
        return self._leases.peer_addresses(asyncio.get_running_loop().time())

    def is_isolated(self) -> bool:
        """Return whether it is not known which replicas are running."""
        return self._leases.is_isolated(asyncio.get_running_loop().time())

    def publish(self, address: str) -> None:
        """Let other replicas connect to this one.

        Args:
            address: the address of the mutual TLS listener, as IP:PORT; empty if it is not known.
        """
        self._leases.publish_address(address)

    def connect(self, address: str) -> grpc.aio.Channel:
        """Open a channel to a replica. Raises IdentityError if this replica has no certificate."""
        if self._identity is None:
            raise IdentityError("this replica does not run as a service account, so others do not admit it")
        authorities, identity = self._authorities(), self._identity
        leaf = authorities.authority.issue(
            spiffe_id(self._trust_domain(), identity.namespace, identity.service_account),
            datetime.now(UTC),
        )
        credentials = grpc.ssl_channel_credentials(authorities.trusted_pem, leaf.key.to_pem(), leaf.chain)
        options = (
            ("grpc.ssl_target_name_override", self._server_name),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        )
        return grpc.aio.secure_channel(address, credentials, options)
