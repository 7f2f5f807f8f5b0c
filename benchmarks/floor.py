"""The floor: a server that only pushes bytes to many sockets with epoll."""

from __future__ import annotations

import select
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from control import answer, read_commands


class Floor:
    """Sends the requested number of bytes to all clients, and reads their answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(sys.stdin, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._owed: dict[int, memoryview] = {}
        self._content = b""
        self._greets = False

    def run(self) -> None:
        answer({"port": self._listener.getsockname()[1]})
        while True:
            for fd, event in self._epoll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == sys.stdin.fileno():
                    read_commands(self._do)
                else:
                    self._serve(fd, event)

    def _do(self, command: dict[str, Any]) -> None:
        self._content = bytes(command["size"])
        self._greets = command["do"] == "greet"
        answer({"changed": time.monotonic()})
        if not self._greets:
            for fd in tuple(self._sockets):
                self._owed[fd] = memoryview(self._content)
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
            if self._greets:
                self._owed[accepted.fileno()] = memoryview(self._content)
                self._write(accepted.fileno())

    def _serve(self, fd: int, event: int) -> None:
        if event & select.EPOLLOUT:
            self._write(fd)
        if event & ~select.EPOLLOUT and not _receive(self._sockets[fd]):
            self._epoll.unregister(fd)
            self._sockets.pop(fd).close()
            self._owed.pop(fd, None)

    def _write(self, fd: int) -> None:
        owed = self._owed[fd]
        waits = len(owed) < len(self._content)
        with suppress(BlockingIOError):
            owed = owed[self._sockets[fd].send(owed) :]
        if owed:
            self._owed[fd] = owed
        else:
            del self._owed[fd]
        if waits != bool(owed):
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if owed else 0))


def _receive(found: socket.socket) -> bool:
    """Read an answer. Return whether the connection is still open."""
    try:
        return bool(found.recv(65536))
    except ConnectionResetError:
        return False


if __name__ == "__main__":
    Floor().run()
