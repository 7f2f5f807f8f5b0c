"""JSON of an API server, whatever others have stored there."""

from __future__ import annotations

import gc
import json
import re
from typing import Any

MAX_DEPTH = 100
"""Levels that are read; no object that means anything comes near."""
TOO_DEEP = b'"(nested too deeply)"'
"""What is read in place of what is deeper."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def decode_json(text: bytes) -> Any:
    """Read JSON. ValueError: it is none.

    An object may be nested as deeply as its author likes where its kind has no schema, and Python's reader gives up at about a
    thousand levels; with it a whole page of a list would be lost.
    """
    try:
        return _load(text)
    except RecursionError:
        return _load(_truncate_depth(text))


def _load(text: bytes) -> Any:
    # Nothing of it is garbage yet, and looking for some takes three times as long as reading a page of pods does.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    finally:
        if collecting:
            gc.enable()


def _truncate_depth(text: bytes) -> bytes:
    parts: list[bytes] = []
    depth = kept = 0
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                parts += [text[kept : found.start()], TOO_DEEP]
        elif token in b"]}":
            depth -= 1
            if depth == MAX_DEPTH:
                kept = found.end()
    return b"".join([*parts, text[kept:]])
