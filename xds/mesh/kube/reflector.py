"""Local copy of a resource type of an API server, kept up to date by list and watch, as in client-go.

An interrupted watch resumes at the last known resourceVersion. Everything is listed again only if the server
no longer has that version. During a failure, the last known objects remain.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from xds.checkpoint import Checkpoint
from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.decoding import decode_json, list_decoder
from xds.mesh.kube.ndjson import read_lines
from xds.mesh.kube.resource import KubeResource, WatchOptions

T = TypeVar("T")

Key: TypeAlias = tuple[str, str]
"""Namespace (empty for cluster-scoped kinds) and name of an object."""

NO_SUCH_KIND = "the cluster has no such kind"
MAX_EMPTY_WATCHES = 3
"""Number of consecutive watches without events after which everything is listed again."""

_UNRELATED_TO_VERSION = frozenset(
    {
        0,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }
)
"""Statuses of errors that do not depend on the requested resourceVersion. 0: there was no response."""


class FailureCause(Enum):
    """Reason why the local copy may be outdated."""

    UNREACHABLE = "unreachable"
    """The server cannot be reached, or sends invalid responses."""
    FORBIDDEN = "forbidden"
    """RBAC denies access."""
    NOT_SERVED = "not served"
    """The server does not serve the resource."""
    UNSUPPORTED = "unsupported"
    """The server serves the resource only in unsupported versions."""


class WatchFailure(NamedTuple):
    """The current failure of a reflector."""

    cause: FailureCause
    """Type of the failure."""
    since: float
    """Time of the first failure, in seconds of the event loop's clock."""
    message: str
    """The last error."""

    @property
    def is_denied(self) -> bool:
        """Whether RBAC denies access."""
        return self.cause is FailureCause.FORBIDDEN


class ExpiredError(Exception):
    """The server no longer has the requested resourceVersion."""


class NoSuchKindError(KubeError):
    """The server serves no version of the resource type, so it has no such objects."""


class UnsupportedVersionError(KubeError):
    """The server serves the resource type only in versions that cannot be parsed."""


class Reflector(Generic[T]):
    """Keeps a local copy of a resource type up to date.

    `keep` converts an object, given the value of its previous version, and must not raise. `wake` is called
    when there are changes to `take`, or when `failure` changes.
    """

    def __init__(
        self,
        api: KubeApi,
        resource: KubeResource,
        keep: Callable[[Json, T | None], T],
        wake: Callable[[], None],
        options: WatchOptions = WatchOptions(),  # noqa: B008 - immutable
    ) -> None:
        self.resource = resource
        self.objects: dict[Key, T] = {}
        """Converted objects, by namespace and name."""
        self.complete = False
        """Whether the resource has been listed at least once."""
        self.failure: WatchFailure | None = None
        """The current failure, or None."""
        self._api = api
        self._keep = keep
        self._wake = wake
        self._options = options
        self._decode_list = list_decoder(resource.used) if resource.used else decode_json
        self._changed: dict[Key, T | None] = {}
        """Previous values of the objects that have changed since the last `take`."""
        self._api_version = "" if resource.custom else resource.versions[-1]
        """API version in use; empty if it must be discovered."""
        self._version = ""
        """resourceVersion of the local copy; empty if everything must be listed."""
        self._failures = 0
        self._empty_watches = 0
        """Number of consecutive watches that were opened and failed without an event."""
        self._expirations = 0
        """Number of consecutive times that a version expired directly after a list."""
        self._is_open = False
        """Whether the server accepted the current watch."""
        self._failing_since = 0.0
        """Time of the first of the consecutive failures."""
        self._last_contact = 0.0
        self._checkpoint = Checkpoint()

    def take(self) -> dict[Key, tuple[T | None, T | None]]:
        """Return the changes since the last call, as old and new values."""
        changed, self._changed = self._changed, {}
        return {key: (old, self.objects.get(key)) for key, old in changed.items()}

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            failure = None
            self._is_open = False
            try:
                if not self._api_version:
                    await self._find_version()
                if not self._version:
                    await self._list()
                await self._watch()
            except ExpiredError:
                self._version = ""
                failure = KubeError(HTTPStatus.GONE, "the resourceVersion has expired")
            except KubeError as error:
                failure = error
            if isinstance(failure, NoSuchKindError) and self.resource.optional:
                self._clear_failure()
                if not self.complete:
                    self.complete = True
                    self._wake()
            wait = self._handle_failure(failure) if failure else 0.0
            if self._changed:
                self._wake()
            await asyncio.sleep(wait)

    async def list_once(self) -> None:
        """List all objects without watching them. Set `failure` on an error.

        A kind that the server does not serve has no objects.
        """
        try:
            if not self._api_version:
                await self._find_version()
            await self._list()
        except NoSuchKindError:
            self.complete = True
        except KubeError as error:
            self._set_failure(_cause(error, is_served=not error.is_not_found), str(error))

    def _handle_failure(self, error: KubeError) -> float:
        """Record a failure. Return the retry delay in seconds."""
        if not self._failures:
            # After a timeout, the failure started at the last contact.
            timed_out = isinstance(error.__cause__, TimeoutError) and self._last_contact
            self._failing_since = self._last_contact if timed_out else asyncio.get_running_loop().time()
        self._failures += 1
        is_absent = isinstance(error, NoSuchKindError) and self.resource.optional
        options = self._options.for_optional() if is_absent else self._options
        wait = max(options.delay(self._failures), min(error.retry_after, options.max_retry_after))
        missing = error.is_not_found and self.resource.custom
        if missing and self._api_version:
            self._api_version = self._version = ""  # another version may be served
            if self._failures == 1:
                return 0.0
        gone = error.status == HTTPStatus.GONE
        self._empty_watches += self._is_open or error.status not in _UNRELATED_TO_VERSION
        if self._empty_watches >= MAX_EMPTY_WATCHES or gone:
            self._version, self._empty_watches = "", 0
        # An interrupted watch is reopened without a report. Only a second consecutive failure is reported.
        if not is_absent and (not self.complete or (self._failures > 1 and not gone)):
            self._set_failure(_cause(error, is_served=not missing), str(error))
        if not gone:
            return wait
        # Back off although the list succeeded: repeated lists without a delay would overload the server.
        self._expirations += 1
        return max(wait, self._options.delay(self._expirations - 1)) if self._expirations > 1 else 0.0

    def _set_failure(self, cause: FailureCause, message: str) -> None:
        before = self.failure if self.failure and self.failure.cause is cause else None
        self.failure = WatchFailure(cause, before.since if before else self._failing_since, message)
        if not before:
            self._wake()

    def _clear_failure(self) -> None:
        """Record a successful response."""
        self._last_contact = asyncio.get_running_loop().time()
        if self.failure:
            self.failure = None
            self._wake()

    # --- version discovery ---

    async def _find_version(self) -> None:
        """Discover the API version to use. Raises KubeError 404 if no supported version is served."""
        group = self.resource.group
        try:
            discovery = await self._api.get(f"/apis/{group}")
        except KubeError as error:
            if error.is_not_found:
                raise NoSuchKindError(error.status, NO_SUCH_KIND) from error
            raise
        served = [str(entry.get("version")) for entry in _mappings(discovery.get("versions"))]
        unsupported = []
        for version in sorted(served, key=self._preference, reverse=True):
            resources = _mappings((await self._api.get(f"/apis/{group}/{version}")).get("resources"))
            if any(resource.get("name") == self.resource.plural for resource in resources):
                if version in self.resource.versions:
                    self._api_version = version
                    return
                unsupported.append(version)
        if not unsupported:
            raise NoSuchKindError(HTTPStatus.NOT_FOUND, NO_SUCH_KIND)
        supported = " and ".join(self.resource.versions)
        what = f"the cluster serves {', '.join(unsupported)}, but xds supports only {supported}"
        raise UnsupportedVersionError(HTTPStatus.NOT_FOUND, what)

    def _preference(self, version: str) -> int:
        """Return a sort key: supported versions, newest last, after unsupported versions."""
        versions = self.resource.versions
        return versions.index(version) if version in versions else -1

    # --- list ---

    async def _list(self) -> None:
        """List all objects, and record the differences from the local copy."""
        seen: dict[Key, T] = {}
        limit: int | None = self._options.page_size
        next_page: str | None = None
        request = self._request_page(limit)
        try:
            while True:
                try:
                    page = await request
                except KubeError as error:
                    if error.status != HTTPStatus.GONE or not next_page:
                        raise
                    # The continue token has expired. A list in one page cannot expire.
                    seen, limit, next_page = {}, None, None
                    request = self._request_page(limit)
                    continue
                meta = page.get("metadata") or {}
                next_page = meta.get("continue") or None
                if next_page:
                    # The API server prepares the next page while this one is read.
                    request = self._request_page(limit, next_page)
                for item in _mappings(page.get("items")):
                    if key := _key(item):
                        seen[key] = self._read_object(item, key)
                    await self._checkpoint()
                if not next_page:
                    break
        finally:
            request.cancel()
            await asyncio.wait((request,))
        version = str(meta.get("resourceVersion") or "")
        if not version:
            raise KubeError(0, f"{self._api.server} sent a list without a resourceVersion")
        for key in self.objects.keys() - seen.keys():
            self._put(key, None)
        for key, value in seen.items():
            self._put(key, value)
        self._version, self.complete = version, True
        self._failures = self._empty_watches = 0
        self._clear_failure()
        self._wake()

    def _request_page(self, limit: int | None, token: str | None = None) -> asyncio.Task[Json]:
        query = {"limit": limit, "continue": token, **self.resource.selectors}
        path = self.resource.path(self._api_version)
        page = self._api.call(
            "GET", path, query=query, timeout=self._options.list_timeout, decode=self._decode_list
        )
        return asyncio.create_task(page)

    # --- watch ---

    async def _watch(self) -> None:
        """Apply events until the server ends the watch. Raises ExpiredError or KubeError."""
        loop = asyncio.get_running_loop()
        query = {
            "watch": True,
            "allowWatchBookmarks": True,
            "resourceVersion": self._version,
            "timeoutSeconds": round(self._options.watch_timeout * random.uniform(1.0, 2.0)),  # noqa: S311
            **self.resource.selectors,
        }
        path, started = self.resource.path(self._api_version), loop.time()
        async with self._api.stream(path, idle=self._options.idle_timeout, **query) as stream:
            self._is_open = True
            self._clear_failure()
            opened = self._last_contact
            async for batch in read_lines(stream):
                for line in batch:
                    await self._checkpoint()
                    self._handle_event(_decode_event(line))
                self._failures = self._empty_watches = self._expirations = 0
                self._clear_failure()
                if self._changed:
                    self._wake()
        if loop.time() - started < self._options.min_delay and self._last_contact == opened:
            raise KubeError(0, f"{self._api.server} closes watches immediately")
        self._failures = self._expirations = 0

    def _handle_event(self, event: Json) -> None:
        kind, obj = event.get("type"), event.get("object")
        if not isinstance(obj, dict):
            raise KubeError(0, f"{self._api.server} sent a watch event without an object")
        if kind == "ERROR":
            code = obj.get("code")
            if code == HTTPStatus.GONE or obj.get("reason") == "Expired":
                raise ExpiredError
            raise KubeError(
                code if isinstance(code, int) else 0, str(obj.get("message") or "the watch failed")
            )
        if kind in {"ADDED", "MODIFIED", "DELETED"} and (key := _key(obj)):
            self._put(key, None if kind == "DELETED" else self._read_object(obj, key))
        meta = obj.get("metadata")
        if isinstance(meta, dict) and (version := meta.get("resourceVersion")):
            self._version = str(version)

    # --- local copy ---

    def _read_object(self, obj: Json, key: Key) -> T:
        # Items of a list omit kind and apiVersion.
        obj.setdefault("kind", self.resource.kind)
        obj.setdefault("apiVersion", self.resource.api_version(self._api_version))
        return self._keep(obj, self.objects.get(key))

    def _put(self, key: Key, value: T | None) -> None:
        old = self.objects.get(key)
        if old != value:
            self._changed.setdefault(key, old)
        if value is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = value  # Equal values can have different versions.


def _cause(error: KubeError, *, is_served: bool) -> FailureCause:
    if isinstance(error, UnsupportedVersionError):
        return FailureCause.UNSUPPORTED
    if not is_served:
        return FailureCause.NOT_SERVED
    return FailureCause.FORBIDDEN if error.status == HTTPStatus.FORBIDDEN else FailureCause.UNREACHABLE


def _decode_event(line: bytes) -> Json:
    try:
        event = decode_json(line)
    except ValueError as error:
        raise KubeError(0, f"cannot decode a watch event: {error}") from error
    if not isinstance(event, dict):
        raise KubeError(0, "cannot decode a watch event: it is not a JSON object")
    return event


def _mappings(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _key(obj: Json) -> Key | None:
    meta = obj.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    return (str(meta.get("namespace") or ""), str(name)) if isinstance(meta, dict) and name else None
