"""The end of a sidecar without the end of anybody's request.

Envoy ends at once when it is told to, whatever is in flight; and the kubelet tells all containers of a pod at the same time. So the
sidecar's preStop hook comes before: clients learn on their connections that they should use others, new ones are still served for as
long as somebody has not heard, and the hook ends when nothing is in flight.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Mapping

from xds.mesh.model.objects import ADMIN_PORT

MIN_DRAIN_SECONDS = 5.0
"""Minimum drain time in seconds, in which clients notice the drain and connect elsewhere."""
_POLL_INTERVAL = 0.25

_STATS_FILTER = r"^(listener|http)\..*\.downstream_(cx|rq)_active$"
_LISTENER_STAT = re.compile(r"listener\.(?!.*\.(?:worker_\d+|main_thread)\.).*\.downstream_cx_active")
_HTTP_STAT = re.compile(r"http\..*\.downstream_cx_active")
_REQUEST_STAT = re.compile(r"http\.(?!(?:admin|health|metrics)\.).*\.downstream_rq_active")


class DrainError(Exception):
    """The sidecar does not respond, or will not drain."""


def drain(admin: str, seconds: float) -> int:
    """Have a sidecar give up its inbound connections; return how much is in flight at the end.

    Args:
        admin: the address of its admin interface.
        seconds: the longest to wait.

    Raises:
        DrainError: it does not respond.
    """
    start = time.monotonic()
    # Listeners stay open: who has not heard yet is still served, and the application may go on to ask others.
    _request(admin, "POST", "/drain_listeners?inboundonly&graceful&skip_exit")
    while True:
        active = in_flight(_active(admin))
        elapsed = time.monotonic() - start
        if elapsed >= seconds or (not active and elapsed >= MIN_DRAIN_SECONDS):
            return active
        time.sleep(_POLL_INTERVAL)


def in_flight(stats: Mapping[str, int]) -> int:
    """Return how many requests and TCP connections applications have at the moment.

    An HTTP connection without a request is none: clients keep those for hours.
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
        raise DrainError(f"the sidecar does not respond at {host}:{ADMIN_PORT}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise DrainError(f"the sidecar says {response.status} to {path}: {text.strip()}")
    return text
