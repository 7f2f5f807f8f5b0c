"""The metrics that a control plane exposes at /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, Metric, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.metrics.rollouts import RolloutMetrics
from xds.mesh.controlplane.metrics.scraped import (
    BuildMetrics,
    ConnectionMetrics,
    ControllerMetrics,
    ProblemMetrics,
)
from xds.mesh.model.objects import Problem
from xds.server import DiscoveryService
from xds.server.metrics import LATENCIES, StreamMetrics

LAG_INTERVAL = 0.5
"""Seconds between two measurements of the event loop's lag."""


class Metrics:
    """The metrics of a running control plane, in a registry of their own."""

    def __init__(
        self,
        controller: Controller,
        problems: Callable[[], Collection[Problem]] = tuple,
        stale_seconds: Callable[[], float] = float,
        unenforced: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Create the registry.

        Args:
            controller: the controller to expose.
            problems: returns the problems and notices of manifests and settings.
            stale_seconds: returns for how many seconds the source has been stale; 0 if it is current.
            unenforced: returns the number of objects by kind, for kinds that are not enforced.
        """
        self._controller = controller
        self._registry = CollectorRegistry()
        self.streams = StreamMetrics(self._registry)
        """The observer of the server's streams."""
        self._lag = Histogram(
            "xds_event_loop_lag_seconds",
            "Delay with which the event loop runs due callbacks.",
            registry=self._registry,
            buckets=LATENCIES,
        )
        self._registry.register(BuildMetrics())
        self._registry.register(ControllerMetrics(controller))
        self._registry.register(RolloutMetrics(controller))
        self._registry.register(ProblemMetrics(problems, stale_seconds, unenforced))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def add_server(self, discovery: DiscoveryService) -> None:
        """Add the metrics of a server's streams."""
        self._registry.register(ConnectionMetrics(discovery, self._controller))

    def register(self, collector: Collector) -> None:
        """Add the metrics of another part of the control plane."""
        self._registry.register(collector)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics as text, and the content type: OpenMetrics if the Accept header allows it."""
        return _render(self._registry, accept)

    async def measure_loop_lag(self) -> None:
        """Measure the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_at = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self._lag.observe(max(0.0, loop.time() - due_at))


class StartupMetrics:
    """The metrics of a control plane that waits for its first input: the version and the problems."""

    def __init__(
        self, problems: Callable[[], Collection[Problem]], stale_seconds: Callable[[], float]
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(BuildMetrics())
        self._registry.register(ProblemMetrics(problems, stale_seconds))

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics as text, and the content type."""
        return _render(self._registry, accept)


def _render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    encode, content_type = choose_encoder(accept)
    return encode(_WithoutCreationTimes(registry)), content_type


class _WithoutCreationTimes:
    """A registry that omits creation times, because they all equal the start of the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
