"""The adapter of this project's server: `xds conformance` sets the resources of a store.

store = Store()
server = XdsServer(store, "127.0.0.1:18000", added=[store_adapter(store)])
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
import grpc.aio

from xds.conformance.v1 import adapter_pb2 as pb
from xds.conformance.world import SET
from xds.resources import resource
from xds.snapshot import Resource
from xds.store import Store


def store_adapter(store: Store) -> Callable[[grpc.aio.Server, object], None]:
    """Return a function that adds the adapter to a gRPC server, for `XdsServer(added=...)`.

    Any caller can then replace the resources of the store's nodes: use it in tests only.

    Args:
        store: Resources that the server serves.
    """

    async def set_resources(request: pb.SetRequest, _: object) -> pb.SetResponse:
        items = [item for served in request.types for item in served.resources]
        store.replace([_resource(item) for item in items], node=request.node)
        return pb.SetResponse()

    def add(server: grpc.aio.Server, _: object) -> None:
        _, service, method = SET.split("/")
        handler = grpc.unary_unary_rpc_method_handler(
            set_resources,
            request_deserializer=pb.SetRequest.FromString,
            response_serializer=pb.SetResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))

    return add


def _resource(item: pb.Resource) -> Resource:
    ttl = item.ttl.ToTimedelta().total_seconds() if item.HasField("ttl") else None
    return resource(item.body, name=item.name, aliases=item.aliases, ttl=ttl)
