"""Positions on the map."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.controlplane.page.layout import (
    LABEL_HEIGHT,
    MAX_WIDTH,
    MIN_WIDTH,
    Band,
    Box,
    Curve,
    LabelPlacer,
    arrange,
    clamp_width,
    connect,
    link_box,
)

WIDTHS = st.integers(MIN_WIDTH, MAX_WIDTH)


@st.composite
def bands(draw: st.DrawFn) -> tuple[Band, ...]:
    sizes = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=5))
    return tuple(
        Band(
            f"n{number}",
            tuple(f"c{number}/{i}" for i in range(left)),
            tuple(f"s{number}/{i}" for i in range(right)),
        )
        for number, (left, right) in enumerate(sizes)
    )


def is_inside(box: Box, outer: Box) -> bool:
    return (
        outer.x <= box.x
        and outer.y <= box.y
        and box.x + box.width <= outer.x + outer.width
        and box.y + box.height <= outer.y + outer.height
    )


@given(bands(), WIDTHS)
def test_nothing_overlaps(found, width):
    layout = arrange(found, width)
    assert not any(a.overlaps(b) for a, b in combinations(layout.nodes.values(), 2))
    assert not any(a.overlaps(b) for a, b in combinations(layout.bands.values(), 2))
    whole = Box(0, 0, layout.width, layout.height)
    assert all(is_inside(box, whole) for box in layout.bands.values())
    for band in found:
        assert all(
            is_inside(layout.nodes[n], layout.bands[band.name]) for n in (*band.clients, *band.services)
        )


@given(bands(), WIDTHS)
def test_clients_are_left_of_services(found, width):
    layout = arrange(found, width)
    rights = [box.x + box.width for node, box in layout.nodes.items() if node.startswith("c")]
    lefts = [box.x for node, box in layout.nodes.items() if node.startswith("s")]
    assert max(rights, default=0) < min(lefts, default=width)


@given(bands(), WIDTHS)
def test_new_namespace_below_moves_nothing(found, width):
    layout, larger = arrange(found, width), arrange((*found, Band("new", ("c",), ("s",))), width)
    assert all(larger.nodes[node] == box for node, box in layout.nodes.items())


@given(bands(), WIDTHS, st.lists(st.integers(22, 200), max_size=60))
def test_labels_do_not_overlap(found, width, label_widths):
    layout, placer = arrange(found, width), LabelPlacer()
    clients = [box for node, box in layout.nodes.items() if node.startswith("c")]
    services = [box for node, box in layout.nodes.items() if node.startswith("s")]
    pairs = [(client, service) for client in clients for service in services]
    labels = []
    for (client, service), label_width in zip(pairs, label_widths, strict=False):
        curve = connect(client, service)
        if label := placer.place(curve, label_width):
            labels.append(label)
            assert label.height == LABEL_HEIGHT
            assert label.x >= client.x + client.width
            assert label.x + label.width <= service.x
    assert not any(a.overlaps(b) for a, b in combinations(labels, 2))


def test_first_label_is_in_the_middle():
    curve = connect(Box(0, 0, 100, 40), Box(300, 200, 100, 40))
    assert curve.path == "M100 20C200 20 200 220 300 220"
    assert LabelPlacer().place(curve, 40) == Box(180, 111, 40, 18)
    assert LabelPlacer().place(curve, 201) is None


def test_width_is_limited():
    assert [clamp_width(width) for width in (0, 500, 99999)] == [MIN_WIDTH, 500, MAX_WIDTH]


def test_labels_do_not_cover_the_links_of_namespaces():
    link = link_box(Box(0, 100, 320, 80))
    assert link == Box(160, 100, 160, 30)
    curve = Curve((40, 110), (300, 110))
    box = LabelPlacer([link]).place(curve, 22)
    assert box
    assert not box.overlaps(link)
    assert LabelPlacer().place(curve, 22) != box, "it would be in the middle"
