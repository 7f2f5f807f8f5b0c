"""Installation of the control plane, the mesh's settings and its default policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import yaml

from xds.mesh.kube.api import APPLY_PATCH, Json, KubeApi, KubeError
from xds.mesh.kube.packaged import FIELD_MANAGER, load_packaged
from xds.mesh.model.defaults import default_objects
from xds.mesh.model.objects import DestinationRule, Fact, MeshConfig, Mode, ModePolicy
from xds.mesh.parse import plural_of

NAMESPACE = "istio-system"
IMAGE = "xds:latest"

_JOB = "job.yaml"
"""Manifest of the Job that installs from inside the cluster."""
_LABELS = {"app.kubernetes.io/name": "xds", "app.kubernetes.io/managed-by": FIELD_MANAGER}
_ALPHA = "authentication.istio.io/v1alpha1"
_RULES = "destinationrules.networking.istio.io"
_RULE_NAMES = ("default", "api-server")


class InstallOutcome(StrEnum):
    """What happened to an object."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    LEFT = "left as it is"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class InstallResult:
    """Result of the installation of an object."""

    title: str
    """KIND NAMESPACE/NAME."""
    outcome: InstallOutcome
    why: str = ""
    """Why the object was left as it is; empty otherwise."""


def control_plane(
    *,
    image: str = IMAGE,
    mesh: Mapping[str, Any] | None = None,
    api_server_cidrs: Iterable[str] = (),
    enforce_plan: bool = False,
) -> list[Json]:
    """Return the control plane's objects, without its namespace.

    Args:
        image: the image of the control plane and of sidecars.
        mesh: the settings of the mesh, as Istio's MeshConfig; None for the defaults.
        api_server_cidrs: the networks that may connect to the webhook's port; empty for any address.
        enforce_plan: whether to refuse policies that break connections.
    """
    # Copies, because a YAML anchor and its aliases share one object.
    objects = [deepcopy(obj) for name, obj in load_packaged("install") if name != _JOB]
    for obj in objects:
        if obj["kind"] == "ConfigMap" and mesh is not None:
            obj["data"] = {"mesh": yaml.safe_dump(dict(mesh), sort_keys=False)}
        elif obj["kind"] == "NetworkPolicy" and (cidrs := list(api_server_cidrs)):
            obj["spec"]["ingress"][0]["from"] = [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]
        elif obj["kind"] == "Deployment":
            for container in obj["spec"]["template"]["spec"]["containers"]:
                container["image"] = image
                container["args"] = [arg.replace(f"={IMAGE}", f"={image}") for arg in container["args"]]
                container["args"] += ["--enforce-plan"] if enforce_plan else []
        elif obj["kind"] == "ValidatingWebhookConfiguration" and enforce_plan:
            for webhook in obj["webhooks"]:
                webhook["failurePolicy"] = "Fail"
    return objects


def refuses_policies(obj: Json) -> bool:
    """Return whether an object makes the API server refuse policies while no control plane is ready."""
    return obj["kind"] == "ValidatingWebhookConfiguration" and any(
        webhook["failurePolicy"] == "Fail" for webhook in obj["webhooks"]
    )


def default_policies(config: MeshConfig, rules_version: str = "v1") -> list[Json]:
    """Return the default policies as manifests (see `xds.mesh.model.defaults`)."""
    return [_manifest(fact, f"networking.istio.io/{rules_version}") for fact in default_objects(config)]


def _manifest(fact: Fact, rules: str) -> Json:
    spec: Json
    match fact:
        case ModePolicy(mode=Mode() as mode):
            version, spec = _ALPHA, {"peers": [{"mtls": {"mode": mode.value}}]}
        case DestinationRule(policy=policy) if policy and policy.tls:
            version = rules
            spec = {"host": fact.host, "trafficPolicy": {"tls": {"mode": policy.tls.mode.value}}}
        case _:
            raise TypeError(f"{fact.ref} is not a default policy")
    metadata: Json = {"name": fact.name, "labels": dict(_LABELS)}
    if fact.namespace:
        metadata["namespace"] = fact.namespace
    return {"apiVersion": version, "kind": fact.ref.kind, "metadata": metadata, "spec": spec}


def namespace() -> Json:
    """Return the namespace of the control plane."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


class Installer:
    """Installs objects one after the other. With `dry_run`, the API server only validates the requests."""

    def __init__(self, api: KubeApi, *, dry_run: bool = False) -> None:
        self._api = api
        self._dry_run = {"dryRun": "All"} if dry_run else {}
        self._missing: set[str] = set()
        """Namespaces that the dry run would have created."""

    async def namespace(self) -> InstallResult:
        """Create the namespace if it does not exist. Raises KubeError."""
        body = namespace()
        title = _title(body)
        if await self._read(body):
            return InstallResult(title, InstallOutcome.UNCHANGED)
        try:
            await self._api.create("/api/v1/namespaces", body, **self._dry_run)
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            return InstallResult(title, InstallOutcome.UNCHANGED)
        if self._dry_run:
            self._missing.add(NAMESPACE)
        return InstallResult(title, InstallOutcome.CREATED)

    async def control_plane(self, objects: Iterable[Json]) -> list[InstallResult]:
        """Apply the control plane's objects, and overwrite changes by other managers. Raises KubeError."""
        return [await self._apply(obj, force=True) for obj in objects]

    async def remove(self, objects: Iterable[Json]) -> list[InstallResult]:
        """Delete the objects that exist. Raises KubeError."""
        results = []
        for obj in objects:
            if await self._read(obj):
                await self._api.delete(_path(obj), **self._dry_run)
                results.append(InstallResult(_title(obj), InstallOutcome.DELETED))
        return results

    async def policies(
        self, config: MeshConfig, served: Mapping[str, tuple[str, ...]]
    ) -> list[InstallResult]:
        """Apply the default policies, except those that another manager has changed.

        Args:
            config: the settings of the mesh, which determine the default policies.
            served: the supported versions of each kind that the cluster serves. A dry run may lack kinds.

        Raises:
            KubeError: the API server cannot be reached or rejects a request.
        """
        desired = default_policies(config, next(iter(served.get(_RULES, ())), "v1"))
        results = [await self._apply(obj, force=False) for obj in desired]
        names = {obj["metadata"]["name"] for obj in desired if obj["kind"] == "DestinationRule"}
        for version in served.get(_RULES, ())[:1]:
            for name in _RULE_NAMES:
                if name not in names:
                    results += await self._delete_default_rule(version, config.root_namespace, name)
        return results

    async def _apply(self, desired: Json, *, force: bool) -> InstallResult:
        title = _title(desired)
        if desired["metadata"].get("namespace") in self._missing:
            return InstallResult(title, InstallOutcome.CREATED)
        before = await self._read(desired)
        query: dict[str, Any] = {"fieldManager": FIELD_MANAGER, "force": force, **self._dry_run}
        try:
            after = await self._api.patch(_path(desired), desired, kind=APPLY_PATCH, **query)
        except KubeError as error:
            if error.status == HTTPStatus.CONFLICT and not force:
                return InstallResult(title, InstallOutcome.LEFT, conflict_owners(error))
            if error.is_not_found and self._dry_run and not before:
                # The dry run did not create the object's kind.
                return InstallResult(title, InstallOutcome.CREATED)
            raise
        if before is None:
            return InstallResult(title, InstallOutcome.CREATED)
        return InstallResult(
            title, InstallOutcome.UNCHANGED if _is_same(before, after) else InstallOutcome.CHANGED
        )

    async def _delete_default_rule(self, version: str, namespace: str, name: str) -> list[InstallResult]:
        """Delete a rule that an earlier installation created, unless another manager has changed it."""
        meta = {"name": name, "namespace": namespace}
        rule = {"apiVersion": f"networking.istio.io/{version}", "kind": "DestinationRule", "metadata": meta}
        existing = await self._read(rule)
        if (
            not existing
            or (existing["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") != FIELD_MANAGER
        ):
            return []
        managers = {
            entry["manager"]
            for entry in existing["metadata"].get("managedFields") or ()
            if entry["manager"] != FIELD_MANAGER and not entry.get("subresource")
        }
        if managers:
            return [
                InstallResult(_title(rule), InstallOutcome.LEFT, f"changed by {', '.join(sorted(managers))}")
            ]
        await self._api.delete(_path(rule), **self._dry_run)
        return [InstallResult(_title(rule), InstallOutcome.DELETED)]

    async def _read(self, desired: Json) -> Json | None:
        return await self._api.find(_path(desired))


def resource_of(body: Json) -> tuple[str, str, str]:
    """Return the API group, the plural and the namespace of an object; empty without a namespace."""
    group = body["apiVersion"].rpartition("/")[0]
    return group, plural_of(body["kind"]), body["metadata"].get("namespace", "")


def _path(body: Json) -> str:
    group, plural, namespace = resource_of(body)
    root = f"/apis/{body['apiVersion']}" if group else f"/api/{body['apiVersion']}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{plural}/{body['metadata']['name']}"


def _title(body: Json) -> str:
    meta = body["metadata"]
    prefix = f"{meta['namespace']}/" if meta.get("namespace") else ""
    return f"{body['kind']} {prefix}{meta['name']}"


def _is_same(before: Json, after: Json) -> bool:
    def comparable(body: Json) -> Json:
        ignored = {"managedFields", "resourceVersion", "generation"}
        metadata = {name: value for name, value in body["metadata"].items() if name not in ignored}
        return {**body, "metadata": metadata}

    return comparable(before) == comparable(after)


def conflict_owners(conflict: KubeError) -> str:
    """Return the conflicting fields and their managers, as text."""

    def causes() -> Iterator[str]:
        for cause in (conflict.body.get("details") or {}).get("causes") or ():
            yield f"{cause.get('field', '')} ({cause.get('message', '')})"

    return "; ".join(dict.fromkeys(causes())) or str(conflict)
