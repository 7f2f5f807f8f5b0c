"""Maps are computed once for all clients, before they request them."""

from __future__ import annotations

import json
import time
from math import inf

import pytest

from tests.policy.world import HTTP, mesh, peer, pod, service
from xds.mesh.controlplane.page import maps
from xds.mesh.controlplane.page.graph import predict
from xds.mesh.controlplane.page.layout import arrange
from xds.mesh.controlplane.page.map_view import Selection, map_view
from xds.mesh.controlplane.page.maps import MAX_TEXTS, Maps
from xds.mesh.controlplane.page.observed import ObservedTraffic
from xds.mesh.model.mesh import Mesh
from xds.mesh.observe.edges import Client, EdgeKey, Reporter, Target, Traffic, TrafficMode

FACTS = (pod("web", "a"), pod("old", "b", sidecar=False), service("web", "a", HTTP))
WORLD, STRICT = mesh(*FACTS), mesh(*FACTS, peer("a", "STRICT"))
WIDE, NARROW = Selection(1000), Selection(400)


@pytest.fixture
def computed(monkeypatch) -> list[Selection]:
    """The selections whose maps were computed."""
    found: list[Selection] = []

    async def counted(graph, selection, observed):
        found.append(selection)
        return await map_view(graph, selection, observed)

    monkeypatch.setattr(maps, "map_view", counted)
    monkeypatch.setattr(maps, "MAX_AGE", inf)
    return found


def nothing() -> ObservedTraffic:
    return ObservedTraffic((), Mesh())


async def test_clients_with_the_same_selection_share_a_map(computed):
    graph, kept = await predict(WORLD), Maps(nothing)
    texts = {await kept.get(graph, WIDE) for _ in range(5)}
    assert len(texts) == 1
    await kept.get(graph, NARROW)
    assert computed == [WIDE, NARROW]


async def test_request_after_a_change_computes_nothing(computed):
    before, after = await predict(WORLD), await predict(STRICT)
    kept = Maps(nothing)
    await kept.get(before, WIDE)
    await kept.refresh(after)
    assert computed == [WIDE, WIDE]
    edge = json.loads(await kept.get(after, WIDE))["edges"][0]
    assert edge["predicted"]["result"] == "fails"
    assert computed == [WIDE, WIDE]


async def test_map_that_nobody_looks_at_is_forgotten(computed):
    graph, kept = await predict(WORLD), Maps(nothing)
    await kept.get(graph, WIDE)
    for _ in range(3):
        await kept.refresh(graph)
    assert computed == [WIDE, WIDE]


async def test_number_of_maps_is_limited(computed):
    graph, kept = await predict(WORLD), Maps(nothing)
    selections = [Selection(400 + number) for number in range(MAX_TEXTS + 1)]
    for selection in selections:
        await kept.get(graph, selection)
    await kept.get(graph, selections[-1])
    assert computed == selections
    await kept.get(graph, selections[0])
    assert computed[-1] == selections[0]


async def test_observed_traffic_is_recent(monkeypatch):
    monkeypatch.setattr(maps, "MAX_AGE", 0.0)
    traffic = Traffic()
    graph, kept = await predict(WORLD), Maps(lambda: ObservedTraffic([traffic], WORLD))
    assert json.loads(await kept.get(graph, WIDE))["edges"][0]["observed"] is None
    key = EdgeKey(Client("b", "old"), Target("a", "web", 80), TrafficMode.PLAINTEXT)
    traffic.add(key, Reporter.SERVER, ("a", "web"), requests=5, now=time.time())
    assert json.loads(await kept.get(graph, WIDE))["edges"][0]["observed"]


async def test_layout_is_kept_while_the_names_stay_the_same():
    await map_view(await predict(WORLD), WIDE, nothing())
    before = arrange.cache_info()
    await map_view(await predict(STRICT), WIDE, nothing())
    after = arrange.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)
