"""Pods that should have a connected sidecar and do not: a sidecar that died would otherwise just vanish from reports."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple, TypeAlias

from xds.mesh import Mesh
from xds.model import Pod

PodName: TypeAlias = tuple[str, str]
"""namespace, name."""


class Absent(NamedTuple):
    """A pod whose label says that it has a sidecar, and that no sidecar is connected for."""

    namespace: str
    pod: str
    since: float | None
    """When its last stream ended, in seconds of the event loop's clock; None: it has not connected yet."""


class Absences(NamedTuple):
    """All pods without a connected sidecar."""

    pods: tuple[Absent, ...] = ()
    """By namespace and name."""
    elsewhere: bool = False
    """Whether they may be connected to another replica of the control plane."""


class SidecarTracker:
    """Knows which sidecars are not connected, and since when.

    A pod is expected to have one from when it has an address, as nothing runs in it before, until it ends.
    """

    def __init__(self, mesh: Callable[[], Mesh], connected: Container[PodName]) -> None:
        """Make one.

        Args:
            mesh: returns the mesh that is in force.
            connected: the pods that have a stream.
        """
        self._mesh = mesh
        self._connected = connected
        self._ended: dict[PodName, tuple[str, float]] = {}
        """By pod that has no stream any more, its uid and when the last one ended."""
        self._cached: tuple[Mesh, tuple[Absent, ...]] | None = None

    def connected(self, key: PodName) -> None:
        """Take note of a pod's stream."""
        self._ended.pop(key, None)
        self._cached = None

    def disconnected(self, key: PodName, now: float) -> None:
        """Take note that a pod's last stream has ended."""
        if pod := self._mesh().pod(*key):
            self._ended[key] = pod.meta.uid, now
        self._cached = None

    def forget(self, key: PodName) -> None:
        """Take note that a pod is gone."""
        self._ended.pop(key, None)

    def expected(self) -> int:
        """Return how many pods should have a connected sidecar."""
        return sum(_has_running_sidecar(pod) for pod in self._mesh().pods())

    def absent(self) -> tuple[Absent, ...]:
        """Return those that have none, by namespace and name."""
        mesh = self._mesh()
        if self._cached is None or self._cached[0] is not mesh:
            found = (pod for pod in mesh.pods() if _has_running_sidecar(pod))
            absent = (self._absent(pod) for pod in found if (pod.namespace, pod.name) not in self._connected)
            self._cached = mesh, tuple(absent)
        return self._cached[1]

    def _absent(self, pod: Pod) -> Absent:
        uid, since = self._ended.get((pod.namespace, pod.name), (None, None))
        # A successor of the same name has not been here.
        return Absent(pod.namespace, pod.name, since if uid == pod.meta.uid else None)


def _has_running_sidecar(pod: Pod) -> bool:
    return pod.has_sidecar and bool(pod.address) and not pod.ended
