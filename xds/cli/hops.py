"""Predicted results of connections as cells of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from rich.text import Text

from xds.cli.explanation import format_traffic
from xds.cli.output import to_value
from xds.cli.rows import Cells
from xds.mesh.policy.hop_text import format_accounts
from xds.mesh.v1 import policies_pb2 as pb

OUTSIDE = "outside the mesh"
"""Stands for the name of an endpoint that is not a pod of the mesh."""

_STYLES = {"mtls": "green", "plaintext": "yellow", "fails": "red"}


def format_clients(clients: Iterable[pb.Clients]) -> str:
    """Return the service accounts of clients in short, such as `shop/web, zoo/* (3 accounts)`."""
    return format_accounts(
        [(item.namespace, [account.name for account in item.accounts]) for item in clients]
    )


def hop_value(hop: pb.Hop) -> dict[str, Any]:
    """Return a hop as plain values, and clear its clients.

    Many hops have the same clients, possibly thousands, so their values are cached.
    """
    clients = _clients_value(pb.Hop(clients=hop.clients).SerializeToString(deterministic=True))
    hop.ClearField("clients")
    return to_value(hop) | {"clients": clients}


@lru_cache(maxsize=64)
def _clients_value(hop: bytes) -> Any:
    return to_value(pb.Hop.FromString(hop))["clients"]


def hop_cells(hop: pb.Hop, *, wide: bool) -> Cells:
    """Return the cells of a hop; with `wide`, the names of all clients and endpoints.

    There is a cell of observed traffic after the outcome if traffic is observed.
    """
    endpoints = f"{hop.endpoints}/{hop.ready}" if hop.ready else "-"
    if hop.endpoint_names:
        endpoints += f" ({', '.join(endpoint.pod or OUTSIDE for endpoint in hop.endpoint_names)})"
    return (
        hop.outside or (_format_all_clients(hop.clients) if wide else format_clients(hop.clients)),
        f"{hop.service}:{hop.port}",
        endpoints,
        _styled(hop.outcome),
        *_observed(hop),
        hop.reason,
        ", ".join(hop.decided_by),
    )


def result_cells(result: pb.ConnectionResult) -> Cells:
    """Return the cells of the result for one client and endpoint, as `hop_cells` does."""
    return (
        result.client,
        f"{result.service}:{result.port}",
        f"{result.endpoint or OUTSIDE} ({result.address})" if result.address else "-",
        _styled(result.outcome),
        *_observed(result),
        result.reason,
        ", ".join(result.decided_by),
    )


def _observed(item: pb.Hop | pb.ConnectionResult) -> Iterator[str]:
    if item.HasField("observed"):
        yield ", ".join(map(format_traffic, item.observed.modes)) or "-"


def _styled(outcome: str) -> Text:
    return Text(outcome, _STYLES.get(outcome, ""))


def _format_all_clients(clients: Iterable[pb.Clients]) -> str:
    """Return every service account of clients, with its number of pods."""
    return ", ".join(
        f"{item.namespace}/{account.name} ({account.pods} pod{'s' * (account.pods > 1)})"
        for item in clients
        for account in item.accounts
    )
