"""The webhook's configuration: the API server must trust the CA that our certificates are from.

The configuration is installed with everything else and belongs to the operator; we write its `caBundle` and nothing else.
What is there is compared with what should be, whenever it changes and now and then. The replica that leads writes.

Needs in the cluster: mutatingwebhookconfigurations `xds-sidecar-injector`: get, list, watch, patch.
"""

from __future__ import annotations

import asyncio
import random
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

import structlog

from xds.kube.api import JSON_PATCH, Json, KubeApi, KubeError
from xds.kube.lines import lines

log = structlog.get_logger(__name__)

NAME = "xds-sidecar-injector"
FIELD_MANAGER = "xds-webhook"
_PATH = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"

EVERY = 60.0
"""Seconds after which it is compared, though nothing is known to have changed."""
REST = 0.5
"""Seconds between two comparisons: somebody who keeps changing it back costs a write in that time, no more."""
AGAIN = 5.0
"""Seconds after which what failed is tried again."""
_WATCH = 290
"""Seconds for which the API server is asked to tell changes; then it is asked again."""


class CaBundle:
    """Keeps the `caBundle` of every webhook of the configuration right; `run` works until cancelled."""

    def __init__(
        self, api: KubeApi, roots: Callable[[], bytes], *, leads: Callable[[], bool], name: str = NAME
    ) -> None:
        """Make one.

        Args:
            api: the API server.
            roots: returns the roots that are trusted now, in PEM form.
            leads: says whether this replica may write.
            name: the configuration's.
        """
        self._api = api
        self._roots = roots
        self._leads = leads
        self._name = name
        self._changed = asyncio.Event()
        self._said = ""

    def changed(self) -> None:
        """Compare, because the roots changed or this replica has begun to lead."""
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._keep())

    async def _keep(self) -> None:
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
        """Put right what is not; tell whether that worked."""
        path = f"{_PATH}/{self._name}"
        try:
            patch = self._patch(await self._api.get(path))
            if patch:
                await self._api.patch(path, patch, kind=JSON_PATCH, fieldManager=FIELD_MANAGER)
                log.info("the webhook's caBundle is put right", configuration=self._name)
        except KubeError as error:
            if error.status in {HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY}:
                # Somebody was faster: what is there now is looked at anew.
                self._changed.set()
            # No such configuration: pods are injected by `xds inject` alone, as somebody decided.
            self._say("" if error.missing else str(error))
            return error.missing
        self._say("")
        return True

    def _patch(self, configuration: Json) -> list[Json]:
        bundle = b64encode(self._roots()).decode()
        operations: list[Json] = []
        for index, webhook in enumerate(configuration.get("webhooks") or ()):
            if webhook["clientConfig"].get("caBundle") != bundle:
                at = f"/webhooks/{index}"
                operations.append({"op": "test", "path": f"{at}/name", "value": webhook["name"]})
                operations.append({"op": "add", "path": f"{at}/clientConfig/caBundle", "value": bundle})
        return operations

    async def _listen(self) -> None:
        """Have it compared whenever it changes. What changed is of no interest, nor whether something was missed."""
        while True:
            with suppress(KubeError):
                async with self._api.stream(
                    _PATH,
                    idle=_WATCH + 30,
                    watch=True,
                    timeoutSeconds=_WATCH,
                    fieldSelector=f"metadata.name={self._name}",
                ) as stream:
                    async for _ in lines(stream):
                        self._changed.set()
            await asyncio.sleep(AGAIN * random.uniform(0.5, 1))  # noqa: S311
            self._changed.set()

    def _say(self, problem: str) -> None:
        if problem and problem != self._said:
            log.warning(
                "the webhook's caBundle cannot be kept right", configuration=self._name, problem=problem
            )
        self._said = problem
