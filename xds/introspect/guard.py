"""Who may ask about the server: in plaintext callers of this machine, over TLS whom somebody else lets in.

What these services show is everything that every proxy is told. In plaintext nobody proves who they are, so only those of this
machine are answered: where only this machine can reach the server, that is who asks anyway.
"""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
import grpc.aio

from xds.server import Refused, is_encrypted

REFUSAL = "only callers on this machine's loopback addresses are answered here, and this one is {peer}"

Admit: TypeAlias = Callable[[grpc.aio.ServicerContext], Awaitable[None]]
"""Lets a caller in, or raises Refused."""

_Behaviour: TypeAlias = Callable[[Any, grpc.aio.ServicerContext], Any]


def is_local(peer: str) -> bool:
    """Whether a peer, in gRPC's form, is on this machine: `ipv4:127.0.0.1:1`, `ipv6:%5B::1%5D:1`, `unix:/path`."""
    scheme, _, rest = peer.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # A dual-stack socket writes an IPv4 address as an IPv6 one.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


async def local_only(context: grpc.aio.ServicerContext) -> None:
    """Let in who is on this machine."""
    if not is_local(context.peer()):
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, REFUSAL.format(peer=context.peer()))


class Guarded:
    """A server as the generated `add_..._to_server` functions see it: what they add answers only who is let in.

    `admit` decides about callers over TLS; those in plaintext are to be local. None: all are.
    """

    def __init__(self, server: grpc.aio.Server, admit: Admit | None = None) -> None:
        self._server = server
        self._admit = admit
        self.services: list[str] = []
        """The full names of what was added."""

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.ServiceRpcHandler]) -> None:
        """Add services. TypeError: one of their methods is not asynchronous."""
        self.services += (handler.service_name() for handler in handlers)
        self._server.add_generic_rpc_handlers(tuple(_Service(handler, self._check) for handler in handlers))

    def add_registered_method_handlers(
        self, service: str, methods: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        """Add the methods of a service by name, which gRPC does besides."""
        guarded = {name: _guard(handler, self._check) for name, handler in methods.items()}
        self._server.add_registered_method_handlers(service, guarded)

    async def _check(self, context: grpc.aio.ServicerContext) -> None:
        admit = self._admit if self._admit and is_encrypted(context) else local_only
        try:
            await admit(context)
        except Refused as refused:
            await context.abort(refused.code, refused.message)


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, inner: grpc.GenericRpcHandler, check: Admit) -> None:
        self._inner = inner
        self._check = check

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler = self._inner.service(details)
        return handler and _guard(handler, self._check)


def _guard(handler: grpc.RpcMethodHandler, check: Admit) -> grpc.RpcMethodHandler:
    kind = "_".join(
        "stream" if streams else "unary"
        for streams in (handler.request_streaming, handler.response_streaming)
    )
    behaviour = _checked(getattr(handler, kind), check)
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _checked(behaviour: _Behaviour, check: Admit) -> _Behaviour:
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            await check(context)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return stream
    if not inspect.iscoroutinefunction(behaviour):
        raise TypeError(f"{behaviour!r} is not asynchronous: it would run in a thread, beside the event loop")

    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await check(context)
        return await behaviour(request, context)

    return call
