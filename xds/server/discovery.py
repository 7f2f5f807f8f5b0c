"""The discovery services as gRPC handlers: authentication, limits and the set of streams.

`Proxies` decides what a stream gets, and receives its events.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Hashable
from contextlib import ExitStack, asynccontextmanager, nullcontext
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog

from xds.protocol.events import Connected, Event
from xds.protocol.limits import DEFAULT_LIMITS, Budgets, LimitError, Limits, RequestError
from xds.protocol.session import Session, Variant
from xds.protocol.wire import parse_request
from xds.server.admission import FIRST_REQUEST_TIMEOUT
from xds.server.connections import ConnectionGuard
from xds.server.fetch import fetch
from xds.server.proxies import (
    Authenticate,
    Proxies,
    Refused,
    StreamInfo,
    open_subscriber,
    status_code,
    truncate,
)
from xds.server.report_streams import (
    ALL_REPORTS,
    DROP_PAUSE,
    MAX_REPORT_BYTES,
    REPORTS,
    OpenReports,
    ReportBudget,
    ReportStream,
)
from xds.server.scheduling import CALL_COST, REQUEST_COST, WARNING_COST, TurnScheduler
from xds.server.services import SERVICES, Service
from xds.server.stream import Observer, Stream, now
from xds.server.token_bucket import TokenBucket

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SHUTTING_DOWN = "the server is shutting down"
MAX_PENDING_CALLS = 5_000
"""Maximum number of calls without a first request. Each uses about 30 kB.

A mesh that reconnects opens many calls at once.
"""
PENDING_CALLS_FACTOR = 8
"""Maximum number of these calls for one caller, as a multiple of its maximum number of streams."""
_MAX_DRAIN_INTERVAL = 0.01
"""Maximum pause after ending a stream during shutdown, in seconds."""


class DiscoveryService:
    """The discovery services as gRPC handlers for any grpc.aio server: ADS, and the services of single types.

    An invalid request ends its stream with INVALID_ARGUMENT, an exceeded limit with RESOURCE_EXHAUSTED, and
    an exception in the server or in `proxies` with INTERNAL. Other streams are not affected.

    Args:
        proxies: Decides what each client gets, for streams and for unary Fetch calls.
        identifier: Identifier of the control plane in responses.
        observer: Observer of all streams.
        authenticate: Authenticates each call before its first request is read. The default accepts all
            callers.
        limits: Limits of each client.
    """

    def __init__(
        self,
        proxies: Proxies,
        *,
        identifier: str = "",
        observer: Observer | None = None,
        authenticate: Authenticate | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._proxies = proxies
        self._authenticate = authenticate
        self._identifier = identifier
        self._observer = observer
        self._budgets = Budgets(limits)
        self.failed: Counter[grpc.StatusCode] = Counter()
        """Number of calls that were refused, were malformed or failed, by status."""
        self._streams: set[Stream] = set()
        self._pending: set[asyncio.Timeout] = set()
        """Timeouts of pending calls, whose first request has not arrived."""
        self._reports: set[asyncio.Timeout] = set()
        """Timeouts of the streams of reports, which expire when the server shuts down."""
        self._all_reports = TokenBucket(*ALL_REPORTS)
        self.report_budget = ReportBudget()
        """CPU time for the streams of reports."""
        self.connections = ConnectionGuard()
        """Guard of the connections. Its `run` method enforces the limits of unproven connections."""
        self.connections.own_services.update(SERVICES)
        self._pending_by_caller: Counter[Hashable] = Counter()
        """Number of pending calls, by authenticated caller."""
        self._scheduler = TurnScheduler()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def streams(self) -> Collection[Stream]:
        """The open streams."""
        return self._streams

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the handlers for a server's `add_generic_rpc_handlers`."""
        return tuple(
            grpc.method_handlers_generic_handler(name, self._methods(service))
            for name, service in SERVICES.items()
        )

    def report_method(
        self, open_reports: OpenReports, on_refused: Callable[[str, Any], None] | None = None
    ) -> grpc.RpcMethodHandler:
        """Return the handler of a method with a stream of reports, authenticated like discovery.

        The service that contains the method must be added to `connections.own_services`.

        Args:
            open_reports: Accepts each stream.
            on_refused: Called with the reason and the caller if the first report of a stream exceeds a limit.
        """

        async def stream(_: object, context: grpc.aio.ServicerContext) -> None:
            self._track_current_task()
            async with self._abort_on_error(context):
                if self._stopping:
                    raise Refused(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN)
                await self._read_reports(context, open_reports, on_refused)

        return grpc.stream_stream_rpc_method_handler(stream)

    async def _read_reports(
        self,
        context: grpc.aio.ServicerContext,
        open_reports: OpenReports,
        on_refused: Callable[[str, Any], None] | None,
    ) -> None:
        """Pass the reports of a stream on until the client ends the stream, or the server shuts down."""

        def open_stream(info: StreamInfo, report: bytes) -> ReportStream:
            try:
                self._check_first_report(report)
            except LimitError:
                if on_refused:
                    on_refused("too large", info.caller)
                raise
            except Refused:
                if on_refused:
                    on_refused("overload", info.caller)
                raise
            started_at, client = time.thread_time(), info.origin
            try:
                reports = open_reports(info, report)
                client = reports.client
            finally:
                self.report_budget.charge(client, time.thread_time() - started_at)
            return reports

        info, reports = await self._first_request(context, Variant.SOTW, "", open_stream)
        if reports is None:
            return
        stop = asyncio.timeout(None)
        self._reports.add(stop)
        try:
            async with stop:
                if reports.response is not None:
                    await context.write(reports.response)
                bucket = TokenBucket(*REPORTS)
                while (report := await context.read()) is not grpc.aio.EOF:
                    await self._receive_report(reports, report, info)
                    if not bucket.take(now()):
                        await asyncio.sleep(1 / bucket.rate)
                if reports.response is None:  # The method has a single response.
                    await context.write(b"")
        except TimeoutError:
            raise Refused(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN) from None
        finally:
            self._reports.discard(stop)
            reports.close()

    def _check_first_report(self, report: bytes) -> None:
        """Raise LimitError or Refused if the first report of a stream exceeds a limit."""
        if len(report) > MAX_REPORT_BYTES:
            raise LimitError(f"the report has {len(report):,} bytes, and the limit is {MAX_REPORT_BYTES:,}")
        if not self._all_reports.take(now()):
            problem = "the server receives too many reports: try again later"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)

    async def _receive_report(self, reports: ReportStream, report: bytes, info: StreamInfo) -> None:
        """Pass a report on. If it exceeds a limit, drop it, and pause the stream."""
        pacer = self._scheduler.pacer
        await pacer.wait(info.origin)
        await self._scheduler.wait_turn(low_priority=True)
        if reason := self._drop_reason(reports.client, len(report)):
            reports.dropped(reason)
            await asyncio.sleep(DROP_PAUSE * (1 + len(report) / MAX_REPORT_BYTES))
            return
        started_at = time.thread_time()
        try:
            reports.receive(report)
        finally:
            seconds = time.thread_time() - started_at + REQUEST_COST
            pacer.charge(info.origin, seconds)
            self.report_budget.charge(reports.client, seconds)

    def _drop_reason(self, client: Hashable, size: int) -> str:
        """Return why a report of a client is not read; empty if it is read."""
        if size > MAX_REPORT_BYTES:
            return "too large"
        if not self._all_reports.take(now()):
            return "overload"
        return "CPU budget" if self.report_budget.is_spent(client) else ""

    def _track_current_task(self) -> None:
        """Have `wait_closed` wait for the current task, which gRPC runs for one stream."""
        task = asyncio.current_task()
        assert task  # noqa: S101 - gRPC runs each stream in a task of its own
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """End all streams, and refuse new ones, so that clients reconnect to another server."""
        self._stop_pending()
        for stream in self._streams:
            stream.stop(_SHUTTING_DOWN)

    async def drain(self, *, grace: float) -> None:
        """End the streams one by one, so that clients reconnect gradually. Refuse new streams.

        Args:
            grace: Seconds for the whole drain. Streams are ended during the first half, or later if ending
                them takes longer. A stream whose client does not read may still be open afterwards.
        """
        self._stop_pending()
        started_at = now()
        pause = min(_MAX_DRAIN_INTERVAL, grace / 2 / max(len(self._streams), 1))
        for number, stream in enumerate(tuple(self._streams), 1):
            stream.stop(_SHUTTING_DOWN)
            await asyncio.sleep(max(started_at + number * pause - now(), 0))
        await self.wait_closed(grace=max(started_at + grace - now(), grace / 2))

    async def wait_closed(self, *, grace: float) -> None:
        """Wait until all streams have sent their status and ended, for at most `grace` seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)

    def _stop_pending(self) -> None:
        """Refuse new calls, and end the pending ones and the streams of reports."""
        self._stopping = True
        for timeout in (*self._pending, *self._reports):
            if not timeout.expired():
                timeout.reschedule(now())

    def _methods(self, service: Service) -> dict[str, grpc.RpcMethodHandler]:
        methods = {
            service.stream: self._stream_method(Variant.SOTW, service.type_url),
            service.delta: self._stream_method(Variant.DELTA, service.type_url),
            service.fetch: self._fetch_method(service.type_url),
        }
        return {name: handler for name, handler in methods.items() if name}

    def _stream_method(self, variant: Variant, type_url: str) -> grpc.RpcMethodHandler:
        async def stream(_: object, context: grpc.aio.ServicerContext) -> None:
            self._track_current_task()
            async with self._abort_on_error(context):
                if self._stopping:
                    raise Refused(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN)
                await self._serve_stream(context, variant, type_url)

        return grpc.stream_stream_rpc_method_handler(stream)

    def _fetch_method(self, type_url: str) -> grpc.RpcMethodHandler:
        async def fetch_once(_: object, context: grpc.aio.ServicerContext) -> bytes:
            async with self._abort_on_error(context):
                if self._stopping:
                    raise Refused(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN)
                info, request = await self._first_request(
                    context, Variant.SOTW, type_url, lambda _, data: parse_request(data, self._budgets.limits)
                )
                if request is None:
                    raise RequestError("the call has no request")
                result = await fetch(self._proxies, request, info, self._budgets)
            # Send the response even if the client has this version: Fetch has no status for "not modified",
            # and an empty response would delete the resources.
            return result.response(self._identifier)

        # Not unary_unary, although the wire format is the same: gRPC would read the request before it calls
        # the handler (see `xds.server.admission`).
        return grpc.stream_unary_rpc_method_handler(fetch_once)

    def _open_session(self, info: StreamInfo, data: bytes) -> tuple[Session, list[Event]]:
        """Create a session, and pass it the first request of a stream."""
        limits = self._budgets.limits
        session = Session(info.variant, type_url=info.type_url, identifier=self._identifier, limits=limits)
        return session, session.receive(data, now())

    async def _serve_stream(self, context: grpc.aio.ServicerContext, variant: Variant, type_url: str) -> None:
        info, opened = await self._first_request(context, variant, type_url, self._open_session)
        if not opened:
            return
        session, events = opened
        node = next(event.node for event in events if isinstance(event, Connected))
        stream_log = log.bind(proxy=node.id, peer=info.peer, variant=info.variant.value)
        # The cleanup must not await, or a cancelled stream would not be removed.
        with ExitStack() as cleanup:
            try:
                subscriber = cleanup.enter_context(open_subscriber(self._proxies, self._budgets, node, info))
            except Refused as refused:
                self._scheduler.pacer.charge(info.origin, WARNING_COST)
                stream_log.warning("proxy refused", code=refused.code.name, reason=refused.message)
                raise
            except LimitError:
                self._scheduler.pacer.charge(info.origin, WARNING_COST)
                raise
            stream_log.info(
                "proxy connected", agent=f"{node.user_agent_name} {node.user_agent_version}".strip()
            )
            cleanup.callback(stream_log.info, "proxy disconnected")
            stream = Stream(info, node, session, subscriber, self._scheduler)
            if self._observer:
                cleanup.callback(self._observer.closed, stream)
            cleanup.callback(self._streams.discard, stream)
            self._streams.add(stream)
            if self._observer:
                self._observer.opened(stream)
            stream.receive(events, self._proxies, self._observer)
            events.clear()  # Release the names of the first request.
            await stream.run(context, self._proxies, self._observer)

    async def _first_request(
        self,
        context: grpc.aio.ServicerContext,
        variant: Variant,
        type_url: str,
        parse: Callable[[StreamInfo, bytes], T],
    ) -> tuple[StreamInfo, T | None]:
        """Return the properties of a call and its parsed first request; None if the call has no request.

        The request may be large, and is released after `parse` has read it.

        Raises:
            RequestError: `parse` rejects the request.
            Refused: the caller or the request is refused, the request is late, or the server shuts down.
        """
        if len(self._pending) >= MAX_PENDING_CALLS:
            problem = f"{MAX_PENDING_CALLS} calls without a request are open, the maximum: try again later"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        info: StreamInfo | None = None
        try:
            async with asyncio.timeout(FIRST_REQUEST_TIMEOUT) as timeout:
                self._pending.add(timeout)
                caller = await self._authenticate_call(context)
                info = StreamInfo(peer=context.peer(), variant=variant, type_url=type_url, caller=caller)
                async with nullcontext() if caller is None else self._reserve_first_request(info.origin):
                    await self._scheduler.pacer.wait(info.origin)
                    request = await context.read()
                    await self._scheduler.wait_turn()
                    if request is grpc.aio.EOF:
                        return info, None
                    try:
                        with self._scheduler.pacer.measure(info.origin, REQUEST_COST):
                            return info, parse(info, request)
                    except (RequestError, Refused):
                        self._scheduler.pacer.charge(info.origin, WARNING_COST)
                        raise
        except TimeoutError:
            if self._stopping:
                raise Refused(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN) from None
            if info is None:
                problem = (
                    f"the caller could not be authenticated within {FIRST_REQUEST_TIMEOUT:g} s; try again"
                )
                raise Refused(grpc.StatusCode.UNAVAILABLE, problem) from None
            self._scheduler.pacer.charge(info.origin, WARNING_COST)
            problem = f"no request arrived within {FIRST_REQUEST_TIMEOUT:g} s; send one when the stream opens"
            log.warning("call timed out without a request", peer=context.peer(), problem=problem)
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, problem) from None
        finally:
            self._pending.discard(timeout)

    @asynccontextmanager
    async def _reserve_first_request(self, origin: Hashable) -> AsyncIterator[None]:
        """Reserve a slot for the first request of a call by an authenticated caller.

        Raises:
            Refused: too many calls of the caller have no first request.
        """
        limit = PENDING_CALLS_FACTOR * self._budgets.limits.streams
        if self._pending_by_caller[origin] >= limit:
            problem = f"the caller has {limit} calls without a request, the maximum: send requests"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        self._scheduler.pacer.charge(origin, CALL_COST)
        self._pending_by_caller[origin] += 1
        try:
            async with self._scheduler.pacer.first_requests(origin):
                yield
        finally:
            self._pending_by_caller[origin] -= 1
            if not self._pending_by_caller[origin]:
                del self._pending_by_caller[origin]

    async def _authenticate_call(self, context: grpc.aio.ServicerContext) -> Any:
        """Return the caller of a call, and record that the call is accepted.

        Raises:
            Refused: the caller is refused.
        """
        caller = await self._authenticate(context) if self._authenticate else None
        self.connections.mark_proven(context)
        return caller

    @asynccontextmanager
    async def _abort_on_error(self, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
        """End a call with the status that matches an exception in the block."""
        try:
            yield
        except RequestError as error:
            _clear_frames(error)
            code, message = status_code(error), truncate(str(error))
            log.warning("malformed request", peer=context.peer(), problem=message)
        except Refused as refused:
            _clear_frames(refused)
            code, message = refused.code, truncate(refused.message)
        except grpc.aio.InternalError as error:
            # The connection was lost during a read or write: no status can be sent.
            raise asyncio.CancelledError from error
        except Exception:  # noqa: BLE001 - logged with its traceback
            # Log the traceback as text: a log processor that formats tracebacks may print local variables,
            # which may contain keys.
            log.error(  # noqa: TRY400
                "call failed with an internal error", peer=context.peer(), stack=traceback.format_exc()
            )
            code, message = grpc.StatusCode.INTERNAL, "internal error; see the server's log"
        else:
            return
        self.failed[code] += 1
        await context.abort(code, message)


def _clear_frames(error: Exception) -> None:
    """Release the local variables of a traceback, such as a large request, without garbage collection."""
    traceback.clear_frames(error.__traceback__)
