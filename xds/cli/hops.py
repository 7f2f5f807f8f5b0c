"""Hops as text and as JSON values."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rich.text import Text

from xds.cli.options import Address
from xds.cli.rows import Cells
from xds.mesh.model.mesh import Endpoint
from xds.mesh.policy.hop_text import format_all_clients, format_clients, format_target
from xds.mesh.policy.hops import Clients, Hop
from xds.mesh.policy.reach import Outcome, Result

_STYLES = {Result.MTLS: "green", Result.PLAINTEXT: "yellow", Result.FAILS: "red"}


def styled(result: Result) -> Text:
    """Return a result in its color."""
    return Text(str(result), _STYLES[result])


@lru_cache(maxsize=1024)
def clients_json(clients: tuple[Clients, ...]) -> list[dict[str, Any]]:
    """Return clients as JSON values, with the number of pods of each service account."""
    return [
        {
            "namespace": item.namespace,
            "accounts": {account: len(pods) for account, pods in item.accounts.items()},
        }
        for item in clients
    ]


def hop_json(hop: Hop) -> dict[str, Any]:
    """Return a hop as a JSON value."""
    return {
        "clients": clients_json(hop.clients),
        "service": f"{hop.service.name}.{hop.service.namespace}",
        "port": hop.port.port,
        "endpoints": len(hop.endpoints),
        "ready": hop.ready,
        "outcome": str(hop.answer.result),
        "reason": str(hop.answer.reason),
        "decidedBy": [str(ref) for ref in hop.answer.decided_by],
    }


def hop_cells(hop: Hop, *, wide: bool) -> Cells:
    """Return the cells of a hop; with `wide`, the names of all clients and endpoints."""
    endpoints = f"{len(hop.endpoints)}/{hop.ready}" if hop.ready else "-"
    if wide and hop.ready:
        endpoints += f" ({', '.join(_format_endpoint(endpoint) for endpoint in hop.endpoints)})"
    return (
        format_all_clients(hop.clients) if wide else format_clients(hop.clients),
        format_target(hop.service, hop.port),
        endpoints,
        styled(hop.answer.result),
        str(hop.answer.reason),
        ", ".join(map(str, hop.answer.decided_by)),
    )


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome for one client and endpoint as a JSON value."""
    endpoint = outcome.endpoint
    pod = endpoint.pod if endpoint else None
    return {
        "client": f"{outcome.client.name}.{outcome.client.namespace}",
        "service": f"{outcome.service.name}.{outcome.service.namespace}",
        "port": outcome.port.port,
        "endpoint": f"{pod.name}.{pod.namespace}" if pod else None,
        "address": _format_address(endpoint) if endpoint else None,
        "outcome": str(outcome.result),
        "reason": str(outcome.reason),
        "decidedBy": [str(ref) for ref in outcome.decided_by],
    }


def outcome_cells(outcome: Outcome) -> Cells:
    """Return the cells of the outcome for one client and endpoint."""
    endpoint = outcome.endpoint
    return (
        f"{outcome.client.name}.{outcome.client.namespace}",
        format_target(outcome.service, outcome.port),
        f"{_format_endpoint(endpoint)} ({_format_address(endpoint)})" if endpoint else "-",
        styled(outcome.result),
        str(outcome.reason),
        ", ".join(map(str, outcome.decided_by)),
    )


def _format_endpoint(endpoint: Endpoint) -> str:
    pod = endpoint.pod
    return f"{pod.name}.{pod.namespace}" if pod else "outside the mesh"


def _format_address(endpoint: Endpoint) -> str:
    """Return ADDRESS:PORT. The address of a workload's pods is unknown (`?`)."""
    is_template = endpoint.pod is not None and endpoint.pod.is_template
    return str(Address("?" if is_template else endpoint.address, endpoint.port))
