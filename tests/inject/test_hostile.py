"""Pods with arbitrary values: each is patched, skipped or refused without an exception."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xds.mesh.inject import InjectionSettings, create_patch, find_templates, inject
from xds.mesh.parse import dotted

CASES = Path(__file__).parent / "cases"
PODS = [
    template.value
    for name in ("probes.yaml", "annotations.yaml", "kinds.yaml")
    for document in yaml.safe_load_all((CASES / name).read_text())
    for template in find_templates(document)
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield from places(inner, (*path, step))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    result = copy.deepcopy({"": value})
    inner = result
    for step in ("", *path)[:-1]:
        inner = inner[step]
    inner[("", *path)[-1]] = new
    return result[""]


ANYTHING = st.sampled_from(
    [
        *(None, True, 0, 15001, 70000, -1, 1e300, "", "x", "http", "$(X)", "a\n---\nb: 1", "*", "x" * 100000),
        *([], {}, [1], ["x"], [None], [[]], [{}], [{"name": "xds-token"}]),
        *({"name": "xds-proxy"}, {"name": 1}, {"port": "x"}, {"httpGet": {}}),
        *({"httpGet": {"port": 80}, "grpc": {"port": 1}}, {"preStop": {"httpGet": {"port": 1}}}),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.booleans())
def test_arbitrary_pod_is_patched_skipped_or_refused(data: st.DataObject, native: bool) -> None:
    pod = data.draw(st.sampled_from(PODS))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([*places(pod)]))
        if path:
            pod = replaced(pod, path, data.draw(ANYTHING))
    original = copy.deepcopy(pod)
    result = inject(pod, InjectionSettings(native=native), locate=dotted)
    assert pod == original
    assert (result.pod is pod) is bool(result.skip or result.refused)
    json.dumps(create_patch(pod, result.pod))
    assert len(str(result.skip)) < 300
    for problem in result.problems:
        assert len(problem.what) < 600
