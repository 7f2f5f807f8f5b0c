"""One stream of a client: bytes in both directions, and a Session in between.

A stream has one reader, whoever runs it is its one writer, and there is never more than one write under way:
whatever changes meanwhile is in the next response.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from typing import Protocol

import grpc
import grpc.aio
import structlog

from xds.protocol.events import Acked, Event, Nacked, Subscribed
from xds.protocol.session import Session
from xds.protocol.wire import Node
from xds.server.fairness import PER_REQUEST, PER_WARNING, Turns
from xds.server.proxies import Proxies, StreamInfo, Subscriber, nothing_known

log = structlog.get_logger(__name__)

MOST_TAKEN = 4 * 1024 * 1024
"""Bytes of the largest message that gRPC clients take unless told otherwise."""

FIRST_SNAPSHOT = 5.0
"""Seconds that a client which asks for nothing more waits at most for there to be anything for it."""

LAST_WRITE = 1.0
"""Seconds that a write may still take when the stream should end: gRPC cannot say why it ends before."""

_MOST_NAMES = 10
"""Of resources or objects in one line of the log."""


class Observer(Protocol):
    """Who counts what happens on streams. Nothing here may block: it is called on the event loop."""

    def opened(self, stream: Stream) -> None:
        """A stream was let in."""

    def sent(self, stream: Stream, size: int) -> None:
        """A response of `size` bytes was handed to the stream: what `stream.session.sent` says."""

    def received(self, stream: Stream, event: Event) -> None:
        """A request meant this."""

    def closed(self, stream: Stream) -> None:
        """A stream has ended."""


class Stream:
    """A stream that was let in, until it ends."""

    def __init__(
        self,
        info: StreamInfo,
        node: Node,
        session: Session,
        subscriber: Subscriber,
        turns: Turns,
    ) -> None:
        self.info = info
        self.node = node
        self.session = session
        self.subscriber = subscriber
        subscriber.session = session
        self.opened_at = now()
        """In seconds of the event loop's clock, as are all times of its session."""
        self.moves = 0
        """How many requests and responses there were: nothing the client does changes its status without another."""
        self._turns = turns
        self._has_asked = False
        """Whether what is composed next answers a request."""
        self._is_writing = False
        self._was_too_large = False

    def stop(self, why: str) -> None:
        """End it with UNAVAILABLE, so that its client goes elsewhere."""
        self.subscriber.refuse(grpc.StatusCode.UNAVAILABLE, why)

    async def run(
        self, context: grpc.aio.ServicerContext, proxies: Proxies, observer: Observer | None
    ) -> None:
        """Read and write until the client or the server ends it. Refused, RequestError: how it is to end."""
        reader = asyncio.create_task(self._read(context, proxies, observer))
        writer = asyncio.current_task()
        assert writer  # noqa: S101 - gRPC runs each stream in a task of its own
        too_late: asyncio.TimerHandle | None = None
        gave_up = False

        def give_up() -> None:
            nonlocal gave_up
            gave_up = True
            writer.cancel()

        def hurry() -> None:
            """Who does not read could otherwise go on with a stream that should end."""
            nonlocal too_late
            if self._is_writing and too_late is None:
                too_late = reader.get_loop().call_later(LAST_WRITE, give_up)

        def done(reader: asyncio.Task[None]) -> None:
            self.subscriber.changed.set()
            if not reader.cancelled() and reader.exception():
                hurry()

        reader.add_done_callback(done)
        self.subscriber.on_refused = hurry
        try:
            await self._write(context, reader, observer)
        except asyncio.CancelledError:
            if gave_up and not writer.uncancel():
                if self.subscriber.refused:
                    raise self.subscriber.refused from None
                await reader
            raise
        finally:
            # Nothing is awaited here: a stream may be cancelled while it ends, and would not be forgotten.
            reader.cancel()
            self.subscriber.on_refused = None  # It keeps all of this.
            if too_late:
                too_late.cancel()

    def take(self, events: list[Event], proxies: Proxies, observer: Observer | None) -> None:
        """Charge the client for a request, and tell those who care what it meant. LimitError: the client exceeds its budget."""
        self.moves += 1
        if self.subscriber.reservation:
            self.subscriber.reservation.use(self.session.names, self.session.size)
        for event in events:
            if observer:
                observer.received(self, event)
            if isinstance(event, Nacked):
                _log_rejection(self.node, event)
                self._turns.pace.charge(self.info.origin, PER_WARNING)
            if isinstance(event, Subscribed | Acked | Nacked):
                proxies.observe(self.subscriber, event)

    async def _read(
        self, context: grpc.aio.ServicerContext, proxies: Proxies, observer: Observer | None
    ) -> None:
        """Take requests until the client has no more."""
        while True:
            await self._turns.pace.wait(self.info.origin)
            if (request := await context.read()) is grpc.aio.EOF:
                return
            await self._turns.take()
            with self._turns.pace.working(self.info.origin, PER_REQUEST):
                self.take(self.session.receive(request, now()), proxies, observer)
            del request  # It may be large, and the next one may not come for long.
            self._has_asked = True
            self.subscriber.changed.set()

    async def _write(
        self, context: grpc.aio.ServicerContext, reader: asyncio.Task[None], observer: Observer | None
    ) -> None:
        """Send what is due whenever something happened, until the server ends or the client has all it asked for.

        A client that says that it asks for nothing more is not told of changes either: it could not answer.
        """
        served = None
        closed_at: float | None = None
        changed = self.subscriber.changed
        while self.subscriber.refused is None:
            await self._turns.take()
            changed.clear()
            if reader.done() and closed_at is None:
                await reader
                closed_at = now()
                self.session.expect_no_acks()
            snapshot = self.subscriber.snapshot
            if snapshot and snapshot is not served:
                served = snapshot
                self.session.serve(snapshot)
            with self._turns.pace.working(self.info.origin) if self._has_asked else nullcontext():
                response = self.session.next(now())
            if response:
                self.moves += 1
                self._note_size(len(response))
                if observer:
                    observer.sent(self, len(response))
                self._is_writing = True
                await context.write(response)
                self._is_writing = False
                continue
            self._has_asked = False
            until = self.session.deadline()
            if closed_at is not None:
                if snapshot:
                    return
                until = closed_at + FIRST_SNAPSHOT
                if now() >= until:
                    raise nothing_known(self.node)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await changed.wait()
        raise self.subscriber.refused

    def _note_size(self, size: int) -> None:
        """Say once if a response is larger than many clients take: they reconnect, and get the same again."""
        if size <= MOST_TAKEN or self._was_too_large:
            return
        self._was_too_large = True
        log.warning(
            "response may be too large for the proxy",
            proxy=self.node.id,
            type=self.session.sent.type_url.rpartition(".")[2] if self.session.sent else "",
            bytes=size,
            limit=MOST_TAKEN,
            hint="gRPC clients take 4 MiB unless told otherwise (Envoy's own takes more): use delta xDS, which sends "
            "many resources in parts, or let the client take more",
        )


def now() -> float:
    """Return the time of the event loop's clock, in seconds."""
    return asyncio.get_running_loop().time()


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
