"""Pods that should have a connected sidecar and do not: a sidecar that died would otherwise just vanish from reports."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple, TypeAlias

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod

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
        self._expected: tuple[Mesh, tuple[Pod, ...]] | None = None
        self._absent: tuple[Absent, ...] | None = None

    def connected(self, key: PodName) -> None:
        """Take note of a pod's stream."""
        self._ended.pop(key, None)
        self._absent = None

    def disconnected(self, key: PodName, now: float) -> None:
        """Take note that a pod's last stream has ended."""
        if pod := self._mesh().pod(*key):
            self._ended[key] = pod.meta.uid, now
        self._absent = None

    def forget(self, key: PodName) -> None:
        """Take note that a pod is gone."""
        self._ended.pop(key, None)

    @property
    def expected(self) -> tuple[Pod, ...]:
        """The pods that should have a connected sidecar, by namespace and name."""
        mesh = self._mesh()
        if self._expected is None or self._expected[0] is not mesh:
            self._expected = mesh, tuple(pod for pod in mesh.pods() if _has_running_sidecar(pod))
            self._absent = None
        return self._expected[1]

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Those of them that have none."""
        expected = self.expected
        if self._absent is None:
            keys = ((pod, (pod.namespace, pod.name)) for pod in expected)
            self._absent = tuple(
                Absent(*key, self._since(pod, key)) for pod, key in keys if key not in self._connected
            )
        return self._absent

    def _since(self, pod: Pod, key: PodName) -> float | None:
        uid, since = self._ended.get(key, (None, None))
        # A successor of the same name has not been here.
        return since if uid == pod.meta.uid else None


def _has_running_sidecar(pod: Pod) -> bool:
    return pod.has_sidecar and bool(pod.address) and not pod.ended
