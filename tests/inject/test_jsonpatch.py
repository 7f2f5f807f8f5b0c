"""The webhook's JSON Patch, applied by another implementation."""

from __future__ import annotations

import copy
import json

import jsonpatch
from hypothesis import given, settings
from hypothesis import strategies as st

from xds.mesh.inject import create_patch

KEYS = st.sampled_from(["name", "a", "b/c", "d~1", ""]) | st.text(max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0]) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_patch_transforms_one_value_into_another(before: object, after: object) -> None:
    patch = create_patch(before, after)
    patched = jsonpatch.apply_patch(copy.deepcopy(before), patch)
    assert json.dumps(patched, sort_keys=True) == json.dumps(after, sort_keys=True)


@settings(deadline=None)
@given(VALUES)
def test_equal_values_have_an_empty_patch(value: object) -> None:
    assert create_patch(value, copy.deepcopy(value)) == []


def test_list_elements_are_matched_by_name() -> None:
    before = [{"name": "a", "port": 1}, {"name": "b"}]
    after = [{"name": "new"}, {"name": "a", "port": 2}, {"name": "b"}, {"name": "last"}]
    assert create_patch(before, [*before, {"name": "c"}]) == [
        {"op": "add", "path": "/2", "value": {"name": "c"}}
    ]
    assert create_patch(before, after[:3]) == [
        {"op": "replace", "path": "/0/port", "value": 2},
        {"op": "add", "path": "/0", "value": {"name": "new"}},
    ]
