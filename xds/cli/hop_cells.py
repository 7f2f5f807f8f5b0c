"""Predicted results of connections as cells of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, Generic, TypeVar

from rich.text import Text

from xds.cli.explain_output import format_traffic
from xds.cli.output import to_value
from xds.cli.rows import Cells
from xds.mesh.model.names import join_names
from xds.mesh.policy.hop_text import MAX_NAMES, format_accounts
from xds.mesh.v1 import policies_pb2 as pb

OUTSIDE = "outside the mesh"
"""Stands for the name of an endpoint that is not a pod of the mesh."""

Row = TypeVar("Row")

_STYLES = {"mtls": "green", "plaintext": "yellow", "fails": "red"}


def format_clients(clients: Iterable[pb.Clients]) -> str:
    """Return the service accounts of clients in short (`xds.mesh.policy.hop_text.format_clients`)."""
    accounts = [(item.namespace, {account.name: account for account in item.accounts}) for item in clients]
    return format_accounts(accounts, lambda account: account.workloads)


def hop_value(hop: pb.Hop) -> dict[str, Any]:
    """Return a hop as plain values, and clear its clients.

    Many hops have the same clients, possibly thousands, so their values are cached.
    """
    clients = _clients_value(pb.Hop(clients=hop.clients).SerializeToString(deterministic=True))
    hop.ClearField("clients")
    return to_value(hop) | {"clients": clients}


@lru_cache(maxsize=64)
def _clients_value(hop: bytes) -> Any:
    clients = to_value(pb.Hop.FromString(hop))["clients"]
    for account in (account for item in clients for account in item["accounts"]):
        del account["workloads"]  # Responses of Reach have none.
    return clients


def hop_cells(hop: pb.Hop, *, wide: bool) -> Cells:
    """Return the cells of a hop; with `wide`, the names of all clients and endpoints.

    There is a cell of observed traffic after the outcome if traffic is observed.
    """
    endpoints = f"{hop.endpoints}/{hop.ready}" if hop.ready else "-"
    if hop.endpoint_names:
        endpoints += f" ({', '.join(endpoint.pod or OUTSIDE for endpoint in hop.endpoint_names)})"
    return (
        hop.outside or (_format_all_clients(hop.clients) if wide else format_clients(hop.clients)),
        _target(hop),
        endpoints,
        _styled(hop.outcome),
        *_observed(hop),
        reason(hop),
        ", ".join(hop.decided_by),
    )


def _target(hop: pb.Hop | pb.HopChange) -> str:
    """Return the service port of a hop, or the port of pods, as a plan does."""
    if isinstance(hop, pb.Hop) and hop.pods:
        return f"port {hop.port} of {format_clients(hop.pods)}"
    return f"{hop.service}:{hop.port}"


class TargetGroups(Generic[Row]):
    """Rows of hops, or of their changes. Service ports that differ in nothing else share a row.

    Args:
        make_row: function that returns the row of a hop without its target.
    """

    def __init__(self, make_row: Callable[[Any], Row]) -> None:
        self._make_row = make_row
        self._groups: dict[tuple[bytes, bool, bool], TargetGroup[Row]] = {}

    def add(self, hop: pb.Hop | pb.HopChange) -> None:
        """Add a hop, and clear its target."""
        target, endpoints, ready = _target(hop), hop.endpoints, hop.ready
        hop.service, hop.port, hop.endpoints, hop.ready = "", 0, 0, 0
        # Clients can be thousands, so only a digest is kept.
        digest = sha256(hop.SerializeToString(deterministic=True)).digest()
        key = (digest, endpoints == ready, ready == 0)
        if key not in self._groups:
            self._groups[key] = TargetGroup(self._make_row(hop))
        self._groups[key].add(target, endpoints, ready)

    def __iter__(self) -> Iterator[TargetGroup[Row]]:
        return iter(self._groups.values())


@dataclass(slots=True)
class TargetGroup(Generic[Row]):
    """Service ports in one row."""

    row: Row
    """The row, without its target."""
    names: list[str] = field(default_factory=list)
    """The service ports."""
    endpoints: int = 0
    """Number of endpoints with the row's result."""
    ready: int = 0
    """Number of ready endpoints."""

    def add(self, name: str, endpoints: int, ready: int) -> None:
        """Add a service port."""
        self.names.append(name)
        self.endpoints += endpoints
        self.ready += ready

    @property
    def target(self) -> str:
        """The service ports in short."""
        return join_names(self.names, MAX_NAMES)

    @property
    def share(self) -> str:
        """The endpoints with the result, of all ready endpoints; empty if there are none."""
        return f"{self.endpoints}/{self.ready}" if self.ready else ""


def grouped_cells(group: TargetGroup[Cells]) -> Cells:
    """Return the cells of a group of hops, whose row `hop_cells` has made."""
    clients, _, _, *others = group.row
    return (clients, group.target, group.share or "-", *others)


def result_cells(result: pb.ConnectionResult) -> Cells:
    """Return the cells of the result for one client and endpoint, as `hop_cells` does."""
    return (
        result.client,
        f"{result.service}:{result.port}",
        f"{result.endpoint or OUTSIDE} ({result.address})" if result.address else "-",
        _styled(result.outcome),
        *_observed(result),
        reason(result),
        ", ".join(result.decided_by),
    )


def reason(item: pb.Hop | pb.ConnectionResult | pb.Answer) -> str:
    """Return the reason for a result, and the conditions under which requests are allowed."""
    return ", ".join((item.reason, *item.conditions))


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
