"""Exchange of the replicas' rollout reports (`xds.mesh.rollout.peers`) through annotations of Leases.

Each replica has a Lease. It renews the Lease every few seconds, and writes it after each change of its
report. One watch covers all Leases, so every replica reads them, including its own, in the order of the
writes. A replica that stops does not delete its Lease: its proxies count until they connect to another
replica or the Lease expires. Any replica deletes expired Leases.

Required permissions in its own namespace: list, watch, create, update and delete coordination.k8s.io leases.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus

import structlog

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.decoding import decode_json
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.kube.ndjson import read_lines
from xds.mesh.kube.report_codec import decode_report, encode_report
from xds.mesh.rollout.peers import ReplicaReport
from xds.mesh.rollout.replica_sync import ReplicaSync

log = structlog.get_logger(__name__)

PREFIX = "xds-replica-"
"""Prefix of the Leases' names, before the name of the replica."""
LABEL = "sidecar.xds/replica"
ANNOTATION = "sidecar.xds/rollout"

WRITE_INTERVAL = 0.2
"""Minimum seconds between two writes of small reports."""
LARGE_WRITE_INTERVAL = 2.0
"""Minimum seconds between two writes of the largest reports; other sizes are interpolated."""
RETRY_DELAY = 1.0
"""Seconds before a failed request is retried."""
_WATCH_TIMEOUT = 290
"""Lifetime of a watch, in seconds. An expired watch is reopened."""

_NOT_WRITTEN = frozenset({HTTPStatus.BAD_REQUEST, 401, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, 413, 422})
"""Statuses of responses to writes that certainly had no effect."""


class ReplicaLeases:
    """Writes the report of this replica, and reads the reports of all replicas.

    `on_reports` is called after reports have been read.
    """

    def __init__(
        self, api: KubeApi, namespace: str, identity: str, sync: ReplicaSync, on_reports: Callable[[], None]
    ) -> None:
        self._api = api
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._identity, self._namespace = identity, namespace
        # The identity changes at each start: the previous process's report counts until its Lease expires.
        self.name = PREFIX + re.sub(r"[^a-z0-9-]", "-", identity.lower())
        self._sync = sync
        self._on_reports = on_reports
        self._changed = asyncio.Event()
        sync.on_change = self._changed.set
        self._version = ""
        """resourceVersion of this replica's Lease; empty if the Lease does not exist."""
        self._log_problem = OnceLogger(log, "cannot exchange reports with other replicas")

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._read())

    # --- own Lease ---

    async def _write(self) -> None:
        while True:
            self._changed.clear()
            delay = RETRY_DELAY
            try:
                async with asyncio.timeout(self._sync.duration / 3):
                    size = await self._put_lease()
                    await self._delete_expired()
                self._log_problem("", task="write")
                delay = WRITE_INTERVAL + (LARGE_WRITE_INTERVAL - WRITE_INTERVAL) * size / (256 * 1024)
            except TimeoutError:
                self._log_problem("the API server did not answer in time", task="write")
            except KubeError as error:
                self._log_problem(str(error), task="write")
            await asyncio.sleep(delay)
            if not self._sync.has_unpublished:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._sync.duration / 3 * random.uniform(0.8, 1.0)):  # noqa: S311
                        await self._changed.wait()

    async def _put_lease(self) -> int:
        """Write the report to the Lease. Return its size."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        report = self._sync.start_write(started)
        # In a thread, because compressing a large report takes a while.
        text = await asyncio.to_thread(encode_report, report)
        if text is None:
            self._sync.retract()
            report = self._sync.start_write(started, too_large=True)
            text = encode_report(report) or ""
        body: Json = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.name,
                "namespace": self._namespace,
                "labels": {LABEL: "true"},
                "annotations": {ANNOTATION: text},
            },
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._sync.duration)),
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }
        try:
            if self._version:
                body["metadata"]["resourceVersion"] = self._version
                lease = await self._api.replace(f"{self._path}/{self.name}", body)
            else:
                lease = await self._api.create(self._path, body)
        except KubeError as error:
            # Not found: a peer deleted the expired Lease. Conflict: an earlier write succeeded, but its
            # response was lost.
            if error.is_not_found:
                self._version = ""
            if error.status in _NOT_WRITTEN:
                self._sync.retract()
            if error.status == HTTPStatus.CONFLICT:
                await self._list()
            raise
        self._version = lease["metadata"]["resourceVersion"]
        return len(text)

    async def _delete_expired(self) -> None:
        for name, version in self._sync.expired(asyncio.get_running_loop().time()).items():
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

    async def _read(self) -> None:
        while True:
            try:
                await self._watch(await self._list())
                self._log_problem("", task="read")
            except KubeError as error:
                if error.status != HTTPStatus.GONE:
                    self._log_problem(str(error), task="read")
                await asyncio.sleep(RETRY_DELAY * random.uniform(0.5, 1))  # noqa: S311

    async def _list(self) -> str:
        """Read all Leases. Return the resourceVersion of the list."""
        page = await self._api.get(self._path, labelSelector=f"{LABEL}=true")
        leases = [lease for lease in page.get("items") or () if isinstance(lease, dict)]
        names = {lease["metadata"]["name"] for lease in leases}
        if self.name not in names:
            self._version = ""
        # Own Lease last: when it is read back, all earlier reports of peers must have been received.
        for lease in sorted(leases, key=lambda lease: bool(lease["metadata"]["name"] == self.name)):
            if lease["metadata"]["name"] == self.name:
                self._version = lease["metadata"]["resourceVersion"]
            self._receive(lease)
        for name in self._sync.names - {name.removeprefix(PREFIX) for name in names}:
            self._sync.forget(name)
        self._on_reports()
        return str(page["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        """Apply events until the server ends the watch. Raises KubeError."""
        query = {
            "labelSelector": f"{LABEL}=true",
            "resourceVersion": version,
            "watch": True,
            "timeoutSeconds": _WATCH_TIMEOUT,
        }
        # This replica's own renewals arrive within the duration, or the watch is broken.
        async with self._api.stream(self._path, idle=self._sync.duration, **query) as stream:
            async for batch in read_lines(stream):
                for line in batch:
                    event = decode_json(line)
                    lease = event["object"]
                    if event["type"] == "ERROR":
                        raise KubeError(int(lease.get("code") or 0), str(lease.get("message")))
                    if event["type"] == "DELETED":
                        self._sync.forget(lease["metadata"]["name"].removeprefix(PREFIX))
                    elif event["type"] != "BOOKMARK":
                        self._receive(lease)
                self._on_reports()

    def _receive(self, lease: Json) -> None:
        meta, now = lease["metadata"], asyncio.get_running_loop().time()
        report: ReplicaReport = decode_report((meta.get("annotations") or {}).get(ANNOTATION, ""))
        if meta["name"] == self.name:
            self._sync.read_back(report.number, now)
            return
        duration = float((lease.get("spec") or {}).get("leaseDurationSeconds") or 0)
        name = meta["name"].removeprefix(PREFIX)
        self._sync.receive(name, meta["resourceVersion"], report, duration, now)
