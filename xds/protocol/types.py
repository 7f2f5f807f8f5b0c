"""Short names of resource types, as Envoy's documentation uses them."""

from __future__ import annotations

from xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LB_ENDPOINT,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
)

SHORT_NAMES = {
    CLUSTER: "CDS",
    ENDPOINT: "EDS",
    SECRET: "SDS",
    LISTENER: "LDS",
    ROUTE: "RDS",
    SCOPED_ROUTE: "SRDS",
    VIRTUAL_HOST: "VHDS",
    LB_ENDPOINT: "LEDS",
    RUNTIME: "RTDS",
    EXTENSION_CONFIG: "ECDS",
}
"""Short name of each type's discovery service."""


def short_name(type_url: str) -> str:
    """Return the short name of a type, such as `CDS`, or its message name if it has no short name."""
    return SHORT_NAMES.get(type_url) or type_url.rpartition("/")[2].rpartition(".")[2] or type_url
