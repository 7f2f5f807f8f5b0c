"""Whatever stands where something else should, parsing says so and never raises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sources.test_bad_input import (
    ENDPOINTS,
    MESH_POLICY,
    PEER,
    POD,
    POLICY,
    RULE,
    SERVICE,
    SLICE,
)
from xds.mesh.model.objects import MeshConfig
from xds.mesh.parse import dotted, mesh_config, parse

OBJECTS = [
    yaml.safe_load(text.replace("2020-01-01T00:00:00Z", "'2020-01-01T00:00:00Z'"))
    for text in (SERVICE, POD, SLICE, ENDPOINTS, POLICY, MESH_POLICY, PEER, RULE)
]
MESH = {
    "enableAutoMtls": True,
    "trustDomain": "a",
    "trustDomainAliases": ["b"],
    "defaultDestinationRuleExportTo": ["."],
    "protocolDetectionTimeout": "1s",
    "outboundTrafficPolicy": {"mode": "ALLOW_ANY"},
    "meshMTLS": {"minProtocolVersion": "TLSV1_2"},
}
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["", "None", "default", "*", ".", "-", "1s", "0s", "80", "10.0.0.1", "a" * 300, "STRICT", "é"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a document, with each of its keys."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += [(value, key), *places(inner)]
    return found


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
