"""Positions on the map: namespaces as boxes below each other, workloads on the left, services on the right.

A position depends on the names above only, not on the edges. So nothing moves while modes change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

MIN_WIDTH, MAX_WIDTH = 320, 1600
"""Limits of the width of a map, in pixels."""
NODE_HEIGHT = 34
"""Height of a workload or a service."""
ROW_HEIGHT = 42
"""Distance between the tops of two nodes in a column."""
MAX_LAYOUTS = 16
"""Maximum number of layouts that are kept. One with all nodes of 1,000 services takes 1 MB."""
LABEL_HEIGHT = 18
"""Height of a label of an edge."""
_HEADER_HEIGHT = 30
_PADDING = 10
_GAP = 14
"""Vertical distance between two boxes."""
_MIN_NODE_WIDTH, _MAX_NODE_WIDTH = 96, 260
_NODE_SHARE = 0.31
"""Width of a node as a share of the width of its box."""
_LINK_WIDTH = 200
"""Maximum width of the link in the header of a box."""
_LABEL_PLACES = (0.5, 0.38, 0.62, 0.28, 0.72, 0.44, 0.56, 0.2, 0.8)
"""Where to put the label of an edge, as a share of its length: the first place that is free."""


class Box(NamedTuple):
    """A rectangle, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def overlaps(self, other: Box) -> bool:
        """Whether two rectangles have a common area."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


class Band(NamedTuple):
    """The nodes of a namespace, by ID, in their order."""

    name: str
    """Name of the namespace."""
    clients: tuple[str, ...]
    """Nodes of the left column."""
    services: tuple[str, ...]
    """Nodes of the right column."""


class Layout(NamedTuple):
    """The position of everything on a map."""

    width: int
    height: int
    bands: Mapping[str, Box]
    """The box of each namespace."""
    nodes: Mapping[str, Box]
    """The box of each node."""


def clamp_width(width: int) -> int:
    """Return the width of a map that is closest to a requested one."""
    return max(MIN_WIDTH, min(width, MAX_WIDTH))


@lru_cache(MAX_LAYOUTS)
def arrange(bands: tuple[Band, ...], width: int) -> Layout:
    """Return the positions of namespaces and their nodes. While the names stay the same, the layout is kept.

    Args:
        bands: the namespaces, from top to bottom.
        width: the width of the map, within MIN_WIDTH and MAX_WIDTH.
    """
    node_width = max(_MIN_NODE_WIDTH, min(int(width * _NODE_SHARE), _MAX_NODE_WIDTH))
    boxes: dict[str, Box] = {}
    nodes: dict[str, Box] = {}
    top = 0
    for band in bands:
        rows = max(len(band.clients), len(band.services), 1)
        boxes[band.name] = Box(0, top, width, _HEADER_HEIGHT + rows * ROW_HEIGHT + _PADDING)
        for x, column in ((_PADDING, band.clients), (width - _PADDING - node_width, band.services)):
            for row, node in enumerate(column):
                nodes[node] = Box(x, top + _HEADER_HEIGHT + row * ROW_HEIGHT, node_width, NODE_HEIGHT)
        top += boxes[band.name].height + _GAP
    return Layout(width, max(top - _GAP, 0), boxes, nodes)


class Curve(NamedTuple):
    """A cubic Bézier curve from a client to a service, horizontal at both ends."""

    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def path(self) -> str:
        """The curve in SVG's notation."""
        (x1, y1), (x2, y2) = self.start, self.end
        middle = (x1 + x2) // 2
        return f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"

    def point(self, share: float) -> tuple[int, int]:
        """Return the point at a share of the curve (0 to 1)."""
        (x1, y1), (x2, y2) = self.start, self.end
        middle, rest = (x1 + x2) / 2, 1 - share
        weights = rest**3, 3 * rest**2 * share, 3 * rest * share**2, share**3
        x = weights[0] * x1 + (weights[1] + weights[2]) * middle + weights[3] * x2
        y = (weights[0] + weights[1]) * y1 + (weights[2] + weights[3]) * y2
        return round(x), round(y)


def connect(client: Box, service: Box) -> Curve:
    """Return the curve from a node of the left column to one of the right column."""
    return Curve(
        (client.x + client.width, client.y + client.height // 2), (service.x, service.y + service.height // 2)
    )


def link_box(band: Box) -> Box:
    """Return the place of the link in the header of a namespace's box."""
    width = min(_LINK_WIDTH, band.width // 2)
    return Box(band.x + band.width - width, band.y, width, _HEADER_HEIGHT)


class LabelPlacer:
    """Places labels on curves, so that they do not cover each other.

    Args:
        reserved: Places that labels must not cover either.
    """

    def __init__(self, reserved: Iterable[Box] = ()) -> None:
        self._taken: dict[int, list[Box]] = {}
        """Placed labels and reserved places, by the rows of LABEL_HEIGHT that they touch."""
        for box in reserved:
            self._take(box)

    def place(self, curve: Curve, width: int) -> Box | None:
        """Return the box of a label; None if there is no room for it."""
        room = curve.end[0] - curve.start[0]
        if width > room:
            return None
        for share in _LABEL_PLACES:
            x, y = curve.point(share)
            left = max(curve.start[0], min(x - width // 2, curve.end[0] - width))
            box = Box(left, y - LABEL_HEIGHT // 2, width, LABEL_HEIGHT)
            if not any(box.overlaps(other) for row in _rows(box) for other in self._taken.get(row, ())):
                self._take(box)
                return box
        return None

    def _take(self, box: Box) -> None:
        for row in _rows(box):
            self._taken.setdefault(row, []).append(box)


def _rows(box: Box) -> range:
    return range(box.y // LABEL_HEIGHT, (box.y + box.height) // LABEL_HEIGHT + 1)
