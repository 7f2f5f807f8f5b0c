"""The maps that clients look at, as JSON texts that are computed once for all of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from xds.mesh.controlplane.page.encoding import encode
from xds.mesh.controlplane.page.graph import Graph
from xds.mesh.controlplane.page.map_view import Selection, map_view
from xds.mesh.controlplane.page.observed import ObservedTraffic

MAX_TEXTS = 8
"""Maximum number of texts. That of a map with 800 edges takes 0.4 MB."""
MAX_AGE = 2.0
"""Seconds for which a text is used: its observed traffic changes."""


@dataclass(slots=True)
class _Text:
    graph: Graph
    text: str
    expires_at: float
    """Time by the event loop's clock."""
    is_requested: bool
    """Whether a client has requested it since `refresh`."""


class Maps:
    """The latest maps.

    Args:
        observe: Returns the traffic that was observed until now.
    """

    def __init__(self, observe: Callable[[], ObservedTraffic]) -> None:
        self._observe = observe
        self._texts: OrderedDict[Selection, _Text] = OrderedDict()
        """The requested one last."""

    async def get(self, graph: Graph, selection: Selection) -> str:
        """Return a map as JSON."""
        kept = self._texts.get(selection)
        if kept is None or kept.graph is not graph or asyncio.get_running_loop().time() >= kept.expires_at:
            kept = await self._compute(graph, selection, self._observe())
        kept.is_requested = True
        self._texts.move_to_end(selection)
        return kept.text

    async def refresh(self, graph: Graph) -> None:
        """Compute the maps that were requested since the last call, and forget the others.

        Clients that are told of the change afterwards get them without waiting for the computation, which
        competes with the updates of all sidecars.
        """
        observed = self._observe()
        for selection, kept in list(self._texts.items()):
            if kept.is_requested:
                await self._compute(graph, selection, observed)
            else:
                del self._texts[selection]

    async def _compute(self, graph: Graph, selection: Selection, observed: ObservedTraffic) -> _Text:
        text = await encode(await map_view(graph, selection, observed))
        expires_at = asyncio.get_running_loop().time() + MAX_AGE
        kept = _Text(graph, text, expires_at, is_requested=False)
        self._texts[selection] = kept
        if len(self._texts) > MAX_TEXTS:
            self._texts.popitem(last=False)
        return kept
