"""Drain a sidecar before its pod stops, without failing requests.

On SIGTERM, Envoy exits at once, and the kubelet signals all containers of a pod at the same time. The
sidecar's preStop hook therefore drains first: Envoy asks clients to close their connections, still accepts
new ones, and the hook returns when no request is in flight.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Mapping

from xds.mesh.model.objects import ADMIN_PORT

MIN_DRAIN_SECONDS = 5.0
"""Minimum drain time in seconds, so that clients notice the drain and connect to other endpoints."""
_POLL_INTERVAL = 0.25

_STATS_FILTER = r"^(listener|http)\..*\.downstream_(cx|rq)_active$"
_LISTENER_STAT = re.compile(r"listener\.(?!.*\.(?:worker_\d+|main_thread)\.).*\.downstream_cx_active")
_HTTP_STAT = re.compile(r"http\..*\.downstream_cx_active")
_OWN_REQUESTS = "admin|health|metrics|probes|merged-metrics"
_REQUEST_STAT = re.compile(rf"http\.(?!(?:{_OWN_REQUESTS})\.).*\.downstream_rq_active")


class DrainError(Exception):
    """The admin interface is unreachable, or rejects a request."""


def drain(admin: str, seconds: float) -> int:
    """Drain inbound connections, and return the number of requests and connections that remain.

    Args:
        admin: address of Envoy's admin interface.
        seconds: maximum time to wait.

    Raises:
        DrainError: the admin interface is unreachable, or rejects a request.
    """
    start = time.monotonic()
    # Keep listeners open (skip_exit) for clients that have not noticed the drain, and for the application's
    # own requests.
    _request(admin, "POST", "/drain_listeners?inboundonly&graceful&skip_exit")
    while True:
        active = in_flight(_active(admin))
        elapsed = time.monotonic() - start
        if elapsed >= seconds or (not active and elapsed >= MIN_DRAIN_SECONDS):
            return active
        time.sleep(_POLL_INTERVAL)


def in_flight(stats: Mapping[str, int]) -> int:
    """Return the number of active requests and TCP connections of the application.

    Idle HTTP connections do not count: clients keep them open for hours.
    """
    connections = sum(value for name, value in stats.items() if _LISTENER_STAT.fullmatch(name))
    http_connections = sum(value for name, value in stats.items() if _HTTP_STAT.fullmatch(name))
    requests = sum(value for name, value in stats.items() if _REQUEST_STAT.fullmatch(name))
    return max(0, connections - http_connections) + requests


def _active(admin: str) -> dict[str, int]:
    stats = json.loads(_request(admin, "GET", f"/stats?format=json&filter={_STATS_FILTER}"))
    return {stat["name"]: stat["value"] for stat in stats["stats"] if "name" in stat}


def _request(host: str, method: str, path: str) -> str:
    connection = http.client.HTTPConnection(host, ADMIN_PORT, timeout=5.0)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise DrainError(f"no response from the sidecar at {host}:{ADMIN_PORT}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise DrainError(f"the sidecar answered {response.status} to {path}: {text.strip()}")
    return text
