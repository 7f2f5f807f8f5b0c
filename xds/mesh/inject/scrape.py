"""Point Prometheus to the sidecar, so that scrapes succeed under STRICT.

Prometheus has no client certificate. The sidecar therefore requests the application's metrics, and serves
them with its own. As in Istio, the variable `XDS_APP_METRICS` contains what the annotations were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from xds.mesh.model.objects import ADMIN_PORT, HEALTH_PORT, METRICS_PORT, PROBE_PORT
from xds.mesh.model.scraping import SCRAPE, SCRAPE_PATH, SCRAPE_PORT, SCRAPE_SCHEME
from xds.mesh.parse.reading import Field, shown

Json: TypeAlias = dict[str, Any]

MERGE = "prometheus.istio.io/merge-metrics"
"""Pod annotation; `false` disables the merging of metrics."""

MERGED = {SCRAPE_PORT: str(PROBE_PORT), SCRAPE_PATH: "/stats/prometheus", SCRAPE_SCHEME: "http"}
"""Annotations that point Prometheus to the sidecar."""

_UNCHANGED = "scrapes are not changed, and fail under STRICT"


def app_metrics(annotations: Field, containers: Iterable[Field]) -> Json:
    """Return the port, path and scheme of the metrics to merge; empty if scrapes stay unchanged.

    Args:
        annotations: annotations of the pod.
        containers: containers of the application.
    """
    merge = annotations[MERGE].text().lower()
    if merge not in ("", "true", "false"):
        annotations[MERGE].refuse(f'must be "true" or "false", not {shown(merge)}')
    if annotations[SCRAPE].value != "true" or merge == "false":
        return {}
    port = _port(annotations, containers)
    if port in (None, PROBE_PORT, METRICS_PORT):
        return {}
    if port in (ADMIN_PORT, HEALTH_PORT):
        annotations[SCRAPE_PORT].notice(f"is a port of the sidecar: {_UNCHANGED}")
        return {}
    scheme = annotations[SCRAPE_SCHEME]
    if (scheme.text() or "http").lower() not in ("http", "https"):
        scheme.notice(f"must be http or https, not {shown(scheme.value)}: {_UNCHANGED}")
        return {}
    path = annotations[SCRAPE_PATH].text() or "/metrics"
    return {"port": port, "path": path, "scheme": (scheme.text() or "http").lower()}


def _port(annotations: Field, containers: Iterable[Field]) -> int | None:
    """Return the port in the annotation, or the only one that the containers declare; None if neither."""
    field = annotations[SCRAPE_PORT]
    if field:
        text = field.text()
        if text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536:
            return int(text)
        field.notice(f"must be a port, not {shown(text)}: {_UNCHANGED}")
        return None
    declared = {
        port["containerPort"].integer(1, 65535)
        for container in containers
        for port in container["ports"].items()
        if port["protocol"].value in (None, "TCP")
    }
    if len(declared) == 1:
        return declared.pop()
    annotations[SCRAPE].notice(
        f"needs a port, because the containers declare {len(declared)}: {_UNCHANGED}",
        f"set the annotation {SCRAPE_PORT}",
    )
    return None
