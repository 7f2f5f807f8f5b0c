"""The configuration of one proxy: facts and decisions in, a snapshot of encoded resources out."""

from __future__ import annotations

from collections.abc import Generator

from xds.mesh import Mesh
from xds.model import Pod
from xds.snapshot import Resource, Snapshot


def steps(mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...] = ()) -> Generator[None, None, Snapshot]:
    """Build a pod's snapshot, yielding after each resource so that an event loop can breathe."""
    raise NotImplementedError


def translate(mesh: Mesh, pod: Pod, secrets: tuple[Resource, ...] = ()) -> Snapshot:
    """Build a pod's snapshot in one go."""
    run = steps(mesh, pod, secrets)
    try:
        while True:
            next(run)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
