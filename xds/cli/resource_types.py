"""Resource types as values of the option --type."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from xds import snapshot


class Type(StrEnum):
    """A resource type."""

    CLUSTERS = "clusters"
    ENDPOINTS = "endpoints"
    LISTENERS = "listeners"
    ROUTES = "routes"
    SECRETS = "secrets"


class PublicType(StrEnum):
    """A resource type without private keys."""

    CLUSTERS = "clusters"
    ENDPOINTS = "endpoints"
    LISTENERS = "listeners"
    ROUTES = "routes"


TYPE_URLS: Mapping[str, str] = {
    Type.CLUSTERS: snapshot.CLUSTER,
    Type.ENDPOINTS: snapshot.ENDPOINT,
    Type.LISTENERS: snapshot.LISTENER,
    Type.ROUTES: snapshot.ROUTE,
    Type.SECRETS: snapshot.SECRET,
}
"""Type URL of each resource type."""
