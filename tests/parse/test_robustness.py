"""Whatever stands where something else should, parsing says so and never raises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parse.junk import JUNK, MESH, OBJECTS, places
from xds.mesh.model.objects import MeshConfig
from xds.mesh.parse import dotted, mesh_config, parse


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(OBJECTS), st.lists(st.tuples(st.integers(min_value=0), JUNK), min_size=1, max_size=3))
def test_object_with_arbitrary_values(good: Any, junk: list[tuple[int, Any]]) -> None:
    document = copy.deepcopy(good)
    for number, value in junk:
        where = places(document)
        container, key = where[number % len(where)]
        container[key] = copy.deepcopy(value)
    for parsed in parse(document, dotted):
        assert parsed.fact is None or not parsed.refused
        assert parsed.fact is None or parsed.fact.ref == parsed.ref
        assert all(str(problem) for problem in parsed.problems)


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=0), JUNK)
def test_settings_with_arbitrary_values(number: int, value: Any) -> None:
    document = copy.deepcopy(MESH)
    where = places(document)
    container, key = where[number % len(where)]
    container[key] = value
    config, _ = mesh_config(document, dotted)
    assert isinstance(config, MeshConfig)
    assert config.protocol_detection_timeout >= 0


@given(JUNK)
def test_arbitrary_document(document: Any) -> None:
    assert all(parsed.fact is None for parsed in parse(document, dotted))


@pytest.mark.parametrize("good", OBJECTS, ids=lambda document: document["kind"])
def test_base_objects_are_valid(good: Any) -> None:
    [parsed] = parse(good, dotted)
    assert parsed.fact is not None
    assert parsed.problems == ()
