"""Who may ask about the server: in plaintext callers of this machine, over TLS whom somebody else lets in.

What these services show is everything that every proxy is told. In plaintext nobody proves who they are, so only those of this
machine are answered: where only this machine can reach the server, that is who asks anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc
import grpc.aio

from xds.server import Refused, is_encrypted
from xds.server.admission import CheckedServer
from xds.server.connections import ConnectionGuard
from xds.server.proxies import peer_address

REFUSAL = "only callers on this machine's loopback addresses are answered here, and this one is {peer}"

Admit: TypeAlias = Callable[[grpc.aio.ServicerContext], Awaitable[None]]
"""Lets a caller in, or raises Refused."""


def is_local(peer: str) -> bool:
    """Whether a peer, in gRPC's form, is on this machine: `ipv4:127.0.0.1:1`, `ipv6:%5B::1%5D:1`, `unix:/path`."""
    if peer.partition(":")[0] in {"unix", "unix-abstract"}:
        return True
    host = peer_address(peer)
    return host is not None and host.is_loopback


async def local_only(context: grpc.aio.ServicerContext) -> None:
    """Let in who is on this machine."""
    if not is_local(context.peer()):
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, REFUSAL.format(peer=context.peer()))


class Guarded(CheckedServer):
    """A server as the generated `add_..._to_server` functions see it: what they add answers only who is let in.

    `admit` decides about callers over TLS; those in plaintext are to be local. None: all are. `connections` is told of each call.
    """

    def __init__(
        self, server: grpc.aio.Server, admit: Admit | None = None, connections: ConnectionGuard | None = None
    ) -> None:
        super().__init__(server, self._let_in)
        self._admit = admit
        self._connections = connections or ConnectionGuard()

    async def _let_in(self, context: grpc.aio.ServicerContext) -> None:
        admit = self._admit if self._admit and is_encrypted(context) else local_only
        try:
            await admit(context)
        except Refused as refused:
            self._connections.record_unproven(context)
            await context.abort(refused.code, refused.message)
        self._connections.mark_proven(context)
