"""The objects of a collection, from a list and a watch that restart after errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn

import aiohttp

from xds.mesh.kube.api import Json, KubeApi, KubeError

_IDLE = 30.0
"""Seconds of silence after which a watch is considered dead. Bookmarks are rarely this far apart."""
_PAUSE = 0.2


class Key(NamedTuple):
    """The namespace and name of an object."""

    namespace: str
    name: str


class Watched:
    """A collection. It calls `changed` with the key of each added, modified or deleted object."""

    def __init__(self, api: KubeApi, path: str, changed: Callable[[Key], None]) -> None:
        self._api, self._path, self._changed = api, path, changed
        self.objects: dict[Key, Json] = {}

    async def run(self) -> NoReturn:
        """Follow the collection until cancelled."""
        while True:
            # The server may be down or have expired the watch's version: list again.
            with suppress(KubeError, aiohttp.ClientError, OSError, TimeoutError):
                await self._follow(await self._list())
            await asyncio.sleep(_PAUSE)

    async def _list(self) -> str:
        collection = await self._api.get(self._path)
        listed = {key_of(item): item for item in collection["items"]}
        gone = self.objects.keys() - listed.keys()
        changed = [key for key, item in listed.items() if self.objects.get(key) != item]
        self.objects = listed
        for key in (*gone, *changed):
            self._changed(key)
        return str(collection["metadata"]["resourceVersion"])

    async def _follow(self, version: str) -> None:
        query = {"watch": True, "allowWatchBookmarks": True, "resourceVersion": version}
        async with self._api.stream(self._path, idle=_IDLE, **query) as stream:
            async for line in _lines(stream.iter_any()):
                event = json.loads(line)
                item = event["object"]
                match event["type"]:
                    case "BOOKMARK":
                        continue
                    case "ERROR":
                        return
                    case "DELETED":
                        self.objects.pop(key_of(item), None)
                    case _:
                        self.objects[key_of(item)] = item
                self._changed(key_of(item))


def key_of(item: Json) -> Key:
    """Return the key of an object."""
    return Key(item["metadata"].get("namespace", ""), item["metadata"]["name"])


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line
