"""The discovery services as gRPC handlers: who is let in, and which streams there are.

Who a stream belongs to, what it gets and what becomes of its answers is up to `Proxies`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import grpc
import grpc.aio
import structlog

from xds.protocol.events import Connected
from xds.protocol.session import Session, Variant
from xds.protocol.wire import RequestError
from xds.server.proxies import Proxies, Refused, StreamInfo
from xds.server.services import SERVICES
from xds.server.stream import Observer, Stream, now

log = structlog.get_logger(__name__)

_SHUTTING_DOWN = "the server is shutting down"


class DiscoveryService:
    """The discovery services as gRPC handlers, for any grpc.aio server: ADS, and one for each type."""

    def __init__(self, proxies: Proxies, *, identifier: str = "", observer: Observer | None = None) -> None:
        self._proxies = proxies
        self._identifier = identifier
        self._observer = observer
        self._streams: set[Stream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def streams(self) -> Collection[Stream]:
        """The streams that there are now."""
        return self._streams

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
            for service, (type_url, sotw, delta) in SERVICES.items()
        )

    def stop(self) -> None:
        """End all streams, now and from now on, so that their proxies go elsewhere."""
        self._stopping = True
        for stream in self._streams:
            stream.stop(_SHUTTING_DOWN)

    async def ended(self, *, within: float) -> None:
        """Wait until no stream is left, so that everybody was told that it is gone."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)

    def _method(self, variant: Variant, type_url: str) -> grpc.RpcMethodHandler:
        async def stream(_: object, context: grpc.aio.ServicerContext) -> None:
            task = asyncio.current_task()
            assert task  # noqa: S101 - gRPC runs each stream in a task of its own
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
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
            raise Refused(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN)
        session = Session(info.variant, type_url=info.type_url, identifier=self._identifier)
        request = await context.read()
        if request is grpc.aio.EOF:
            return
        events = session.receive(request, now())
        node = next(event.node for event in events if isinstance(event, Connected))
        about = log.bind(proxy=node.id, peer=info.peer, variant=info.variant.value)
        try:
            subscriber = self._proxies.connect(node, info)
        except Refused as refused:
            about.warning("proxy refused", code=refused.code.name, reason=refused.message)
            raise
        about.info("proxy connected", agent=f"{node.user_agent_name} {node.user_agent_version}".strip())
        stream = Stream(info, node, session, subscriber)
        self._streams.add(stream)
        if self._observer:
            self._observer.opened(stream)
        try:
            stream.take(events, self._proxies, self._observer)
            await stream.run(context, self._proxies, self._observer)
        finally:
            self._streams.discard(stream)
            self._proxies.disconnect(subscriber)
            if self._observer:
                self._observer.closed(stream)
            about.info("proxy disconnected")
