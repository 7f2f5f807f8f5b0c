"""Clients and service ports as text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from xds.mesh.model.objects import Pod, Service, ServicePort
from xds.mesh.model.workload import owner_name
from xds.mesh.policy.hops import Clients

T = TypeVar("T")

DEFAULT_ACCOUNT = "default"
"""Service account of pods that specify none."""
MAX_WORKLOADS = 2
"""Maximum number of workloads of one service account that a text names."""
MAX_NAMES = 3
"""Maximum number of service accounts, or else of namespaces, that a text names."""


def format_target(service: Service, port: ServicePort) -> str:
    """Return a service port as `SERVICE.NAMESPACE:PORT`."""
    return f"{service.name}.{service.namespace}:{port.port}"


def workload_names(pods: Iterable[Pod]) -> list[str]:
    """Return the names of the workloads of pods, such as `web`, or `deploy/web` in a repository."""
    return list(dict.fromkeys(pod.name if pod.is_template else owner_name(pod.name) for pod in pods))


def format_clients(clients: Iterable[Clients]) -> str:
    """Return the service accounts of clients in short, such as `shop/web, zoo/* (3 accounts)`.

    A namespace's default account does not tell who uses it, so it is named with its workloads, such as
    `deploy/web (shop/default)`.
    """
    return format_accounts([(item.namespace, item.accounts) for item in clients], workload_names)


def format_accounts(
    accounts: Collection[tuple[str, Mapping[str, T]]], workloads: Callable[[T], Collection[str]]
) -> str:
    """Return service accounts in short.

    Args:
        accounts: each namespace with its accounts.
        workloads: returns the names of the workloads of an account.
    """
    names: list[str] = []
    if sum(len(in_namespace) for _, in_namespace in accounts) <= MAX_NAMES:
        return ", ".join(
            _format_account(f"{namespace}/{name}", workloads(value) if name == DEFAULT_ACCOUNT else ())
            for namespace, in_namespace in accounts
            for name, value in in_namespace.items()
        )
    for namespace, in_namespace in list(accounts)[:MAX_NAMES]:
        several = f"* ({len(in_namespace)} accounts)"
        names.append(f"{namespace}/{several if len(in_namespace) > 1 else next(iter(in_namespace))}")
    more = len(accounts) - len(names)
    return ", ".join(names) + (f" and {more} more namespace{'s' * (more > 1)}" if more else "")


def _format_account(name: str, workloads: Collection[str]) -> str:
    if not workloads:
        return name
    more = len(workloads) - MAX_WORKLOADS
    shown = ", ".join(list(workloads)[:MAX_WORKLOADS]) + (f" and {more} more" if more > 0 else "")
    return f"{shown} ({name})"
