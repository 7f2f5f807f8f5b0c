"""Publishers of the mesh's roots.

Pods verify the control plane with a ConfigMap in every namespace. Applications that use the mesh's
certificates find the roots in a ClusterTrustBundle, if the cluster has that kind.

The publisher of ConfigMaps reconciles after a change of a namespace or of one of them
(`xds.mesh.kube.reconciler`).

Required cluster permissions: list and watch namespaces; list, watch, create and patch configmaps
`xds-ca-root-cert`; get, create and patch clustertrustbundles; attest the signer `xds.io/workload`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from xds.mesh.identity import ROOT_CONFIG_MAP, SIGNER, TRUST_BUNDLE
from xds.mesh.kube.api import APPLY_PATCH, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.kube.reconciler import Reconciler, WatchTarget

log = structlog.get_logger(__name__)

NAME = ROOT_CONFIG_MAP
KEY = "root-cert.pem"
FIELD_MANAGER = "xds-roots"

_NAMESPACES = "/api/v1/namespaces"
_MAPS = "/api/v1/configmaps"
_BUNDLE = f"/apis/certificates.k8s.io/v1/clustertrustbundles/{TRUST_BUNDLE}"

WRITE_INTERVAL = 0.02
"""Minimum seconds between two writes."""


class RootPublisher(Reconciler):
    """Keeps the ConfigMap with the roots up to date in every namespace."""

    def __init__(
        self,
        api: KubeApi,
        roots: Callable[[], bytes],
        *,
        leads: Callable[[], bool],
    ) -> None:
        """Create a publisher.

        Args:
            api: the API server.
            roots: returns the trusted roots, in PEM format.
            leads: returns whether this replica is the leader.
        """
        super().__init__(api, WatchTarget(_NAMESPACES), WatchTarget(_MAPS, NAME), leads=leads)
        self._roots = roots
        self._log_problem = OnceLogger(log, "cannot publish the roots")

    async def reconcile(self) -> bool:
        """Update all outdated ConfigMaps. Return whether all updates succeeded."""
        try:
            namespaces = await self._api.list_all(_NAMESPACES)
            config_maps = await self._api.list_all(_MAPS, fieldSelector=f"metadata.name={NAME}")
        except KubeError as error:
            self._log_problem(str(error), namespace="(all)")
            return False
        self._log_problem("", namespace="(all)")
        roots = self._roots().decode()
        published = {
            config_map["metadata"]["namespace"]: (config_map.get("data") or {}).get(KEY)
            for config_map in config_maps
        }
        succeeded = True
        for namespace in namespaces:
            name = namespace["metadata"]["name"]
            is_terminating = namespace["metadata"].get("deletionTimestamp")
            if is_terminating or published.get(name) == roots:
                continue
            if not self._leads():
                return True
            succeeded &= await self._write(name, roots)
            await asyncio.sleep(WRITE_INTERVAL)
        return succeeded

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
            await self._api.patch(path, body, kind=APPLY_PATCH, fieldManager=FIELD_MANAGER, force=True)
        except KubeError as error:
            if error.is_not_found or error.is_namespace_terminating:
                return True
            self._log_problem(str(error), namespace=namespace)
            return False
        self._log_problem("", namespace=namespace)
        return True


class TrustBundlePublisher(Reconciler):
    """Keeps the ClusterTrustBundle with the roots up to date, if the cluster has that kind."""

    def __init__(self, api: KubeApi, roots: Callable[[], bytes], *, leads: Callable[[], bool]) -> None:
        """Create a publisher, with the same arguments as `RootPublisher`."""
        super().__init__(api, leads=leads)
        self._roots = roots
        self._log_problem = OnceLogger(log, "cannot publish the roots")

    async def reconcile(self) -> bool:
        """Update the bundle if it is outdated. Return whether this succeeded."""
        roots = self._roots().decode()
        body = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "ClusterTrustBundle",
            "metadata": {"name": TRUST_BUNDLE, "labels": {"app.kubernetes.io/managed-by": "xds"}},
            "spec": {"signerName": SIGNER, "trustBundle": roots},
        }
        try:
            published = await self._api.find(_BUNDLE)
            if not published or published["spec"]["trustBundle"] != roots:
                await self._api.patch(_BUNDLE, body, kind=APPLY_PATCH, fieldManager=FIELD_MANAGER, force=True)
        except KubeError as error:
            if not error.is_not_found:
                self._log_problem(str(error), bundle=TRUST_BUNDLE)
                return False
        self._log_problem("", bundle=TRUST_BUNDLE)
        return True
