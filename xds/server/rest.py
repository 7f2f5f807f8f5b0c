"""Discovery by polling over HTTP and JSON, for clients without gRPC.

Envoy's protos define the paths (`option (google.api.http).post`). The bodies are DiscoveryRequest and
DiscoveryResponse in protobuf's JSON form. Each poll returns resources of the current snapshot. Unlike on an
aggregated stream, the types are not ordered.
"""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

import grpc
import structlog
from aiohttp import web
from google.protobuf import json_format

from xds.codec import message_class, pool, to_dict
from xds.protocol.limits import DEFAULT_LIMITS, Budgets, Limits, RequestError
from xds.protocol.session import Variant
from xds.protocol.wire import SotwRequest, parse_request
from xds.server.fair_share import FairExecutor
from xds.server.fetch import FIRST_SNAPSHOT_TIMEOUT, fetch
from xds.server.http import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_ADDRESS,
    HttpClient,
    HttpListener,
    client_of,
    foreign_host,
)
from xds.server.http_bodies import BodyReader, read_json
from xds.server.proxies import Proxies, Refused, StreamInfo, status_code, truncate
from xds.server.services import SERVICES

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_REQUEST_SIZE = 1 << 20
"""Maximum size of a request in bytes, because clients are not authenticated. Envoy sends a few kB."""

TYPES_BY_PATH = {service.path: service.type_url for service in SERVICES.values() if service.path}
"""Type URL by HTTP path."""

_DISCOVERY = "envoy.service.discovery.v3"
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class RestServer:
    """An HTTP server of the discovery services, for POST to `/v3/discovery:clusters` and similar paths.

    The body of a request is a DiscoveryRequest. The status codes are

    - 200 with a DiscoveryResponse;
    - 304 if the request's `version_info` is the current version;
    - 400 for an invalid request;
    - 404 for an unknown path;
    - 503 if the proxy has no snapshot;
    - the equivalent of the gRPC status if `proxies` refuses the request.

    A web page in a browser on this machine must not read the configuration, even through DNS rebinding. The
    server therefore refuses requests from browsers, requests without `Content-Type: application/json`, and
    requests whose `Host` is a name with a dot that is neither `host` nor one of `names`.

    Args:
        proxies: Decides what each client gets.
        host: Name or address to listen on.
        port: Port to listen on; 0 selects a free port.
        identifier: Identifier of the control plane in responses.
        limits: Limits of each client.
        first_snapshot_timeout: Seconds that a request waits for the first snapshot of its proxy.
        failed: Counter of failed requests by equivalent gRPC status, such as `DiscoveryService.failed`.
        names: Other host names of the server.
        max_connections: Maximum number of connections.
        max_connections_per_address: Maximum number of connections of one client address.
    """

    def __init__(
        self,
        proxies: Proxies,
        host: str,
        port: int,
        *,
        identifier: str = "",
        limits: Limits = DEFAULT_LIMITS,
        first_snapshot_timeout: float = FIRST_SNAPSHOT_TIMEOUT,
        failed: Counter[grpc.StatusCode] | None = None,
        names: Iterable[str] = (),
        max_connections: int = MAX_CONNECTIONS,
        max_connections_per_address: int = MAX_CONNECTIONS_PER_ADDRESS,
    ) -> None:
        self._proxies = proxies
        self._host = host
        self._port = port
        self._identifier = identifier
        self._budgets = Budgets(limits)
        self._first_snapshot_timeout = first_snapshot_timeout
        self._failed: Counter[grpc.StatusCode] = Counter() if failed is None else failed
        self._max_connections = max_connections
        self._max_connections_per_address = max_connections_per_address
        self._names = frozenset(name.lower() for name in (host, *names))
        self._bodies = BodyReader(min(MAX_REQUEST_SIZE, limits.request_size))
        self._thread = FairExecutor()
        self._listener: HttpListener | None = None
        self.port = 0
        """Port of the server, after `start`."""

    async def start(self) -> None:
        """Start to listen.

        Raises:
            OSError: the address cannot be used.
        """
        app = web.Application(client_max_size=min(MAX_REQUEST_SIZE, self._budgets.limits.request_size))
        for path in TYPES_BY_PATH:
            app.router.add_post(path, self._handle_post)
        app.router.add_route("*", "/{path:.*}", _handle_unknown)
        listener = HttpListener(
            app,
            self._host,
            self._port,
            max_connections=self._max_connections,
            max_per_address=self._max_connections_per_address,
        )
        await listener.start()
        self._listener = listener
        self.port = listener.port
        log.info("serving xDS over REST", host=self._host, port=self.port)

    async def stop(self) -> None:
        """Stop listening. Pending requests are answered first."""
        if self._listener:
            await self._listener.stop()
            self._listener = None

    async def _handle_post(self, request: web.Request) -> web.Response:
        peer, client = _peer_of(request), client_of(request)
        if (refusal := self._deny_browsers(request)) is not None:
            return refusal
        try:
            async with self._bodies.read(request) as body:
                # In a thread, because the client determines the cost.
                message = await self._run_in_thread(client, lambda: _parse_json(body, self._budgets.limits))
            result = await fetch(
                self._proxies,
                message,
                StreamInfo(
                    peer=peer, variant=Variant.SOTW, type_url=TYPES_BY_PATH[request.path], keyless=True
                ),
                self._budgets,
                first_snapshot_timeout=self._first_snapshot_timeout,
            )
            if result.is_current:
                return web.Response(status=304)
            # In a thread, because the cost depends on the size of the response.
            content = await self._run_in_thread(
                client, lambda: _encode_json(result.response(self._identifier))
            )
        except RequestError as error:
            # No warning, because unauthenticated clients can send anything. A metric counts these errors.
            log.debug("malformed request", peer=peer, path=request.path, problem=truncate(str(error)))
            return self._error_response(status_code(error), str(error))
        except Refused as refused:
            return self._error_response(refused.code, refused.message)
        except web.HTTPException:
            raise
        except Exception:  # noqa: BLE001 - logged as text, as in DiscoveryService
            log.error(  # noqa: TRY400
                "call failed with an internal error",
                peer=peer,
                path=request.path,
                stack=traceback.format_exc(),
            )
            return self._error_response(grpc.StatusCode.INTERNAL, "internal error; see the server's log")
        return web.Response(body=content, content_type="application/json")

    async def _run_in_thread(self, client: HttpClient, function: Callable[[], T]) -> T:
        return await self._thread.run(client.address, client.share, function)

    def _deny_browsers(self, request: web.Request) -> web.Response | None:
        """Return an error response for a request that a web page may have sent."""
        if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
            return self._deny(403, "requests from browsers are refused (Origin or Sec-Fetch-Site header)")
        if host := foreign_host(request, self._names):
            return self._deny(
                421, f"unknown Host {truncate(host)!r}: use the server's address, localhost or a --tls-name"
            )
        if request.content_type != "application/json":
            return self._deny(415, "Content-Type must be application/json")
        return None

    def _deny(self, status: int, reason: str) -> web.Response:
        self._failed[grpc.StatusCode.PERMISSION_DENIED] += 1
        return _text_response(status, reason)

    def _error_response(self, code: grpc.StatusCode, reason: str) -> web.Response:
        self._failed[code] += 1
        return _text_response(_STATUS.get(code, 500), truncate(reason))


async def _handle_unknown(request: web.Request) -> web.Response:
    if request.path in TYPES_BY_PATH:
        return _text_response(405, f"{request.path} accepts POST, not {request.method}")
    return _text_response(404, f"unknown path {request.path}; known paths: {', '.join(TYPES_BY_PATH)}")


def _parse_json(body: bytes, limits: Limits) -> SotwRequest:
    """Parse a DiscoveryRequest in JSON. Unknown fields of newer clients are ignored, as in protobuf."""
    message = message_class(f"{_DISCOVERY}.DiscoveryRequest")()
    try:
        value = read_json(body)
        if isinstance(value, dict) and isinstance(node := value.get("node"), dict):
            node.pop("extensions", None)  # Not used. They are 90 % of the size of an Envoy node.
        json_format.ParseDict(value, message, ignore_unknown_fields=True, descriptor_pool=pool)
    except (ValueError, TypeError, RecursionError, json_format.ParseError) as error:
        raise RequestError(f"the request is not the JSON form of a DiscoveryRequest: {error}") from error
    return parse_request(message.SerializeToString(), limits)


def _encode_json(response: bytes) -> bytes:
    return json.dumps(to_dict(f"{_DISCOVERY}.DiscoveryResponse", response)).encode()


def _peer_of(request: web.Request) -> str:
    """Return the client's address in gRPC's form."""
    host, port = request.transport.get_extra_info("peername")[:2] if request.transport else ("", 0)
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _text_response(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")
