"""Records calls as proof of their connections."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from xds.server.connections import ConnectionGuard


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Records the calls of services that do not report their own."""

    def __init__(self, guard: ConnectionGuard) -> None:
        self._guard = guard

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the handler of a call, wrapped if the guard must record the call."""
        handler = await continuation(details)
        if handler is None or details.method.rpartition("/")[0].lstrip("/") in self._guard.own_services:
            return handler
        request = "stream" if handler.request_streaming else "unary"
        response = "stream" if handler.response_streaming else "unary"
        behavior = _recorded(getattr(handler, f"{request}_{response}"), self._guard.mark_proven)
        make = getattr(grpc, f"{request}_{response}_rpc_method_handler")
        return make(behavior, handler.request_deserializer, handler.response_serializer)


def _recorded(behavior: Callable[..., Any], record: Callable[[Any], None]) -> Callable[..., Any]:
    """Wrap the function that handles a call. The wrapper records the call first."""
    if inspect.isasyncgenfunction(behavior):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            record(context)
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response

        return stream
    if inspect.iscoroutinefunction(behavior):

        async def call(request: Any, context: Any) -> Any:
            record(context)
            return await behavior(request, context)

        return call

    loop = asyncio.get_running_loop()

    def in_thread(request: Any, context: Any) -> Any:
        loop.call_soon_threadsafe(record, context)
        return behavior(request, context)

    return in_thread
