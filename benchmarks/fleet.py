"""Many clients in one process, each with little overhead: sidecars, or the clients of one floor."""

from __future__ import annotations

import itertools
import random
import select
import socket
import ssl
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from clients import Client, GrpcClient, Known, RawClient, Sidecar, prepare
from control import read_command, respond
from http2 import Ended, Refused

_TRACKED = 10
"""Number of sidecars that record when they receive which move of an endpoint."""
_BACKOFF = 0.5
"""Maximum time before a refused client tries again, in seconds, as in Envoy. It doubles each time."""
_MAX_BACKOFF = 30.0
"""Limit of that time, in seconds, as in Envoy."""
_MAX_ATTEMPTS = 20
"""Maximum number of connections and streams that a client opens until one is accepted."""


class Fleet:
    """All clients, and counts of what they have received since the last reset."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._epoll.register(sys.stdin, select.EPOLLIN)
        self._clients: dict[int, Client] = {}
        self._unopened: deque[Callable[[], Client]] = deque()
        """Clients that connect when others are complete."""
        self._retries: list[tuple[float, int, Callable[[], None]]] = []
        """Retries of refused clients: when, a unique number, and what to call."""
        self._numbers = itertools.count()
        self._known: dict[str, Known] = {}
        """Knowledge of the sidecars of each namespace."""
        self._addresses = itertools.count(1)
        self._failures = Counter[str]()
        self._refused = Counter[str]()
        """Connections and streams that were opened again, by reason."""
        self._reset()

    def run(self) -> None:
        """Run until the parent process exits."""
        while True:
            delay = max(0.0, self._retries[0][0] - time.monotonic()) if self._retries else None
            for fd, event in self._epoll.poll(delay):
                if fd == sys.stdin.fileno():
                    read_command(lambda command: respond(self._handle(command)))
                elif fd in self._clients:
                    self._serve(self._clients[fd], event)
            while self._retries and self._retries[0][0] <= time.monotonic():
                heappop(self._retries)[2]()

    # --- for clients ----------------------------------------------------------------------------------------

    def received(self, client: Client, size: int, *, done: bool) -> None:
        """Count received messages or data. HTTP/2 frames such as pings are not counted."""
        self._bytes += size
        self._messages += 1
        self._last = time.monotonic()
        if done and not client.is_done:
            client.is_done = True
            self._done += 1

    def completed(self, client: Client) -> None:
        """Count a client that has received everything for the first time. Open the next one."""
        self._durations.append(time.monotonic() - client.opened_at)
        self._open_next()

    def watch(self, client: Client) -> None:
        """Have epoll report when the client can read or write."""
        events = 0 if client.is_stalled else select.EPOLLIN
        self._epoll.modify(client.socket, events | (select.EPOLLOUT if client.is_blocked else 0))

    # --- commands -------------------------------------------------------------------------------------------

    def _handle(self, command: dict[str, Any]) -> dict[str, Any]:
        match command.pop("do"):
            case "connect":
                return self._connect(**command)
            case "connect_floor":
                return self._connect_floor(**command)
            case "expect":
                self._reset()
                for client in self._clients.values():
                    if isinstance(client, RawClient):
                        client.remaining = command["size"]
            case "reset":
                self._reset()
            case "state":
                return self._state()
            case "durations":
                return {"durations": sorted(self._durations)}
            case "moves":
                return {"moves": [client.moves for client in self._sidecars() if client.moves]}
            case "stall":
                return self._stall(command["share"])
            case "close":
                return self._close(command.get("nodes"))
        return {}

    def _connect(
        self,
        *,
        ports: list[int],
        nodes: list[str],
        types: list[str],
        at_once: int,
        resumes: bool,
        tokens: list[str],
        roots: str,
    ) -> dict[str, Any]:
        """Open the streams of sidecars, at most `at_once` before they have received all `types`.

        The sidecars share the ports, one for each replica.
        """
        context = None
        if roots:
            context = ssl.create_default_context(cafile=roots)
            context.set_alpn_protocols(["h2"])
        every = max(1, len(nodes) // _TRACKED)
        namespaces: set[str] = set()

        def make(number: int, node: str, token: str) -> Client:
            namespace = node.rpartition("~")[2]
            is_first = namespace not in namespaces
            namespaces.add(namespace)
            return Sidecar(
                self,
                self._open_connection(ports[number % len(ports)], context),
                node,
                frozenset(types),
                self._known.setdefault(namespace, Known(types)),
                learns=is_first,
                tracks=number % every == 0,
                resumes=resumes,
                token=token,
            )

        cells = zip(range(len(nodes)), nodes, tokens or [""] * len(nodes), strict=True)
        return self._open([lambda cell=cell: make(*cell) for cell in cells], at_once)

    def _connect_floor(self, *, kind: str, port: int, count: int, size: int, at_once: int) -> dict[str, Any]:
        """Open connections to a floor, instead of the previous ones."""
        self._close(None)
        self._reset()
        make = {"raw": RawClient, "grpc": GrpcClient}[kind]
        return self._open([lambda: make(self, self._open_connection(port), size)] * count, at_once)

    def _open(self, makers: list[Callable[[], Client]], at_once: int) -> dict[str, Any]:
        start = time.monotonic()
        self._unopened.extend(makers)
        for _ in range(min(at_once, len(makers))):
            self._open_next()
        return {"start": start}

    def _open_next(self) -> None:
        if self._unopened:
            self._start(self._unopened.popleft())

    def _start(self, make: Callable[[], Client], refused: Client | None = None) -> None:
        client = make()
        client.reopen = make
        if refused:
            client.attempts, client.opened_at = refused.attempts + 1, refused.opened_at
        self._clients[client.socket.fileno()] = client
        self._epoll.register(client.socket, select.EPOLLIN)
        client.write()

    def _open_connection(self, port: int, context: ssl.SSLContext | None = None) -> socket.socket:
        """Connect to a loopback port, from an address of the client's own, as pods do."""
        number = next(self._addresses)
        source = (f"127.{1 + number // 62500 % 60}.{number // 250 % 250}.{number % 250 + 1}", 0)
        connection = socket.create_connection(("127.0.0.1", port), source_address=source)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        if context:
            # The first write or read starts the handshake, and checks the server's certificate.
            connection = context.wrap_socket(
                connection, server_hostname="localhost", do_handshake_on_connect=False
            )
        return connection

    def _serve(self, client: Client, event: int) -> None:
        try:
            if event & ~select.EPOLLOUT:
                client.read()
            if client.out:
                client.write()
        except (Ended, OSError) as error:
            self._fail(client, error)

    def _fail(self, client: Client, error: Exception) -> None:
        """Count an error of a client. Let the client try again if the server may have refused it."""
        may_retry = not client.is_complete and client.attempts < _MAX_ATTEMPTS
        (self._refused if may_retry else self._failures)[str(error)] += 1
        if may_retry and isinstance(error, Refused) and isinstance(client, Sidecar):
            self._later(client.attempts, lambda: self._reopen_stream(client))
            return
        if may_retry:
            self._later(client.attempts, lambda: self._reopen(client))
        self._remove(client)

    def _reopen(self, client: Client) -> None:
        assert client.reopen
        self._start(client.reopen, client)

    def _reopen_stream(self, client: Sidecar) -> None:
        if client.socket.fileno() in self._clients:  # It has not been closed meanwhile.
            try:
                client.retry()
            except OSError as error:
                self._fail(client, error)

    def _later(self, attempts: int, retry: Callable[[], None]) -> None:
        """Retry after a random time, as Envoy does."""
        limit = min(_MAX_BACKOFF, _BACKOFF * 2 ** (attempts - 1))
        due = time.monotonic() + random.uniform(0, limit)
        heappush(self._retries, (due, next(self._numbers), retry))

    def _remove(self, client: Client) -> None:
        del self._clients[client.socket.fileno()]
        self._epoll.unregister(client.socket)
        client.socket.close()

    def _close(self, nodes: list[str] | None) -> dict[str, Any]:
        """Close the streams of some nodes, or everything and forget what was learned."""
        chosen = set(nodes or ())
        for client in tuple(self._clients.values()):
            if nodes is None or (isinstance(client, Sidecar) and client.node in chosen):
                self._remove(client)
        if nodes is None:
            self._retries.clear()
            self._known.clear()
            self._failures.clear()
        return {}

    def _stall(self, share: float) -> dict[str, Any]:
        """Let this share of the sidecars stop reading, and all others read."""
        sidecars = self._sidecars()
        count = round(len(sidecars) * share)
        # The first sidecars learn for the others.
        for number, client in enumerate(reversed(sidecars)):
            client.is_stalled = number < count
            self.watch(client)
        return {"stalled": count}

    def _sidecars(self) -> list[Sidecar]:
        return [client for client in self._clients.values() if isinstance(client, Sidecar)]

    def _reset(self) -> None:
        """Start to count what the clients receive."""
        self._bytes = self._messages = self._done = 0
        self._refused.clear()
        self._last = 0.0
        self._durations: list[float] = []
        for client in self._clients.values():
            client.is_done = False
            if isinstance(client, Sidecar):
                client.moves.clear()
                client.newest_move = 0

    def _state(self) -> dict[str, Any]:
        """Return counts of what has arrived since the last reset."""
        return {
            "bytes": self._bytes,
            "messages": self._messages,
            "last": self._last,
            "done": self._done,
            "complete": len(self._durations),
            "newest_move": min(
                (client.newest_move for client in self._sidecars() if client.moves), default=0
            ),
            "refused": self._refused,
            "failures": self._failures,
        }


if __name__ == "__main__":
    prepare()
    respond({"ready": True})
    Fleet().run()
