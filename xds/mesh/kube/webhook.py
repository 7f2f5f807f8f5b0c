"""The webhook's configuration: the API server must trust the CA that our certificates are from.

The configuration is installed with everything else and belongs to the operator; we write its `caBundle` and nothing else
(`xds.mesh.kube.reconciler`).

Needs in the cluster: mutatingwebhookconfigurations `xds-sidecar-injector`: get, watch, patch.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from http import HTTPStatus

import structlog

from xds.mesh.kube.api import JSON_PATCH, Json, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.kube.reconciler import Reconciler, WatchTarget

log = structlog.get_logger(__name__)

NAME = "xds-sidecar-injector"
FIELD_MANAGER = "xds-webhook"
_PATH = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


class CaBundlePublisher:
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
        self._name = name
        self._reconciler = Reconciler(api, self.reconcile, (WatchTarget(_PATH, name),), leads=leads)
        self._log_problem = OnceLogger(log, "the webhook's caBundle cannot be kept right")

    def trigger(self) -> None:
        """Compare, because the roots changed or this replica has begun to lead."""
        self._reconciler.trigger()

    async def run(self) -> None:
        """Work until cancelled."""
        await self._reconciler.run()

    async def reconcile(self) -> bool:
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
                self._reconciler.trigger()
            # No such configuration: pods are injected by `xds inject` alone, as somebody decided.
            self._log_problem("" if error.is_not_found else str(error), configuration=self._name)
            return error.is_not_found
        self._log_problem("", configuration=self._name)
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
