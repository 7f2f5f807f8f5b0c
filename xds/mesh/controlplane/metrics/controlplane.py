"""Everything that a control plane tells at /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, Metric, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from xds.mesh.controlplane.controller import Hub
from xds.mesh.controlplane.metrics.rollouts import Rollouts
from xds.mesh.controlplane.metrics.scraped import Build, Connected, Problems, Work
from xds.mesh.model.objects import Problem
from xds.server import DiscoveryService
from xds.server.metrics import LATENCIES, StreamMetrics

LOOK = 0.5
"""Seconds between looks at how late the event loop is."""


class Metrics:
    """What is told at /metrics, in a registry of its own."""

    def __init__(
        self,
        hub: Hub,
        problems: Callable[[], Collection[Problem]] = tuple,
        behind: Callable[[], float] = float,
        unenforced: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._hub = hub
        self._registry = CollectorRegistry()
        self.streams = StreamMetrics(self._registry)
        """The observer of the server's streams."""
        self._lag = Histogram(
            "xds_event_loop_lag_seconds",
            "How late the event loop was with what was due: what everything else had to wait, too.",
            registry=self._registry,
            buckets=LATENCIES,
        )
        self._registry.register(Build())
        self._registry.register(Work(hub))
        self._registry.register(Rollouts(hub))
        self._registry.register(Problems(problems, behind, unenforced))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def connected(self, discovery: DiscoveryService) -> None:
        """Tell of a server's streams, too."""
        self._registry.register(Connected(discovery, self._hub))

    def register(self, collector: Collector) -> None:
        """Tell what a part of the control plane counts, too."""
        self._registry.register(collector)

    def exposed(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics as text, and its content type: in the OpenMetrics format for who accepts that."""
        return _exposed(self._registry, accept)

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK
            await asyncio.sleep(LOOK)
            self._lag.observe(max(0.0, loop.time() - due))


class StartMetrics:
    """What is told at /metrics while a control plane waits for what it has to know: what is wrong."""

    def __init__(self, problems: Callable[[], Collection[Problem]], behind: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(Build())
        self._registry.register(Problems(problems, behind))

    def exposed(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics as text, and its content type."""
        return _exposed(self._registry, accept)


def _exposed(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    encode, content_type = choose_encoder(accept)
    return encode(_WithoutCreation(registry)), content_type


class _WithoutCreation:
    """A registry without the time at which each metric was made, which is the process's start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
