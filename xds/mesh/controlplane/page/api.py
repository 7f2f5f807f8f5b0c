"""The HTTP API below /api/v1, and the files of the page.

Responses have the JSON form of the gRPC services' messages (xds.mesh.v1), with additions that
docs/reference/http-api.md describes. All requests only read.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from xds.checkpoint import Checkpoint
from xds.introspect.clock import Clock
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.objects_service import ObjectsService
from xds.mesh.controlplane.page import access_view, config, migration
from xds.mesh.controlplane.page.access import Access, Respond
from xds.mesh.controlplane.page.encoding import encode
from xds.mesh.controlplane.page.events import ViewEvents
from xds.mesh.controlplane.page.graph import Graph, predict
from xds.mesh.controlplane.page.map_view import FILTERS, Selection
from xds.mesh.controlplane.page.maps import Maps
from xds.mesh.controlplane.page.observed import ObservedTraffic
from xds.mesh.controlplane.page.refresh import Refresher, SharedResult
from xds.mesh.controlplane.policies_service import PoliciesService
from xds.mesh.controlplane.problem_times import FoundProblem
from xds.mesh.controlplane.proxies_service import ProxiesService
from xds.mesh.controlplane.rollouts_service import RolloutsService
from xds.mesh.controlplane.status import expiry, overall_state, proxy_state, type_line, type_word, types
from xds.mesh.controlplane.traffic_service import TrafficService
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.v1 import objects_pb2, policies_pb2, proxies_pb2, rollouts_pb2
from xds.protocol.types import short_name
from xds.server import DiscoveryService
from xds.server.fair_share import FairSemaphore
from xds.server.http import client_of
from xds.server.proxies import truncate

PREFIX = "/api/v1"
MAX_COMPUTATIONS = 2
"""Maximum number of views that are computed at the same time. Each uses slices of the event loop's time."""
MAX_OPENED = 1000
"""Maximum number of namespaces in a request for the map."""
DEFAULT_WIDTH = 1200
"""Width of a map if the request does not contain it, in pixels."""

ROLLOUT_INTERVAL = 1.0
"""Interval at which the view of rollouts shows the progress of proxies, in seconds."""
OBSERVED_INTERVAL = 15
"""Interval at which views show newly observed traffic, in seconds."""

_CONTENT_TYPES = {
    "html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"
}  # fmt: skip


class Backend(NamedTuple):
    """What the API reads."""

    controller: Controller
    discovery: DiscoveryService
    proxies: ProxiesService
    rollouts: RolloutsService
    policies: PoliciesService
    objects: ObjectsService
    found_problems: Callable[[], Iterable[FoundProblem]]
    """Returns the current problems of objects and settings."""
    traffic: TrafficService


class Page:
    """The page and its API, for `AdminServer`. Until `start` is called, the API responds with status 503.

    Args:
        access: Decides which requests are answered.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._backend: Backend | None = None
        self._graph: Refresher[Graph] = Refresher(self._mesh, _compute_graph)
        self._breaks: Refresher[migration.Breaks] = Refresher(self._mesh, migration.compute_breaks)
        self._maps = Maps(self._observed)
        self._maps_state: Hashable = None
        self._access_rows = SharedResult(self._access_state, self._compute_access)
        self._events = ViewEvents(self._states)
        self._turns = FairSemaphore(MAX_COMPUTATIONS, MAX_COMPUTATIONS)

    def start(self, backend: Backend) -> None:
        """Start to answer requests of the API."""
        self._backend = backend

    def add_routes(self, app: web.Application) -> None:
        """Add the page and its API to an application that has not started."""
        for name, body in _files():
            path = "/" if name == "index.html" else f"/page/{name}"
            respond = _file_handler(body, _CONTENT_TYPES[name.rpartition(".")[2]])
            app.router.add_get(path, self._access.guarded(respond, is_document=path == "/"))
        handlers: dict[str, Respond] = {
            "proxies": self._json(self._proxies),
            "config": self._json(self._config),
            "problems": self._json(self._problems),
            "rollouts": self._json(self._rollouts),
            "explain": self._json(self._explain),
            "map": self._json(self._map, self._graph.get),
            "migration": self._json(self._migration),
            "access": self._json(self._access_view, self._access_rows.get),
            "events": self._stream_events,
        }
        for name, handler in handlers.items():
            app.router.add_get(f"{PREFIX}/{name}", self._access.guarded(handler))
        app.on_shutdown.append(self._stop)

    async def _stop(self, _: web.Application) -> None:
        await self._events.close()
        await self._graph.stop()
        await self._breaks.stop()
        await self._access_rows.stop()

    def _json(
        self, read: Callable[[Backend, Mapping[str, str]], Any], ready: Callable[[], Any] | None = None
    ) -> Respond:
        """Return a handler that responds with what a function returns, as JSON.

        Args:
            read: Returns the response. Its CPU time, and that of the encoding, counts as the client's.
            ready: Waits for what `read` needs and all clients share, without a turn.
        """

        async def respond(request: web.Request) -> web.Response:
            if self._backend is None:
                return _error(503, "the control plane is starting")
            try:
                if ready:
                    await ready()
                client = client_of(request)
                async with self._turns.slot(client.address):
                    text = await client.share.charged(_respond(read(self._backend, request.query)))
            except _NotReadyError as error:
                return _error(503, str(error))
            except LookupError as error:
                return _error(404, str(error.args[0]))
            except ValueError as error:
                return _error(400, str(error))
            return web.Response(text=text, content_type="application/json")

        return respond

    async def _stream_events(self, request: web.Request) -> web.StreamResponse:
        if self._backend is None:
            return _error(503, "the control plane is starting")
        return await self._events.respond(request)

    def _mesh(self) -> Mesh:
        return self._backend.controller.mesh if self._backend else Mesh()

    def _observed(self) -> ObservedTraffic:
        traffic = self._backend.traffic if self._backend else None
        return ObservedTraffic((traffic.traffic, traffic.denials) if traffic else (), self._mesh())

    # --- views ----------------------------------------------------------------------------------------------

    async def _proxies(self, backend: Backend, query: Mapping[str, str]) -> dict[str, Any]:
        request = proxies_pb2.ListProxiesRequest(
            proxy=query.get("proxy", ""),
            namespace=query.get("namespace", ""),
            unsynced=_flag(query, "unsynced"),
        )
        response = await backend.proxies.list(backend.discovery, request)
        checkpoint, proxies = Checkpoint(), []
        for proxy in response.proxies:
            proxies.append(_proxy(proxy, response))
            await checkpoint()
        del response.proxies[:]
        return _as_dict(response) | {"proxies": proxies}

    async def _config(self, backend: Backend, query: Mapping[str, str]) -> dict[str, Any]:
        node_id = query.get("proxy", "")
        streams = [stream for stream in backend.discovery.streams if stream.node.id == node_id]
        if not streams:
            raise LookupError(f"no proxy with the node ID {truncate(node_id)!r} is connected")
        if name := query.get("name", ""):
            return {"content": await config.content(streams, query.get("type", ""), name)}
        return await config.resources(streams)

    async def _problems(self, backend: Backend, query: Mapping[str, str]) -> dict[str, Any]:
        request = objects_pb2.ListProblemsRequest(
            namespace=query.get("namespace", ""), notices=_flag(query, "notices")
        )
        return _as_dict(await backend.objects.list_problems(request))

    async def _rollouts(self, backend: Backend, query: Mapping[str, str]) -> dict[str, Any]:
        request = rollouts_pb2.ListRolloutsRequest(namespace=query.get("namespace", ""), finished=True)
        response = await backend.rollouts.list(request, Clock.read())
        checkpoint = Checkpoint()
        lists: dict[str, list[dict[str, Any]]] = {}
        for name in ("services", "rules", "finished"):
            messages = getattr(response, name)
            lists[name] = []
            for message in messages:
                lists[name].append(_as_dict(message))
                await checkpoint()
            del messages[:]
        return _as_dict(response) | lists

    async def _explain(self, backend: Backend, query: Mapping[str, str]) -> dict[str, Any]:
        request = policies_pb2.ExplainRequest(
            client=query.get("client", ""), service=query.get("service", "")
        )
        try:
            response = await backend.policies.explain(backend.discovery, request)
        except UnknownNameError as error:
            raise LookupError(truncate(str(error))) from error
        return _as_dict(response)

    async def _map(self, _: Backend, query: Mapping[str, str]) -> str:
        selection = _selection(query)
        graph = await self._graph.get()
        if graph is None:
            raise _NotReadyError("the map could not be computed; see the control plane's log")
        is_current = self._graph.is_current
        text = await self._maps.get(graph, selection)
        return f'{text[:-1]},"current":{json.dumps(is_current)}}}'

    async def _migration(self, backend: Backend, _: Mapping[str, str]) -> dict[str, Any]:
        self._breaks.trigger()
        breaks = self._breaks.value if self._breaks.is_current else None
        mesh = backend.controller.mesh
        observation = _as_dict(backend.traffic.summary(time.time()))
        del observation["edges"]
        return {
            "rows": await migration.rows(mesh, breaks or {}, self._observed(), backend.traffic.connected),
            "observation": observation,
        }

    async def _access_view(self, _: Backend, __: Mapping[str, str]) -> Mapping[str, Any]:
        return self._access_rows.value or {}

    def _access_state(self) -> Hashable:
        if (backend := self._backend) is None:
            return None
        return id(backend.controller.mesh), _observed_state(backend), backend.traffic.connected

    async def _compute_access(self) -> Mapping[str, Any]:
        if (backend := self._backend) is None:
            return {}
        traffic = await backend.traffic.list(access_view.REQUEST)
        return await asyncio.to_thread(access_view.view, backend.controller.mesh, traffic)

    # --- changes --------------------------------------------------------------------------------------------

    async def _states(self) -> dict[str, Hashable]:
        """Return the state of each view, to find out which have changed."""
        backend = self._backend
        if backend is None:
            return {}
        for refresher in (self._graph, self._breaks):
            if refresher.version:  # A client has asked for it.
                refresher.trigger()
        controller = backend.controller
        observed = _observed_state(backend)
        return {
            "map": await self._map_state(observed),
            "migration": (self._breaks.version, id(controller.mesh), observed, backend.traffic.connected),
            "access": self._access_state(),
            "problems": tuple(backend.found_problems()),
            "proxies": await _proxies_state(backend),
            "rollouts": _rollouts_state(controller.rollouts),
        }

    async def _map_state(self, observed: float) -> Hashable:
        """Return the state of the map. If it has changed, prepare what clients will request."""
        state = self._graph.version, observed
        if state != self._maps_state and self._graph.value:
            await self._maps.refresh(self._graph.value)
        self._maps_state = state
        return state


def _observed_state(backend: Backend) -> float:
    """Return the state of observed traffic. Sidecars report every 10 s, and a large mesh all the time."""
    return time.monotonic() // OBSERVED_INTERVAL if backend.traffic.traffic else 0


class _NotReadyError(Exception):
    """A view cannot be shown now."""


async def _compute_graph(mesh: Mesh) -> AsyncIterator[Graph]:
    yield await predict(mesh)


async def _proxies_state(backend: Backend) -> Hashable:
    checkpoint, controller = Checkpoint(), backend.controller
    state: list[Hashable] = [controller.absences()]
    for stream in tuple(backend.discovery.streams):
        subscriber = stream.subscriber
        state.append(
            (id(stream), stream.message_count, id(subscriber.snapshot), controller.problem_of(subscriber))
        )
        await checkpoint()
    return tuple(state)


def _rollouts_state(rollouts: RolloutDriver) -> Hashable:
    """Return the state of rollouts. It changes every second while one is in progress."""
    rollout = rollouts.rollout
    is_active = rollout.is_in_progress or rollout.skipped
    checked_at = rollouts.checked_at // ROLLOUT_INTERVAL if is_active else 0
    return rollout.plan.generation, len(rollout.plan.ports), rollout.history.count, checked_at


def _proxy(proxy: proxies_pb2.Proxy, response: proxies_pb2.ListProxiesResponse) -> dict[str, Any]:
    """Return a proxy as JSON values, with its state in the words of `xds status`."""
    value = _as_dict(proxy)
    value["state"] = overall_state(proxy)
    value["status"] = proxy_state(proxy, response.time)
    value["certificate"] = expiry(proxy, response.time)
    value["words"] = {short_name(kind.type_url): type_word(kind, response.time) for kind in types(proxy)}
    for stream, message in zip(value["streams"], proxy.streams, strict=True):
        for kind, kind_message in zip(stream["types"], message.types, strict=True):
            kind["status"] = type_line(kind_message, proxy.problem, response.time)
    return value


def _selection(query: Mapping[str, str]) -> Selection:
    only = query.get("only", "")
    if only and only not in FILTERS:
        raise ValueError(f"only must be one of {', '.join(FILTERS)}, not {truncate(only)!r}")
    width = query.get("width", str(DEFAULT_WIDTH))
    if not (width.isascii() and width.isdecimal() and len(width) <= 5):
        raise ValueError(f"width must be a number of pixels, not {truncate(width)!r}")
    opened = frozenset(filter(None, query.get("opened", "").split(",", MAX_OPENED)))
    return Selection(
        int(width), opened, query.get("node", ""), query.get("namespace", ""), query.get("search", ""), only
    )


def _flag(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value not in {"true", "false"}:
        raise ValueError(f"{name} must be true or false, not {truncate(value)!r}")
    return value == "true"


def _as_dict(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    return value


async def _respond(response: Awaitable[Mapping[str, Any] | str]) -> str:
    """Return a response as JSON. A text is JSON already."""
    value = await response
    return value if isinstance(value, str) else await encode(value)


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


# --- files --------------------------------------------------------------------------------------------------


def _files() -> list[tuple[str, bytes]]:
    """Return the names and contents of the page's files."""
    folder = files("xds.mesh.controlplane.page") / "static"
    return sorted((file.name, file.read_bytes()) for file in folder.iterdir())


def _file_handler(body: bytes, content_type: str) -> Respond:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8")

    return respond
