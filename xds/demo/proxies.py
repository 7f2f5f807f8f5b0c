"""Compare the active configuration in a sidecar's admin interface with the control plane's translation."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable

from xds.demo.pods import name_of
from xds.mesh.envoy.dump import Config, Json, active_config, difference, expected_config
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ADMIN_PORT, Pod

DRAINING_STATS_PATH = "/stats?format=json&filter=^listener_manager.total_.*_draining$"
"""Path in Envoy's admin interface that returns the number of draining listeners and filter chains."""


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
