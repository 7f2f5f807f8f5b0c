"""A small fake API server: versions, pages, watches, bookmarks and expiry, and faults on demand.

The contract tests run against both a real server and this one. Only this one has faults.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import yaml
from aiohttp import web

from tests.sources.fake_objects import CORE, ISTIO, OTHERS, Event, Kind, Selection
from xds.mesh.kube.api import KubeApi

NOBODY = "nobody"
"""A token without any rights."""

Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeApiServer:
    """A server in an `async with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = 100
        self.compacted = 0
        """Versions before this one have expired."""
        self.token = "good"
        self.requests: list[web.Request] = []
        self.faults: dict[str, list[Fault]] = {}
        """Verb (`list`, `watch` or `discovery`) and plural, as in `watch pods` -> faults, each used once."""
        self.bookmarks = 0.05
        """Seconds between bookmarks."""
        self._kinds = {("", plural): Kind("", plural, kind, ["v1"]) for plural, kind in CORE.items()}
        for group, plural, kind in OTHERS:
            self._kinds[group, plural] = Kind(group, plural, kind, ["v1"])
        self._definitions: dict[str, dict[str, Any]] = {}
        self._changed = asyncio.Condition()
        self._answering: set[Any] = set()
        self._watches: set[asyncio.Task[Any]] = set()
        self._pages: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start, at the same address as before."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._counted)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)  # 0 is no limit
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Stop, and close every connection."""
        for task in list(self._answering):
            task.cancel()
        await self._runner.cleanup()

    def kubeconfig(self, token: str = "") -> Path:
        """Write a kubeconfig."""
        path = self.folder / f"kubeconfig-{uuid4().hex}"
        token_file = self.folder / f"token-{uuid4().hex}"
        token_file.write_text(token or self.token)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"tokenFile": str(token_file)}}],
        }
        path.write_text(yaml.safe_dump(config))
        self.token_file = token_file
        return path

    async def connect(self, token: str = "") -> KubeApi:
        return await KubeApi.connect(self.kubeconfig(token))

    def serve_istio(self, newest: str = "v1") -> None:
        """Serve the four kinds of policies."""
        for group, version, plural, kind in ISTIO:
            versions = [newest if version == "v1" else version]
            self._kinds[group, plural] = Kind(group, plural, kind, versions)

    def add(self, group: str, version: str, plural: str, kind: str) -> None:
        """Serve one more resource."""
        self._kinds[group, plural] = Kind(group, plural, kind, [version])

    def serve(self, plural: str, group: str, *versions: str) -> None:
        """Serve a resource in these versions only, or in none; its objects stay."""
        self._kinds[group, plural].versions = list(versions)

    def objects(self, plural: str, group: str = "") -> dict[tuple[str, str], dict[str, Any]]:
        """Return a resource's objects by namespace and name."""
        return self._kinds[group, plural].objects

    def requests_for(self, what: str) -> list[web.Request]:
        """Return the received requests of a kind, such as `list pods`."""
        return [request for request in self.requests if _sort(request) == what]

    def fail(self, what: str, *faults: Fault) -> None:
        """Make the next requests of a kind fail."""
        self.faults.setdefault(what, []).extend(faults)

    async def compact(self) -> None:
        """Expire all versions, and end all watches."""
        self.version += 1
        self.compacted = self.version
        self._pages.clear()
        for kind in self._kinds.values():
            kind.events.clear()
        await self.cut()

    async def cut(self) -> None:
        """End all watches."""
        for task in list(self._watches):
            task.cancel()

    async def put(self, plural: str, obj: dict[str, Any], group: str = "") -> dict[str, Any]:
        """Create or replace an object."""
        kind = self._kinds[group, plural]
        meta = obj.setdefault("metadata", {})
        key = (meta.get("namespace", ""), meta["name"])
        known = kind.objects.get(key)
        self.version += 1
        meta |= {"resourceVersion": str(self.version), "managedFields": [{"manager": "test"}]}
        meta["uid"] = known["metadata"]["uid"] if known else str(uuid4())
        meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        kind.objects[key] = obj
        await self._happened(kind, Event(self.version, "MODIFIED" if known else "ADDED", obj))
        return obj

    async def remove(self, plural: str, namespace: str, name: str, group: str = "") -> None:
        """Delete an object."""
        kind = self._kinds[group, plural]
        gone = json.loads(json.dumps(kind.objects.pop((namespace, name))))
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        await self._happened(kind, Event(self.version, "DELETED", gone))

    async def _happened(self, kind: Kind, event: Event) -> None:
        kind.events.append(Event(event.version, event.type, json.loads(json.dumps(event.object))))
        async with self._changed:
            self._changed.notify_all()

    # --- responses ------------------------------------------------------------------------------------------

    async def _counted(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        self._answering.add(task)
        try:
            return await self.answer(request)
        finally:
            self._answering.discard(task)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        who = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if who not in {self.token, NOBODY}:
            return failure(401, "Unauthorized", "Unauthorized")
        if faults := self.faults.get(_sort(request)):
            return await faults.pop(0)(request)
        parts = request.path.strip("/").split("/")
        if parts[0] == "apis" and len(parts) <= 3:
            return self._discovery(parts)
        group, version, rest = ("", *parts[1:2], parts[2:]) if parts[0] == "api" else (*parts[1:3], parts[3:])
        if group == "apiextensions.k8s.io":
            return await self._definition(request, rest)
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind = self._kinds.get((group, rest[0]))
        if who == NOBODY:
            plural = rest[0]
            message = (
                f'{plural} is forbidden: User "nobody" cannot list resource "{plural}" in API group "{group}"'
            )
            return failure(403, "Forbidden", message)
        if kind is None or version not in kind.versions:
            return failure(404, "NotFound", "the server could not find the requested resource")
        api_version = f"{group}/{version}" if group else version
        if request.method == "GET" and len(rest) == 1:
            selection = Selection(kind, api_version, namespace, _name(request))
            if request.query.get("watch") == "true":
                return await self._watch(request, selection)
            return self._list(request, selection)
        return await self._object(request, kind, (namespace, *rest[1:2]))

    def _discovery(self, parts: list[str]) -> web.Response:
        kinds = [kind for kind in self._kinds.values() if kind.group == parts[1]]
        versions = list(dict.fromkeys(version for kind in kinds for version in kind.versions))
        if len(parts) == 2 and versions:
            listed = [{"groupVersion": f"{parts[1]}/{version}", "version": version} for version in versions]
            group = {"kind": "APIGroup", "name": parts[1], "versions": listed, "preferredVersion": listed[0]}
            return web.json_response(group)
        if len(parts) == 3 and parts[2] in versions:
            resources = [
                {"name": kind.plural, "kind": kind.kind} for kind in kinds if parts[2] in kind.versions
            ]
            return web.json_response({"kind": "APIResourceList", "resources": resources})
        return failure(404, "NotFound", "the server could not find the requested resource")

    async def _definition(self, request: web.Request, rest: list[str]) -> web.Response:
        """Create, change and delete CustomResourceDefinitions."""
        if request.method == "GET":
            return web.json_response(self._definitions[rest[1]])
        if request.method == "DELETE":
            plural, _, group = rest[1].partition(".")
            del self._kinds[group, plural]
            await self.cut()
            return web.json_response({"kind": "Status", "status": "Success"})
        body = await request.json()
        spec = body["spec"]
        versions = [version["name"] for version in spec["versions"] if version["served"]]
        key = (spec["group"], spec["names"]["plural"])
        self._definitions[body["metadata"]["name"]] = body
        if request.method == "POST":
            self._kinds[key] = Kind(spec["group"], spec["names"]["plural"], spec["names"]["kind"], versions)
        else:
            self._kinds[key].versions = versions
            await self.cut()
        return web.json_response(body)

    async def _object(self, request: web.Request, kind: Kind, key: tuple[str, ...]) -> web.Response:
        if request.method == "POST":
            body = await request.json()
            if key[0]:
                body["metadata"]["namespace"] = key[0]
            if (key[0], body["metadata"].get("name", "")) in kind.objects:
                return failure(409, "AlreadyExists", f"{kind.plural} already exists")
            return web.json_response(await self.put(kind.plural, body, kind.group), status=201)
        found = kind.objects.get((key[0], key[1]))
        if found is None:
            return failure(404, "NotFound", f'{kind.plural} "{key[1]}" not found')
        match request.method:
            case "GET":
                return web.json_response(found)
            case "PUT":
                return web.json_response(await self.put(kind.plural, await request.json(), kind.group))
            case "PATCH":
                patched = _merged(json.loads(json.dumps(found)), await request.json())
                return web.json_response(await self.put(kind.plural, patched, kind.group))
        await self.remove(kind.plural, key[0], key[1], kind.group)
        return web.json_response({"kind": "Status", "status": "Success"})

    def _list(self, request: web.Request, selection: Selection) -> web.Response:
        limit = int(request.query.get("limit", 0)) or 10**9
        if token := request.query.get("continue"):
            if token not in self._pages:
                return failure(410, "Expired", "The provided continue parameter is too old")
            version, left = self._pages.pop(token)
        else:
            version, left = self.version, [json.loads(json.dumps(obj)) for obj in selection.objects()]
        page, left = left[:limit], left[limit:]
        meta: dict[str, Any] = {"resourceVersion": str(version)}
        if left:
            token = base64.b64encode(f"{version}-{uuid4().hex}".encode()).decode()
            self._pages[token] = (version, left)
            meta |= {"continue": token, "remainingItemCount": len(left)}
        items = [
            {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")} for obj in page
        ]
        body = {"kind": f"{selection.kind.kind}List", "apiVersion": selection.api_version, "metadata": meta}
        return web.json_response(body | {"items": items})

    async def _watch(self, request: web.Request, selection: Selection) -> web.StreamResponse:
        at = int(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if at < self.compacted:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old: {at}"}
            await response.write(line("ERROR", gone))
            return response
        task = asyncio.current_task()
        assert task
        self._watches.add(task)
        try:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(float(request.query["timeoutSeconds"])):
                    await self._follow(response, selection, at)
        except asyncio.CancelledError:
            if request.transport:
                request.transport.abort()
            raise
        finally:
            self._watches.discard(task)
        return response

    async def _follow(self, response: web.StreamResponse, selection: Selection, at: int) -> None:
        while True:
            for event in [event for event in selection.kind.events if event.version > at]:
                at = event.version
                if selection.has(event.object):
                    await response.write(line(event.type, selection.typed(event.object)))
            try:
                async with asyncio.timeout(self.bookmarks), self._changed:
                    await self._changed.wait_for(lambda after=at: selection.kind.newest > after)
            except TimeoutError:
                if selection.kind.newest > at:
                    continue
                at = max(at, self.version)
                bookmark = {"kind": selection.kind.kind, "metadata": {"resourceVersion": str(at)}}
                await response.write(line("BOOKMARK", bookmark))


def line(kind: str, obj: dict[str, Any]) -> bytes:
    """Encode an event of a watch."""
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def failure(code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return an error response."""
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
    return web.json_response(body, status=code, headers=named)


def _sort(request: web.Request) -> str:
    parts = request.path.strip("/").split("/")
    if parts[0] == "apis" and len(parts) <= 3:
        return f"discovery {parts[1]}"
    what = "watch" if request.query.get("watch") == "true" else "list" if request.method == "GET" else "write"
    return f"{what} {parts[-1]}"


def _name(request: web.Request) -> str:
    return request.query.get("fieldSelector", "").removeprefix("metadata.name=")


def _merged(obj: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    obj = obj if isinstance(obj, dict) else {}
    for key, value in patch.items():
        if value is None:
            obj.pop(key, None)
        else:
            obj[key] = _merged(obj.get(key), value)
    return obj
