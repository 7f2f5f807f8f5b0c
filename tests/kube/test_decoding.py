"""Excessively nested JSON loses only the nested value. Lists are decoded with the fields that are used."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import product
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parse.junk import JUNK, OBJECTS, places
from xds.mesh.kube.decoding import MAX_DEPTH, TOO_DEEP, decode_json, list_decoder
from xds.mesh.model.objects import Pod
from xds.mesh.parse import parse
from xds.mesh.parse.core import POD_PHASES, UsedPod

CUT = json.loads(TOO_DEEP)


def nested(depth: int, text: str) -> str:
    return '{"a": ' * depth + text + "}" * depth


def depth_of(value: object) -> tuple[int, object]:
    depth = 0
    while isinstance(value, dict):
        value, depth = value["a"], depth + 1
    return depth, value


def test_values_beside_deep_nesting_are_decoded() -> None:
    row = "[" * 3000 + "]" * 3000
    text = f'{{"items": [{{"name": "a}}]"}}, {nested(5000, "1")}, {{"name": "\\"["}}, {row}, 1]}}'
    first, deep, last, row, one = decode_json(text.encode())["items"]
    assert (first, last, one) == ({"name": "a}]"}, {"name": '"['}, 1)
    assert depth_of(deep) == (MAX_DEPTH - 2, CUT)
    assert row


@pytest.mark.parametrize("depth", [1, MAX_DEPTH, MAX_DEPTH + 1, 900])
def test_nesting_that_json_can_decode_is_kept(depth: int) -> None:
    assert depth_of(decode_json(nested(depth, '"x"').encode())) == (depth, "x")


def test_long_strings_are_decoded() -> None:
    text = json.dumps({"long": '\\"{[' * 300_000, "deep": None}).replace("null", nested(2000, "1"))
    assert decode_json(text.encode())["long"] == '\\"{[' * 300_000


@pytest.mark.parametrize("text", [b"", b"{", b"[1,", b"{" * 5000, b"[" * 5000 + b"]" * 4999])
def test_invalid_json_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own
        decode_json(text)


POD = next(document for document in OBJECTS if document["kind"] == "Pod")
decode_pods = list_decoder(UsedPod)


def parsed(pod: dict[str, Any]) -> object:
    [result] = parse({**pod, "apiVersion": "v1", "kind": "Pod"}, str, served=True)
    return result.fact, [problem.what for problem in result.problems]


@given(st.lists(st.tuples(st.integers(min_value=0), JUNK), max_size=3))
def test_unused_fields_of_pods_have_no_effect(junk: list[tuple[int, Any]]) -> None:
    pod = copy.deepcopy(POD)
    for number, value in junk:
        where = places(pod)
        container, key = where[number % len(where)]
        container[key] = copy.deepcopy(value)
    text = json.dumps({"metadata": {"resourceVersion": "1"}, "items": [pod]}).encode()
    if isinstance(pod.get("metadata"), dict) and pod["metadata"].get("name"):
        [decoded] = decode_pods(text)["items"]
        assert parsed(decoded) == parsed(pod)


class Recording(dict[str, Any]):
    """A mapping that records which keys were read."""

    def __init__(self, value: dict[str, Any]) -> None:
        super().__init__(value)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


FULL_POD = {
    "metadata": {**POD["metadata"], "uid": "1", "resourceVersion": "2", "annotations": {}},
    "spec": {
        **POD["spec"],
        "initContainers": [{"name": "init", "restartPolicy": "Always"}],
        "serviceAccountName": "",
        "serviceAccount": "web",
        "hostname": "web",
        "subdomain": "web",
    },
    "status": {
        **POD["status"],
        "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}


def pods() -> Iterator[dict[str, Any]]:
    """Yield small and full pods in every phase, deleted or not: what is read can depend on all of these."""
    for pod, phase, deleted in product((POD, FULL_POD), (None, *POD_PHASES), (None, "2020-01-01T00:00:00Z")):
        yield {
            "metadata": {**pod["metadata"], "deletionTimestamp": deleted},
            "spec": pod["spec"],
            "status": {**pod["status"], "phase": phase},
        }


@pytest.mark.parametrize(("part", "used"), get_type_hints(UsedPod).items())
def test_exactly_the_fields_of_pods_that_are_read_are_decoded(part: str, used: type) -> None:
    read: set[str] = set()
    for pod in pods():
        recording = Recording(pod[part])
        fact, problems = parsed({**pod, part: recording})
        assert isinstance(fact, Pod)
        assert problems == []
        read |= recording.read
    assert read == set(get_type_hints(used))
    values = dict.fromkeys(read, "value")
    [decoded] = decode_pods(json.dumps({"items": [{part: values}]}).encode())["items"]
    assert decoded == {part: values}


def test_list_that_is_not_as_expected_is_decoded_in_full() -> None:
    page = {
        "metadata": {"continue": "x"},
        "items": [{"metadata": "a"}, {"metadata": {"uid": 1}, "spec": None}],
    }
    assert decode_pods(json.dumps(page).encode()) == page
    with pytest.raises(ValueError):  # noqa: PT011 - json's own
        decode_pods(b'{"items": [')
