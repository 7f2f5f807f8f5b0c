"""Clients and service ports as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from xds.mesh.model.objects import Service, ServicePort
from xds.mesh.policy.hops import Clients

MAX_NAMES = 3
"""Maximum number of service accounts, or else of namespaces, that a text names."""


def format_target(service: Service, port: ServicePort) -> str:
    """Return a service port as `SERVICE.NAMESPACE:PORT`."""
    return f"{service.name}.{service.namespace}:{port.port}"


def format_clients(clients: Iterable[Clients]) -> str:
    """Return the service accounts of clients in short, such as `shop/web, zoo/* (3 accounts)`."""
    return format_accounts([(item.namespace, item.accounts) for item in clients])


def format_accounts(accounts: Collection[tuple[str, Collection[str]]]) -> str:
    """Return service accounts in short. `accounts` contains each namespace with its accounts."""
    names: list[str] = []
    if sum(len(in_namespace) for _, in_namespace in accounts) <= MAX_NAMES:
        return ", ".join(
            f"{namespace}/{name}" for namespace, in_namespace in accounts for name in in_namespace
        )
    for namespace, in_namespace in list(accounts)[:MAX_NAMES]:
        several = f"* ({len(in_namespace)} accounts)"
        names.append(f"{namespace}/{several if len(in_namespace) > 1 else next(iter(in_namespace))}")
    more = len(accounts) - len(names)
    return ", ".join(names) + (f" and {more} more namespace{'s' * (more > 1)}" if more else "")
