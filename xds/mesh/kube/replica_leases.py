"""What replicas tell each other of how far their proxies are (`xds.mesh.rollout.peers`): each has a Lease, with an annotation.

A Lease is renewed every few seconds, and written whenever there is something new to say. All are watched
together, so everybody reads them in the order in which they were written, one's own included. A replica that
ends leaves its Lease behind: its proxies go to another one, and until they have, they are reckoned with.
Whoever sees that a Lease has ended deletes it.

Needs in its own namespace: coordination.k8s.io leases: list, watch, create, update, delete.
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
from xds.mesh.rollout.peers import Report
from xds.mesh.rollout.replica_sync import Exchange

log = structlog.get_logger(__name__)

PREFIX = "xds-replica-"
"""What the names of these Leases begin with; the rest names the replica."""
LABEL = "sidecar.xds/replica"
ANNOTATION = "sidecar.xds/rollout"

WRITE_INTERVAL = 0.2
"""Seconds between two writes,"""
LARGE_WRITE_INTERVAL = 2.0
"""and between two that are as large as they may be; those in between come in between."""
RETRY_DELAY = 1.0
"""Seconds after which what failed is tried again."""
_WATCH_TIMEOUT = 290
"""Seconds for which the API server is asked to tell changes; then it is asked again."""


_NOT_WRITTEN = frozenset({HTTPStatus.BAD_REQUEST, 401, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, 413, 422})
"""Answers after which nothing was written for certain."""


class ReplicaLeases:
    """Writes a replica's reports, and reads everybody's; `run` does until it is cancelled. `heard` is called after something new."""

    def __init__(
        self, api: KubeApi, namespace: str, identity: str, exchange: Exchange, heard: Callable[[], None]
    ) -> None:
        self._api = api
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._identity, self._namespace = identity, namespace
        # Another one for each start: what the one before said counts until its own Lease ends.
        self.name = PREFIX + re.sub(r"[^a-z0-9-]", "-", identity.lower())
        self._exchange = exchange
        self._heard = heard
        self._news = asyncio.Event()
        exchange.on_news = self._news.set
        self._version = ""
        """The resourceVersion of our Lease, as it was written last; empty: there is none."""
        self._log_problem = OnceLogger(log, "replicas do not hear of each other")

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._read())

    # --- ours --------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            self._news.clear()
            rest = RETRY_DELAY
            try:
                async with asyncio.timeout(self._exchange.duration / 3):
                    size = await self._put_lease()
                    await self._delete_ended()
                self._log_problem("", task="write")
                rest = WRITE_INTERVAL + (LARGE_WRITE_INTERVAL - WRITE_INTERVAL) * size / (256 * 1024)
            except TimeoutError:
                self._log_problem("the API server did not answer in time", task="write")
            except KubeError as error:
                self._log_problem(str(error), task="write")
            await asyncio.sleep(rest)
            if not self._exchange.has_news:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._exchange.duration / 3 * random.uniform(0.8, 1.0)):  # noqa: S311
                        await self._news.wait()

    async def _put_lease(self) -> int:
        """Write a report; return its size."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        report = self._exchange.write(began)
        # What is large takes a while to pack.
        text = await asyncio.to_thread(encode_report, report)
        if text is None:
            self._exchange.retract()
            report = self._exchange.write(began, too_large=True)
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
                "leaseDurationSeconds": max(1, round(self._exchange.duration)),
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }
        try:
            if self._version:
                body["metadata"]["resourceVersion"] = self._version
                found = await self._api.replace(f"{self._path}/{self.name}", body)
            else:
                found = await self._api.create(self._path, body)
        except KubeError as error:
            # A write whose answer we missed was done after all, or somebody took us for gone: `_read` says
            # which.
            if error.is_not_found:
                self._version = ""
            if error.status in _NOT_WRITTEN:
                self._exchange.retract()
            if error.status == HTTPStatus.CONFLICT:
                await self._list()
            raise
        self._version = found["metadata"]["resourceVersion"]
        return len(text)

    async def _delete_ended(self) -> None:
        for name, version in self._exchange.gone(asyncio.get_running_loop().time()).items():
            log.info("a replica is gone", replica=name)
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

    # --- everybody's -------------------------------------------------------------------------------------------------

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
        """Read all, as they are now; return the version of that."""
        found = await self._api.get(self._path, labelSelector=f"{LABEL}=true")
        leases = [each for each in found.get("items") or () if isinstance(each, dict)]
        names = {each["metadata"]["name"] for each in leases}
        if self.name not in names:
            self._version = ""
        # Ours last: by then it is known what others wrote before.
        for lease in sorted(leases, key=lambda each: bool(each["metadata"]["name"] == self.name)):
            if lease["metadata"]["name"] == self.name:
                self._version = lease["metadata"]["resourceVersion"]
            self._receive(lease)
        for name in self._exchange.names - {each.removeprefix(PREFIX) for each in names}:
            self._exchange.forget(name)
        self._heard()
        return str(found["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        """Read what comes, until the server ends the answer. KubeError."""
        query = {
            "labelSelector": f"{LABEL}=true",
            "resourceVersion": version,
            "watch": True,
            "timeoutSeconds": _WATCH_TIMEOUT,
        }
        # Our own renewals come at least: if they do not, nothing does.
        async with self._api.stream(self._path, idle=self._exchange.duration, **query) as stream:
            async for some in read_lines(stream):
                for line in some:
                    event = decode_json(line)
                    lease = event["object"]
                    if event["type"] == "ERROR":
                        raise KubeError(int(lease.get("code") or 0), str(lease.get("message")))
                    if event["type"] == "DELETED":
                        self._exchange.forget(lease["metadata"]["name"].removeprefix(PREFIX))
                    elif event["type"] != "BOOKMARK":
                        self._receive(lease)
                self._heard()

    def _receive(self, lease: Json) -> None:
        meta, now = lease["metadata"], asyncio.get_running_loop().time()
        report: Report = decode_report((meta.get("annotations") or {}).get(ANNOTATION, ""))
        if meta["name"] == self.name:
            self._exchange.read_back(report.number, now)
            return
        duration = float((lease.get("spec") or {}).get("leaseDurationSeconds") or 0)
        name = meta["name"].removeprefix(PREFIX)
        self._exchange.hear(name, meta["resourceVersion"], report, duration, now)
