"""What answers questions about a server: reflection, channelz, CSDS, and what others add. Of use to grpcurl and its kind.

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
from xds.introspect.guard import Admit, Guarded
from xds.server import DiscoveryService

Add: TypeAlias = Callable[[Guarded, DiscoveryService], None]
"""Adds a service."""


class Introspection:
    """Adds these services to a server, and those that are `added`; in plaintext they answer local callers only.

    Over TLS `admit` says who is answered, or, if there is none, local callers are. Reflection lists them besides the
    discovery services and health, which answer anybody. `documented` returns the descriptors of added services
    with their comments, for `grpcurl describe`.
    """

    def __init__(
        self,
        added: Iterable[Add] = (),
        *,
        admit: Admit | None = None,
        documented: reflection.Documented = lambda _: None,
    ) -> None:
        self._added = tuple(added)
        self._documented = documented
        self._admit = admit

    def __call__(self, server: grpc.aio.Server, discovery: DiscoveryService) -> None:
        """Add them. A server that runs already answers them from then on."""
        guarded = Guarded(server, self._admit, discovery.connections)
        channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), guarded)
        for add in (add_csds, *self._added):
            add(guarded, discovery)
        open_to_all = (handler.service_name() for handler in discovery.handlers())
        services = (*open_to_all, health.SERVICE_NAME, *guarded.services)
        guarded.add_generic_rpc_handlers(reflection.handlers(services, self._documented))
        discovery.connections.own_services.update(guarded.services)
