"""Installation of the custom resource definitions. Existing definitions are left untouched."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.packaged import FIELD_MANAGER, load_packaged

PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

_SERVED_TIMEOUT = 30.0
_POLL_INTERVAL = 0.1
_OWNERS = ("app.kubernetes.io/managed-by", "app.kubernetes.io/part-of", "operator.istio.io/component", "app")
"""Labels that name the owner of an object, in order of precedence."""


@dataclass(frozen=True, slots=True)
class CrdStatus:
    """Result of the installation of one kind."""

    kind: str
    name: str
    """PLURAL.GROUP."""
    created: bool
    """Whether it was created, and did not exist before."""
    versions: tuple[str, ...]
    """Versions that the cluster serves, newest first."""
    owner: str = ""
    """Who installed it, as far as that can be told."""
    problem: str = ""
    """Why xds cannot use the definition; empty if it can."""


def definitions() -> tuple[Json, ...]:
    """Return our own definitions."""
    return tuple(each for _, each in load_packaged("crds"))


async def install(api: KubeApi, *, dry_run: bool = False) -> list[CrdStatus]:
    """Create the kinds that the cluster lacks, and wait until they are served. What is there is not touched.

    `dry_run`: the API server is asked whether it would create them. KubeError.
    """
    found: list[CrdStatus] = []
    for ours in definitions():
        there = await _read(api, ours["metadata"]["name"]) or await _create(api, ours, dry_run=dry_run)
        found.append(_status_of(there, ours) if there else _status_of(ours, ours, created=True))
    if not dry_run:
        await _wait_until_served(api, [definition.name for definition in found if not definition.problem])
    return found


async def served_versions(api: KubeApi) -> dict[str, tuple[str, ...]]:
    """Return the supported versions of each kind that the cluster serves, newest first."""
    found: dict[str, tuple[str, ...]] = {}
    for ours in definitions():
        there = await _read(api, ours["metadata"]["name"])
        if there and not (definition := _status_of(there, ours)).problem:
            readable = [version["name"] for version in ours["spec"]["versions"]]
            found[definition.name] = tuple(name for name in readable if name in definition.versions)
    return found


async def _wait_until_served(api: KubeApi, names: list[str]) -> None:
    try:
        async with asyncio.timeout(_SERVED_TIMEOUT):
            for name in names:
                while _condition(await _read(api, name), "Established") != "True":  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_INTERVAL)
    except TimeoutError as error:
        raise KubeError(
            0, f"{api.server} does not serve {name}, {_SERVED_TIMEOUT:g}s after it was created"
        ) from error


async def _read(api: KubeApi, name: str) -> Json | None:
    return await api.find(f"{PATH}/{name}")


async def _create(api: KubeApi, ours: Json, *, dry_run: bool) -> Json | None:
    """Create a kind; if another did so meanwhile, return what that one made."""
    try:
        await api.create(PATH, ours, fieldManager=FIELD_MANAGER, dryRun="All" if dry_run else None)
    except KubeError as error:
        if error.reason != "AlreadyExists":
            raise
        return await _read(api, ours["metadata"]["name"])
    return None


def _status_of(there: Json, ours: Json, *, created: bool = False) -> CrdStatus:
    spec = ours["spec"]
    served = tuple(version["name"] for version in there["spec"]["versions"] if version["served"])
    readable = {version["name"] for version in spec["versions"]}
    problem = ""
    if not readable & set(served):
        problem = f"serves {', '.join(served) or 'no version'}, and xds reads {', '.join(sorted(readable))}"
    elif there["spec"]["scope"] != spec["scope"]:
        problem = f"is of scope {there['spec']['scope']}, and should be {spec['scope']}"
    elif _condition(there, "Terminating") == "True":
        problem = "is being deleted, with all objects of it"
    elif _condition(there, "NamesAccepted") == "False":
        problem = "its names are another kind's"
    return CrdStatus(
        kind=spec["names"]["kind"],
        name=ours["metadata"]["name"],
        created=created,
        versions=served,
        owner=_owner(there),
        problem=problem,
    )


def _condition(definition: Json | None, condition: str) -> str:
    """Tell a condition's status: `True`, `False` or `Unknown`; empty: nothing is said of it."""
    said = ((definition or {}).get("status") or {}).get("conditions") or ()
    return next((str(each["status"]) for each in said if each["type"] == condition), "")


def _owner(definition: Json) -> str:
    labels = definition["metadata"].get("labels") or {}
    fields = definition["metadata"].get("managedFields") or ()
    said = [labels[name] for name in _OWNERS if name in labels] + [each.get("manager", "") for each in fields]
    return next((who for who in said if who), "")
