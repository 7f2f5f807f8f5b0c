"""Publisher for the mesh's roots in the configurations of webhooks, so that the API server trusts them.

The installation creates the configurations, and users own them. The control plane writes only their
`caBundle` (`xds.mesh.kube.reconciler`).

Required cluster permissions: get, watch and patch mutatingwebhookconfigurations `xds-sidecar-injector` and
validatingwebhookconfigurations `xds-policies`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

import structlog

from xds.mesh.kube.api import JSON_PATCH, Json, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.kube.reconciler import Reconciler, WatchTarget

log = structlog.get_logger(__name__)

FIELD_MANAGER = "xds-webhook"
_ROOT = "/apis/admissionregistration.k8s.io/v1"


class Configuration(NamedTuple):
    """A configuration of webhooks."""

    kind: str
    """Kind of the configuration."""
    name: str
    """Name of the configuration."""

    @property
    def collection(self) -> str:
        """URL path of the kind."""
        return f"{_ROOT}/{self.kind.lower()}s"

    @property
    def path(self) -> str:
        """URL path of the configuration."""
        return f"{self.collection}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


INJECTION = Configuration("MutatingWebhookConfiguration", "xds-sidecar-injector")
POLICIES = Configuration("ValidatingWebhookConfiguration", "xds-policies")


class CaBundlePublisher(Reconciler):
    """Keeps the `caBundle` of every webhook in the configuration up to date."""

    def __init__(
        self,
        api: KubeApi,
        roots: Callable[[], bytes],
        *,
        leads: Callable[[], bool],
        configuration: Configuration = INJECTION,
    ) -> None:
        """Create a publisher.

        Args:
            api: the API server.
            roots: returns the trusted roots, in PEM format.
            leads: returns whether this replica is the leader.
            configuration: the configuration.
        """
        super().__init__(api, WatchTarget(configuration.collection, configuration.name), leads=leads)
        self._roots = roots
        self._configuration = configuration
        self._log_problem = OnceLogger(log, "cannot update the webhook caBundle")

    async def reconcile(self) -> bool:
        """Update the configuration if it is outdated. Return whether this succeeded."""
        path, name = self._configuration.path, str(self._configuration)
        try:
            patch = self._patch(await self._api.get(path))
            if patch:
                await self._api.patch(path, patch, kind=JSON_PATCH, fieldManager=FIELD_MANAGER)
                log.info("webhook caBundle updated", configuration=name)
        except KubeError as error:
            if error.status in {HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY}:
                # The configuration has changed since it was read: read it again.
                self.trigger()
            # An installation without the configuration is valid: users may delete it.
            self._log_problem("" if error.is_not_found else str(error), configuration=name)
            return error.is_not_found
        self._log_problem("", configuration=name)
        return True

    def _patch(self, configuration: Json) -> list[Json]:
        bundle = b64encode(self._roots()).decode()
        operations: list[Json] = []
        for index, webhook in enumerate(configuration.get("webhooks") or ()):
            if webhook["clientConfig"].get("caBundle") != bundle:
                path = f"/webhooks/{index}"
                operations.append({"op": "test", "path": f"{path}/name", "value": webhook["name"]})
                operations.append({"op": "add", "path": f"{path}/clientConfig/caBundle", "value": bundle})
        return operations
