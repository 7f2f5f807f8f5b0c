"""The plan and the reports of replicas (`xds.mesh.rollout.sync`), in annotations of Leases.

Each replica has a Lease for its report. It renews the Lease every few seconds, and writes it after each
change of its report. The plan has a Lease of its own. It is written with the resourceVersion that was read,
so that only one of two simultaneous writes succeeds. One watch covers all Leases. A replica that stops does
not delete its Lease: its proxies count until they connect to another replica or the Lease expires. Any
replica deletes expired Leases.

Required permissions in its own namespace: list, watch, create, update and delete coordination.k8s.io leases.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import structlog

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.kube.reflector import Reflector
from xds.mesh.kube.resource import KubeResource, WatchOptions
from xds.mesh.kube.rollout_codec import CodecError, decode_plan, decode_report, encode_plan, encode_report
from xds.mesh.rollout.plan import StoredPlan
from xds.mesh.rollout.sync import ReplicaSync

log = structlog.get_logger(__name__)

PREFIX = "xds-replica-"
"""Prefix of the Leases' names, before the name of the replica."""
PLAN = "xds-replica-plan"
"""Name of the Lease with the plan."""
LABEL = "sidecar.xds/replica"
ANNOTATION = "sidecar.xds/rollout"
ADDRESS = "sidecar.xds/address"
"""Annotation with the IP:PORT at which other replicas reach this one; empty if it is not known."""
_STARTING = "starting"
"""Value of the annotation before the replica listens. No sidecar is connected to it then."""

WRITE_INTERVAL = 0.1
"""Minimum seconds between two writes of a report."""
RETRY_DELAY = 1.0
"""Seconds before a failed request is retried."""


def replica_name(identity: str) -> str:
    """Return the name of a replica, as part of a Lease's name."""
    return re.sub(r"[^a-z0-9-]", "-", identity.lower())


class ReplicaLeases:
    """Writes the report and the plan of this replica, and reads those of all replicas.

    `on_change` is called after something has been read, or a plan was stored.
    """

    def __init__(
        self, api: KubeApi, namespace: str, sync: ReplicaSync, on_change: Callable[[], None]
    ) -> None:
        self._api = api
        resource = KubeResource(
            kind="Lease",
            plural="leases",
            group="coordination.k8s.io",
            namespace=namespace,
            labels=f"{LABEL}=true",
        )
        self._path = resource.path("v1")
        options = WatchOptions(
            max_delay=RETRY_DELAY,
            max_retry_after=RETRY_DELAY,
            # The replica's own renewals arrive within the duration. Without them, the watch is broken.
            idle_timeout=sync.reports.duration,
            list_timeout=30.0,
        )
        self._leases: Reflector[Json] = Reflector(api, resource, lambda lease, _: lease, self._read, options)
        self._namespace = namespace
        self._sync = sync
        self._on_change = on_change
        self._changed = {"report": asyncio.Event(), "plan": asyncio.Event()}
        self._loop: asyncio.AbstractEventLoop | None = None
        sync.on_change = self._wake
        self._version = ""
        """resourceVersion of this replica's Lease; empty if the Lease does not exist."""
        self._address = _STARTING
        self._addresses: dict[str, str] = {}
        """The annotation ADDRESS of each other replica that has a Lease."""
        self._log_problem = OnceLogger(log, "cannot share rollouts with other replicas")

    @property
    def name(self) -> str:
        """The name of this replica's Lease."""
        return PREFIX + self._sync.name

    @property
    def replica(self) -> str:
        """The name of this replica."""
        return self._sync.name

    def publish_address(self, address: str) -> None:
        """Publish the IP:PORT at which other replicas reach this one; empty if it is not known."""
        self._address = address
        self._wake()

    def peer_addresses(self, now: float) -> dict[str, str]:
        """Return the address of each other replica that listens, as IP:PORT; empty if it is not known."""
        running = self._sync.reports.peers(now)
        return {
            name: address
            for name, address in self._addresses.items()
            if name in running and address != _STARTING
        }

    def is_isolated(self, now: float) -> bool:
        """Return whether this replica cannot renew its Lease, so that its view of the others may be old."""
        return self._sync.reports.is_isolated(now)

    def _wake(self) -> None:
        """Write soon. May be called in any thread: plans are made in one."""
        if self._loop:
            for event in self._changed.values():
                self._loop.call_soon_threadsafe(event.set)

    async def run(self) -> None:
        """Run until cancelled."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write("report", self._write_report))
            tasks.create_task(self._write("plan", self._write_plan))
            tasks.create_task(self._leases.run())

    # --- writes ---

    async def _write(self, task: str, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Write after each change, and to renew the report, until cancelled."""
        changed = self._changed[task]
        while True:
            changed.clear()
            delay = RETRY_DELAY
            try:
                async with asyncio.timeout(self._sync.reports.duration / 3):
                    await write()
                self._log_problem("", task=task)
                delay = WRITE_INTERVAL if task == "report" else 0.0
            except TimeoutError:
                self._log_problem("the API server did not answer in time", task=task)
            except (KubeError, CodecError) as error:
                self._log_problem(str(error), task=task)
            await asyncio.sleep(delay)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._sync.reports.duration / 3 * random.uniform(0.8, 1.0)):  # noqa: S311
                    await changed.wait()

    async def _write_report(self) -> None:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        text = await asyncio.to_thread(encode_report, self._sync.reports.own)
        body = self._lease(self.name, text, self._version)
        body["metadata"]["annotations"][ADDRESS] = self._address
        body["spec"] = {
            "holderIdentity": self._sync.name,
            "leaseDurationSeconds": max(1, round(self._sync.reports.duration)),
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        try:
            self._version = await self._put(body)
        except KubeError as error:
            # The response to an earlier write was lost, or somebody else wrote or deleted the Lease.
            if error.is_not_found:
                self._version = ""
            if error.status == HTTPStatus.CONFLICT:
                self._version = await self._read_version()
            raise
        self._sync.reports.renewed(started_at, loop.time())
        await self._delete_expired()

    async def _read_version(self) -> str:
        """Return the version of the own Lease. Events of the watch may be older than the last write."""
        listed = await self._api.get(self._path, fieldSelector=f"metadata.name={self.name}")
        return next((str(lease["metadata"]["resourceVersion"]) for lease in listed.get("items") or ()), "")

    async def _write_plan(self) -> None:
        candidate = self._sync.plan_to_store(asyncio.get_running_loop().time())
        if candidate is None:
            return
        replaced, plan = candidate
        text = await asyncio.to_thread(encode_plan, plan)
        try:
            version = await self._put(self._lease(PLAN, text, replaced))
        except KubeError as error:
            if error.is_not_found or error.status == HTTPStatus.CONFLICT:
                return  # Another replica has stored a plan. The watch delivers it.
            raise
        self._sync.plan_stored(replaced, version, plan)
        self._on_change()

    def _lease(self, name: str, text: str, version: str) -> Json:
        metadata: Json = {
            "name": name,
            "namespace": self._namespace,
            "labels": {LABEL: "true"},
            "annotations": {ANNOTATION: text},
        }
        if version:
            metadata["resourceVersion"] = version
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}

    async def _put(self, body: Json) -> str:
        """Create the Lease, or replace the version that was read. Return the new version."""
        meta = body["metadata"]
        if "resourceVersion" in meta:
            stored = await self._api.replace(f"{self._path}/{meta['name']}", body)
        else:
            stored = await self._api.create(self._path, body)
        return str(stored["metadata"]["resourceVersion"])

    async def _delete_expired(self) -> None:
        for name, version in self._sync.reports.expired(asyncio.get_running_loop().time()).items():
            if not version:
                self._sync.reports.forget(name)  # A member of the plan that has no Lease.
                continue
            log.info("replica expired", replica=name)
            options: Json = {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": {"resourceVersion": version},
            }
            try:
                await self._api.call("DELETE", f"{self._path}/{PREFIX}{name}", options)
            except KubeError as error:
                if not error.is_not_found and error.status != HTTPStatus.CONFLICT:
                    raise

    # --- all Leases ---

    def _read(self) -> None:
        """Read what has changed."""
        failure = self._leases.failure
        self._log_problem(failure.message if failure else "", task="read")
        for (_, name), (_, lease) in self._leases.take().items():
            self._receive(name, lease)
        if self._leases.complete and self._sync.stored is None:
            self._receive(PLAN, None)
        self._on_change()

    def _receive(self, name: str, lease: Json | None) -> None:
        """Read a Lease; None if there is none."""
        meta = lease["metadata"] if lease else {}
        annotations = meta.get("annotations") or {}
        text, version = annotations.get(ANNOTATION, ""), meta.get("resourceVersion", "")
        replica = name.removeprefix(PREFIX)
        if name == PLAN:
            plan = StoredPlan()
            try:
                plan = decode_plan(text) if lease else plan
            except CodecError as error:
                self._log_problem(str(error), task="plan")
            self._sync.plan_read(version, plan)
        elif name == self.name:
            if not lease:
                self._version = ""
                self._wake()
        elif lease:
            duration = float((lease.get("spec") or {}).get("leaseDurationSeconds") or 0)
            self._addresses[replica] = _parse_address(annotations.get(ADDRESS, ""))
            now = asyncio.get_running_loop().time()
            self._sync.reports.receive(replica, version, decode_report(text), duration, now)
        else:
            self._sync.reports.forget(replica)
            self._addresses.pop(replica, None)


def _parse_address(text: str) -> str:
    """Return an annotation ADDRESS; empty if it is not an IP address and a port."""
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return text if text == _STARTING else ""
    return text if port.isascii() and port.isdecimal() else ""
