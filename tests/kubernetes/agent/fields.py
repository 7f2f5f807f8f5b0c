"""A container's view of its pod and configuration: downward API, ConfigMaps, Secrets and variables."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import NoReturn

from tests.kubernetes.agent.watching import Key
from xds.mesh.kube.api import Json, KubeApi, KubeError

_KEYED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
_REFERENCE = re.compile(r"\$(\$|\(([^()]+)\))")


class NotYetError(Exception):
    """An object that the pod refers to does not exist yet."""


def field(pod: Json, path: str) -> str:
    """Return the downward API's value of a `fieldPath`."""
    if found := _KEYED.fullmatch(path):
        return str(pod["metadata"].get(found[1], {}).get(found[2], ""))
    if path in {"metadata.labels", "metadata.annotations"}:
        pairs = pod["metadata"].get(path.partition(".")[2], {})
        return "".join(f'{name}="{_escaped(value)}"\n' for name, value in sorted(pairs.items())).rstrip("\n")
    value: Json | str = pod
    for part in path.split("."):
        assert isinstance(value, dict)
        value = value.get(part, "")
    assert isinstance(value, str), path
    return value


async def environment(api: KubeApi, pod: Json, container: Json) -> dict[str, str]:
    """Return the variables of a container, in order. Raises NotYetError."""
    made: dict[str, str] = {}
    for entry in container.get("env", ()):
        value = entry.get("value", "")
        if source := entry.get("valueFrom"):
            referred = await _referred(api, pod, container, source)
            if referred is None:
                continue
            value = referred
        made[entry["name"]] = expanded(value, made)
    return made


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by variables. Unknown names stay, and `$$` is a dollar."""
    return _REFERENCE.sub(
        lambda found: "$" if found[1] == "$" else variables.get(found[2], found[0]),
        text,
    )


async def data(api: KubeApi, resource: str, key: Key, *, optional: bool) -> dict[str, bytes]:
    """Fetch the content of a ConfigMap or Secret (`resource`: its plural). Raises NotYetError."""
    try:
        obj = await api.get(f"/api/v1/namespaces/{key.namespace}/{resource}/{key.name}")
    except KubeError as error:
        if error.is_not_found and optional:
            return {}
        raise NotYetError(str(error)) from error
    return content(obj)


def content(obj: Json) -> dict[str, bytes]:
    """Return the content of a ConfigMap or Secret."""
    plain = obj.get("data") or {}
    if obj.get("kind") == "Secret" or "type" in obj:
        return {name: base64.b64decode(value) for name, value in plain.items()}
    binary = {name: base64.b64decode(value) for name, value in (obj.get("binaryData") or {}).items()}
    return {name: value.encode() for name, value in plain.items()} | binary


def chosen(held: Mapping[str, bytes], items: Iterable[Json] | None) -> dict[str, bytes]:
    """Return a volume's files: all keys, or `items` under the paths they name. Raises NotYetError."""
    if not items:
        return dict(held)
    try:
        return {item["path"]: held[item["key"]] for item in items}
    except KeyError as error:
        raise NotYetError(f"no key {error}") from error


async def _referred(api: KubeApi, pod: Json, container: Json, source: Json) -> str | None:
    match source:
        case {"fieldRef": {"fieldPath": path}}:
            return field(pod, path)
        case {"configMapKeyRef": {"name": name, "key": key, **rest}}:
            resource = "configmaps"
        case {"secretKeyRef": {"name": name, "key": key, **rest}}:
            resource = "secrets"
        case {"resourceFieldRef": {"resource": path}}:
            kind, _, what = path.partition(".")
            return str(container.get("resources", {}).get(kind, {}).get(what, "0"))
        case _:
            _unknown(source)
    optional = bool(rest.get("optional"))
    held = await data(api, resource, Key(pod["metadata"]["namespace"], name), optional=optional)
    if key in held:
        return held[key].decode()
    if optional:
        return None
    raise NotYetError(f"{resource} {name} has no key {key}")


def _unknown(source: Json) -> NoReturn:
    raise NotImplementedError(f"the test's node agent knows no {source}")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
