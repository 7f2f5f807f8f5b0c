"""Records of traffic, as the service Traffic returns them."""

from __future__ import annotations

from xds.mesh.observe.record import Flow
from xds.mesh.v1 import traffic_pb2 as pb


def response(since: float, until: float, *flows: Flow, **more: object) -> pb.ListTrafficResponse:
    """Return traffic as the service returns it."""
    found = pb.ListTrafficResponse(**{"enabled": True, "request": pb.ListTrafficRequest(), **more})
    found.since.FromSeconds(round(since))
    found.time.FromSeconds(round(until))
    for (namespace, service, port), (client_namespace, client), mode, first, last, by_server in flows:
        edge = found.edges.add(
            client_namespace=client_namespace,
            client=client,
            namespace=namespace,
            service=service,
            port=port,
            mode=pb.TrafficEdge.Mode.Value(mode.name),
            by_server=by_server,
        )
        edge.first_seen.FromSeconds(round(first))
        edge.last_seen.FromSeconds(round(last))
    return found
