"""Installation of the custom resource definitions. Existing definitions are left untouched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.packaged import FIELD_MANAGER, load_packaged

PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

MISSING = "is missing"
"""Problem of a kind that does not exist."""

_SERVED_TIMEOUT = 30.0
_POLL_INTERVAL = 0.1
_OWNERS = ("app.kubernetes.io/managed-by", "app.kubernetes.io/part-of", "operator.istio.io/component", "app")
"""Labels that name the owner of an object, in order of precedence."""


@dataclass(frozen=True, slots=True)
class CrdStatus:
    """Result of the installation of one kind."""

    kind: str
    """Kind, such as `Policy`."""
    name: str
    """PLURAL.GROUP."""
    created: bool
    """Whether this installation created it."""
    versions: tuple[str, ...]
    """Versions that the cluster serves, newest first."""
    owner: str = ""
    """Tool or manager that installed it; empty if unknown."""
    problem: str = ""
    """Why xds cannot use the definition; empty if it can."""


def definitions() -> tuple[Json, ...]:
    """Return the packaged definitions."""
    return tuple(definition for _, definition in load_packaged("crds"))


async def install(api: KubeApi, *, dry_run: bool = False) -> list[CrdStatus]:
    """Create the missing kinds, and wait until they are served. Existing kinds are left untouched.

    With `dry_run`, the API server only validates the requests. Raises KubeError.
    """
    statuses: list[CrdStatus] = []
    for ours in definitions():
        existing = await _read(api, ours["metadata"]["name"]) or await _create(api, ours, dry_run=dry_run)
        statuses.append(_status_of(existing, ours) if existing else _status_of(ours, ours, created=True))
    if not dry_run:
        await _wait_until_served(api, [status.name for status in statuses if not status.problem])
    return statuses


async def served_versions(api: KubeApi) -> dict[str, tuple[str, ...]]:
    """Return the supported versions of each kind that the cluster serves, newest first."""
    versions: dict[str, tuple[str, ...]] = {}
    for ours in definitions():
        existing = await _read(api, ours["metadata"]["name"])
        if existing and not (status := _status_of(existing, ours)).problem:
            supported = [version["name"] for version in ours["spec"]["versions"]]
            versions[status.name] = tuple(name for name in supported if name in status.versions)
    return versions


async def examine(api: KubeApi, ours: Json) -> CrdStatus:
    """Return the status of a packaged kind without installing it.

    Its problem is also set if the kind is missing or not served yet, or if its schema drops a field.
    """
    existing = await _read(api, ours["metadata"]["name"])
    if existing is None:
        return replace(_status_of(ours, ours), versions=(), owner="", problem=MISSING)
    status = _status_of(existing, ours)
    if status.problem:
        return status
    if _condition(existing, "Established") != "True":
        return replace(status, problem="is not served yet")
    if dropped := _dropped_fields(existing, ours):
        listed = ", ".join(dropped[:3]) + (", ..." if len(dropped) > 3 else "")
        return replace(status, problem=f"its schema drops {listed} from every object")
    return status


def _dropped_fields(existing: Json, ours: Json) -> list[str]:
    """Return the fields that xds reads and that the API server prunes, because the schema lacks them."""

    def schemas(definition: Json) -> dict[str, Json]:
        versions = definition["spec"]["versions"]
        return {
            version["name"]: (version.get("schema") or {}).get("openAPIV3Schema") or {}
            for version in versions
            if version["served"]
        }

    theirs = schemas(existing)
    return list(
        dict.fromkeys(
            field
            for version, schema in schemas(ours).items()
            if version in theirs
            for field in _missing_properties(schema, theirs[version], "")
        )
    )


def _missing_properties(ours: Json, theirs: Json, path: str) -> Iterator[str]:
    known = theirs.get("properties") or {}
    rest = theirs.get("additionalProperties")
    for name, schema in (ours.get("properties") or {}).items():
        if name in known:
            yield from _missing_properties(schema, known[name], f"{path}{name}.")
        elif not rest and not theirs.get("x-kubernetes-preserve-unknown-fields"):
            yield path + name
    for part in ("items", "additionalProperties"):
        if isinstance(ours.get(part), dict) and isinstance(theirs.get(part), dict):
            yield from _missing_properties(ours[part], theirs[part], path)


async def _wait_until_served(api: KubeApi, names: list[str]) -> None:
    try:
        async with asyncio.timeout(_SERVED_TIMEOUT):
            for name in names:
                while _condition(await _read(api, name), "Established") != "True":  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_INTERVAL)
    except TimeoutError as error:
        raise KubeError(
            0, f"{api.server} does not serve {name} {_SERVED_TIMEOUT:g} s after its creation"
        ) from error


async def _read(api: KubeApi, name: str) -> Json | None:
    return await api.find(f"{PATH}/{name}")


async def _create(api: KubeApi, ours: Json, *, dry_run: bool) -> Json | None:
    """Create a kind and return None. If it has been created in the meantime, return the existing one."""
    try:
        await api.create(PATH, ours, fieldManager=FIELD_MANAGER, dryRun="All" if dry_run else None)
    except KubeError as error:
        if error.reason != "AlreadyExists":
            raise
        return await _read(api, ours["metadata"]["name"])
    return None


def _status_of(existing: Json, ours: Json, *, created: bool = False) -> CrdStatus:
    spec = ours["spec"]
    served = tuple(version["name"] for version in existing["spec"]["versions"] if version["served"])
    supported = {version["name"] for version in spec["versions"]}
    problem = ""
    if not supported & set(served):
        problem = (
            f"serves {', '.join(served) or 'no version'}; xds supports only {', '.join(sorted(supported))}"
        )
    elif existing["spec"]["scope"] != spec["scope"]:
        problem = f"has the scope {existing['spec']['scope']} instead of {spec['scope']}"
    elif _condition(existing, "Terminating") == "True":
        problem = "is being deleted with all its objects"
    elif _condition(existing, "NamesAccepted") == "False":
        problem = "its names conflict with another kind"
    return CrdStatus(
        kind=spec["names"]["kind"],
        name=ours["metadata"]["name"],
        created=created,
        versions=served,
        owner=_owner(existing),
        problem=problem,
    )


def _condition(definition: Json | None, condition: str) -> str:
    """Return the status of a condition: `True`, `False` or `Unknown`, or empty without the condition."""
    conditions = ((definition or {}).get("status") or {}).get("conditions") or ()
    return next((str(entry["status"]) for entry in conditions if entry["type"] == condition), "")


def _owner(definition: Json) -> str:
    labels = definition["metadata"].get("labels") or {}
    fields = definition["metadata"].get("managedFields") or ()
    owners = [labels[name] for name in _OWNERS if name in labels]
    managers = [entry.get("manager", "") for entry in fields]
    return next((name for name in (*owners, *managers) if name), "")
