"""Annotations that make Prometheus scrape, by convention of its example configuration for Kubernetes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SCRAPE = "prometheus.io/scrape"
"""Annotation: whether Prometheus scrapes the pod, or the endpoints of the Service."""
SCRAPE_PORT = "prometheus.io/port"
"""Annotation: the port that Prometheus scrapes. Without it, Prometheus scrapes every declared port."""
SCRAPE_PATH = "prometheus.io/path"
"""Annotation: the path that Prometheus requests, by default `/metrics`."""
SCRAPE_SCHEME = "prometheus.io/scheme"
"""Annotation: `http`, the default, or `https`."""

_MAX_DIGITS = len("65535")


def scraped_ports(annotations: Mapping[str, str], declared: Iterable[int]) -> list[int]:
    """Return the ports that the annotations of a Pod or Service make Prometheus scrape.

    Args:
        annotations: the annotations.
        declared: the ports that the Pod or Service declares.
    """
    if annotations.get(SCRAPE) != "true":
        return []
    text = annotations.get(SCRAPE_PORT)
    if text is None:
        return list(declared)
    return [int(text)] if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else []
