"""Who decides what clients get, and what it knows of them."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote

import grpc
import grpc.aio

from xds.protocol.events import Acked, Nacked, Subscribed
from xds.protocol.limits import Budgets, Lease, LimitError, RequestError
from xds.protocol.session import Session, Variant
from xds.protocol.wire import Node
from xds.snapshot import Snapshot

_MAX_STATUS_MESSAGE = 1000
"""Characters of what a client is told. gRPC sends up to three bytes for each, and clients take 16 KiB of headers."""


Authenticate: TypeAlias = Callable[[grpc.aio.ServicerContext], Awaitable[Any]]
"""Finds out who makes a call: returns what is then a stream's `caller`, or raises Refused."""


def is_encrypted(context: grpc.aio.ServicerContext) -> bool:
    """Whether a call came over TLS, so that somebody may prove in it who they are."""
    return b"ssl" in context.auth_context().get("transport_security_type", ())


Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def peer_address(peer: str) -> Address | None:
    """Return the address of a peer in gRPC's form, `ipv4:127.0.0.1:1` or `ipv6:%5B::1%5D:1`; None if it has none."""
    host = unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # A dual-stack socket writes an IPv4 address as an IPv6 one.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def truncate(message: str) -> str:
    """Return a message in a length that can be sent as the status of a call."""
    return message if len(message) <= _MAX_STATUS_MESSAGE else f"{message[: _MAX_STATUS_MESSAGE - 3]}..."


def status_code(error: RequestError) -> grpc.StatusCode:
    """Return the status of a call that ends because of its request."""
    is_limit = isinstance(error, LimitError)
    return grpc.StatusCode.RESOURCE_EXHAUSTED if is_limit else grpc.StatusCode.INVALID_ARGUMENT


class Refused(Exception):  # noqa: N818 - it is an answer, not an accident
    """A stream is not let in; it ends with this status. Of the message, a client is told 1,000 characters."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def no_snapshot(node: Node) -> Refused:
    """Return how a call ends that does not wait any longer for a first snapshot."""
    return Refused(grpc.StatusCode.UNAVAILABLE, f"nothing is known for {node.id} yet; ask again")


def caller_key(caller: Any) -> Hashable:
    """Return what limits know a caller by, whatever `authenticate` returns."""
    try:
        hash(caller)
    except TypeError:
        return repr(caller)
    return caller  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """What is known of a stream besides what its client says."""

    peer: str
    """The client's address, in gRPC's form."""
    variant: Variant
    type_url: str
    """The type that the stream is for; empty if it is aggregated."""
    caller: Any = None
    """Who opened it, as `authenticate` said; None if nobody had to prove who they are."""
    keyless: bool = False
    """Whether no private key may be sent on it, even where plaintext streams get them."""

    @property
    def origin(self) -> Hashable:
        """Whose requests share the event loop's time: a caller at one address, or a connection in plaintext."""
        return self.peer if self.caller is None else (caller_key(self.caller), peer_address(self.peer))


class Subscriber:
    """A stream that was let in. It gets the latest snapshot; as long as there is none it waits."""

    def __init__(self, node: Node, stream: StreamInfo) -> None:
        self.node = node
        self.stream = stream
        self.client: Hashable = node.id
        """Whose budget the stream is charged to. `Proxies` that know more of the client than its node id set another key."""
        self.lease: Lease | None = None
        """What the stream uses of that budget; None before it is open."""
        self.snapshot: Snapshot | None = None
        self.session: Session | None = None
        """Knows how far the client is; set before anything is observed. A fetch has none."""
        self.changed = asyncio.Event()
        """Set to make the stream look again whether there is something to send."""
        self.changed_at: float | None = None
        """When the first change was noted that nobody has looked at here since; in seconds of the event loop's clock."""
        self.refused: Refused | None = None
        """How the stream is to end, if it is."""
        self.on_refused: Callable[[], None] | None = None
        """Called when that is said, while the stream runs."""

    def publish(self, snapshot: Snapshot, changed_at: float | None = None) -> None:
        """From now on the proxy should have this; `changed_at`: since when, if something changed for it.

        Who is refused gets nothing more, however long the stream takes to end.
        """
        if self.refused:
            return
        self.snapshot = snapshot
        if changed_at is not None:
            self.changed_at = changed_at if self.changed_at is None else min(changed_at, self.changed_at)
        self.changed.set()

    def charge(self, client: Hashable) -> None:
        """Charge the stream to another client's budget from now on."""
        if self.lease and client != self.client:
            self.lease.move(client)
        self.client = client

    def refuse(self, code: grpc.StatusCode, message: str) -> None:
        """End the stream with this status; the first one that is said counts."""
        self.refused = self.refused or Refused(code, message)
        self.changed.set()
        if self.on_refused:
            self.on_refused()


class Proxies(Protocol):
    """Who decides what proxies get. Nothing here may block: it is called on the event loop."""

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Let a stream in, or raise Refused. Two streams of one proxy are two subscribers."""

    def disconnect(self, subscriber: Subscriber) -> None:
        """Forget a stream that has ended; called exactly once for each that was let in."""

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        """Learn what a proxy wants, took or rejected. Refused: the stream ends with that."""


@contextmanager
def open_subscriber(
    proxies: Proxies, budgets: Budgets, node: Node, stream: StreamInfo
) -> Iterator[Subscriber]:
    """Let a stream in until the block ends, and charge its client for it. Refused, LimitError: it is not let in."""
    subscriber = proxies.connect(node, stream)
    try:
        subscriber.lease = budgets.open(subscriber.client)
        try:
            yield subscriber
        finally:
            subscriber.lease.close()
            subscriber.lease = None
    finally:
        proxies.disconnect(subscriber)
        # An event that is still to be taken may keep the subscriber: it need not keep all that the client had.
        subscriber.session = None
