"""The discovery services on gRPC: one Session per stream, and bytes in both directions.

A stream has one reader, this module's handler is its one writer, and there is never more than one write under way:
whatever changes meanwhile is in the next response. Who a stream belongs to, what it gets and what becomes of its
answers is up to `Proxies`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from xds.protocol.events import Acked, Connected, Event, Nacked
from xds.protocol.session import Session, Variant
from xds.protocol.wire import Node, RequestError
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, Snapshot

log = structlog.get_logger(__name__)

ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"

_SERVICES = {
    ADS: ("", "StreamAggregatedResources", "DeltaAggregatedResources"),
    "envoy.service.cluster.v3.ClusterDiscoveryService": (CLUSTER, "StreamClusters", "DeltaClusters"),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": (ENDPOINT, "StreamEndpoints", "DeltaEndpoints"),
    "envoy.service.listener.v3.ListenerDiscoveryService": (LISTENER, "StreamListeners", "DeltaListeners"),
    "envoy.service.route.v3.RouteDiscoveryService": (ROUTE, "StreamRoutes", "DeltaRoutes"),
    "envoy.service.secret.v3.SecretDiscoveryService": (SECRET, "StreamSecrets", "DeltaSecrets"),
}
"""By service: its type, and its methods in both variants."""

_MOST_NAMES = 10
"""Of resources or objects in one line of the log."""

OPTIONS = (
    # A proxy that reconnects names all that it has, which is more than the default 4 MiB in a large mesh.
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1_000_000),
    # Without these a storm of connects is answered with CANCELLED.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    # Find out that a proxy is gone, and let proxies find out that we are.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
    # A port that another process has is an error, not something to share.
    ("grpc.so_reuseport", 0),
)


class Refused(Exception):  # noqa: N818 - it is an answer, not an accident
    """A stream is not let in; it ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """What is known of a stream besides what its client says."""

    peer: str
    """The client's address, in gRPC's form."""
    variant: Variant
    type_url: str
    """The type that the stream is for; empty if it is aggregated."""


class Subscriber:
    """A stream that was let in. It gets the latest snapshot; as long as there is none it waits."""

    def __init__(self, node: Node, stream: StreamInfo) -> None:
        self.node = node
        self.stream = stream
        self.snapshot: Snapshot | None = None
        self.changed = asyncio.Event()
        """Set to make the stream look again whether there is something to send."""

    def publish(self, snapshot: Snapshot) -> None:
        """From now on the proxy should have this."""
        self.snapshot = snapshot
        self.changed.set()


class Proxies(Protocol):
    """Who decides what proxies get. Nothing here may block: it is called on the event loop."""

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Let a stream in, or raise Refused. Two streams of one proxy are two subscribers."""

    def disconnect(self, subscriber: Subscriber) -> None:
        """Forget a stream that has ended; called exactly once for each that was let in."""

    def observe(self, subscriber: Subscriber, event: Acked | Nacked) -> None:
        """Learn what a proxy took or rejected."""


class DiscoveryService:
    """The discovery services as gRPC handlers, for any grpc.aio server: ADS, and one for each type."""

    def __init__(self, proxies: Proxies, *, identifier: str = "") -> None:
        self._proxies = proxies
        self._identifier = identifier
        self._subscribers: set[Subscriber] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._stopping = False

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return what to give to a server's `add_generic_rpc_handlers`."""
        return tuple(
            grpc.method_handlers_generic_handler(
                service,
                {
                    sotw: self._method(Variant.SOTW, type_url),
                    delta: self._method(Variant.DELTA, type_url),
                },
            )
            for service, (type_url, sotw, delta) in _SERVICES.items()
        )

    def stop(self) -> None:
        """End all streams, now and from now on, so that their proxies go elsewhere."""
        self._stopping = True
        for subscriber in self._subscribers:
            subscriber.changed.set()

    async def ended(self, *, within: float) -> None:
        """Wait until no stream is left, so that everybody was told that it is gone."""
        if self._streams:
            await asyncio.wait(self._streams, timeout=within)

    def _method(self, variant: Variant, type_url: str) -> grpc.RpcMethodHandler:
        async def stream(_: object, context: grpc.aio.ServicerContext) -> None:
            task = asyncio.current_task()
            assert task  # noqa: S101 - gRPC runs each stream in a task of its own
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
            await self._stream(context, StreamInfo(peer=context.peer(), variant=variant, type_url=type_url))

        return grpc.stream_stream_rpc_method_handler(stream)

    async def _stream(self, context: grpc.aio.ServicerContext, info: StreamInfo) -> None:
        try:
            await self._converse(context, info)
        except RequestError as error:
            log.warning("malformed request", peer=info.peer, problem=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refused as refused:
            await context.abort(refused.code, refused.message)

    async def _converse(self, context: grpc.aio.ServicerContext, info: StreamInfo) -> None:
        if self._stopping:
            raise _stopping()
        session = Session(info.variant, type_url=info.type_url, identifier=self._identifier)
        request = await context.read()
        if request is grpc.aio.EOF:
            return
        node = _connected(session.receive(request, _now()))
        about = log.bind(proxy=node.id, peer=info.peer, variant=info.variant.value)
        try:
            subscriber = self._proxies.connect(node, info)
        except Refused as refused:
            about.warning("proxy refused", code=refused.code.name, reason=refused.message)
            raise
        about.info("proxy connected", agent=f"{node.user_agent_name} {node.user_agent_version}".strip())
        self._subscribers.add(subscriber)
        reader = asyncio.create_task(self._read(context, session, subscriber))

        def done(reader: asyncio.Task[None]) -> None:
            if not reader.cancelled():
                reader.exception()  # It is raised where the reader is awaited, if anybody still does.
            subscriber.changed.set()

        reader.add_done_callback(done)
        try:
            await self._write(context, session, subscriber, reader)
        finally:
            # Nothing is awaited here: a stream may be cancelled while it ends, and would not be forgotten.
            reader.cancel()
            self._subscribers.discard(subscriber)
            self._proxies.disconnect(subscriber)
            about.info("proxy disconnected")

    async def _read(
        self, context: grpc.aio.ServicerContext, session: Session, subscriber: Subscriber
    ) -> None:
        """Take requests until the client has no more."""
        while (request := await context.read()) is not grpc.aio.EOF:
            for event in session.receive(request, _now()):
                match event:
                    case Acked():
                        self._proxies.observe(subscriber, event)
                    case Nacked():
                        _log_rejection(subscriber.node, event)
                        self._proxies.observe(subscriber, event)
            subscriber.changed.set()

    async def _write(
        self,
        context: grpc.aio.ServicerContext,
        session: Session,
        subscriber: Subscriber,
        reader: asyncio.Task[None],
    ) -> None:
        """Send what is due whenever something happened, until the reader or the server ends."""
        served = None
        while not reader.done() and not self._stopping:
            subscriber.changed.clear()
            if subscriber.snapshot and subscriber.snapshot is not served:
                served = subscriber.snapshot
                session.serve(served)
            response = session.next(_now())
            if response:
                await context.write(response)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(session.deadline()):
                        await subscriber.changed.wait()
        if self._stopping:
            raise _stopping()
        await reader


class XdsServer:
    """A gRPC server with the discovery services and health."""

    def __init__(self, proxies: Proxies, address: str, *, identifier: str = "", grace: float = 1.0) -> None:
        self._service = DiscoveryService(proxies, identifier=identifier)
        self._health = health.aio.HealthServicer()
        self._address = address
        self._grace = grace
        self._server: grpc.aio.Server | None = None
        self.port = 0
        """The port that it listens on, once started; of use when the address leaves the choice with port 0."""

    async def start(self) -> None:
        """Listen. RuntimeError: the address cannot be had."""
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers(self._service.handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._health.set(ADS, health_pb2.HealthCheckResponse.SERVING)
        try:
            self.port = server.add_insecure_port(self._address)
        except RuntimeError:
            await server.stop(None)
            raise
        await server.start()
        self._server = server
        log.info("serving xDS", address=self._address, port=self.port)

    async def stop(self) -> None:
        """Stop accepting, end the streams with UNAVAILABLE, and cancel those that do not end within the grace."""
        if self._server:
            await self._health.enter_graceful_shutdown()
            self._service.stop()
            await self._server.stop(self._grace)
            await self._service.ended(within=self._grace)
            self._server = None


def _stopping() -> Refused:
    return Refused(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _connected(events: list[Event]) -> Node:
    """Return who sent the first request of a stream."""
    return next(event.node for event in events if isinstance(event, Connected))


def _log_rejection(node: Node, event: Nacked) -> None:
    log.warning(
        "proxy rejected configuration",
        proxy=node.id,
        type=event.type_url.rpartition(".")[2],
        version=event.version,
        message=event.message,
        resources=[resource.name for resource in event.suspects[:_MOST_NAMES]],
        sources=event.sources[:_MOST_NAMES],
    )
