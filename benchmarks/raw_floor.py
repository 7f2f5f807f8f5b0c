"""The raw floor: a server that only sends bytes to many plain sockets, with epoll."""

from __future__ import annotations

import select
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from control import read_command, respond


class Floor:
    """Sends the requested number of bytes to all clients, and reads their replies."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(sys.stdin, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._unsent: dict[int, memoryview] = {}
        self._content = b""
        self._sends_on_connect = False

    def run(self) -> None:
        respond({"port": self._listener.getsockname()[1]})
        while True:
            for fd, event in self._epoll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == sys.stdin.fileno():
                    read_command(self._handle)
                else:
                    self._serve(fd, event)

    def _handle(self, command: dict[str, Any]) -> None:
        self._content = bytes(command["size"])
        self._sends_on_connect = command["do"] == "send_on_connect"
        respond({"changed": time.monotonic()})
        if not self._sends_on_connect:
            for fd in tuple(self._sockets):
                self._unsent[fd] = memoryview(self._content)
                self._write(fd)

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[accepted.fileno()] = accepted
            self._epoll.register(accepted, select.EPOLLIN)
            if self._sends_on_connect:
                self._unsent[accepted.fileno()] = memoryview(self._content)
                self._write(accepted.fileno())

    def _serve(self, fd: int, event: int) -> None:
        if event & select.EPOLLOUT:
            self._write(fd)
        if event & ~select.EPOLLOUT and not _receive(self._sockets[fd]):
            self._epoll.unregister(fd)
            self._sockets.pop(fd).close()
            self._unsent.pop(fd, None)

    def _write(self, fd: int) -> None:
        unsent = self._unsent[fd]
        was_blocked = len(unsent) < len(self._content)
        with suppress(BlockingIOError):
            unsent = unsent[self._sockets[fd].send(unsent) :]
        if unsent:
            self._unsent[fd] = unsent
        else:
            del self._unsent[fd]
        if was_blocked != bool(unsent):
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if unsent else 0))


def _receive(connection: socket.socket) -> bool:
    """Read a reply. Return whether the connection is still open."""
    try:
        return bool(connection.recv(65536))
    except ConnectionResetError:
        return False


if __name__ == "__main__":
    Floor().run()
