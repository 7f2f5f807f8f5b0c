"""Clients as text: few accounts by name, many by namespace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.world import HTTP, mesh, pod, service
from xds.mesh.policy.hop_text import format_clients, format_target
from xds.mesh.policy.hops import Clients, hops


def clients(*accounts: str) -> tuple[Clients, ...]:
    """Return the clients of a service, one pod for each NAMESPACE/ACCOUNT."""
    pods = [
        replace(pod(f"p{number}", namespace, sidecar=False), service_account=account)
        for number, (namespace, account) in enumerate(name.split("/") for name in accounts)
    ]
    [hop] = hops(mesh(service("web", "web", HTTP), *pods), pods)
    return hop.clients


@pytest.mark.parametrize(
    ("accounts", "text"),
    [
        (["a/x"], "a/x"),
        (["a/x", "b/y", "b/x"], "a/x, b/x, b/y"),
        (["a/x", "a/y", "b/x", "b/y"], "a/* (2 accounts), b/* (2 accounts)"),
        (["a/x", "b/x", "c/x", "d/x"], "a/x, b/x, c/x and 1 more namespace"),
        (["a/x", "b/x", "c/x", "d/x", "e/x"], "a/x, b/x, c/x and 2 more namespaces"),
    ],
)
def test_clients_in_short(accounts: list[str], text: str) -> None:
    assert format_clients(clients(*accounts)) == text


def test_service_port() -> None:
    assert format_target(service("web", "shop", HTTP), HTTP) == "web.shop:80"
