"""Compare the configuration that Envoy's admin interface prints with what it is served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from xds.codec import to_dict
from xds.snapshot import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, Snapshot, describe

Json: TypeAlias = Mapping[str, Any]
Config: TypeAlias = dict[tuple[str, str], Any]
"""Resources in protobuf's JSON form, by type URL and name."""
COMPARED_TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE, EXTENSION_CONFIG)
"""Types that are compared. Envoy redacts secrets."""


def difference(expected: Config, active: Config) -> str:
    """Return the first difference between two configurations of a sidecar; empty if there is none."""
    for key in expected:
        if key not in active:
            return f"has no {describe(*key)}"
        if expected[key] != active[key]:
            return f"has a different {describe(*key)}"
    # Envoy also lists endpoints of static clusters, and routes of draining listeners.
    removed = next((key for key in active if key not in expected and key[0] in (CLUSTER, LISTENER)), None)
    return f"still has {describe(*removed)}" if removed else ""


def expected_config(snapshot: Snapshot) -> Config:
    """Return a snapshot in the form of `active_config`."""
    return {
        (type_url, name): comparable(type_url, to_dict(type_url, resource.body))
        for type_url in COMPARED_TYPES
        for name, resource in snapshot.of(type_url).items()
    }


def comparable(type_url: str, resource: Json) -> Any:
    """Return a resource in the form of `active_config`."""
    return _endpoints(resource) if type_url == ENDPOINT else resource


def active_config(dump: Json) -> Config:
    """Return the active resources in `/config_dump?include_eds`, without warming and draining ones."""
    config: Config = {}
    for cluster in _entries(dump, "dynamic_active_clusters", "cluster"):
        config[CLUSTER, cluster["name"]] = cluster
    for state in _entries(dump, "dynamic_listeners", "active_state"):
        config[LISTENER, state["listener"]["name"]] = _without_type(state["listener"])
    for routes in _entries(dump, "dynamic_route_configs", "route_config"):
        config[ROUTE, routes["name"]] = routes
    for extension in _entries(dump, "ecds_filters", "ecds_filter"):
        config[EXTENSION_CONFIG, extension["name"]] = extension
    for assignment in _entries(dump, "dynamic_endpoint_configs", "endpoint_config"):
        config[ENDPOINT, assignment["cluster_name"]] = _endpoints(assignment)
    return config


def _entries(dump: Json, list_name: str, part: str) -> Iterator[Json]:
    for section in dump["configs"]:
        for entry in section.get(list_name, ()):
            if part in entry:
                yield _without_type(entry[part])


def _without_type(value: Json) -> Json:
    return {name: item for name, item in value.items() if name != "@type"}


def _endpoints(assignment: Json) -> set[tuple[tuple[str, ...], int, str]]:
    """Reduce an assignment to addresses and TLS modes: Envoy prints the other fields in a different form."""
    return {
        (_addresses(endpoint["endpoint"]), _address(endpoint["endpoint"])["port_value"], _tls_mode(endpoint))
        for locality in assignment.get("endpoints", ())
        for endpoint in locality.get("lb_endpoints", ())
    }


def _addresses(endpoint: Json) -> tuple[str, ...]:
    return tuple(_address(item)["address"] for item in (endpoint, *endpoint.get("additional_addresses", ())))


def _address(item: Json) -> Json:
    address: Json = item["address"]["socket_address"]
    return address


def _tls_mode(endpoint: Json) -> str:
    filters = endpoint.get("metadata", {}).get("filter_metadata", {})
    mode: str = filters.get("envoy.transport_socket_match", {}).get("tlsMode", "")
    return mode
