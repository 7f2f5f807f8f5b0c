"""Annotations of pods that Prometheus scrapes, by convention of its example configuration for Kubernetes."""

from __future__ import annotations

from xds.mesh.model.objects import Pod

SCRAPE = "prometheus.io/scrape"
"""Pod annotation: whether Prometheus scrapes the pod."""
SCRAPE_PORT = "prometheus.io/port"
"""Pod annotation: the port that Prometheus scrapes. Without it, Prometheus scrapes every declared port."""
SCRAPE_PATH = "prometheus.io/path"
"""Pod annotation: the path that Prometheus requests, by default `/metrics`."""
SCRAPE_SCHEME = "prometheus.io/scheme"
"""Pod annotation: `http`, the default, or `https`."""

_MAX_DIGITS = len("65535")


def scraped_ports(pod: Pod) -> list[int]:
    """Return the ports of a pod that Prometheus scrapes."""
    if pod.meta.annotations.get(SCRAPE) != "true":
        return []
    text = pod.meta.annotations.get(SCRAPE_PORT)
    if text is None:
        return [port.port for port in pod.ports]
    return [int(text)] if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else []
