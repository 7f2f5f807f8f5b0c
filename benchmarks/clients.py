"""The clients of a `Fleet`: sidecars, and the clients of the two floors."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from http2 import Ended, Http2Stream, Received

from xds.codec import message_class
from xds.mesh.identity import CERTIFICATE, ROOTS
from xds.snapshot import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, SECRET

_DISCOVERY = "envoy.service.discovery.v3"
_HTTP_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_BUFFER = memoryview(bytearray(4 * 2**20))
_REPLY = bytes(100)
"""Request of a client of a floor, about the size of an ACK."""
MOVING = 100
"""Number of services with another pod, which moves and has no stream. Moves are numbered from here."""
_MARKER = re.compile(rb"10\.2(\d\d)\.(\d{1,3})\.(\d{1,3})")
"""Address of a moving endpoint, which contains the number of its last move."""


def marker(number: int) -> str:
    """Return the address of a moving endpoint after the move with this number."""
    return f"10.{200 + number // 65536}.{number // 256 % 256}.{number % 256}"


def prepare() -> None:
    """Build the descriptors before the measurement, because the first use of a type is slow."""
    for name in (CLUSTER, LISTENER, f"/{_HTTP_MANAGER}", f"/{_DISCOVERY}.DeltaDiscoveryResponse"):
        message_class(name.rpartition("/")[2])


def request(
    type_url: str, *, names: Iterable[str] = (), versions: Mapping[str, str] | None = None, node: str = ""
) -> bytes:
    """Encode a subscription. `versions` are the resources that a reconnecting client has."""
    message = message_class(f"{_DISCOVERY}.DeltaDiscoveryRequest")(type_url=type_url)
    message.resource_names_subscribe.extend(names)
    message.initial_resource_versions.update(versions or {})
    if node:
        message.node.id = node
    return bytes(message.SerializeToString())


def ack(type_url: bytes, nonce: bytes) -> bytes:
    """Encode an ACK."""
    return b"\x12" + bytes((len(type_url),)) + type_url + b"\x32" + bytes((len(nonce),)) + nonce


def type_and_nonce(tail: bytes) -> tuple[bytes, bytes]:
    """Return the type and the nonce, which our server puts at the end of a response."""
    start = tail.rindex(b"type.googleapis.com/")
    end = start + tail[start - 1]
    return tail[start:end], tail[end + 2 : end + 2 + tail[end + 1]]


class Observer(Protocol):
    """Counts what the clients receive."""

    def received(self, client: Client, size: int, *, done: bool) -> None:
        """Count data. `done` tells whether the client now has what it waits for."""

    def completed(self, client: Client) -> None:
        """Count a client that has received everything for the first time."""

    def watch(self, client: Client) -> None:
        """Call the client when it can read, and if it has data to write, when it can write."""


class Client:
    """A connection. Data in `out` is written as soon as the socket accepts it."""

    def __init__(self, fleet: Observer, connection: socket.socket) -> None:
        self.fleet = fleet
        self.socket = connection
        self.out = bytearray()
        """Data to write to the socket."""
        self.opened_at = time.monotonic()
        self.is_blocked = False
        """Whether the socket does not accept the data to write yet."""
        self.is_stalled = False
        """Whether the client does not read."""
        self.is_complete = False
        """Whether the client has received everything once."""
        self.is_done = False
        """Whether the client has what it waits for since the last reset."""
        self.attempts = 1
        """Number of connections and streams until this one, including those that were refused."""
        self.reopen: Callable[[], Client] | None = None
        """Opens another connection, with a new client."""

    def read(self) -> None:
        """Read available data. Raise Ended at the end of the stream."""
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while True:
                size = self.socket.recv_into(_BUFFER)
                if not size:
                    raise Ended("the server closed the connection")
                self.feed(_BUFFER[:size])
                if not isinstance(self.socket, ssl.SSLSocket):
                    break  # epoll reports remaining data, except for what the TLS layer has buffered.
        self.write()

    def write(self) -> None:
        """Write pending data. If the socket does not accept all of it, continue when it is writable."""
        if self.out:
            with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                del self.out[: self.socket.send(self.out)]
        if self.is_blocked != bool(self.out):
            self.is_blocked = bool(self.out)
            self.fleet.watch(self)

    def feed(self, data: memoryview) -> None:
        """Process received data."""
        raise NotImplementedError

    def complete(self) -> None:
        """Tell the fleet that the client has received everything, the first time."""
        if not self.is_complete:
            self.is_complete = True
            self.fleet.completed(self)


class RawClient(Client):
    """A client of the raw floor. It reads the expected number of bytes, and replies."""

    def __init__(self, fleet: Observer, connection: socket.socket, expected: int) -> None:
        super().__init__(fleet, connection)
        self.remaining = expected

    def feed(self, data: memoryview) -> None:
        """Count the bytes."""
        self.count(len(data))
        if self.is_done:
            self.out += _REPLY

    def count(self, size: int) -> None:
        """Count received bytes."""
        self.remaining -= size
        self.fleet.received(self, size, done=self.remaining <= 0)
        if self.remaining <= 0:
            self.complete()


class GrpcClient(RawClient):
    """A client of the gRPC floor. It replies to each message until it has the expected number of bytes."""

    def __init__(self, fleet: Observer, connection: socket.socket, expected: int) -> None:
        super().__init__(fleet, connection, expected)
        self._stream = Http2Stream(self._receive)
        self.out = self._stream.out
        self._stream.send(_REPLY)

    def feed(self, data: memoryview) -> None:
        """Process HTTP/2 frames."""
        self._stream.feed(data)

    def _receive(self, message: Received) -> None:
        self.count(message.size)
        self._stream.send(_REPLY)


class Known:
    """What the sidecars of a namespace subscribe to, and the versions that they have.

    The first sidecar of the namespace, which stores its responses, learns it for all.

    Args:
        types: Types that the sidecars subscribe to.
    """

    def __init__(self, types: Container[str]) -> None:
        self._types = types
        self.names: dict[str, list[str]] = {}
        """Names that follow a response: of endpoints, secrets, routes and configurations of filters."""
        self.versions: dict[str, dict[str, str]] = {CLUSTER: {}, ENDPOINT: {}, ROUTE: {}}
        """Versions of the resources that the sidecars of the namespace share."""
        self._learned: set[str] = set()
        self._waiting: list[tuple[str, Callable[[bytes], None]]] = []

    def follow(self, type_url: str, send: Callable[[bytes], None]) -> None:
        """Send the subscriptions that follow clusters or listeners, once their names are known."""
        if type_url not in self._learned:
            self._waiting.append((type_url, send))
            return
        for followed in (ENDPOINT, SECRET) if type_url == CLUSTER else (ROUTE, EXTENSION_CONFIG):
            if followed in self._types and self.names.get(followed):
                send(request(followed, names=self.names[followed]))

    def resume(self, node: str) -> Iterable[bytes]:
        """Return the requests of a sidecar that reconnects. It sends all of them at once, as Envoy does."""
        for type_url in (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE, EXTENSION_CONFIG):
            names, versions = self.names.get(type_url, ()), self.versions.get(type_url)
            if type_url == EXTENSION_CONFIG and not names:
                continue
            yield request(type_url, names=names, versions=versions, node=node if type_url == CLUSTER else "")

    def learn(self, type_url: str, body: bytes) -> None:
        """Store the names and versions in a response."""
        response = message_class(f"{_DISCOVERY}.DeltaDiscoveryResponse").FromString(body)
        if (versions := self.versions.get(type_url)) is not None:
            versions.update({resource.name: resource.version for resource in response.resources})
            for name in response.removed_resources:
                versions.pop(name, None)
        if type_url in (CLUSTER, LISTENER) and type_url not in self._learned:
            self._learned.add(type_url)
            parse = message_class(type_url.rpartition("/")[2]).FromString
            self._learn_names(type_url, [parse(item.resource.value) for item in response.resources])
            waiting, self._waiting = self._waiting, []
            for waiting_type, send in waiting:
                self.follow(waiting_type, send)

    def _learn_names(self, type_url: str, resources: list[Any]) -> None:
        if type_url == LISTENER:
            managers = [manager for resource in resources for manager in _http_managers(resource)]
            self.names[ROUTE] = sorted(
                {each.rds.route_config_name for each in managers if each.HasField("rds")}
            )
            self.names[EXTENSION_CONFIG] = sorted(
                {
                    http_filter.name
                    for manager in managers
                    for http_filter in manager.http_filters
                    if http_filter.HasField("config_discovery")
                }
            )
            return
        self.names[ENDPOINT] = [
            c.eds_cluster_config.service_name or c.name for c in resources if c.type == c.EDS
        ]
        if any(cluster.transport_socket_matches for cluster in resources):
            self.names[SECRET] = [CERTIFICATE, ROOTS]


def _http_managers(listener: Any) -> Iterable[Any]:
    for chain in listener.filter_chains:
        for network_filter in chain.filters:
            if network_filter.typed_config.type_url.endswith(_HTTP_MANAGER):
                yield message_class(_HTTP_MANAGER).FromString(network_filter.typed_config.value)


class Sidecar(Client):
    """A sidecar that subscribes like Envoy, and ACKs every response.

    Args:
        fleet: Observer of the client.
        connection: Connected socket.
        node: Node ID.
        types: Types of responses that the sidecar waits for.
        known: Knowledge of the namespace's sidecars.
        learns: Whether the sidecar stores its responses in `known`.
        tracks: Whether the sidecar records when it receives which move of an endpoint.
        resumes: Whether the sidecar was connected before.
        token: Token of the pod; empty for none.
    """

    def __init__(
        self,
        fleet: Observer,
        connection: socket.socket,
        node: str,
        types: frozenset[str],
        known: Known,
        *,
        learns: bool,
        tracks: bool,
        resumes: bool,
        token: str,
    ) -> None:
        super().__init__(fleet, connection)
        self.node = node
        self.moves: list[tuple[int, float]] = []
        """Numbers of the received moves, and their times."""
        self.newest_move = 0
        self._types, self._known = types, known
        self._resumes = resumes
        self._learns, self._tracks, self._follows = learns, tracks, not resumes
        self._received_types: set[str] = set()
        self._stream = Http2Stream(self._receive, keep=learns or tracks, token=token)
        self.out = self._stream.out
        self._subscribe()

    def retry(self) -> None:
        """Open another stream on the same connection, after the server has ended the previous one."""
        self.attempts += 1
        self._received_types.clear()
        self._stream.reopen()
        self._subscribe()
        self.write()

    def _subscribe(self) -> None:
        first = (request(CLUSTER, node=self.node),)
        for message in self._known.resume(self.node) if self._resumes else first:
            self._stream.send(message)

    def feed(self, data: memoryview) -> None:
        """Process HTTP/2 frames."""
        self._stream.feed(data)

    def _receive(self, message: Received) -> None:
        url, nonce = type_and_nonce(message.tail)
        type_url = url.decode()
        self.fleet.received(self, message.size, done=True)
        if self._learns:
            self._known.learn(type_url, message.body)
        if self._tracks and type_url == ENDPOINT:
            now = time.monotonic()
            for digits in _MARKER.findall(message.body):
                high, middle, low = map(int, digits)
                number = high * 65536 + middle * 256 + low
                if number >= MOVING:
                    self.moves.append((number, now))
                    self.newest_move = max(self.newest_move, number)
        if type_url not in self._received_types:
            self._received_types.add(type_url)
            if self._follows and type_url in (CLUSTER, LISTENER):
                self._known.follow(type_url, self._send_now)
            elif self._follows and type_url == ENDPOINT and LISTENER in self._types:
                self._stream.send(request(LISTENER))
            if self._types <= self._received_types:
                self.complete()
        self._stream.send(ack(url, nonce))

    def _send_now(self, message: bytes) -> None:
        """Send a message outside `read`, too: another sidecar may have learned the names."""
        self._stream.send(message)
        self.write()
