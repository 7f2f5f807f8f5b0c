"""When a sidecar has what it should: its own admin page shows what the control plane's translation says."""

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
"""Where a sidecar's admin page shows how many listeners still serve what they had accepted before they were replaced."""
Config: TypeAlias = dict[tuple[str, str], Any]
"""Resources in protobuf's JSON form, by type and name."""


def expected_configs(mesh: Mesh) -> list[tuple[Pod, Config]]:
    """Return what every sidecar of the mesh should have."""
    return [(pod, expected_config(translate(mesh, pod))) for pod in mesh.pods() if pod.has_sidecar]


def find_stale(configurations: Iterable[tuple[Pod, Config]]) -> str:
    """Say what a sidecar does not have in force yet; empty when all have everything."""
    for pod, config in configurations:
        if missing := _lacking(pod, config):
            return f"{name_of(pod)} {missing}"
    return ""


def find_draining(mesh: Mesh) -> str:
    """Say which sidecar still serves connections of listeners that it has replaced; empty when none does."""
    for pod in mesh.pods():
        if pod.has_sidecar and (left := draining_stats(_get(pod.address, DRAINING_STATS_PATH))):
            return f"{name_of(pod)} has {left}"
    return ""


def draining_stats(shown: Json) -> str:
    """Say what the admin page shows at DRAINING_STATS_PATH, if it shows that there is something left."""
    return ", ".join(stat["name"] for stat in shown["stats"] if stat["value"])


def _lacking(pod: Pod, config: Config) -> str:
    try:
        dump = _get(pod.address, "/config_dump?include_eds")
    except (OSError, http.client.HTTPException) as error:
        return f"does not answer: {error}"
    return difference(config, active_config(dump))


def _get(address: str, path: str) -> Json:
    connection = http.client.HTTPConnection(address, ADMIN_PORT, timeout=5.0)
    try:
        connection.request("GET", path)
        answer: Json = json.load(connection.getresponse())
        return answer
    finally:
        connection.close()


def difference(wanted: Config, in_force: Config) -> str:
    """Say in what a sidecar's configuration is not what it should be."""
    for key in wanted:
        if key not in in_force:
            return f"has no {_short(key)}"
        if wanted[key] != in_force[key]:
            return f"has another {_short(key)}"
    # Others show more than they were sent: endpoints of static clusters, and routes that a draining listener uses.
    left = next((key for key in in_force if key not in wanted and key[0] in (CLUSTER, LISTENER)), None)
    return f"still has {_short(left)}" if left else ""


def _short(key: tuple[str, str]) -> str:
    type_url, name = key
    return f"{type_url.rpartition('.')[2]} {name}"


def expected_config(snapshot: Snapshot) -> Config:
    """Return a snapshot in the terms that `in_force` has for a sidecar."""
    config: Config = {}
    for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
        for name, resource in snapshot.of(type_url).items():
            shown = to_dict(type_url, resource.body)
            config[type_url, name] = _endpoints(shown) if type_url == ENDPOINT else shown
    return config


def active_config(dump: Json) -> Config:
    """Return what Envoy's `/config_dump?include_eds` shows as active: warmed, and not about to be replaced."""
    config: Config = {}
    for shown in _each(dump, "dynamic_active_clusters", "cluster"):
        config[CLUSTER, shown["name"]] = shown
    for listener in _each(dump, "dynamic_listeners", "active_state"):
        config[LISTENER, listener["listener"]["name"]] = _plain(listener["listener"])
    for shown in _each(dump, "dynamic_route_configs", "route_config"):
        config[ROUTE, shown["name"]] = shown
    for shown in _each(dump, "dynamic_endpoint_configs", "endpoint_config"):
        config[ENDPOINT, shown["cluster_name"]] = _endpoints(shown)
    return config


def _each(dump: Json, list_name: str, part: str) -> Iterator[Json]:
    for section in dump["configs"]:
        for entry in section.get(list_name, ()):
            if part in entry:
                yield _plain(entry[part])


def _plain(packed: Json) -> Json:
    return {name: value for name, value in packed.items() if name != "@type"}


def _endpoints(assignment: Json) -> set[tuple[str, int, str]]:
    """Reduce an assignment to what decides about a request: Envoy shows the rest in another form than it got it."""
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
