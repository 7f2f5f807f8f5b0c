"""One resource of an API server, listed and then watched: what became different, and never more than that.

A watch goes on from the last version that was heard of, whatever broke it. Only when the server no longer knows that version
is everything listed again, and compared with what is known; whatever cannot be learned of meanwhile stays as it was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.decoding import decoded
from xds.mesh.kube.ndjson import lines
from xds.mesh.sources.resource import Pace, Resource

T = TypeVar("T")

Key: TypeAlias = tuple[str, str]
"""namespace (empty for cluster-scoped kinds), name."""

SLICE = 0.005
"""Seconds of work after which the event loop gets its turn."""
STUBBORN = 3
"""After how many watches in a row that brought nothing everything is listed again."""


_NO_ANSWER = frozenset(
    {
        0,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }
)
"""Statuses that say nothing about the version that was asked for."""


class Trouble(Enum):
    """Why what is known of a resource may be out of date."""

    AWAY = "away"
    """The server cannot be reached, or does not answer as it should."""
    REFUSED = "refused"
    """The server does not allow us to read it."""
    MISSING = "missing"
    """The server does not serve it, or in no version that can be read here."""


class State(NamedTuple):
    """What stands in the way of a reflector."""

    trouble: Trouble
    since: float
    """In the event loop's time."""
    what: str


class ExpiredError(Exception):
    """The server no longer knows the version that we are at."""


class Reflector(Generic[T]):
    """Keeps up with a resource.

    `keep` makes of an object, and of what is kept of it so far, what is to be kept; it must not raise. `wake` is called
    whenever there is something new to `take`, or `state` is another.
    """

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        keep: Callable[[Json, T | None], T],
        wake: Callable[[], None],
        pace: Pace = Pace(),  # noqa: B008 - immutable
    ) -> None:
        self.resource = resource
        self.objects: dict[Key, T] = {}
        """What is kept of each object that is there."""
        self.complete = False
        """Whether the resource has been listed: only then is it known which objects there are."""
        self.state: State | None = None
        self._api = api
        self._keep = keep
        self._wake = wake
        self._pace = pace
        self._before: dict[Key, T | None] = {}
        """What was kept, when it was last taken, of each object that became different since."""
        self._served = "" if resource.custom else resource.versions[-1]
        """The API version that is used; empty: to be found out."""
        self._version = ""
        """The resourceVersion that we are at; empty: everything is to be listed."""
        self._failures = 0
        self._barren = 0
        """How many watches in a row the server answered, and brought nothing."""
        self._expired = 0
        """How often in a row the version that we were at was gone, though it had just been listed."""
        self._opened = False
        """Whether the server answered the current watch."""
        self._broke = 0.0
        """When what fails now failed first."""
        self._heard = 0.0
        self._turn = 0.0

    def take(self) -> dict[Key, tuple[T | None, T | None]]:
        """Return what became different since the last call: what was kept of it, and what is."""
        before, self._before = self._before, {}
        return {key: (old, self.objects.get(key)) for key, old in before.items()}

    async def run(self) -> None:
        """Keep up, until cancelled."""
        while True:
            failed = None
            self._opened = False
            try:
                if not self._served:
                    await self._find()
                if not self._version:
                    await self._list()
                await self._watch()
            except ExpiredError:
                self._version = ""
                failed = KubeError(HTTPStatus.GONE, "the version that we were at is gone")
            except KubeError as error:
                failed = error
            wait = self._failed(failed) if failed else 0.0
            if self._before:
                self._wake()
            await asyncio.sleep(wait)

    def _failed(self, error: KubeError) -> float:
        """Take note of a failure; return how long to wait."""
        if not self._failures:
            # Who says nothing any more has been away since the last word.
            silent = isinstance(error.__cause__, TimeoutError) and self._heard
            self._broke = self._heard if silent else asyncio.get_running_loop().time()
        self._failures += 1
        wait = max(self._pace.after(self._failures), min(error.wait, self._pace.longest_wait))
        missing = error.missing and self.resource.custom
        if missing and self._served:
            self._served = self._version = ""  # it may be served in another version
            if self._failures == 1:
                return 0.0
        gone = error.status == HTTPStatus.GONE
        self._barren += self._opened or error.status not in _NO_ANSWER
        if self._barren >= STUBBORN or gone:
            self._version, self._barren = "", 0
        # A watch that broke is opened again, and only if that fails there is something to tell.
        if not self.complete or (self._failures > 1 and not gone):
            refused = error.status == HTTPStatus.FORBIDDEN
            trouble = Trouble.MISSING if missing else Trouble.REFUSED if refused else Trouble.AWAY
            self._troubled(trouble, str(error))
        if not gone:
            return wait
        # That it can be listed is no success here: who lists again and again at once keeps a server in trouble there.
        self._expired += 1
        return max(wait, self._pace.after(self._expired - 1)) if self._expired > 1 else 0.0

    def _troubled(self, trouble: Trouble, what: str) -> None:
        before = self.state if self.state and self.state.trouble is trouble else None
        self.state = State(trouble, before.since if before else self._broke, what)
        if not before:
            self._wake()

    def _well(self) -> None:
        """Take note that the server answers as it should."""
        self._heard = asyncio.get_running_loop().time()
        if self.state:
            self.state = None
            self._wake()

    # --- which version -----------------------------------------------------------------------------------------------

    async def _find(self) -> None:
        """Find the API version to use. KubeError 404: there is none that we could read."""
        group = self.resource.group
        try:
            found = await self._api.get(f"/apis/{group}")
        except KubeError as error:
            if error.missing:
                raise KubeError(error.status, "the cluster has no such kind") from error
            raise
        served = [str(each.get("version")) for each in _mappings(found.get("versions"))]
        others = []
        for version in sorted(served, key=self._preference, reverse=True):
            listed = await self._api.get(f"/apis/{group}/{version}")
            if any(each.get("name") == self.resource.plural for each in _mappings(listed.get("resources"))):
                if version in self.resource.versions:
                    self._served = version
                    return
                others.append(version)
        known = " and ".join(self.resource.versions)
        what = f"the cluster serves {', '.join(others)} of it, and only {known} can be read here"
        raise KubeError(HTTPStatus.NOT_FOUND, what if others else "the cluster has no such kind")

    def _preference(self, version: str) -> int:
        versions = self.resource.versions
        return versions.index(version) if version in versions else -1

    # --- everything --------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        """List everything, and take note of what is different from what is known."""
        seen: dict[Key, T] = {}
        limit: int | None = self._pace.page
        following: str | None = None
        while True:
            query = {"limit": limit, "continue": following, "fieldSelector": self._selector}
            try:
                page = await self._call(query)
            except KubeError as error:
                if error.status != HTTPStatus.GONE or not following:
                    raise
                # The rest of the list is gone: compacted away while we read. In one piece it cannot be.
                seen, limit, following = {}, None, None
                continue
            for item in _mappings(page.get("items")):
                if key := _key(item):
                    seen[key] = self._kept(item, key)
                await self._breathe()
            meta = page.get("metadata") or {}
            following = meta.get("continue") or None
            if not following:
                break
        version = str(meta.get("resourceVersion") or "")
        if not version:
            raise KubeError(0, f"{self._api.server} answered with a list that has no resourceVersion")
        for key in self.objects.keys() - seen.keys():
            self._put(key, None)
        for key, kept in seen.items():
            self._put(key, kept)
        self._version, self.complete = version, True
        self._failures = self._barren = 0
        self._well()
        self._wake()

    async def _call(self, query: Mapping[str, Any]) -> Json:
        path = self.resource.path(self._served)
        return await self._api.call("GET", path, query=query, timeout=self._pace.answer)

    @property
    def _selector(self) -> str | None:
        return f"metadata.name={self.resource.name}" if self.resource.name else None

    # --- what comes --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Take note of what comes, until the server ends the answer. ExpiredError, KubeError."""
        loop = asyncio.get_running_loop()
        query = {
            "watch": True,
            "allowWatchBookmarks": True,
            "resourceVersion": self._version,
            "timeoutSeconds": round(self._pace.renew * random.uniform(1.0, 2.0)),  # noqa: S311
            "fieldSelector": self._selector,
        }
        path, began = self.resource.path(self._served), loop.time()
        async with self._api.stream(path, idle=self._pace.idle, **query) as stream:
            self._opened = True
            self._well()
            opened = self._heard
            async for batch in lines(stream):
                for line in batch:
                    await self._breathe()
                    self._event(_decoded(line))
                self._failures = self._barren = self._expired = 0
                self._well()
                if self._before:
                    self._wake()
        if loop.time() - began < self._pace.first and self._heard == opened:
            raise KubeError(0, f"{self._api.server} ends every watch at once")
        self._failures = self._expired = 0

    def _event(self, event: Json) -> None:
        kind, obj = event.get("type"), event.get("object")
        if not isinstance(obj, dict):
            raise KubeError(0, f"{self._api.server} answered a watch with something that is no event")
        if kind == "ERROR":
            code = obj.get("code")
            if code == HTTPStatus.GONE or obj.get("reason") == "Expired":
                raise ExpiredError
            raise KubeError(
                code if isinstance(code, int) else 0, str(obj.get("message") or "the watch failed")
            )
        if kind in {"ADDED", "MODIFIED", "DELETED"} and (key := _key(obj)):
            self._put(key, None if kind == "DELETED" else self._kept(obj, key))
        meta = obj.get("metadata")
        if isinstance(meta, dict) and (version := meta.get("resourceVersion")):
            self._version = str(version)

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _kept(self, obj: Json, key: Key) -> T:
        # Members of a list do not say what they are.
        obj.setdefault("kind", self.resource.kind)
        obj.setdefault("apiVersion", self.resource.api_version(self._served))
        return self._keep(obj, self.objects.get(key))

    def _put(self, key: Key, kept: T | None) -> None:
        old = self.objects.get(key)
        if old == kept:
            return
        self._before.setdefault(key, old)
        if kept is None:
            del self.objects[key]
        else:
            self.objects[key] = kept

    async def _breathe(self) -> None:
        """Give the event loop its turn if it is time."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._turn + SLICE:
            await asyncio.sleep(0)
            self._turn = loop.time()


def _decoded(line: bytes) -> Json:
    try:
        event = decoded(line)
    except ValueError as error:
        raise KubeError(0, f"an event could not be read: {error}") from error
    if not isinstance(event, dict):
        raise KubeError(0, "an event could not be read: it is no object")
    return event


def _mappings(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _key(obj: Json) -> Key | None:
    meta = obj.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    return (str(meta.get("namespace") or ""), str(name)) if isinstance(meta, dict) and name else None
