"""What goes over the links between pods, byte for byte: the last word on whether something was encrypted."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Self

from tests.support.places import Namespace
from xds.mesh.sidecar.rules import RedirectConfig

_INBOUND = RedirectConfig().inbound_port
_EVERY_PROTOCOL = 0x0003
_SO_RCVBUFFORCE = 33
_ETHERNET = 14
_APPLICATION_DATA = (b"\x17\x03\x03", b"\x17\x03\x01")
"""How a TLS record with something of the application's in it begins."""


class Wire:
    """Listens on all links of a namespace inside a `with` block, to everything that goes over TCP.

    With the address of a pod, in that pod's namespace: only to what its sidecar sends to itself.
    """

    def __init__(self, place: Namespace, within: str = "") -> None:
        self._place, self._within = place, within
        self._heard: list[tuple[str, str, bytes]] = []
        """From which address to which, and what."""

    def __enter__(self) -> Self:
        with self._place.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL))
        self._socket.setblocking(False)
        # What overflows is lost, so as much as root may have, whatever the limit for others.
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 * 2**20)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def saw(self, text: str) -> bool:
        """Whether this went over a link where everybody could read it."""
        self._listen()
        return any(text.encode() in payload for _, _, payload in self._heard)

    def saw_tls(self, address: str) -> bool:
        """Whether anything that was encrypted went to or from this address."""
        self._listen()
        return any(
            address in ends and payload.startswith(_APPLICATION_DATA) for *ends, payload in self._heard
        )

    def forget(self) -> None:
        """Forget what was heard until now."""
        self._listen()
        self._heard.clear()

    def _listen(self) -> None:
        # A frame is in the queue before the one it is for has it: nothing of a finished exchange is missing.
        with suppress(BlockingIOError):
            while True:
                frame = self._socket.recv(65536)
                self._hear(frame[_ETHERNET:])

    def _hear(self, packet: bytes) -> None:
        if len(packet) < 40:
            return
        if packet[0] >> 4 == 6:
            protocol, segment = packet[6], packet[40 : 40 + int.from_bytes(packet[4:6])]
            source, target = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
        else:
            protocol, segment = packet[9], packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4])]
            source, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        if packet[0] >> 4 not in (4, 6) or protocol != socket.IPPROTO_TCP:
            return
        payload = segment[(segment[12] >> 4) * 4 :]
        if not payload:
            return
        port = int.from_bytes(segment[2:4])
        # Questions are seen redirected already, answers as if they never had been.
        if not self._within or port == _INBOUND or source == target == self._within:
            self._heard.append((source, target, payload))
