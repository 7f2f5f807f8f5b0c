"""One of several control-plane replicas in a cluster: the shared CA, and the tasks of the leader."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol
from uuid import uuid4

import structlog

from xds.mesh.identity.ca import Authority
from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.identity.rotation import Authorities
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.ca_secret import CaSecrets, RotationController, load_or_create_authorities, utc_now
from xds.mesh.kube.lease import Lease
from xds.mesh.kube.peers import Peers
from xds.mesh.kube.replica_leases import ReplicaLeases, replica_name
from xds.mesh.kube.root_publisher import RootPublisher, TrustBundlePublisher
from xds.mesh.rollout.sync import ReplicaSync

log = structlog.get_logger(__name__)

RETRY_DELAY = 3.0
"""Seconds before loading the CA is retried after an error of the API server."""


class RotationTarget(Protocol):
    """Serves certificates and roots. Implemented by `xds.mesh.controlplane.controller.Controller`."""

    def rotate(self, authority: Authority, extra_roots: Iterable[bytes]) -> None:
        """Issue certificates with a CA, and trust additional roots."""

    def proxies_with_old_roots(self) -> Sequence[str]:
        """Return the proxies that have not accepted the current roots."""


class SyncedController(RotationTarget, Protocol):
    """Rolls out changes of modes: `xds.mesh.controlplane.controller.Controller`."""

    def enable_sync(self, sync: ReplicaSync) -> bool:
        """Share rollouts with other replicas. Return False if rollouts wait for no proxies."""

    def peers_changed(self) -> None:
        """Handle new reports and plans of other replicas."""


class Replica:
    """The state that a control plane shares with its replicas. Create it with `join`, and run its `parts`."""

    def __init__(self, api: KubeApi, namespace: str, first: Authorities) -> None:
        self._api, self._namespace = api, namespace
        self._identity = f"{socket.gethostname()}_{uuid4().hex[:8]}"
        self.lease = Lease(api, namespace, self._identity)
        self._replica_leases: list[ReplicaLeases] = []
        self._controllers: list[RotationTarget] = []
        self._publishers = [
            publisher(api, lambda: self.authorities.trusted_pem, leads=self.leads)
            for publisher in (RootPublisher, TrustBundlePublisher)
        ]
        self._rotation = RotationController(
            CaSecrets(api, namespace),
            first,
            on_change=self._adopt,
            lagging=lambda: [
                proxy for controller in self._controllers for proxy in controller.proxies_with_old_roots()
            ],
            leads=self.leads,
        )

    @classmethod
    async def join(cls, api: KubeApi, namespace: str, trust_domain: str) -> Replica:
        """Load the CA, and retry while the API server fails. Raises AuthorityError if the CA is unusable."""
        last_problem = ""
        while True:
            try:
                return cls(
                    api, namespace, await load_or_create_authorities(api, namespace, trust_domain, utc_now())
                )
            except KubeError as error:
                if str(error) != last_problem:
                    last_problem = str(error)
                    log.error("cannot load the mesh CA, retrying", namespace=namespace, problem=last_problem)  # noqa: TRY400
            await asyncio.sleep(RETRY_DELAY * random.uniform(0.5, 1))  # noqa: S311

    def attach(self, controller: SyncedController) -> None:
        """Pass CA rotations to a controller, and synchronize its rollouts with those of other replicas."""
        self._controllers.append(controller)
        sync = ReplicaSync(replica_name(self._identity), self.leads)
        if controller.enable_sync(sync):
            self._replica_leases.append(
                ReplicaLeases(self._api, self._namespace, sync, controller.peers_changed)
            )

    def peers(self, identity: IdentityPattern | None, trust_domain: Callable[[], str]) -> Peers | None:
        """Return the access to the other replicas; None if rollouts are disabled: there are no Leases.

        Args:
            identity: the control plane's service account; None if it is unknown.
            trust_domain: returns the trust domain of the mesh.
        """
        if not self._replica_leases:
            return None
        return Peers(
            self._replica_leases[0], self._namespace, identity, lambda: self.authorities, trust_domain
        )

    @property
    def authorities(self) -> Authorities:
        """CAs and trusted roots in use."""
        return self._rotation.current

    def leads(self) -> bool:
        """Return whether this replica is the leader."""
        return self.lease.held

    @property
    def parts(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Background tasks, to run during the lifetime of the control plane."""
        return [
            self.lease.run,
            self._rotation.run,
            *(publisher.run for publisher in self._publishers),
            *(leases.run for leases in self._replica_leases),
        ]

    def _adopt(self, authorities: Authorities) -> None:
        for controller in self._controllers:
            controller.rotate(authorities.authority, authorities.extra_roots)
        for publisher in self._publishers:
            publisher.trigger()
