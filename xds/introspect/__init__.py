"""Services for grpcurl and similar clients: reflection, channelz, CSDS, and services that the caller adds.

XdsServer(..., added=[Introspection()])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import grpc.aio
from grpc_channelz.v1 import channelz, channelz_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health  # type: ignore[import-untyped]

from xds.introspect import reflection
from xds.introspect.csds import add_csds
from xds.introspect.guard import Admit, GuardedServer
from xds.server import DiscoveryService

Add: TypeAlias = Callable[[GuardedServer, DiscoveryService], None]
"""Adds a service to a server."""


class Introspection:
    """Adds reflection, channelz, CSDS and other services to a server.

    In plaintext, these services answer local callers only. Reflection also lists the discovery services and
    the health service, which answer all callers.

    Args:
        added: Functions that add more services.
        admit: Authorizes callers over TLS, and raises `xds.server.Refused` to reject a caller. The default
            admits local callers only.
        documented: Returns descriptors with comments for added services, for `grpcurl describe`.
    """

    def __init__(
        self,
        added: Iterable[Add] = (),
        *,
        admit: Admit | None = None,
        documented: reflection.DescriptorLookup = lambda _: None,
    ) -> None:
        self._added = tuple(added)
        self._documented = documented
        self._admit = admit

    def __call__(self, server: grpc.aio.Server, discovery: DiscoveryService) -> None:
        """Add the services to a server, which may be running already."""
        guarded = GuardedServer(server, self._admit, discovery.connections)
        channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), guarded)
        for add in (add_csds, *self._added):
            add(guarded, discovery)
        discovery_services = (handler.service_name() for handler in discovery.handlers())
        services = (*discovery_services, health.SERVICE_NAME, *guarded.services)
        guarded.add_generic_rpc_handlers(reflection.handlers(services, self._documented))
        discovery.connections.own_services.update(guarded.services)
