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
from xds.mesh.model.objects import AuthenticationPolicy, DestinationRule, Fact, MeshConfig

NAMESPACE = "istio-system"
IMAGE = "xds:latest"

_JOB = "job.yaml"
"""Manifest of the Job that installs from inside the cluster."""
_OWNED = {"app.kubernetes.io/name": "xds", "app.kubernetes.io/managed-by": FIELD_MANAGER}
_ALPHA = "authentication.istio.io/v1alpha1"
_RULES = "destinationrules.networking.istio.io"
_RULE_NAMES = ("default", "api-server")
_PLURALS = {
    "MutatingWebhookConfiguration": "mutatingwebhookconfigurations",
    "MeshPolicy": "meshpolicies",
    "NetworkPolicy": "networkpolicies",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
}
_NAMESPACELESS = (
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MeshPolicy",
)


class Outcome(StrEnum):
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
    outcome: Outcome
    why: str = ""
    """Why the object was not changed; empty otherwise."""


def control_plane(
    *, image: str = IMAGE, mesh: Mapping[str, Any] | None = None, api_server_cidrs: Iterable[str] = ()
) -> list[Json]:
    """Return the control plane's objects, without its namespace.

    Args:
        image: the image of the control plane and of sidecars.
        mesh: the settings of the mesh, as Istio's MeshConfig; None: the defaults.
        api_server_cidrs: the networks that may connect to the webhook's port; none: any address may.
    """
    # An anchor's value is one object wherever it is used: what is changed in one place would be in the
    # others.
    objects = [deepcopy(each) for name, each in load_packaged("install") if name != _JOB]
    for each in objects:
        if each["kind"] == "ConfigMap" and mesh is not None:
            each["data"] = {"mesh": yaml.safe_dump(dict(mesh), sort_keys=False)}
        elif each["kind"] == "NetworkPolicy" and (cidrs := list(api_server_cidrs)):
            each["spec"]["ingress"][0]["from"] = [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]
        elif each["kind"] == "Deployment":
            for container in each["spec"]["template"]["spec"]["containers"]:
                container["image"] = image
                container["args"] = [each.replace(f"={IMAGE}", f"={image}") for each in container["args"]]
    return objects


def default_policies(config: MeshConfig, rules_version: str = "v1") -> list[Json]:
    """Return the default policies as manifests (see `xds.mesh.model.defaults`)."""
    return [_manifest(fact, f"networking.istio.io/{rules_version}") for fact in default_objects(config)]


def _manifest(fact: Fact, rules: str) -> Json:
    spec: Json
    match fact:
        case AuthenticationPolicy():
            version, spec = _ALPHA, {"peers": [{"mtls": {"mode": fact.mode.value}}]}
        case DestinationRule(policy=policy) if policy and policy.tls:
            version = rules
            spec = {"host": fact.host, "trafficPolicy": {"tls": {"mode": policy.tls.mode.value}}}
        case _:
            raise TypeError(f"{fact.ref} is nothing that installing creates")
    metadata: Json = {"name": fact.name, "labels": dict(_OWNED)}
    if fact.namespace:
        metadata["namespace"] = fact.namespace
    return {"apiVersion": version, "kind": fact.ref.kind, "metadata": metadata, "spec": spec}


def namespace() -> Json:
    """Return the namespace of the control plane."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


class Installer:
    """Puts objects into a cluster, one after the other; `dry_run`: only asks whether that could be."""

    def __init__(self, api: KubeApi, *, dry_run: bool = False) -> None:
        self._api = api
        self._dry_run = {"dryRun": "All"} if dry_run else {}
        self._missing: set[str] = set()
        """Namespaces that only the dry run would create."""

    async def namespace(self) -> InstallResult:
        """Create the namespace, if there is none. KubeError."""
        body = namespace()
        title = _title(body)
        if await self._read(body):
            return InstallResult(title, Outcome.UNCHANGED)
        try:
            await self._api.create("/api/v1/namespaces", body, **self._dry_run)
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            return InstallResult(title, Outcome.UNCHANGED)
        if self._dry_run:
            self._missing.add(NAMESPACE)
        return InstallResult(title, Outcome.CREATED)

    async def control_plane(self, objects: Iterable[Json]) -> list[InstallResult]:
        """Make the control plane's objects as they should be, whoever changed them meanwhile. KubeError."""
        return [await self._apply(each, force=True) for each in objects]

    async def remove(self, objects: Iterable[Json]) -> list[InstallResult]:
        """Delete objects of the control plane, if they are there. KubeError."""
        done = []
        for each in objects:
            if await self._read(each):
                await self._api.delete(_path(each), **self._dry_run)
                done.append(InstallResult(_title(each), Outcome.DELETED))
        return done

    async def policies(
        self, config: MeshConfig, served: Mapping[str, tuple[str, ...]]
    ) -> list[InstallResult]:
        """Make the mesh's first policies; what somebody else has changed is left as it is. KubeError.

        `served`: the versions of each kind that the cluster serves and we read; a dry run may find none of a
        kind.
        """
        desired = default_policies(config, next(iter(served.get(_RULES, ())), "v1"))
        done = [await self._apply(each, force=False) for each in desired]
        names = {each["metadata"]["name"] for each in desired if each["kind"] == "DestinationRule"}
        for version in served.get(_RULES, ())[:1]:
            for name in _RULE_NAMES:
                if name not in names:
                    done += await self._delete_default_rule(version, config.root_namespace, name)
        return done

    async def _apply(self, desired: Json, *, force: bool) -> InstallResult:
        title = _title(desired)
        if desired["metadata"].get("namespace") in self._missing:
            return InstallResult(title, Outcome.CREATED)
        before = await self._read(desired)
        query: dict[str, Any] = {"fieldManager": FIELD_MANAGER, "force": force, **self._dry_run}
        try:
            after = await self._api.patch(_path(desired), desired, kind=APPLY_PATCH, **query)
        except KubeError as error:
            if error.status == HTTPStatus.CONFLICT and not force:
                return InstallResult(title, Outcome.LEFT, _owners(error))
            if error.is_not_found and self._dry_run and not before:
                return InstallResult(
                    title, Outcome.CREATED
                )  # its kind, which the dry run did not create, is not served
            raise
        if before is None:
            return InstallResult(title, Outcome.CREATED)
        return InstallResult(title, Outcome.UNCHANGED if _is_same(before, after) else Outcome.CHANGED)

    async def _delete_default_rule(self, version: str, where: str, name: str) -> list[InstallResult]:
        """Delete a rule that an earlier installation made, unless somebody has changed it since."""
        meta = {"name": name, "namespace": where}
        rule = {"apiVersion": f"networking.istio.io/{version}", "kind": "DestinationRule", "metadata": meta}
        found = await self._read(rule)
        if (
            not found
            or (found["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") != FIELD_MANAGER
        ):
            return []
        others = {
            each["manager"]
            for each in found["metadata"].get("managedFields") or ()
            if each["manager"] != FIELD_MANAGER and not each.get("subresource")
        }
        if others:
            return [InstallResult(_title(rule), Outcome.LEFT, f"changed by {', '.join(sorted(others))}")]
        await self._api.delete(_path(rule), **self._dry_run)
        return [InstallResult(_title(rule), Outcome.DELETED)]

    async def _read(self, desired: Json) -> Json | None:
        return await self._api.find(_path(desired))


def _path(body: Json) -> str:
    version, kind, meta = body["apiVersion"], body["kind"], body["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = _PLURALS.get(kind, f"{kind.lower()}s")
    within = "" if kind in _NAMESPACELESS else f"/namespaces/{meta['namespace']}"
    return f"{root}{within}/{plural}/{meta['name']}"


def _title(body: Json) -> str:
    meta = body["metadata"]
    where = f"{meta['namespace']}/" if meta.get("namespace") else ""
    return f"{body['kind']} {where}{meta['name']}"


def _is_same(before: Json, after: Json) -> bool:
    def told(body: Json) -> Json:
        ours = {"managedFields", "resourceVersion", "generation"}
        return {**body, "metadata": {name: v for name, v in body["metadata"].items() if name not in ours}}

    return told(before) == told(after)


def _owners(conflict: KubeError) -> str:
    """Say who has what we would write, as the API server tells it."""

    def causes() -> Iterator[str]:
        for cause in (conflict.body.get("details") or {}).get("causes") or ():
            yield f"{cause.get('field', '')} ({cause.get('message', '')})"

    return "; ".join(dict.fromkeys(causes())) or str(conflict)
