"""Authorization for the introspection services: local callers in plaintext, authorized callers over TLS.

These services show the configuration of all clients. Callers in plaintext are not authenticated, so they must
be on the same machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc
import grpc.aio

from xds.server import Refused, is_encrypted
from xds.server.admission import CheckedServer
from xds.server.connections import ConnectionGuard
from xds.server.proxies import is_local_address, peer_address

REFUSAL = "this service answers callers on loopback addresses only, and this caller is {peer}"
"""Error message for callers that are not local."""

Admit: TypeAlias = Callable[[grpc.aio.ServicerContext], Awaitable[None]]
"""Authorizes a caller, or raises `xds.server.Refused`."""


def is_local(peer: str) -> bool:
    """Whether a peer is on this machine.

    Args:
        peer: Address in gRPC's form, such as `ipv4:127.0.0.1:1`, `ipv6:%5B::1%5D:1` or `unix:/path`.
    """
    if peer.partition(":")[0] in {"unix", "unix-abstract"}:
        return True
    host = peer_address(peer)
    return host is not None and is_local_address(host)


async def local_only(context: grpc.aio.ServicerContext) -> None:
    """Raise Refused unless the caller is on this machine."""
    if not is_local(context.peer()):
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, REFUSAL.format(peer=context.peer()))


class GuardedServer(CheckedServer):
    """A server for generated `add_..._to_server` functions. Added services answer admitted callers only.

    Args:
        server: Server to add the services to.
        admit: Authorizes callers over TLS. The default admits local callers only.
        connections: Guard that records whether the caller of each call was admitted.
        admit_plaintext: Authorizes callers in plaintext. The default admits local callers only.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        admit: Admit | None = None,
        connections: ConnectionGuard | None = None,
        *,
        admit_plaintext: Admit = local_only,
    ) -> None:
        super().__init__(server, self._admit_caller)
        self._admit, self._admit_plaintext = admit or local_only, admit_plaintext
        self._connections = connections or ConnectionGuard()

    async def _admit_caller(self, context: grpc.aio.ServicerContext) -> None:
        admit = self._admit if is_encrypted(context) else self._admit_plaintext
        try:
            await admit(context)
        except Refused as refused:
            await context.abort(refused.code, refused.message)
        self._connections.mark_proven(context)
