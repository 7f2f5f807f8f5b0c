"""Many clients in one process, each with little overhead.

Clients of the control plane use delta streams; clients of the floor use plain sockets.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from control import read_command, respond
from http2 import Ended, Http2Stream, Received

from xds.codec import message_class
from xds.mesh.identity import CERTIFICATE, ROOTS
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET

_DISCOVERY = "envoy.service.discovery.v3"
_HTTP_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_BUFFER = memoryview(bytearray(4 * 2**20))
_REPLY = bytes(100)
"""Reply to the floor, about the size of an ACK."""


def request(type_url: str, *, names: Iterable[str] = (), node: str = "") -> bytes:
    """Encode a subscription."""
    message = message_class(f"{_DISCOVERY}.DeltaDiscoveryRequest")(type_url=type_url)
    message.resource_names_subscribe.extend(names)
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


class FollowUps:
    """The subscriptions that a sidecar sends after its clusters and listeners; all sidecars share them."""

    def __init__(self) -> None:
        self._requests: dict[str, list[bytes]] = {}
        self._waiting: list[tuple[str, Callable[[bytes], None]]] = []

    def send(self, type_url: str, send: Callable[[bytes], None]) -> None:
        """Send the requests that follow a response of clusters or listeners, once they are known."""
        if type_url in self._requests:
            for message in self._requests[type_url]:
                send(message)
        else:
            self._waiting.append((type_url, send))

    def learn(self, type_url: str, body: bytes) -> None:
        """Compute the requests from the first response of clusters or listeners."""
        if type_url in self._requests or type_url not in (CLUSTER, LISTENER):
            return
        response = message_class(f"{_DISCOVERY}.DeltaDiscoveryResponse").FromString(body)
        resources = [
            message_class(type_url.rpartition("/")[2]).FromString(resource.resource.value)
            for resource in response.resources
        ]
        if type_url == CLUSTER:
            eds = [c.eds_cluster_config.service_name or c.name for c in resources if c.type == c.EDS]
            self._requests[type_url] = [request(ENDPOINT, names=eds)]
            if any(c.transport_socket_matches for c in resources):
                self._requests[type_url].append(request(SECRET, names=(CERTIFICATE, ROOTS)))
        else:
            rds = sorted({name for listener in resources for name in _route_names(listener)})
            self._requests[type_url] = [request(ROUTE, names=rds)] if rds else []
        waiting, self._waiting = self._waiting, []
        for waiting_type, send in waiting:
            self.send(waiting_type, send)


def _route_names(listener: Any) -> Iterable[str]:
    for chain in listener.filter_chains:
        for network_filter in chain.filters:
            if network_filter.typed_config.type_url.endswith(_HTTP_MANAGER):
                manager = message_class(_HTTP_MANAGER).FromString(network_filter.typed_config.value)
                if manager.HasField("rds"):
                    yield manager.rds.route_config_name


class Sidecar:
    """A sidecar that subscribes like Envoy and ACKs every response."""

    def __init__(self, fleet: Fleet, node: str, connection: socket.socket, *, keeps_bodies: bool) -> None:
        self._fleet = fleet
        self._keeps_bodies = keeps_bodies
        self.stream = Http2Stream(connection, self._receive, keep=keeps_bodies)
        self.received_types: set[str] = set()
        """Types of the responses received so far."""
        self.is_blocked = False
        """Whether data is pending that the socket does not accept yet."""
        self.reached = False
        """Whether a response has arrived since the last reset."""
        self.stream.send(request(CLUSTER, node=node))

    def read(self) -> None:
        """Read available data. Raise Ended at the end of the stream."""
        size = self.stream.socket.recv_into(_BUFFER)
        if not size:
            raise Ended("the server closed the connection")
        self.stream.feed(_BUFFER[:size])

    def _receive(self, message: Received) -> None:
        url, nonce = type_and_nonce(message.tail)
        type_url = url.decode()
        self._fleet.count(self, type_url, message)
        if self._keeps_bodies:
            self._fleet.follow_ups.learn(type_url, message.body)
            self._fleet.bodies.append((type_url, message.body))
        if type_url not in self.received_types:
            self.received_types.add(type_url)
            if type_url in (CLUSTER, LISTENER):
                self._fleet.follow_ups.send(type_url, self._send)
            elif type_url == ENDPOINT and LISTENER in self._fleet.types:
                self.stream.send(request(LISTENER))
        self._send(ack(url, nonce))

    def _send(self, message: bytes) -> None:
        self.stream.send(message)
        self._fleet.write(self)


class PlainClient:
    """A client on a plain socket, which reads the expected number of bytes and replies."""

    def __init__(self, fleet: Fleet, connection: socket.socket) -> None:
        self._fleet = fleet
        self.socket = connection
        self.remaining = fleet.expected

    def read(self) -> None:
        """Read available data. Raise Ended at the end of the stream."""
        size = self.socket.recv_into(_BUFFER)
        if not size:
            raise Ended("the floor closed the connection")
        self._fleet.count_bytes(size)
        self.remaining -= size
        if not self.remaining:
            self._fleet.plain_reached += 1
            self.remaining = self._fleet.expected
            self.socket.send(_REPLY)


class Fleet:
    """All clients, and counts of what they have received since the last reset."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._epoll.register(sys.stdin, select.EPOLLIN)
        self._clients: dict[int, Sidecar | PlainClient] = {}
        self.follow_ups = FollowUps()
        self.types: frozenset[str] = frozenset()
        """Types that each sidecar waits for."""
        self.expected = 0
        """Bytes that each plain client waits for."""
        self.bodies: list[tuple[str, bytes]] = []
        """Types and bodies of the first sidecar's responses since the last reset."""
        self.failures: Counter[str] = Counter()
        self._reset()

    def run(self) -> None:
        """Run until the parent process exits."""
        while True:
            for fd, event in self._epoll.poll():
                if fd == sys.stdin.fileno():
                    read_command(lambda command: respond(self._handle(command)))
                elif fd in self._clients:
                    self._serve(fd, event)

    def count_bytes(self, size: int) -> None:
        """Count received bytes, and record the time."""
        self._bytes += size
        self._last = time.monotonic()

    def count(self, sidecar: Sidecar, type_url: str, message: Received) -> None:
        """Count a response. Other data from the server, such as pings, is not counted."""
        self.count_bytes(message.size)
        version = message.head[2:]
        self._responses[type_url] += 1
        self._versions.setdefault(type_url, Counter())[version] += 1
        if not sidecar.reached:
            sidecar.reached = True
            self._reached += 1

    def write(self, sidecar: Sidecar) -> None:
        """Write pending data. If the socket does not accept all of it, continue when it is writable."""
        out = sidecar.stream.out
        with suppress(BlockingIOError):
            del out[: sidecar.stream.socket.send(out)]
        if sidecar.is_blocked != bool(out):
            sidecar.is_blocked = bool(out)
            events = select.EPOLLIN | (select.EPOLLOUT if out else 0)
            self._epoll.modify(sidecar.stream.socket, events)

    def _serve(self, fd: int, event: int) -> None:
        client = self._clients[fd]
        try:
            if event & ~select.EPOLLOUT:
                client.read()
            if isinstance(client, Sidecar) and client.stream.out:
                self.write(client)
        except (Ended, OSError) as error:
            self.failures[str(error)] += 1
            self._close(fd)

    def _handle(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "connect":
                self.types = frozenset(command["types"])
                return self._connect(command["port"], command["nodes"])
            case "plain":
                return self._connect_plain(command["port"], command["count"], command["size"])
            case "expect":
                self.expected = command["size"]
                for client in self._clients.values():
                    if isinstance(client, PlainClient):
                        client.remaining = self.expected
                self._reset()
                return {}
            case "reset":
                self._reset()
                return {}
            case "state":
                return self._state()
            case "count_resources":
                return self._count_resources()
            case "close":
                for fd in tuple(self._clients):
                    self._close(fd)
                self.failures.clear()
                self.follow_ups = FollowUps()
                return {}
        raise ValueError(command)

    def _connect(self, port: int, nodes: list[str]) -> dict[str, Any]:
        self._reset()
        start = time.monotonic()
        for number, node in enumerate(nodes):
            connection = _open_connection(port)
            sidecar = Sidecar(self, node, connection, keeps_bodies=number == 0)
            self._clients[connection.fileno()] = sidecar
            self._epoll.register(connection, select.EPOLLIN)
            self.write(sidecar)
        return {"start": start}

    def _connect_plain(self, port: int, count: int, size: int) -> dict[str, Any]:
        self.expected = size
        self._reset()
        start = time.monotonic()
        for _ in range(count):
            connection = _open_connection(port)
            self._clients[connection.fileno()] = PlainClient(self, connection)
            self._epoll.register(connection, select.EPOLLIN)
        return {"start": start}

    def _close(self, fd: int) -> None:
        client = self._clients.pop(fd)
        connection = client.stream.socket if isinstance(client, Sidecar) else client.socket
        self._epoll.unregister(fd)
        connection.close()

    def _reset(self) -> None:
        self._bytes = self._reached = self.plain_reached = 0
        self._last = 0.0
        self._responses: Counter[str] = Counter()
        self._versions: dict[str, Counter[bytes]] = {}
        self.bodies.clear()
        for client in self._clients.values():
            if isinstance(client, Sidecar):
                client.reached = False

    def _state(self) -> dict[str, Any]:
        """Return counts of what has arrived since the last reset."""
        return {
            "bytes": self._bytes,
            "last": self._last,
            "reached": self._reached + self.plain_reached,
            "responses": self._responses,
            "versions": {type_url: len(versions) for type_url, versions in self._versions.items()},
            "failures": self.failures,
            "complete": sum(
                isinstance(client, Sidecar) and self.types <= client.received_types
                for client in self._clients.values()
            ),
        }

    def _count_resources(self) -> dict[str, Any]:
        """Return the number of resources that the first sidecar received since the last reset, by type."""
        counts: Counter[str] = Counter()
        for type_url, body in self.bodies:
            response = message_class(f"{_DISCOVERY}.DeltaDiscoveryResponse").FromString(body)
            counts[type_url] += len(response.resources)
        return counts


def _open_connection(port: int) -> socket.socket:
    """Connect to a loopback port. This is so fast that connecting in parallel would not help."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


if __name__ == "__main__":
    # Build the descriptors before the measurement, because the first use of a type is slow.
    for name in (CLUSTER, LISTENER, f"/{_HTTP_MANAGER}", f"/{_DISCOVERY}.DeltaDiscoveryResponse"):
        message_class(name.rpartition("/")[2])
    respond({"ready": True})
    Fleet().run()
