"""Decoding of JSON from an API server, robust against deeply nested objects."""

from __future__ import annotations

import gc
import json
import re
from typing import Any

MAX_DEPTH = 100
"""Maximum nesting depth. Real objects are far below it."""
TOO_DEEP = b'"(nested too deeply)"'
"""JSON that replaces values below the maximum depth."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def decode_json(text: bytes) -> Any:
    """Decode JSON. Raises ValueError if the text is not JSON.

    Kinds without a schema allow any nesting depth, but Python's decoder fails at about 1000 levels. One such
    object would make a whole page of a list unreadable. Values below MAX_DEPTH are then replaced by TOO_DEEP.
    """
    try:
        return _load(text)
    except RecursionError:
        return _load(_truncate_depth(text))


def _load(text: bytes) -> Any:
    # New objects are all in use, and a collection takes three times as long as decoding a page of pods.
    gc_was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
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
