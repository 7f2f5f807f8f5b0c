"""Metric families of one value, or of one value for each label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


def gauge(name: str, text: str, value: float | Mapping[Any, float], *labels: str) -> Metric:
    """Return a gauge. With labels, `value` maps the value of the label, or of all labels, to a number."""
    return _family(GaugeMetricFamily, name, text, value, labels)


def counter(name: str, text: str, value: float | Mapping[Any, float], *labels: str) -> Metric:
    """Return a counter, as `gauge` does."""
    return _family(CounterMetricFamily, name, text, value, labels)


def _family(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    text: str,
    value: float | Mapping[Any, float],
    labels: tuple[str, ...],
) -> Metric:
    if not isinstance(value, Mapping):
        return kind(name, text, value)
    family = kind(name, text, labels=labels)
    for key, number in value.items():
        family.add_metric((key,) if isinstance(key, str) else key, number)
    return family
