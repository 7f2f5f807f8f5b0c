"""Resource types as values of the option --type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from xds import snapshot

Type = Literal["clusters", "endpoints", "listeners", "routes", "secrets"]
"""A resource type."""
PublicType = Literal["clusters", "endpoints", "listeners", "routes"]
"""A resource type without private keys."""
TYPE_URLS: Mapping[Type, str] = {
    "clusters": snapshot.CLUSTER,
    "endpoints": snapshot.ENDPOINT,
    "listeners": snapshot.LISTENER,
    "routes": snapshot.ROUTE,
    "secrets": snapshot.SECRET,
}
"""Type URL of each resource type."""
