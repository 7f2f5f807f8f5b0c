"""Streams between a test's client and a server: over a socket, or in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

import grpc
import grpc.aio

from xds.protocol.events import Connected
from xds.protocol.limits import DEFAULT_LIMITS, Budgets, RequestError
from xds.protocol.session import Session, Variant
from xds.server import Proxies, Refused, Stream, StreamInfo
from xds.server.proxies import open_subscriber, status_code
from xds.server.scheduling import TurnScheduler
from xds.server.services import SERVICES
from xds.server.stream import now


class ClientStream(Protocol):
    """The client's end of an aggregated stream."""

    async def write(self, request: bytes) -> None:
        """Send an encoded request. After the end of the stream, this has no effect."""

    async def read(self) -> bytes | None:
        """Return the next encoded response; None at the end of the stream."""

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Return the code and the message with which the stream ended."""

    async def close(self) -> None:
        """Cancel the stream, and wait until it has ended."""


def method_of(variant: Variant, type_url: str = "") -> str:
    """Return the path of the method that serves a type; the default is the method that serves all types."""
    name, service = next(
        (name, service) for name, service in SERVICES.items() if service.type_url == type_url
    )
    return f"/{name}/{service.delta if variant is Variant.DELTA else service.stream}"


class SocketStream:
    """A stream over gRPC.

    Args:
        channel: Channel to the server.
        method: Path of the method.
    """

    def __init__(self, channel: grpc.aio.Channel, method: str) -> None:
        self._call = channel.stream_stream(method)()

    async def write(self, request: bytes) -> None:
        """Send a request. Do not cancel this: gRPC then cancels the stream."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # `read` returns the end.
            await self._call.write(request)

    async def read(self) -> bytes | None:
        """Return the next response; None at the end of the stream."""
        try:
            data = await self._call.read()
        except grpc.aio.AioRpcError:
            return None
        return data if isinstance(data, bytes) else None

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Return the code and the message of the end."""
        return await self._call.code(), await self._call.details() or ""

    async def close(self) -> None:
        """Cancel the stream."""
        self._call.cancel()
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await self._call.code()


class MemoryStream:
    """A stream to the `Proxies` of a server, such as a `Store`, without a socket.

    The server's end is the same as in an `XdsServer`, without authentication.

    Args:
        proxies: Decides what the client gets.
        variant: Variant of the protocol.
    """

    def __init__(self, proxies: Proxies, variant: Variant) -> None:
        self._proxies, self._variant = proxies, variant
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._responses: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._status = (grpc.StatusCode.OK, "")
        self._task = asyncio.create_task(self._serve())

    async def write(self, request: bytes) -> None:
        """Send a request."""
        self._requests.put_nowait(request)

    async def read(self) -> bytes | None:
        """Return the next response; None at the end of the stream."""
        return await self._responses.get()

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Return the code and the message of the end."""
        await asyncio.wait((self._task,))
        return self._status

    async def close(self) -> None:
        """Cancel the stream."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _serve(self) -> None:
        try:
            await self._run()
        except Refused as refused:
            self._status = (refused.code, refused.message)
        except RequestError as error:
            self._status = (status_code(error), str(error))
        except Exception as error:  # noqa: BLE001  # as a server reports it
            self._status = (grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            self._status = (grpc.StatusCode.CANCELLED, "the client cancelled the stream")
            raise
        finally:
            self._responses.put_nowait(None)

    async def _run(self) -> None:
        session = Session(self._variant)
        events = session.receive(await self._requests.get(), now())
        node = next(event.node for event in events if isinstance(event, Connected))
        info = StreamInfo(peer="memory", variant=self._variant, type_url="")
        with open_subscriber(self._proxies, Budgets(DEFAULT_LIMITS), node, info) as subscriber:
            stream = Stream(info, node, session, subscriber, TurnScheduler())
            stream.receive(events, self._proxies, None)
            await stream.run(_Context(self._requests, self._responses), self._proxies, None)


class _Context:
    """The part of a gRPC call's context that a server's stream uses."""

    def __init__(self, requests: asyncio.Queue[Any], responses: asyncio.Queue[bytes | None]) -> None:
        self._requests, self._responses = requests, responses

    async def read(self) -> Any:
        return await self._requests.get()

    async def write(self, response: bytes) -> None:
        self._responses.put_nowait(response)
