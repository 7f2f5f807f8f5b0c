"""Compare the active configuration in a sidecar's admin interface with the control plane's translation."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from xds.codec import to_dict
from xds.demo.pods import name_of
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ADMIN_PORT, Pod
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, Snapshot

Json: TypeAlias = Mapping[str, Any]
DRAINING_STATS_PATH = "/stats?format=json&filter=^listener_manager.total_.*_draining$"
"""Path in Envoy's admin interface that returns the number of draining listeners and filter chains."""
Config: TypeAlias = dict[tuple[str, str], Any]
"""Resources in protobuf's JSON form, by type URL and name."""


def expected_configs(mesh: Mesh) -> list[tuple[Pod, Config]]:
    """Return the expected configuration of each sidecar in the mesh."""
    return [(pod, expected_config(translate(mesh, pod))) for pod in mesh.pods() if pod.has_sidecar]


def find_stale(configurations: Iterable[tuple[Pod, Config]]) -> str:
    """Return which sidecar differs from its expected configuration, and how; empty if none does."""
    for pod, config in configurations:
        if mismatch := _find_mismatch(pod, config):
            return f"{name_of(pod)} {mismatch}"
    return ""


def find_draining(mesh: Mesh) -> str:
    """Return which sidecar has draining listeners or filter chains; empty if none has."""
    for pod in mesh.pods():
        if pod.has_sidecar and (stats := draining_stats(_get(pod.address, DRAINING_STATS_PATH))):
            return f"{name_of(pod)} has {stats}"
    return ""


def draining_stats(stats: Json) -> str:
    """Return the names of the statistics at DRAINING_STATS_PATH that are not zero."""
    return ", ".join(stat["name"] for stat in stats["stats"] if stat["value"])


def _find_mismatch(pod: Pod, config: Config) -> str:
    try:
        dump = _get(pod.address, "/config_dump?include_eds")
    except (OSError, http.client.HTTPException) as error:
        return f"does not respond: {error}"
    return difference(config, active_config(dump))


def _get(address: str, path: str) -> Json:
    connection = http.client.HTTPConnection(address, ADMIN_PORT, timeout=5.0)
    try:
        connection.request("GET", path)
        body: Json = json.load(connection.getresponse())
        return body
    finally:
        connection.close()


def difference(expected: Config, active: Config) -> str:
    """Return the first difference between two configurations of a sidecar; empty if there is none."""
    for key in expected:
        if key not in active:
            return f"has no {_short(key)}"
        if expected[key] != active[key]:
            return f"has a different {_short(key)}"
    # Envoy also lists endpoints of static clusters, and routes of draining listeners.
    removed = next((key for key in active if key not in expected and key[0] in (CLUSTER, LISTENER)), None)
    return f"still has {_short(removed)}" if removed else ""


def _short(key: tuple[str, str]) -> str:
    type_url, name = key
    return f"{type_url.rpartition('.')[2]} {name}"


def expected_config(snapshot: Snapshot) -> Config:
    """Return a snapshot in the form of `active_config`."""
    config: Config = {}
    for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
        for name, resource in snapshot.of(type_url).items():
            content = to_dict(type_url, resource.body)
            config[type_url, name] = _endpoints(content) if type_url == ENDPOINT else content
    return config


def active_config(dump: Json) -> Config:
    """Return the active resources in `/config_dump?include_eds`, without warming and draining ones."""
    config: Config = {}
    for cluster in _entries(dump, "dynamic_active_clusters", "cluster"):
        config[CLUSTER, cluster["name"]] = cluster
    for state in _entries(dump, "dynamic_listeners", "active_state"):
        config[LISTENER, state["listener"]["name"]] = _without_type(state["listener"])
    for routes in _entries(dump, "dynamic_route_configs", "route_config"):
        config[ROUTE, routes["name"]] = routes
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


def _endpoints(assignment: Json) -> set[tuple[str, int, str]]:
    """Reduce an assignment to addresses and TLS modes: Envoy prints the other fields in a different form."""
    return {
        (address["address"], address["port_value"], _tls_mode(endpoint))
        for locality in assignment.get("endpoints", ())
        for endpoint in locality.get("lb_endpoints", ())
        for address in (endpoint["endpoint"]["address"]["socket_address"],)
    }


def _tls_mode(endpoint: Json) -> str:
    filters = endpoint.get("metadata", {}).get("filter_metadata", {})
    mode: str = filters.get("envoy.transport_socket_match", {}).get("tlsMode", "")
    return mode
