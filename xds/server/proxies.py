"""The interface between the servers and the program that decides what clients get."""

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
from xds.protocol.limits import Budgets, LimitError, RequestError, Reservation
from xds.protocol.session import Session, Variant
from xds.protocol.wire import Node
from xds.snapshot import Snapshot

_MAX_STATUS_MESSAGE = 1000
"""Maximum length of a status message, in characters.

gRPC encodes a character as up to three bytes, and clients accept 16 KiB of headers.
"""

Authenticate: TypeAlias = Callable[[grpc.aio.ServicerContext], Awaitable[Any]]
"""Authenticates a call: returns the `caller` for `StreamInfo`, or raises `Refused`."""


def is_encrypted(context: grpc.aio.ServicerContext) -> bool:
    """Whether a call uses TLS, so that its caller can present a credential."""
    return b"ssl" in context.auth_context().get("transport_security_type", ())


_SIDECAR = ipaddress.IPv4Address("127.0.0.6")
"""Source of the connections from an Istio sidecar to its application."""

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
"""Address of a client."""


def peer_address(peer: str) -> Address | None:
    """Return the IP address of a peer; None if it has none, such as a Unix socket.

    Args:
        peer: Peer in gRPC's form, such as `ipv4:127.0.0.1:1` or `ipv6:%5B::1%5D:1`.
    """
    host = unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # A dual-stack socket reports an IPv4 address as an IPv6 address.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def truncate(message: str) -> str:
    """Shorten a message to the maximum length of a status message."""
    return message if len(message) <= _MAX_STATUS_MESSAGE else f"{message[: _MAX_STATUS_MESSAGE - 3]}..."


def status_code(error: RequestError) -> grpc.StatusCode:
    """Return the status code for an invalid request."""
    is_limit = isinstance(error, LimitError)
    return grpc.StatusCode.RESOURCE_EXHAUSTED if is_limit else grpc.StatusCode.INVALID_ARGUMENT


class Refused(Exception):  # noqa: N818 - it is a result, not a failure
    """Raised to refuse a call, which then ends with a status.

    Args:
        code: Status code of the call.
        message: Message for the client, which receives the first 1,000 characters.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def no_snapshot(node: Node) -> Refused:
    """Return the exception for a call whose proxy has no snapshot."""
    return Refused(grpc.StatusCode.UNAVAILABLE, f"no configuration for {node.id} yet; try again later")


def is_local_address(address: Address) -> bool:
    """Return whether an address is of a client on this machine.

    Connections from 127.0.0.6 come from a sidecar, on behalf of clients on other machines.
    """
    return address.is_loopback and address != _SIDECAR


def caller_key(caller: Any) -> Hashable:
    """Return a hashable key for a caller, which `authenticate` may return in an unhashable form."""
    try:
        hash(caller)
    except TypeError:
        return repr(caller)
    return caller  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """Properties of a stream that do not come from the client's messages."""

    peer: str
    """Address of the client in gRPC's form, such as `ipv4:127.0.0.1:1`."""
    variant: Variant
    """Variant of the xDS protocol: SotW or delta."""
    type_url: str
    """Type URL of the service; empty for ADS."""
    caller: Any = None
    """Caller that `authenticate` returned; None without authentication."""
    keyless: bool = False
    """Whether private keys must not be sent, even if other plaintext streams receive them."""

    @property
    def origin(self) -> Hashable:
        """Key for shares of the event loop's time: caller and address, or the connection without a caller."""
        return self.peer if self.caller is None else (caller_key(self.caller), peer_address(self.peer))


class Subscriber:
    """An accepted stream or fetch, and the latest snapshot for it.

    Args:
        node: Node of the first request.
        stream: Properties of the stream.
    """

    def __init__(self, node: Node, stream: StreamInfo) -> None:
        self.node = node
        self.stream = stream
        self.client: Hashable = node.id
        """Key of the limits that the stream counts against. `Proxies.connect` may replace the node ID."""
        self.reservation: Reservation | None = None
        """Reservation against these limits; None before the stream is open."""
        self.snapshot: Snapshot | None = None
        """Latest snapshot; None before the first."""
        self.session: Session | None = None
        """Protocol state of the stream, set before the first event; None for a fetch."""
        self.changed = asyncio.Event()
        """Event that wakes up the stream's writer."""
        self.changed_at: float | None = None
        """Time of the oldest change since the last response, in seconds of the event loop's clock. An
        observer may set it to None once it has recorded it."""
        self.refused: Refused | None = None
        """Exception with the status that ends the stream; None while the stream is accepted."""
        self.on_refused: Callable[[], None] | None = None
        """Callback that `refuse` calls while the stream runs."""

    def publish(self, snapshot: Snapshot, changed_at: float | None = None) -> None:
        """Set the snapshot for the proxy. Does nothing after `refuse`.

        Args:
            snapshot: Snapshot to serve.
            changed_at: Time of the change, in seconds of the event loop's clock; None if the snapshot is not
                the result of a change.
        """
        if self.refused:
            return
        self.snapshot = snapshot
        if changed_at is not None:
            self.changed_at = changed_at if self.changed_at is None else min(changed_at, self.changed_at)
        self.changed.set()

    def charge(self, client: Hashable) -> None:
        """Count the stream against the limits of another client."""
        if self.reservation and client != self.client:
            self.reservation.move(client)
        self.client = client

    def refuse(self, code: grpc.StatusCode, message: str) -> None:
        """End the stream with a status. Only the first call has an effect."""
        self.refused = self.refused or Refused(code, message)
        self.changed.set()
        if self.on_refused:
            self.on_refused()


class Proxies(Protocol):
    """Decides what each proxy gets. The methods run on the event loop and must not block."""

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Accept a stream, and return a new `Subscriber` for it.

        A proxy with two streams has two subscribers.

        Raises:
            Refused: the stream ends with this status.
        """

    def disconnect(self, subscriber: Subscriber) -> None:
        """Remove a stream that has ended. Called exactly once for each accepted stream."""

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        """Handle a new subscription, an ACK or a NACK.

        Raises:
            Refused: the stream ends with this status.
        """


@contextmanager
def open_subscriber(
    proxies: Proxies, budgets: Budgets, node: Node, stream: StreamInfo
) -> Iterator[Subscriber]:
    """Keep a subscriber open for the duration of the block, counted against its client's limits.

    Raises:
        Refused: the proxy is refused.
        LimitError: the client exceeds a limit.
    """
    subscriber = proxies.connect(node, stream)
    try:
        subscriber.reservation = budgets.open(subscriber.client)
        try:
            yield subscriber
        finally:
            subscriber.reservation.close()
            subscriber.reservation = None
    finally:
        proxies.disconnect(subscriber)
        # Events that are still queued may reference the subscriber: release the session.
        subscriber.session = None
