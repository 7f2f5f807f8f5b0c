"""Records what clients and a server say on real sockets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from xds.protocol.session import Variant
from xds.server.services import SERVICES
from xds.testing.messages import Conversation, Request, Response, request_class


class Recorder(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # it has no types
    """Records the conversation of each node with an `XdsServer(interceptors=[recorder])`."""

    def __init__(self) -> None:
        self.conversations: dict[str, Conversation] = {}
        """Conversations by node ID."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Record the streams of discovery services."""
        handler = await continuation(handler_call_details)
        _, service, method = handler_call_details.method.split("/")
        if handler is None or service not in SERVICES or not handler.stream_stream:
            return handler
        variant = Variant.DELTA if method == SERVICES[service].delta else Variant.SOTW
        serve = handler.stream_stream

        async def record(requests: Any, context: grpc.aio.ServicerContext) -> None:
            await serve(requests, _RecordedContext(context, variant, self))

        return grpc.stream_stream_rpc_method_handler(record)


class _RecordedContext:
    """The context of a call, which records what is read and written."""

    def __init__(self, context: Any, variant: Variant, recorder: Recorder) -> None:
        self._context, self._variant, self._recorder = context, variant, recorder
        self._conversation: Conversation | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        data = await self._context.read()
        if isinstance(data, bytes):
            if self._conversation is None:
                self._conversation = self._open(data)
            self._conversation.add(Request.decode(data, self._variant))
        return data

    async def write(self, data: bytes) -> None:
        if self._conversation is not None:
            self._conversation.add(Response.decode(data, self._variant))
        await self._context.write(data)

    def _open(self, data: bytes) -> Conversation:
        """Return the conversation of the node in a stream's first request."""
        node = request_class(self._variant).FromString(data).node.id
        conversation = self._recorder.conversations.setdefault(node, Conversation())
        conversation.open(node, self._variant)
        return conversation
