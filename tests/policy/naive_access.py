"""Who is let in by a server: a naive reading of AuthorizationPolicies, for each client and request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice, product
from typing import Any

from tests.policy.world import HTTP, TCP, pod, service
from tests.support.authorization import Call, authorization_policy, is_allowed, source
from xds.mesh.model.objects import Fact
from xds.mesh.parse import parse

NAMESPACES = [
    "apps",
    "ap",
    "apq",
    "aps",
    "qps",
    "s",
    "qs",
    "outside",
    "ns",
    "qns",
    "sa",
    "a",
    "qa",
    "q",
    "full",
]
ACCOUNTS = ("client", "other", "sa", "ns", "t", "qt", "q", "default", "s")
IDENTITIES = ["", *(f"cluster.local/ns/{n}/sa/{a}" for n, a in product(NAMESPACES, ACCOUNTS))]
SERVER = replace(pod("web", "full"), service_account="default")
CLIENTS = (
    replace(pod("client", "apps"), service_account="client"),
    replace(pod("other", "apps"), service_account="other"),
    replace(pod("cron", "outside", sidecar=False), service_account="default"),
)
ADDRESSES = [*(each.address for each in CLIENTS), "192.0.2.1"]
SERVICE = service("web", "full", replace(HTTP, port=80), replace(TCP, target=9000))
"""An HTTP port, and one that is not."""


def naive_client(item: Mapping[str, Any], identity: str) -> bool:
    """Whether an item of `from` selects a client, which `is_allowed` says of a source as well."""
    policy = authorization_policy("full", source(**item))
    return is_allowed([policy], Call(identity, "192.0.2.1", SERVER.address, 1), "full", {})


def requests(port: int) -> Iterable[dict[str, Any]]:
    if port == 9000:
        return ({"host": "", "method": "", "path": ""},)
    return (
        {"host": host, "method": method, "path": path, "headers": headers}
        for host in ("web.full", "web.full:83", "other")
        for method in ("GET", "POST", "PUT")
        for path in ("/", "/info/x", "/admin/a", "/x/a", "/other")
        for headers in ({}, {"x-token": "a"}, {"x-token": "bb"})
    )


def naive_access(policies: list[Any], mode: str, identity: str, port: int, *, all_requests: bool) -> bool:
    """Whether a client with an identity, or one that sends plaintext, is let in with some request."""
    if mode == ("DISABLE" if identity else "STRICT"):
        return False
    calls = (
        Call(identity, address, SERVER.address, port, **request)
        for request in requests(port)
        for address in ADDRESSES
    )
    chosen = calls if all_requests else islice(calls, 1)
    return any(is_allowed(policies, call, "full", SERVER.meta.labels) for call in chosen)


def without_requests(policies: list[Any]) -> list[Any]:
    """Remove what depends on requests and addresses."""
    for policy in policies:
        for one in policy["spec"].get("rules", ()):
            one.pop("when", None)
            items = [each["source"] for each in one.get("from", ())]
            items += [each["operation"] for each in one.get("to", ())]
            for conditions in items:
                for key in [
                    key for key in conditions if key.lower().removeprefix("not") not in IDENTITY_KEYS
                ]:
                    del conditions[key]
            for name, inner in (("from", "source"), ("to", "operation")):
                if name in one and not all(each[inner] for each in one[name]):
                    del one[name]
    return policies


IDENTITY_KEYS = {"principals", "namespaces", "serviceaccounts", "trustdomains", "ports"}


def facts(manifests: Iterable[Any]) -> list[Fact]:
    return [each.fact for manifest in manifests for each in parse(manifest, str) if each.fact]
