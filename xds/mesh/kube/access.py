"""RBAC rights that the control plane and its installation need, and access reviews of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from xds.mesh.kube import crds, install
from xds.mesh.kube.api import Json, KubeApi
from xds.mesh.model.objects import MeshConfig

SERVICE_ACCOUNT = "xds"
"""Service account of the control plane, and the name of its roles."""
MAX_CONCURRENT_REVIEWS = 10

_REVIEWS = "/apis/authorization.k8s.io/v1"


class Right(NamedTuple):
    """A verb on a resource."""

    verb: str
    group: str
    resource: str
    """Plural, with the subresource, as in `pods/status`."""
    namespace: str
    """Empty for all namespaces and for resources without a namespace."""
    name: str
    """Empty for all names."""

    def __str__(self) -> str:
        plural, slash, subresource = self.resource.partition("/")
        kind = f"{plural}.{self.group}" if self.group else plural
        named = f" {self.name}" if self.name else ""
        scope = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {kind}{slash}{subresource}{named}{scope}"


def control_plane_rights(namespace: str) -> list[Right]:
    """Return the rights that the control plane's service account needs in a namespace and the cluster."""
    roles = [obj for obj in install.control_plane() if obj["metadata"]["name"] == SERVICE_ACCOUNT]
    return [
        Right(verb, group, resource, namespace if role["kind"] == "Role" else "", name)
        for role in roles
        if role["kind"] in {"Role", "ClusterRole"}
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    ]


def installation_rights() -> list[Right]:
    """Return the rights that `xds install` needs: to write its objects, and every right that it grants."""
    needed = [right for obj in install.control_plane() for right in _to_apply(obj)]
    policies = install.default_policies(MeshConfig(mtls_enabled=True))
    needed += [right for obj in policies for right in _to_apply(obj)]
    for obj in (install.namespace(), *crds.definitions()):
        needed += _to_write(obj, ("get", "create"))
    return list(dict.fromkeys([*needed, *control_plane_rights(install.NAMESPACE)]))


def _to_apply(obj: Json) -> Iterator[Right]:
    """Yield the rights for a server-side apply."""
    return _to_write(obj, ("get", "create", "patch"))


def _to_write(obj: Json, verbs: Iterable[str]) -> Iterator[Right]:
    group, plural, namespace = install.resource_of(obj)
    for verb in verbs:
        yield Right(verb, group, plural, namespace, "" if verb == "create" else obj["metadata"]["name"])


async def missing_rights(api: KubeApi, rights: Iterable[Right], service_account: str = "") -> list[Right]:
    """Return the rights that the caller, or the service account NAMESPACE/NAME, lacks. Raises KubeError."""
    limit = asyncio.Semaphore(MAX_CONCURRENT_REVIEWS)

    async def is_missing(right: Right) -> bool:
        resource, _, subresource = right.resource.partition("/")
        attributes = {
            "verb": right.verb,
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
            "namespace": right.namespace,
            "name": right.name,
        }
        kind, subject = _subject(service_account)
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": kind,
            "spec": {"resourceAttributes": attributes, **subject},
        }
        async with limit:
            review = await api.create(f"{_REVIEWS}/{kind.lower()}s", body)
        return not review["status"].get("allowed")

    rights = list(rights)
    missing = await asyncio.gather(*map(is_missing, rights))
    return [right for right, is_lacking in zip(rights, missing, strict=True) if is_lacking]


def _subject(service_account: str) -> tuple[str, Json]:
    """Return the kind of review, and its fields that name the subject."""
    if not service_account:
        return "SelfSubjectAccessReview", {}
    namespace, _, name = service_account.partition("/")
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    return "SubjectAccessReview", {
        "user": f"system:serviceaccount:{namespace}:{name}",
        "groups": groups,
    }
