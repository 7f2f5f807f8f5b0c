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
    RUNTIME: "RTDS",
    CLUSTER: "CDS",
    ENDPOINT: "EDS",
    LB_ENDPOINT: "LEDS",
    SECRET: "SDS",
    EXTENSION_CONFIG: "ECDS",
    LISTENER: "LDS",
    SCOPED_ROUTE: "SRDS",
    ROUTE: "RDS",
    VIRTUAL_HOST: "VHDS",
}
"""Short name of each type's discovery service, in sending order."""


def short_name(type_url: str) -> str:
    """Return the short name of a type, such as `CDS`, or its message name if it has no short name."""
    return SHORT_NAMES.get(type_url) or type_url.rpartition("/")[2].rpartition(".")[2] or type_url
