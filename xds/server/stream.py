"""One gRPC stream of a client: passes requests to a `Session`, and sends its responses.

A stream has two tasks: a reader, and the task that calls `run`, which is the writer. At most one write is
pending. The next response contains all changes that were made in the meantime.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
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

CLIENT_RECEIVE_LIMIT = 4 * 1024 * 1024
"""Default maximum size of a message that gRPC clients accept, in bytes."""

FIRST_SNAPSHOT_TIMEOUT = 5.0
"""Time that a half-closed stream waits for the first snapshot, in seconds."""

LAST_WRITE_TIMEOUT = 1.0
"""Time for a pending write when the stream must end, in seconds. gRPC sends the status after the write."""

now = time.monotonic
"""The clock of asyncio's event loops, in seconds. Asking for the running loop takes longer than the clock."""

_LOW_PRIORITY_BACKLOG = 4
"""Number of unanswered responses from which a stream's responses have low priority, like its requests.

Under constant change, the client's ACKs would otherwise be read more slowly than responses are sent.
"""

_MAX_LOGGED_NAMES = 10
"""Maximum number of resources or objects in a log line."""

_OF_SUBSCRIBERS = (Subscribed, Acked, Nacked)
"""Events that `Proxies.observe` handles."""


class Observer(Protocol):
    """Observes streams. The methods run on the event loop and must not block."""

    def opened(self, stream: Stream) -> None:
        """Handle a new stream."""

    def sent(self, stream: Stream, size: int) -> None:
        """Handle a sent response of `size` bytes; `stream.session.sent` describes it."""

    def received(self, stream: Stream, event: Event) -> None:
        """Handle an event that a request caused."""

    def closed(self, stream: Stream) -> None:
        """Handle the end of a stream."""


class Stream:
    """An accepted stream.

    Args:
        info: Properties of the stream.
        node: Node of the first request.
        session: Protocol state of the stream.
        subscriber: Subscriber with the snapshot to serve.
        scheduler: Scheduler that the streams of a server share.
    """

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
        """Time the stream was opened, in seconds of the event loop's clock, which the session uses too."""
        self.message_count = 0
        """Number of requests and responses. The client's status changes only with these, or at a timeout."""
        self._scheduler = scheduler
        self._origin = info.origin
        self._answers_request = False
        """Whether the next response answers a request, so that its cost is charged to the client."""
        self._unanswered = 0
        """Number of responses without a request after them."""
        self._is_writing = False
        self._warned_of_size = False

    def stop(self, reason: str) -> None:
        """End the stream with UNAVAILABLE, so that the client reconnects to another server."""
        self.subscriber.refuse(grpc.StatusCode.UNAVAILABLE, reason)

    async def run(
        self, context: grpc.aio.ServicerContext, proxies: Proxies, observer: Observer | None
    ) -> None:
        """Read and write until the client or the server ends the stream.

        Raises:
            Refused: the status that the stream ends with.
            RequestError: the client sent an invalid request.
        """
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
            """Limit the pending write, because a client that does not read must not keep the stream open."""
            nonlocal write_timer
            if self._is_writing and write_timer is None:
                write_timer = reader.get_loop().call_later(LAST_WRITE_TIMEOUT, cancel_writer)

        def on_reader_done(reader: asyncio.Task[None]) -> None:
            self.subscriber.changed.set()
            if not reader.cancelled() and reader.exception():
                limit_last_write()

        reader.add_done_callback(on_reader_done)
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
            # The cleanup must not await, or a cancelled stream would not be removed.
            reader.cancel()
            self.subscriber.on_refused = None  # Break the reference cycle.
            if write_timer:
                write_timer.cancel()

    def receive(self, events: list[Event], proxies: Proxies, observer: Observer | None) -> None:
        """Charge the client for a request, and pass its events to the observer and the proxies.

        Raises:
            LimitError: the client exceeds a limit.
        """
        self.message_count += 1
        self._unanswered = max(0, self._unanswered - 1)
        if self.subscriber.reservation:
            self.subscriber.reservation.use(self.session.name_count, self.session.size)
        for event in events:
            if observer:
                observer.received(self, event)
            if isinstance(event, Nacked):
                _log_nack(self.node, event)
                self._scheduler.pacer.charge(self._origin, WARNING_COST)
            if isinstance(event, _OF_SUBSCRIBERS):
                proxies.observe(self.subscriber, event)

    async def _read(
        self, context: grpc.aio.ServicerContext, proxies: Proxies, observer: Observer | None
    ) -> None:
        """Read requests until the client half-closes the stream."""
        while True:
            await self._scheduler.pacer.wait(self._origin)
            if (request := await context.read()) is grpc.aio.EOF:
                return
            await self._scheduler.wait_turn(low_priority=True)
            with self._scheduler.pacer.measure(self._origin, REQUEST_COST):
                self.receive(self.session.receive(request, now()), proxies, observer)
            del request  # Release the memory now: the next request may arrive much later.
            if not self.session.is_idle:
                self._answers_request = True
                self.subscriber.changed.set()

    async def _write(
        self, context: grpc.aio.ServicerContext, reader: asyncio.Task[None], observer: Observer | None
    ) -> None:
        """Send responses until the server ends the stream, or a half-closed stream has no pending response.

        A client that half-closed the stream receives no later changes, because it could not ACK them.
        """
        session_snapshot = None
        half_closed_at: float | None = None
        changed = self.subscriber.changed
        while self.subscriber.refused is None:
            await self._scheduler.wait_turn(low_priority=self._unanswered >= _LOW_PRIORITY_BACKLOG)
            changed.clear()
            if reader.done() and half_closed_at is None:
                await reader
                half_closed_at = now()
                self.session.expect_no_acks()
            snapshot = self.subscriber.snapshot
            if snapshot and snapshot is not session_snapshot:
                session_snapshot = snapshot
                self.session.serve(snapshot)
            if self._answers_request:
                with self._scheduler.pacer.measure(self._origin):
                    response = self.session.next(now())
            else:
                response = self.session.next(now())
            if not (response and self.session.has_more):
                self._answers_request = False  # A request that arrives during the write sets it again.
            if response:
                self.message_count += 1
                self._unanswered += 1
                size = len(response)
                if size > CLIENT_RECEIVE_LIMIT and not self._warned_of_size:
                    self._warn_of_size(size)
                if observer:
                    observer.sent(self, size)
                self.session.sent = None  # Do not keep the resources until the next response.
                self._is_writing = True
                await context.write(response)
                self._is_writing = False
                response = None  # Release the memory now: the next response may be sent much later.
                if self.session.has_more or half_closed_at is not None:
                    continue
            deadline = self.session.deadline()
            if half_closed_at is not None:
                if snapshot:
                    return
                deadline = half_closed_at + FIRST_SNAPSHOT_TIMEOUT
                if now() >= deadline:
                    raise no_snapshot(self.node)
            if deadline is None:
                await changed.wait()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
        raise self.subscriber.refused

    def _warn_of_size(self, size: int) -> None:
        """Warn about a response that is too large for many clients.

        Such a client reconnects and receives the same response again.
        """
        self._warned_of_size = True
        log.warning(
            "response may be too large for the proxy",
            proxy=self.node.id,
            type=self.session.sent.type_url.rpartition(".")[2] if self.session.sent else "",
            bytes=size,
            limit=CLIENT_RECEIVE_LIMIT,
            hint="gRPC clients accept 4 MiB by default (Envoy's own client accepts more): use delta "
            "xDS, which splits large responses, or raise the limit of the client",
        )


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
