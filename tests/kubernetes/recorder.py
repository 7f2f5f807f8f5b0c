"""Record the requests to an API server, and compare them with RBAC rules."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

from tests.kubernetes.environment.cluster import Cluster

_HOPS = {"host", "content-length", "transfer-encoding", "connection", "content-encoding"}
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Call(NamedTuple):
    """A request, as in RBAC rules."""

    verb: str
    group: str
    resource: str
    """With the subresource, as in `pods/status`."""
    namespace: str
    name: str
    status: int


class Recorder:
    """A recording proxy of the API server, as an `async with` block. It ignores discovery requests."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.calls: set[Call] = set()

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(cafile=self._cluster.control_plane.certificates.root)
        self._onward = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=0))
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        # First end all streaming responses.
        await self._onward.close()
        await self._runner.cleanup()

    async def kubeconfig(self, user: str, folder: Path) -> Path:
        """Write a kubeconfig for a user (see `Cluster.kubeconfig`) that uses this proxy."""
        document = json.loads((await self._cluster.kubeconfig(user)).read_text())
        document["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self.port}"}
        path = folder / f"{user.replace('/', '-')}.json"
        path.write_text(json.dumps(document))
        return path

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOPS}
        url = self._cluster.server + request.raw_path
        body = await request.read()
        async with self._onward.request(
            request.method, url, headers=headers, data=body, timeout=aiohttp.ClientTimeout(total=None)
        ) as answer:
            self.calls |= set(_calls(request, answer.status))
            back = {name: value for name, value in answer.headers.items() if name.lower() not in _HOPS}
            response = web.StreamResponse(status=answer.status, headers=back)
            with suppress(ConnectionResetError, aiohttp.ClientError):  # one of the ends has disconnected
                await response.prepare(request)
                async for some in answer.content.iter_any():
                    await response.write(some)
                await response.write_eof()
            return response

    @property
    def refused(self) -> list[Call]:
        """Return the forbidden requests."""
        return [call for call in self.calls if call.status in (401, 403)]


def _calls(request: web.Request, status: int) -> Iterator[Call]:
    parts = request.path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, rest = "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, rest = parts[1], parts[3:]
    else:
        return  # discovery, which all users may read
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name, *sub = [*rest, ""][: max(2, len(rest))]
    query = parse_qs(request.query_string)
    selected = query.get("fieldSelector", [""])[0].partition("metadata.name=")[2]
    verb = _VERBS.get(request.method, "get" if name else "watch" if "watch" in query else "list")
    if resource in ("selfsubjectreviews", "selfsubjectaccessreviews"):
        return  # a review of the caller itself, which all users may request
    resource = "/".join([resource, *(part for part in sub if part)])
    yield Call(verb, group, resource, namespace, name or selected, status)
    if verb == "patch" and status == 201:
        # Server-side apply of a missing object also needs the right to create it.
        yield Call("create", group, resource, namespace, name, status)


class Grant(NamedTuple):
    """A right: a verb on a resource, in a namespace (empty: all) and with a name (empty: any)."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str

    def covers(self, call: Call) -> bool:
        """Whether it allows a request."""
        return (
            (self.verb, self.group, self.resource) == (call.verb, call.group, call.resource)
            and self.namespace in ("", call.namespace)
            and self.name in ("", call.name)
        )


def granted(objects: Iterable[dict[str, Any]], role: str) -> set[Grant]:
    """Return the single rights of the ClusterRole and the Role with this name."""
    return {
        Grant(verb, group, resource, item["metadata"].get("namespace", ""), name)
        for item in objects
        if item["kind"] in ("ClusterRole", "Role") and item["metadata"]["name"] == role
        for rule in item["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
