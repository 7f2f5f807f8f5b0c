"""A pod's volumes as folders: tokens are renewed, and ConfigMaps and labels follow their objects."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tests.kubernetes.agent.fields import NotYetError, chosen, data, field
from tests.kubernetes.agent.watching import Key
from xds.mesh.kube.api import Json, KubeApi, KubeError

_RENEWED_AT = 0.8
"""The part of a token's lifetime after which kubelet renews it."""
_MODE = 0o644
_PAUSE = 1.0
_NEEDED = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[3]))
"""Folders with the programs of containers, which mounts must not cover."""


class Mount(NamedTuple):
    """A folder or file of this machine, and its path in a container."""

    source: str
    target: str
    read_only: bool


class Volumes:
    """The volumes of a pod, below their own folder."""

    def __init__(self, api: KubeApi, pod: Json, folder: Path) -> None:
        self._api, self._folder = api, folder
        self.pod = pod
        """The current version of the pod."""
        self._tokens: dict[tuple[str, str], tuple[bytes, float]] = {}
        """(volume, path) -> token, and when it is to be renewed (`time.time`)."""

    async def write(self) -> None:
        """Write all missing or outdated files. Raises NotYetError."""
        for volume in self.pod["spec"].get("volumes", ()):
            folder = self._folder / volume["name"]
            folder.mkdir(parents=True, exist_ok=True)
            if "emptyDir" in volume:
                folder.chmod(0o777)
                continue
            (source,) = volume.keys() - {"name"}
            mode = volume[source].get("defaultMode", _MODE)
            for path, value in (await self._files(volume["name"], source, volume[source])).items():
                self._put(folder / path, value, mode)

    async def keep(self) -> None:
        """Renew tokens in time, until cancelled."""
        while True:
            due = min((renew for _, renew in self._tokens.values()), default=None)
            if due is None:
                return
            await asyncio.sleep(max(_PAUSE, due - time.time()))
            try:
                await self.write()
            except (NotYetError, KubeError):
                await asyncio.sleep(_PAUSE)

    def mounts(self, container: Json) -> Iterator[Mount]:
        """Yield the mounts of a container."""
        for mount in container.get("volumeMounts", ()):
            source = self._folder / mount["name"] / mount.get("subPath", "")
            if not any(Path(seen).is_relative_to(mount["mountPath"]) for seen in _NEEDED):
                yield Mount(str(source), mount["mountPath"], mount.get("readOnly", False))

    async def _files(self, volume: str, kind: str, source: Json) -> dict[str, bytes]:
        namespace = self.pod["metadata"]["namespace"]
        items, optional = source.get("items"), bool(source.get("optional"))
        match kind:
            case "configMap":
                held = await data(self._api, "configmaps", Key(namespace, source["name"]), optional=optional)
                return chosen(held, items)
            case "secret":
                name = source.get("secretName") or source["name"]
                held = await data(self._api, "secrets", Key(namespace, name), optional=optional)
                return chosen(held, items)
            case "downwardAPI":
                return {
                    item["path"]: field(self.pod, item["fieldRef"]["fieldPath"]).encode() for item in items
                }
            case "serviceAccountToken":
                return {source["path"]: await self._token(volume, source)}
            case "projected":
                made: dict[str, bytes] = {}
                for part in source["sources"]:
                    ((inner, told),) = part.items()
                    made |= await self._files(volume, inner, told)
                return made
        raise NotImplementedError(f"the test's node agent knows no volumes of the kind {kind}")

    async def _token(self, volume: str, source: Json) -> bytes:
        token, renew = self._tokens.get((volume, source["path"]), (b"", 0.0))
        if time.time() < renew:
            return token
        about = self.pod["metadata"]
        asked = {
            "audiences": [source["audience"]] if "audience" in source else None,
            "expirationSeconds": source.get("expirationSeconds"),
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": about["name"], "uid": about["uid"]},
        }
        account = self.pod["spec"]["serviceAccountName"]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": asked}
        path = f"/api/v1/namespaces/{about['namespace']}/serviceaccounts/{account}/token"
        status = (await self._api.create(path, body))["status"]
        now, expires = time.time(), datetime.fromisoformat(status["expirationTimestamp"]).timestamp()
        token = status["token"].encode()
        self._tokens[volume, source["path"]] = token, now + (expires - now) * _RENEWED_AT
        return token

    def _put(self, path: Path, value: bytes, mode: int) -> None:
        group = self.pod["spec"].get("securityContext", {}).get("fsGroup")
        if path.exists() and path.read_bytes() == value:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readers see the old file or the new one, never a partial one.
        made = path.with_name(f"..{path.name}")
        made.write_bytes(value)
        made.chmod(mode if group is None else mode | 0o040)
        if group is not None:
            os.chown(made, -1, group)
        made.replace(path)
