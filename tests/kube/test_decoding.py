"""Excessively nested JSON loses only the nested value, not the values beside it."""

from __future__ import annotations

import json

import pytest

from xds.mesh.kube.decoding import MAX_DEPTH, TOO_DEEP, decode_json

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
