"""The PeerAuthentication that sets the mode of a namespace or a workload, on the API server."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from xds.mesh.kube.api import APPLY_PATCH, Json, KubeApi, KubeError
from xds.mesh.kube.install import conflict_owners
from xds.mesh.model.objects import Mode, Ref
from xds.mesh.parse import KINDS, plural_of

FIELD_MANAGER = "xds"
"""Field manager of the applied fields."""
_KIND = next(kind for kind in KINDS if kind.name == "PeerAuthentication")
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
_MAX_OWNERS = 2
"""Number of owners from a pod to its workload: a ReplicaSet and a Deployment."""


class ModePolicyError(Exception):
    """The policy cannot be applied. The message explains what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTarget:
    """The pods that a policy applies to: those of a namespace, or of a workload in it."""

    namespace: str
    """The namespace."""
    workload: str = ""
    """Name of the workload; empty for the namespace."""
    labels: tuple[tuple[str, str], ...] = ()
    """Labels that select the workload's pods."""

    def __str__(self) -> str:
        return (
            f"workload {self.namespace}/{self.workload}" if self.workload else f"namespace {self.namespace}"
        )

    @property
    def ref(self) -> Ref:
        """The policy."""
        return Ref(_KIND.name, self.namespace, self.workload or "default")

    def manifest(self, mode: Mode, version: str = _KIND.versions[-1]) -> Json:
        """Return the fields of the policy."""
        selector = {"selector": {"matchLabels": dict(self.labels)}} if self.labels else {}
        return {
            "apiVersion": f"{_KIND.group}/{version}",
            "kind": _KIND.name,
            "metadata": {"name": self.ref.name, "namespace": self.namespace},
            "spec": {**selector, "mtls": {"mode": mode.value}},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPolicy:
    """A policy that the API server would accept."""

    path: str
    """URL path of the object."""
    body: Json
    """The fields to apply."""
    before: Json | None
    """The object as it is; None if it does not exist."""
    after: Json
    """The object as it would be, with the fields of other managers."""

    @property
    def is_change(self) -> bool:
        """Whether the object would change."""
        return self.before is None or self.before.get("spec") != self.after.get("spec")

    @property
    def mode(self) -> str:
        """Current mode of the object; empty without one."""
        return _mode(self.before or {})


async def find_target(api: KubeApi, namespace: str, workload: str) -> PolicyTarget:
    """Return the pods of a workload, which can be named by one of its pods.

    Raises:
        ModePolicyError: there is no such workload, or labels do not select its pods.
        KubeError: the API server cannot be reached or rejects a request.
    """
    found = [
        (kind, obj)
        for kind in _WORKLOADS
        if (obj := await api.find(f"/apis/apps/v1/namespaces/{namespace}/{plural_of(kind)}/{workload}"))
    ]
    if not found and (owner := await _owner_of_pod(api, namespace, workload)):
        found = [owner]
    if not found:
        raise ModePolicyError(
            f"{namespace}/{workload} not found: there is no Deployment, StatefulSet or DaemonSet with this "
            "name, and no Pod of one"
        )
    if len(found) > 1:
        kinds = " and a ".join(kind for kind, _ in found)
        raise ModePolicyError(
            f"{namespace}/{workload} is ambiguous: there is a {kinds}. Name one of its pods instead"
        )
    [(kind, obj)] = found
    return _target(kind, obj)


def _target(kind: str, obj: Json) -> PolicyTarget:
    name, namespace = obj["metadata"]["name"], obj["metadata"]["namespace"]
    selector = obj["spec"].get("selector") or {}
    if selector.get("matchExpressions") or not selector.get("matchLabels"):
        raise ModePolicyError(
            f"{kind} {namespace}/{name} does not select its pods by matchLabels only, as a PeerAuthentication"
            " must: apply a PeerAuthentication of your own"
        )
    labels = tuple(sorted(selector["matchLabels"].items()))
    return PolicyTarget(namespace=namespace, workload=name, labels=labels)


async def _owner_of_pod(api: KubeApi, namespace: str, pod: str) -> tuple[str, Json] | None:
    """Return the workload of a pod; None if the pod does not exist or belongs to none."""
    obj = await api.find(f"/api/v1/namespaces/{namespace}/pods/{pod}")
    for _ in range(_MAX_OWNERS):
        references = (obj or {}).get("metadata", {}).get("ownerReferences") or ()
        owner = next((each for each in references if each.get("controller")), None)
        if owner is None or owner["kind"] not in {*_WORKLOADS, "ReplicaSet"}:
            return None
        path = f"/apis/apps/v1/namespaces/{namespace}/{plural_of(owner['kind'])}/{owner['name']}"
        obj = await api.find(path)
        if obj and owner["kind"] in _WORKLOADS:
            return owner["kind"], obj
    return None


async def prepare(api: KubeApi, target: PolicyTarget, mode: Mode, *, force: bool) -> PreparedPolicy:
    """Read the policy of a target, and let the API server check the change without applying it.

    Args:
        api: the API server.
        target: the pods.
        mode: the mode to set.
        force: whether to take over fields that other managers set.

    Raises:
        ModePolicyError: the object selects other pods, or other managers set its fields.
        KubeError: the API server cannot be reached or rejects the change.
    """
    version = await _served_version(api)
    collection = f"/apis/{_KIND.group}/{version}/namespaces/{target.namespace}/{_KIND.plural}"
    path = f"{collection}/{target.ref.name}"
    before = await api.find(path)
    if before is not None and _labels(before) != dict(target.labels):
        selected = _format(_labels(before)) or "all pods of the namespace"
        wanted = _format(dict(target.labels)) or "all pods of the namespace"
        raise ModePolicyError(
            f"{target.ref} exists, and selects {selected}, not {wanted}: rename it, or change its mode "
            "yourself"
        )
    body = target.manifest(mode, version)
    after = await _apply(api, path, body, target.ref, force=force, dryRun="All")
    return PreparedPolicy(path=path, body=body, before=before, after=after)


async def apply(api: KubeApi, prepared: PreparedPolicy, *, force: bool) -> str:
    """Apply a policy; return its resourceVersion.

    Raises:
        ModePolicyError: other managers set its fields, or another client has changed it meanwhile.
        KubeError: the API server cannot be reached or rejects the change.
    """
    meta = prepared.body["metadata"]
    ref = Ref(_KIND.name, meta["namespace"], meta["name"])
    applied = await _apply(api, prepared.path, prepared.body, ref, force=force)
    if applied.get("spec") != prepared.after.get("spec"):
        raise ModePolicyError(f"{ref} was applied, but another client has changed it: run the command again")
    return str(applied["metadata"]["resourceVersion"])


async def _apply(api: KubeApi, path: str, body: Json, ref: Ref, **query: Any) -> Json:
    try:
        return await api.patch(path, body, kind=APPLY_PATCH, fieldManager=FIELD_MANAGER, **query)
    except KubeError as error:
        if error.status != HTTPStatus.CONFLICT:
            raise
        raise ModePolicyError(
            f"{ref} is managed by another client: {conflict_owners(error)}. Change it there, or take the "
            "fields over with --force-conflicts"
        ) from error


async def _served_version(api: KubeApi) -> str:
    group = await api.find(f"/apis/{_KIND.group}")
    served = {version["version"] for version in (group or {}).get("versions", ())}
    for version in reversed(_KIND.versions):  # The newest comes last.
        if version in served:
            return version
    raise ModePolicyError(f"the cluster has no kind {_KIND.name}: run xds install-crds")


def _mode(obj: Json) -> str:
    return str(((obj.get("spec") or {}).get("mtls") or {}).get("mode") or "")


def _labels(obj: Json) -> dict[str, str]:
    return ((obj.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}


def _format(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
