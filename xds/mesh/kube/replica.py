"""One of several control planes of a cluster: the CA that it shares with the others, and what the one that leads does."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol
from uuid import uuid4

import structlog

from xds.mesh.identity.ca import Authority
from xds.mesh.identity.rotation import Authorities
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.ca_secret import Rotation, Secrets, kept_authority, utc_now
from xds.mesh.kube.lease import Lease
from xds.mesh.kube.replica_leases import Reports
from xds.mesh.kube.root_publisher import Roots
from xds.mesh.rollout.replica_sync import Exchange

log = structlog.get_logger(__name__)

AGAIN = 3.0
"""Seconds after which the CA is asked for again, if the API server would not say."""


class Rotating(Protocol):
    """Whoever gives out certificates and roots: `xds.mesh.controlplane.controller.Hub`."""

    def rotate(self, authority: Authority, extra_roots: Iterable[bytes]) -> None:
        """Trust these from now on, and give out this authority's."""

    def distrusting(self) -> Sequence[str]:
        """Return the proxies that have not taken the roots that hold now."""


class Sharing(Rotating, Protocol):
    """Whoever changes modes step by step: `xds.mesh.controlplane.controller.Hub`."""

    def share(self) -> Exchange | None:
        """Begin to reckon with other replicas; None: it waits for nobody anyway."""

    def hear(self) -> None:
        """Take note that others have said something."""


class Replica:
    """What a control plane shares with others in a cluster. Made with `join`; `parts` are to run."""

    def __init__(self, api: KubeApi, namespace: str, first: Authorities) -> None:
        self._api, self._namespace = api, namespace
        self._identity = f"{socket.gethostname()}_{uuid4().hex[:8]}"
        self.lease = Lease(api, namespace, self._identity)
        self._reports: list[Reports] = []
        self._hubs: list[Rotating] = []
        self._roots = Roots(api, lambda: self.authorities.trusted_pem, leads=self.leads)
        self._rotation = Rotation(
            Secrets(api, namespace),
            first,
            taken=self._take,
            lagging=lambda: [proxy for hub in self._hubs for proxy in hub.distrusting()],
            leads=self.leads,
        )

    @classmethod
    async def join(
        cls, api: KubeApi, namespace: str, trust_domain: str, now: Callable[[], datetime] = utc_now
    ) -> Replica:
        """Get the CA, however long the API server takes. AuthorityError: there is one that cannot be used."""
        said = ""
        while True:
            try:
                return cls(api, namespace, await kept_authority(api, namespace, trust_domain, now()))
            except KubeError as error:
                if str(error) != said:
                    said = str(error)
                    log.error("the mesh's CA cannot be had yet", namespace=namespace, problem=said)  # noqa: TRY400
            await asyncio.sleep(AGAIN * random.uniform(0.5, 1))  # noqa: S311

    def follow(self, hub: Sharing) -> None:
        """Have a hub's proxies trust and show what holds, and its rollouts wait for those of other replicas."""
        self._hubs.append(hub)
        if exchange := hub.share():
            self._reports.append(Reports(self._api, self._namespace, self._identity, exchange, hub.hear))

    @property
    def authorities(self) -> Authorities:
        """The CA that issues, and the roots that are trusted now."""
        return self._rotation.current

    def leads(self) -> bool:
        """Whether this one may write what only one writes."""
        return self.lease.held

    @property
    def parts(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What is to run as long as the control plane does."""
        return [
            self.lease.run,
            self._rotation.run,
            self._roots.run,
            *(each.run for each in self._reports),
        ]

    def _take(self, authorities: Authorities) -> None:
        for hub in self._hubs:
            hub.rotate(authorities.authority, authorities.extra_roots)
        self._roots.changed()
