"""Clients and service ports as text."""

from __future__ import annotations

from functools import lru_cache

from xds.mesh.model.objects import Service, ServicePort
from xds.mesh.policy.hops import Clients

MAX_NAMES = 3
"""Maximum number of service accounts, or else of namespaces, that `format_clients` names."""


def format_target(service: Service, port: ServicePort) -> str:
    """Return a service port as `SERVICE.NAMESPACE:PORT`."""
    return f"{service.name}.{service.namespace}:{port.port}"


@lru_cache(maxsize=1024)
def format_clients(clients: tuple[Clients, ...]) -> str:
    """Return the service accounts of clients in short, such as `shop/web, zoo/* (3 accounts)`."""
    accounts = [f"{item.namespace}/{account}" for item in clients for account in item.accounts]
    if len(accounts) <= MAX_NAMES:
        return ", ".join(accounts)
    names = [
        f"{item.namespace}/* ({len(item.accounts)} accounts)"
        if len(item.accounts) > 1
        else f"{item.namespace}/{next(iter(item.accounts))}"
        for item in clients[:MAX_NAMES]
    ]
    more = len(clients) - len(names)
    return ", ".join(names) + (f" and {more} more namespace{'s' * (more > 1)}" if more else "")


@lru_cache(maxsize=1024)
def format_all_clients(clients: tuple[Clients, ...]) -> str:
    """Return every service account of clients, with its number of pods."""
    return ", ".join(
        f"{item.namespace}/{account} ({len(pods)} pod{'s' * (len(pods) > 1)})"
        for item in clients
        for account, pods in item.accounts.items()
    )
