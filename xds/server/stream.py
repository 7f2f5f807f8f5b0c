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
from xds.server.proxies import Proxies, StreamInfo, Subscriber, no_snapshot
from xds.server.scheduling import REQUEST_COST, WARNING_COST, TurnScheduler

log = structlog.get_logger(__name__)

MAX_CLIENT_MESSAGE = 4 * 1024 * 1024
"""Bytes of the largest message that gRPC clients take unless told otherwise."""

FIRST_SNAPSHOT_TIMEOUT = 5.0
"""Seconds that a client which asks for nothing more waits at most for there to be anything for it."""

LAST_WRITE_TIMEOUT = 1.0
"""Seconds that a write may still take when the stream should end: gRPC cannot say why it ends before."""

_MAX_LOGGED_NAMES = 10
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
        scheduler: TurnScheduler,
    ) -> None:
        self.info = info
        self.node = node
        self.session = session
        self.subscriber = subscriber
        subscriber.session = session
        self.opened_at = now()
        """In seconds of the event loop's clock, as are all times of its session."""
        self.message_count = 0
        """How many requests and responses there were: nothing the client does changes its status without another."""
        self._scheduler = scheduler
        self._answers_request = False
        """Whether what is composed next answers a request."""
        self._is_writing = False
        self._warned_of_size = False

    def stop(self, reason: str) -> None:
        """End it with UNAVAILABLE, so that its client goes elsewhere."""
        self.subscriber.refuse(grpc.StatusCode.UNAVAILABLE, reason)

    async def run(
        self, context: grpc.aio.ServicerContext, proxies: Proxies, observer: Observer | None
    ) -> None:
        """Read and write until the client or the server ends it. Refused, RequestError: how it is to end."""
        reader = asyncio.create_task(self._read(context, proxies, observer))
        writer = asyncio.current_task()
        assert writer  # noqa: S101 - gRPC runs each stream in a task of its own
        write_timer: asyncio.TimerHandle | None = None
        write_timed_out = False

        def cancel_writer() -> None:
            nonlocal write_timed_out
            write_timed_out = True
            writer.cancel()

        def limit_last_write() -> None:
            """Who does not read could otherwise go on with a stream that should end."""
            nonlocal write_timer
            if self._is_writing and write_timer is None:
                write_timer = reader.get_loop().call_later(LAST_WRITE_TIMEOUT, cancel_writer)

        def done(reader: asyncio.Task[None]) -> None:
            self.subscriber.changed.set()
            if not reader.cancelled() and reader.exception():
                limit_last_write()

        reader.add_done_callback(done)
        self.subscriber.on_refused = limit_last_write
        try:
            await self._write(context, reader, observer)
        except asyncio.CancelledError:
            if write_timed_out and not writer.uncancel():
                if self.subscriber.refused:
                    raise self.subscriber.refused from None
                await reader
            raise
        finally:
            # Nothing is awaited here: a stream may be cancelled while it ends, and would not be forgotten.
            reader.cancel()
            self.subscriber.on_refused = None  # It keeps all of this.
            if write_timer:
                write_timer.cancel()

    def receive(self, events: list[Event], proxies: Proxies, observer: Observer | None) -> None:
        """Charge the client for a request, and tell those who care what it meant. LimitError: the client exceeds its budget."""
        self.message_count += 1
        if self.subscriber.lease:
            self.subscriber.lease.use(self.session.names, self.session.size)
        for event in events:
            if observer:
                observer.received(self, event)
            if isinstance(event, Nacked):
                _log_nack(self.node, event)
                self._scheduler.pacer.charge(self.info.origin, WARNING_COST)
            if isinstance(event, Subscribed | Acked | Nacked):
                proxies.observe(self.subscriber, event)

    async def _read(
        self, context: grpc.aio.ServicerContext, proxies: Proxies, observer: Observer | None
    ) -> None:
        """Take requests until the client has no more."""
        while True:
            await self._scheduler.pacer.wait(self.info.origin)
            if (request := await context.read()) is grpc.aio.EOF:
                return
            await self._scheduler.wait_turn()
            with self._scheduler.pacer.measure(self.info.origin, REQUEST_COST):
                self.receive(self.session.receive(request, now()), proxies, observer)
            del request  # It may be large, and the next one may not come for long.
            self._answers_request = True
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
            await self._scheduler.wait_turn()
            changed.clear()
            if reader.done() and closed_at is None:
                await reader
                closed_at = now()
                self.session.expect_no_answers()
            snapshot = self.subscriber.snapshot
            if snapshot and snapshot is not served:
                served = snapshot
                self.session.serve(snapshot)
            with self._scheduler.pacer.measure(self.info.origin) if self._answers_request else nullcontext():
                response = self.session.next(now())
            if response:
                self.message_count += 1
                self._warn_if_too_large(len(response))
                if observer:
                    observer.sent(self, len(response))
                self._is_writing = True
                await context.write(response)
                self._is_writing = False
                continue
            self._answers_request = False
            deadline = self.session.deadline()
            if closed_at is not None:
                if snapshot:
                    return
                deadline = closed_at + FIRST_SNAPSHOT_TIMEOUT
                if now() >= deadline:
                    raise no_snapshot(self.node)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
        raise self.subscriber.refused

    def _warn_if_too_large(self, size: int) -> None:
        """Say once if a response is larger than many clients take: they reconnect, and get the same again."""
        if size <= MAX_CLIENT_MESSAGE or self._warned_of_size:
            return
        self._warned_of_size = True
        log.warning(
            "response may be too large for the proxy",
            proxy=self.node.id,
            type=self.session.sent.type_url.rpartition(".")[2] if self.session.sent else "",
            bytes=size,
            limit=MAX_CLIENT_MESSAGE,
            hint="gRPC clients take 4 MiB unless told otherwise (Envoy's own takes more): use delta xDS, which sends "
            "many resources in parts, or let the client take more",
        )


def now() -> float:
    """Return the time of the event loop's clock, in seconds."""
    return asyncio.get_running_loop().time()


def _log_nack(node: Node, event: Nacked) -> None:
    log.warning(
        "proxy rejected configuration",
        proxy=node.id,
        type=event.type_url.rpartition(".")[2],
        version=event.version,
        message=event.message,
        resources=[resource.name for resource in event.suspects[:_MAX_LOGGED_NAMES]],
        sources=event.sources[:_MAX_LOGGED_NAMES],
    )
