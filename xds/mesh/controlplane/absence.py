"""Pods without a connected sidecar that should have one.

Reports list these pods, so that a sidecar that dies does not just disappear from them.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import Pod, PodKey


class Absent(NamedTuple):
    """A pod whose label says that it has a sidecar, but whose sidecar is not connected."""

    namespace: str
    """The namespace of the pod."""
    pod: str
    """The name of the pod."""
    since: float | None
    """When its last stream ended, in seconds of the event loop's clock. None: it has not connected."""


class Absences(NamedTuple):
    """All pods without a connected sidecar."""

    pods: tuple[Absent, ...] = ()
    """The pods, ordered by namespace and name."""
    may_be_on_other_replica: bool = False
    """Whether the sidecars may be connected to another replica of the control plane."""


class SidecarTracker:
    """Track which sidecars are not connected, and since when.

    A pod should have a connected sidecar from when it is assigned an address until it ends. Before it has an
    address, none of its containers runs.
    """

    def __init__(self, mesh: Callable[[], Mesh], connected: Container[PodKey]) -> None:
        """Create a tracker.

        Args:
            mesh: returns the current mesh.
            connected: the pods that have a stream.
        """
        self._mesh = mesh
        self._connected = connected
        self._disconnected: dict[PodKey, tuple[str, float]] = {}
        """For each pod that lost its last stream: its UID, and when the stream ended."""
        self._expected: tuple[Mesh, tuple[Pod, ...]] | None = None
        self._absent: tuple[Absent, ...] | None = None

    def connected(self, key: PodKey) -> None:
        """Record a new stream of a pod."""
        self._disconnected.pop(key, None)
        self._absent = None

    def disconnected(self, key: PodKey, now: float) -> None:
        """Record that the last stream of a pod has ended."""
        if pod := self._mesh().pod(*key):
            self._disconnected[key] = pod.meta.uid, now
        self._absent = None

    def forget(self, key: PodKey) -> None:
        """Forget a pod that was deleted."""
        self._disconnected.pop(key, None)

    @property
    def expected(self) -> tuple[Pod, ...]:
        """The pods that should have a connected sidecar, ordered by namespace and name."""
        mesh = self._mesh()
        if self._expected is None or self._expected[0] is not mesh:
            pods = (pod for pod in mesh.pods() if _has_running_sidecar(pod))
            self._expected = mesh, tuple(sorted(pods, key=_order))
            self._absent = None
        return self._expected[1]

    @property
    def absent(self) -> tuple[Absent, ...]:
        """The expected pods without a connected sidecar."""
        expected = self.expected
        if self._absent is None:
            pods = ((pod, pod.key) for pod in expected)
            self._absent = tuple(
                Absent(*key, self._since(pod, key)) for pod, key in pods if key not in self._connected
            )
        return self._absent

    def _since(self, pod: Pod, key: PodKey) -> float | None:
        uid, ended_at = self._disconnected.get(key, (None, None))
        # The entry may be about an earlier pod of the same name.
        return ended_at if uid == pod.meta.uid else None


def _order(pod: Pod) -> tuple[object, ...]:
    return natural_key(pod.namespace, pod.name)


def _has_running_sidecar(pod: Pod) -> bool:
    return pod.has_sidecar and bool(pod.address) and not pod.ended
