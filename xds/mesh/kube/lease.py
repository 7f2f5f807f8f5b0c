"""Leader election through a Lease, as in client-go. Only the leader writes shared objects.

The holder renews the Lease. Another replica takes over after it has observed no change of the Lease for its
whole duration. Each replica measures that time with its own clock; clocks of two machines are never compared.

Required permissions in its own namespace: get and update coordination.k8s.io leases `xds-leader`; create
leases.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from http import HTTPStatus

import structlog

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger

log = structlog.get_logger(__name__)

LEASE_NAME = "xds-leader"
LEASE_DURATION = 15.0
"""Seconds without a renewal after which another replica may take over."""


class Lease:
    """Leader election through a Lease. `run` acquires and renews it."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        identity: str,
        *,
        name: str = LEASE_NAME,
        duration: float = LEASE_DURATION,
    ) -> None:
        self._api = api
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name, self._identity = namespace, name, identity
        self._duration = duration
        self._held_until = 0.0
        """Time until which this replica certainly holds the Lease, in seconds of the event loop's clock."""
        self._observed: tuple[str, float] | None = None
        """resourceVersion of the Lease while another replica holds it, and the time it was first seen."""
        self._log_problem = OnceLogger(log, "cannot renew the leader Lease")

    @property
    def held(self) -> bool:
        """Whether this replica leads. This ends a third of the duration before a takeover is possible."""
        return asyncio.get_running_loop().time() < self._held_until

    async def run(self) -> None:
        """Acquire and renew the Lease until cancelled, then release it."""
        try:
            while True:
                await self._try_to_hold()
                # Jitter, so that replicas that started together do not send requests together.
                await asyncio.sleep(self._duration / 6 * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            # A cancelled task may still await. Releasing the Lease speeds up the takeover.
            if self.held:
                await self._release()

    async def _try_to_hold(self) -> None:
        loop = asyncio.get_running_loop()
        started, was_held = loop.time(), self.held
        lease = f"{self._namespace}/{self._name}"
        try:
            async with asyncio.timeout(self._duration / 3):
                acquired = await self._claim(started)
        except TimeoutError:
            self._log_problem("the API server did not answer in time", lease=lease)
            return
        except KubeError as error:
            self._log_problem(str(error), lease=lease)
            return
        self._log_problem("", lease=lease)
        # Measured from before the request, because the server may have stored the renewal at any time since.
        self._held_until = started + self._duration * 2 / 3 if acquired else 0.0
        if acquired and not was_held:
            log.info("became leader", lease=lease, identity=self._identity)

    async def _claim(self, now: float) -> bool:
        lease = await self._api.find(f"{self._path}/{self._name}")
        if lease is None:
            return await self._write(None)
        holder = lease.get("spec", {}).get("holderIdentity") or ""
        if holder in {"", self._identity}:
            return await self._write(lease)
        version = lease["metadata"]["resourceVersion"]
        if self._observed is None or self._observed[0] != version:
            self._observed = (version, now)
        duration = max(float(lease["spec"].get("leaseDurationSeconds") or 0), self._duration)
        return now >= self._observed[1] + duration and await self._write(lease)

    async def _write(self, old: Json | None, *, release: bool = False) -> bool:
        """Write the Lease. Return False if another replica has changed it."""
        spec = dict((old or {}).get("spec") or {})
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = stamp
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if old else 0)
        spec |= {
            "holderIdentity": "" if release else self._identity,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "renewTime": stamp,
        }
        body: Json = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": spec,
        }
        try:
            if old is None:
                await self._api.create(self._path, body)
            else:
                body["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
                await self._api.replace(f"{self._path}/{self._name}", body)
        except KubeError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return False
        return True

    async def _release(self) -> None:
        self._held_until = 0.0
        try:
            async with asyncio.timeout(self._duration / 3):
                lease = await self._api.get(f"{self._path}/{self._name}")
                if lease.get("spec", {}).get("holderIdentity") == self._identity:
                    await self._write(lease, release=True)
        except (KubeError, TimeoutError):
            return
