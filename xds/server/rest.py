"""Discovery by polling: HTTP POST with JSON in both directions, for who does not speak gRPC.

The paths are those in Envoy's protos (`option (google.api.http).post`), and the JSON is protobuf's own form of
DiscoveryRequest and DiscoveryResponse. All types come in snapshots of their own moment: there is no order between
them, as there is on one aggregated stream.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from collections import Counter
from typing import Any

import grpc
import structlog
from aiohttp import web
from google.protobuf import json_format

from xds.descriptors import message_class, pool, to_dict
from xds.http import listen
from xds.protocol.limits import DEFAULT, Budgets, Limits, RequestError
from xds.protocol.session import Variant
from xds.protocol.wire import Request, parse_request
from xds.server.fetch import PATIENCE, fetch
from xds.server.proxies import Proxies, Refused, StreamInfo, cut, status_of
from xds.server.services import SERVICES

log = structlog.get_logger(__name__)

TYPES = {service.path: service.type_url for service in SERVICES.values() if service.path}
"""By path, the type that is asked for."""

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
    """An HTTP server of the discovery services: POST a DiscoveryRequest to `/v3/discovery:clusters` and the like.

    200 is a DiscoveryResponse; 304: the request's version_info is what the proxy should have. 400: the request is not
    one, 404: there is no such path, 503: there is no snapshot yet for this proxy, and whatever `Proxies` refuse with.
    `limits` say how much each client may ask for. `patience` is how many seconds a request is held for the first snapshot. `failed` counts the requests that were
    refused, malformed or went wrong here, by the gRPC status that means the same: a DiscoveryService's, say.
    """

    def __init__(
        self,
        proxies: Proxies,
        host: str,
        port: int,
        *,
        identifier: str = "",
        limits: Limits = DEFAULT,
        patience: float = PATIENCE,
        failed: Counter[grpc.StatusCode] | None = None,
    ) -> None:
        self._proxies = proxies
        self._host = host
        self._port = port
        self._identifier = identifier
        self._budgets = Budgets(limits)
        self._patience = patience
        self._failed: Counter[grpc.StatusCode] = Counter() if failed is None else failed
        self._runner: web.AppRunner | None = None
        self.port = 0
        """The port that it listens on, once started; of use when the choice was left with port 0."""

    async def start(self) -> None:
        """Listen. OSError: the address cannot be had."""
        app = web.Application(client_max_size=self._budgets.limits.request_size)
        for path in TYPES:
            app.router.add_post(path, self._poll)
        app.router.add_route("*", "/{path:.*}", _unknown)
        self._runner = await listen(app, self._host, self._port)
        self.port = self._runner.addresses[0][1]
        log.info("serving xDS by REST", host=self._host, port=self.port)

    async def stop(self) -> None:
        """Stop listening; requests under way are answered."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _poll(self, request: web.Request) -> web.Response:
        peer = _peer(request)
        try:
            fetched = await fetch(
                self._proxies,
                # In a thread, for its cost follows what the client sends.
                await asyncio.to_thread(_parse, await request.read(), self._budgets.limits),
                StreamInfo(peer=peer, variant=Variant.SOTW, type_url=TYPES[request.path]),
                self._budgets,
                patience=self._patience,
            )
            if fetched.is_known:
                return web.Response(status=304)
            # In a thread, for its cost follows what is served.
            body = await asyncio.to_thread(_json, fetched.response(self._identifier))
        except RequestError as error:
            log.warning("malformed request", peer=peer, path=request.path, problem=cut(str(error)))
            return self._refusal(status_of(error), str(error))
        except Refused as refused:
            return self._refusal(refused.code, refused.message)
        except web.HTTPException:
            raise
        except Exception:  # noqa: BLE001 - told in full; for its form see DiscoveryService
            log.error(  # noqa: TRY400
                "a call ends with an error of ours",
                peer=peer,
                path=request.path,
                stack=traceback.format_exc(),
            )
            return self._refusal(grpc.StatusCode.INTERNAL, "an error in the server; its log says more")
        return web.Response(body=body, content_type="application/json")

    def _refusal(self, code: grpc.StatusCode, why: str) -> web.Response:
        self._failed[code] += 1
        return _text(_STATUS.get(code, 500), cut(why))


async def _unknown(request: web.Request) -> web.Response:
    if request.path in TYPES:
        return _text(405, f"{request.path} is for POST, not {request.method}")
    return _text(404, f"there is nothing at {request.path}; there are: {', '.join(TYPES)}")


def _parse(body: bytes, limits: Limits) -> Request:
    """Read a DiscoveryRequest that came as JSON. What only a newer client knows of is skipped, as in the other form."""
    message = message_class(f"{_DISCOVERY}.DiscoveryRequest")()
    try:
        value = json.loads(body)
        if isinstance(value, dict) and isinstance(node := value.get("node"), dict):
            node.pop("extensions", None)  # Nine tenths of what Envoy says of itself, and nothing to us.
        _check_names(value, limits)
        json_format.ParseDict(value, message, ignore_unknown_fields=True, descriptor_pool=pool)
    except RequestError:
        raise
    except (ValueError, TypeError, RecursionError, json_format.ParseError) as error:
        raise RequestError(f"the request is not the JSON form of a DiscoveryRequest: {error}") from error
    return parse_request(message.SerializeToString(), limits)


def _check_names(value: Any, limits: Limits) -> None:
    """Refuse names that are too many before the second and slower half of reading them."""
    for key in ("resource_names", "resourceNames") if isinstance(value, dict) else ():
        if isinstance(names := value.get(key), list):
            limits.check_count(key, len(names))


def _json(response: bytes) -> bytes:
    return json.dumps(to_dict(f"{_DISCOVERY}.DiscoveryResponse", response)).encode()


def _peer(request: web.Request) -> str:
    """Return the client's address in gRPC's form."""
    host, port = request.transport.get_extra_info("peername")[:2] if request.transport else ("", 0)
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _text(status: int, what: str) -> web.Response:
    return web.Response(status=status, text=f"{what}\n")
