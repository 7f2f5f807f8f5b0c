"""Decoding of JSON from an API server, robust against deeply nested objects."""

from __future__ import annotations

import gc
import json
import marshal
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import msgspec

MAX_DEPTH = 100
"""Maximum nesting depth. Real objects are far below it."""
TOO_DEEP = b'"(nested too deeply)"'
"""JSON that replaces values below the maximum depth."""

_DECODES_DEEP_JSON = sys.version_info >= (3, 13)
"""Whether Python decodes thousands of levels, which functions that recurse cannot read."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def decode_json(text: bytes) -> Any:
    """Decode JSON. Raises ValueError if the text is not JSON.

    Kinds without a schema allow any nesting depth, but Python's decoder fails at 1000 to 10,000 levels. One
    such object would make a whole page of a list unreadable. Values below MAX_DEPTH are then replaced by
    TOO_DEEP, and also if the text has more than 2000 levels.
    """
    try:
        value = _load(text)
    except RecursionError:
        return _load(_truncate_depth(text))
    return _load(_truncate_depth(text)) if _DECODES_DEEP_JSON and _is_deep(value) else value


def list_decoder(used: type[Any]) -> Callable[[bytes], Any]:
    """Return a function that decodes a list, and of its items only the fields in a TypedDict.

    It takes a fifth of the time of `decode_json` for pods. A list whose fields have other types is decoded in
    full. Raises ValueError if the text is not JSON.
    """
    fields: Any = {"metadata": Any, "items": list[used]}  # type: ignore[valid-type]
    decoder = msgspec.json.Decoder(TypedDict("Page", fields, total=False))  # type: ignore[operator]

    def decode(text: bytes) -> Any:
        try:
            with _no_collections():
                return decoder.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return decode_json(text)

    return decode


def _is_deep(value: Any) -> bool:
    """Return whether a value has more than 2000 levels, in a sixth of the time that decoding takes."""
    try:
        marshal.dumps(value)
    except ValueError:
        return True
    return False


def _load(text: bytes) -> Any:
    with _no_collections():
        return json.loads(text)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Collect no garbage: new objects are in use, and it would take longer than decoding a page of pods."""
    gc_was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc_was_enabled:
            gc.enable()


def _truncate_depth(text: bytes) -> bytes:
    parts: list[bytes] = []
    depth = position = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                parts += [text[position : match.start()], TOO_DEEP]
        elif token in b"]}":
            depth -= 1
            if depth == MAX_DEPTH:
                position = match.end()
    return b"".join([*parts, text[position:]])
