"""Many inexpensive clients in one process.

Sidecars use delta streams; clients of the floor use plain sockets.
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

from control import answer, read_commands
from http2 import Ended, Http2Stream, Received

from xds.codec import message_class
from xds.mesh.identity import CERTIFICATE, ROOTS
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET

_DISCOVERY = "envoy.service.discovery.v3"
_HTTP_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_BUFFER = memoryview(bytearray(4 * 2**20))
_ANSWER = bytes(100)
"""About the size of an ACK, for the floor."""


def request(type_url: str, *, names: Iterable[str] = (), node: str = "") -> bytes:
    """Encode a subscription."""
    found = message_class(f"{_DISCOVERY}.DeltaDiscoveryRequest")(type_url=type_url)
    found.resource_names_subscribe.extend(names)
    if node:
        found.node.id = node
    return bytes(found.SerializeToString())


def ack(type_url: bytes, nonce: bytes) -> bytes:
    """Encode an ACK."""
    return b"\x12" + bytes((len(type_url),)) + type_url + b"\x32" + bytes((len(nonce),)) + nonce


def type_and_nonce(tail: bytes) -> tuple[bytes, bytes]:
    """Return the type and the nonce from the end of a response, where our server puts them."""
    start = tail.rindex(b"type.googleapis.com/")
    end = start + tail[start - 1]
    return tail[start:end], tail[end + 2 : end + 2 + tail[end + 1]]


class Names:
    """The names that follow from the clusters and listeners of a sidecar; all sidecars share them."""

    def __init__(self) -> None:
        self._requests: dict[str, list[bytes]] = {}
        self._waiting: list[tuple[str, Callable[[bytes], None]]] = []

    def ask(self, given: str, send: Callable[[bytes], None]) -> None:
        """Send the requests that follow from the clusters or listeners of a client, once they are known."""
        if given in self._requests:
            for asked in self._requests[given]:
                send(asked)
        else:
            self._waiting.append((given, send))

    def learn(self, given: str, body: bytes) -> None:
        """Compute the requests from the first response that was stored."""
        if given in self._requests or given not in (CLUSTER, LISTENER):
            return
        response = message_class(f"{_DISCOVERY}.DeltaDiscoveryResponse").FromString(body)
        found = [
            message_class(given.rpartition("/")[2]).FromString(resource.resource.value)
            for resource in response.resources
        ]
        if given == CLUSTER:
            eds = [c.eds_cluster_config.service_name or c.name for c in found if c.type == c.EDS]
            self._requests[given] = [request(ENDPOINT, names=eds)]
            if any(c.transport_socket_matches for c in found):
                self._requests[given].append(request(SECRET, names=(CERTIFICATE, ROOTS)))
        else:
            rds = sorted({name for listener in found for name in _routes(listener)})
            self._requests[given] = [request(ROUTE, names=rds)] if rds else []
        waiting, self._waiting = self._waiting, []
        for wanted, send in waiting:
            self.ask(wanted, send)


def _routes(listener: Any) -> Iterable[str]:
    for chain in listener.filter_chains:
        for used in chain.filters:
            if used.typed_config.type_url.endswith(_HTTP_MANAGER):
                manager = message_class(_HTTP_MANAGER).FromString(used.typed_config.value)
                if manager.HasField("rds"):
                    yield manager.rds.route_config_name


class Sidecar:
    """A sidecar that subscribes like Envoy and ACKs every response."""

    def __init__(self, fleet: Fleet, node: str, connected: socket.socket, *, witness: bool) -> None:
        self._fleet = fleet
        self._witness = witness
        self.stream = Http2Stream(connected, self._receive, keep=witness)
        self.given: set[str] = set()
        self.waits = False
        """Whether data is pending that the socket does not accept yet."""
        self.reached = False
        """Whether a response has arrived since the last mark."""
        self.stream.send(request(CLUSTER, node=node))

    def read(self) -> None:
        """Read available data. Raise Ended at the end of the stream."""
        got = self.stream.socket.recv_into(_BUFFER)
        if not got:
            raise Ended("the server closed the connection")
        self.stream.feed(_BUFFER[:got])

    def _receive(self, message: Received) -> None:
        url, nonce = type_and_nonce(message.tail)
        type_url = url.decode()
        self._fleet.count(self, type_url, message)
        if self._witness:
            self._fleet.names.learn(type_url, message.body)
            self._fleet.witnessed.append((type_url, message.body))
        if type_url not in self.given:
            self.given.add(type_url)
            if type_url in (CLUSTER, LISTENER):
                self._fleet.names.ask(type_url, self._send)
            elif type_url == ENDPOINT and LISTENER in self._fleet.types:
                self.stream.send(request(LISTENER))
        self._send(ack(url, nonce))

    def _send(self, message: bytes) -> None:
        self.stream.send(message)
        self._fleet.write(self)


class Plain:
    """A plain client that reads the expected number of bytes, and answers."""

    def __init__(self, fleet: Fleet, connected: socket.socket) -> None:
        self._fleet = fleet
        self.socket = connected
        self.left = fleet.expected

    def read(self) -> None:
        """Read available data. Raise Ended at the end of the stream."""
        got = self.socket.recv_into(_BUFFER)
        if not got:
            raise Ended("the floor closed the connection")
        self._fleet.took(got)
        self.left -= got
        if not self.left:
            self._fleet.plain_reached += 1
            self.left = self._fleet.expected
            self.socket.send(_ANSWER)


class Fleet:
    """All clients, and what they have received since the last mark."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._epoll.register(sys.stdin, select.EPOLLIN)
        self._clients: dict[int, Sidecar | Plain] = {}
        self.names = Names()
        self.types: frozenset[str] = frozenset()
        """Types that each sidecar waits for."""
        self.expected = 0
        self.witnessed: list[tuple[str, bytes]] = []
        self.failures: Counter[str] = Counter()
        self._mark()

    def run(self) -> None:
        """Run until the parent process ends."""
        while True:
            for fd, event in self._epoll.poll():
                if fd == sys.stdin.fileno():
                    read_commands(lambda command: answer(self._do(command)))
                elif fd in self._clients:
                    self._serve(fd, event)

    def took(self, size: int) -> None:
        """Count bytes."""
        self._bytes += size
        self._last = time.monotonic()

    def count(self, sidecar: Sidecar, type_url: str, message: Received) -> None:
        """Count a response. Other data of the server, such as pings, is not counted."""
        self.took(message.size)
        version = message.head[2:]
        self._responses[type_url] += 1
        self._versions.setdefault(type_url, Counter())[version] += 1
        if not sidecar.reached:
            sidecar.reached = True
            self._reached += 1

    def write(self, sidecar: Sidecar) -> None:
        """Write as much as the socket accepts, and the rest when it is writable."""
        out = sidecar.stream.out
        with suppress(BlockingIOError):
            del out[: sidecar.stream.socket.send(out)]
        if sidecar.waits != bool(out):
            sidecar.waits = bool(out)
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

    def _do(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "connect":
                self.types = frozenset(command["types"])
                return self._connect(command["port"], command["nodes"])
            case "plain":
                return self._connect_plain(command["port"], command["count"], command["size"])
            case "expect":
                self.expected = command["size"]
                for client in self._clients.values():
                    if isinstance(client, Plain):
                        client.left = self.expected
                self._mark()
                return {}
            case "mark":
                self._mark()
                return {}
            case "seen":
                return self._seen()
            case "witnessed":
                return self._witnessed()
            case "close":
                for fd in tuple(self._clients):
                    self._close(fd)
                self.failures.clear()
                self.names = Names()
                return {}
        raise ValueError(command)

    def _connect(self, port: int, nodes: list[str]) -> dict[str, Any]:
        self._mark()
        began = time.monotonic()
        for number, node in enumerate(nodes):
            connected = _connected(port)
            sidecar = Sidecar(self, node, connected, witness=number == 0)
            self._clients[connected.fileno()] = sidecar
            self._epoll.register(connected, select.EPOLLIN)
            self.write(sidecar)
        return {"began": began}

    def _connect_plain(self, port: int, count: int, size: int) -> dict[str, Any]:
        self.expected = size
        self._mark()
        began = time.monotonic()
        for _ in range(count):
            connected = _connected(port)
            self._clients[connected.fileno()] = Plain(self, connected)
            self._epoll.register(connected, select.EPOLLIN)
        return {"began": began}

    def _close(self, fd: int) -> None:
        client = self._clients.pop(fd)
        found = client.stream.socket if isinstance(client, Sidecar) else client.socket
        self._epoll.unregister(fd)
        found.close()

    def _mark(self) -> None:
        self._bytes = self._reached = self.plain_reached = 0
        self._last = 0.0
        self._responses: Counter[str] = Counter()
        self._versions: dict[str, Counter[bytes]] = {}
        self.witnessed.clear()
        for client in self._clients.values():
            if isinstance(client, Sidecar):
                client.reached = False

    def _seen(self) -> dict[str, Any]:
        """Return what has arrived since the last mark."""
        return {
            "bytes": self._bytes,
            "last": self._last,
            "reached": self._reached + self.plain_reached,
            "responses": self._responses,
            "versions": {url: len(found) for url, found in self._versions.items()},
            "failures": self.failures,
            "complete": sum(
                isinstance(found, Sidecar) and self.types <= found.given for found in self._clients.values()
            ),
        }

    def _witnessed(self) -> dict[str, Any]:
        """Return the number of resources of the first client since the last mark, by type."""
        found: Counter[str] = Counter()
        for type_url, body in self.witnessed:
            response = message_class(f"{_DISCOVERY}.DeltaDiscoveryResponse").FromString(body)
            found[type_url] += len(response.resources)
        return found


def _connected(port: int) -> socket.socket:
    """Connect. On loopback this is too fast to overlap."""
    connected = socket.create_connection(("127.0.0.1", port))
    connected.setblocking(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


if __name__ == "__main__":
    # Build the descriptors before the measurement, because the first use of a type is slow.
    for used in (CLUSTER, LISTENER, f"/{_HTTP_MANAGER}", f"/{_DISCOVERY}.DeltaDiscoveryResponse"):
        message_class(used.rpartition("/")[2])
    answer({"ready": True})
    Fleet().run()
