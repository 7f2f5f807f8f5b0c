"""The mesh's roots in every namespace, as a ConfigMap that pods mount to know the control plane by.

What is there is compared with what should be: whenever a namespace or one of these ConfigMaps changes, and now and then. So it
does not matter what happened, or in what order. The replica that leads writes.

Needs in the cluster: namespaces: list, watch; configmaps `xds-ca-root-cert`: list, watch, patch; configmaps: create (RBAC
cannot restrict that to a name).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import structlog

from xds.kube.api import APPLY, Json, KubeApi, KubeError
from xds.kube.lines import lines

log = structlog.get_logger(__name__)

NAME = "xds-ca-root-cert"
KEY = "root-cert.pem"
FIELD_MANAGER = "xds-roots"

_NAMESPACES = "/api/v1/namespaces"
_MAPS = "/api/v1/configmaps"
_ONLY_OURS = f"metadata.name={NAME}"

EVERY = 60.0
"""Seconds after which all is compared, though nothing is known to have changed."""
PACE = 0.02
"""Seconds between two writes."""
REST = 0.5
"""Seconds between two comparisons: somebody who keeps changing it back costs a write in that time, no more."""
AGAIN = 5.0
"""Seconds after which what failed is tried again."""
_WATCH = 290
"""Seconds for which the API server is asked to tell changes; then it is asked again."""


class Roots:
    """Publishes the roots; `run` keeps them right."""

    def __init__(
        self,
        api: KubeApi,
        roots: Callable[[], bytes],
        *,
        leads: Callable[[], bool],
        exclude: Collection[str] = (),
    ) -> None:
        """Make one.

        Args:
            api: the API server.
            roots: returns the roots that are trusted now, in PEM form.
            leads: says whether this replica may write.
            exclude: namespaces that are left alone.
        """
        self._api = api
        self._roots = roots
        self._leads = leads
        self._exclude = frozenset(exclude)
        self._changed = asyncio.Event()
        self._said: dict[str, str] = {}
        """What was said of which namespace (empty: of the whole), so that it is said once."""

    def changed(self) -> None:
        """Compare, because the roots changed or this replica has begun to lead."""
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(_NAMESPACES))
            tasks.create_task(self._listen(_MAPS, fieldSelector=_ONLY_OURS))
            tasks.create_task(self._publish())

    async def _publish(self) -> None:
        while True:
            self._changed.clear()
            wait = EVERY
            if not self._leads():
                wait = REST
            elif not await self.compare():
                wait = AGAIN
            await asyncio.sleep(REST)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def compare(self) -> bool:
        """Put right what is not; tell whether that worked everywhere."""
        try:
            namespaces = await self._list(_NAMESPACES)
            found = await self._list(_MAPS, fieldSelector=_ONLY_OURS)
        except KubeError as error:
            self._say("", str(error))
            return False
        self._say("", "")
        roots = self._roots().decode()
        have = {each["metadata"]["namespace"]: (each.get("data") or {}).get(KEY) for each in found}
        good = True
        for each in namespaces:
            name = each["metadata"]["name"]
            ending = each["metadata"].get("deletionTimestamp")
            if ending or name in self._exclude or have.get(name) == roots:
                continue
            if not self._leads():
                return True
            good &= await self._write(name, roots)
            await asyncio.sleep(PACE)
        return good

    async def _write(self, namespace: str, roots: str) -> bool:
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": NAME,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": "xds"},
            },
            "data": {KEY: roots},
        }
        path = f"{_NAMESPACES}/{namespace}/configmaps/{NAME}"
        try:
            await self._api.patch(path, body, kind=APPLY, fieldManager=FIELD_MANAGER, force=True)
        except KubeError as error:
            if error.missing or error.ending:
                return True
            self._say(namespace, str(error))
            return False
        self._say(namespace, "")
        return True

    async def _list(self, path: str, **query: Any) -> list[Json]:
        found: list[Json] = []
        more = ""
        while True:
            page = await self._api.get(path, limit=500, **query, **({"continue": more} if more else {}))
            found += page.get("items") or ()
            more = page["metadata"].get("continue") or ""
            if not more:
                return found

    async def _listen(self, path: str, **query: Any) -> None:
        """Have all compared whenever something changes. What changed is of no interest, nor whether something was missed."""
        while True:
            with suppress(KubeError):
                async with self._api.stream(
                    path, idle=_WATCH + 30, watch=True, timeoutSeconds=_WATCH, **query
                ) as stream:
                    async for _ in lines(stream):
                        self._changed.set()
            await asyncio.sleep(AGAIN * random.uniform(0.5, 1))  # noqa: S311
            self._changed.set()

    def _say(self, namespace: str, problem: str) -> None:
        if problem and problem != self._said.get(namespace):
            log.warning("the roots cannot be published", namespace=namespace or "(all)", problem=problem)
        if problem:
            self._said[namespace] = problem
        else:
            self._said.pop(namespace, None)
