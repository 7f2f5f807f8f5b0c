"""Mesh: the immutable set of facts, and the indexes that decisions are made from."""

from __future__ import annotations

from collections.abc import Iterable

from xds.model import Change, Fact, MeshConfig


class Mesh:
    """All facts at one moment. `apply` makes the next one; nothing ever changes an existing one."""

    def __init__(self, facts: Iterable[Fact] = (), config: MeshConfig | None = None) -> None:
        self.config = config or MeshConfig()

    def apply(self, change: Change) -> Mesh:
        """Return the mesh after a change."""
        raise NotImplementedError
