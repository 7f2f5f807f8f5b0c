"""Authorization of unary calls before their request is read.

gRPC reads the request of a unary call, up to 32 MiB, before it calls the handler. With twenty calls, an
unauthenticated client could make the server use more than half a gigabyte.

All methods are therefore registered with a stream of requests. The wire format is the same, and gRPC reads a
request only when the handler asks for it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

FIRST_REQUEST_TIMEOUT = 30.0
"""Time within which the first request of a call must arrive, in seconds."""

Check: TypeAlias = Callable[[grpc.aio.ServicerContext], Awaitable[None]]
"""Admits a caller, or aborts the call."""

_Behavior: TypeAlias = Callable[[Any, grpc.aio.ServicerContext], Any]


class CheckedServer:
    """A server for generated `add_..._to_server` functions. It reads no requests of callers that are refused.

    Args:
        server: Server to add the services to.
        check: Admits the caller of each call, or aborts the call.
    """

    def __init__(self, server: grpc.aio.Server, check: Check) -> None:
        self._server = server
        self._check = check
        self.services: list[str] = []
        """Full names of the added services."""

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.ServiceRpcHandler]) -> None:
        """Add services.

        Raises:
            TypeError: a method is not asynchronous.
        """
        self.services += (handler.service_name() for handler in handlers)
        self._server.add_generic_rpc_handlers(
            tuple(_Service(handler, self._wrap_handler) for handler in handlers)
        )

    def add_service(self, name: str, **methods: _Behavior) -> None:
        """Add a service of a .proto file whose messages were imported.

        Args:
            name: Full name of the service.
            methods: All its methods. They receive and return messages.

        Raises:
            KeyError: a method is missing.
            TypeError: a method is not asynchronous.
        """
        service, handlers = Default().FindServiceByName(name), {}
        for method in service.methods:
            request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
            kind = "stream" if method.server_streaming else "unary"
            make = getattr(grpc, f"unary_{kind}_rpc_method_handler")
            handlers[method.name] = make(methods[method.name], request.FromString, response.SerializeToString)
        handler = grpc.method_handlers_generic_handler(name, handlers)
        self.add_generic_rpc_handlers((handler,))

    def add_registered_method_handlers(
        self, service: str, methods: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        """Add the methods of a service by name. gRPC's generated code calls both functions."""
        wrapped = {name: self._wrap_handler(handler) for name, handler in methods.items()}
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrap_handler(self, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        request = "stream" if handler.request_streaming else "unary"
        response = "stream" if handler.response_streaming else "unary"
        behavior = self._wrap_behavior(
            getattr(handler, f"{request}_{response}"), streaming=handler.request_streaming
        )
        make = getattr(grpc, f"stream_{response}_rpc_method_handler")
        return make(behavior, handler.request_deserializer, handler.response_serializer)

    def _wrap_behavior(self, behavior: _Behavior, *, streaming: bool) -> _Behavior:
        async def admit(requests: Any, context: grpc.aio.ServicerContext) -> Any:
            await self._check(context)
            return requests if streaming else await self._read_request(context)

        if inspect.isasyncgenfunction(behavior):

            async def stream(requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
                request = await admit(requests, context)
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response

            return stream
        if not inspect.iscoroutinefunction(behavior):
            raise TypeError(f"{behavior!r} is not asynchronous: define it with async def")

        async def call(requests: Any, context: grpc.aio.ServicerContext) -> Any:
            return await behavior(await admit(requests, context), context)

        return call

    async def _read_request(self, context: grpc.aio.ServicerContext) -> Any:
        try:
            async with asyncio.timeout(FIRST_REQUEST_TIMEOUT):
                request = await context.read()
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"no request arrived within {FIRST_REQUEST_TIMEOUT:g} s"
            )
        if request is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
        return request


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(
        self,
        inner: grpc.GenericRpcHandler,
        wrap_handler: Callable[[grpc.RpcMethodHandler], grpc.RpcMethodHandler],
    ) -> None:
        self._inner = inner
        self._wrap_handler = wrap_handler

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler = self._inner.service(details)
        return handler and self._wrap_handler(handler)
