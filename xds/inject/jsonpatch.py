"""What changes one JSON value into another, as a JSON Patch (RFC 6902)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]


def difference(before: Any, after: Any) -> list[Json]:
    """Return the operations, in order, that make `after` of `before`.

    Only `add`, `remove` and `replace`: Kubernetes applies these alike everywhere. What is new in a list is added where it
    is; what is the same at its beginning and its end is not touched.
    """
    return list(_changes(before, after, ""))


def _changes(before: Any, after: Any, path: str) -> Iterator[Json]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() - after.keys():
            yield {"op": "remove", "path": _step(path, key)}
        for key, value in after.items():
            if key in before:
                yield from _changes(before[key], value, _step(path, key))
            else:
                yield {"op": "add", "path": _step(path, key), "value": value}
    elif isinstance(before, list) and isinstance(after, list):
        yield from _list_changes(before, after, path)
    elif not _same(before, after):
        yield {"op": "replace", "path": path, "value": after}


def _list_changes(before: list[Any], after: list[Any], path: str) -> Iterator[Json]:
    start, end = unchanged(before, after)
    old, new = len(before) - start - end, len(after) - start - end
    both = min(old, new)
    for index in range(start, start + both):
        yield from _changes(before[index], after[index], _step(path, index))
    for _ in range(old - both):
        yield {"op": "remove", "path": _step(path, start + both)}
    for index in range(start + both, start + new):
        yield {"op": "add", "path": _step(path, index), "value": after[index]}


def unchanged(before: list[Any], after: list[Any]) -> tuple[int, int]:
    """Return how many members two lists have in common at their beginning, and how many of the rest at their end."""
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if not _same(before[i], after[i])), shorter)
    rest = shorter - start
    end = next((i for i in range(rest) if not _same(before[-1 - i], after[-1 - i])), rest)
    return start, end


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: to Python, True is 1 and 1.0, and to JSON it is neither."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _step(path: str, key: object) -> str:
    return f"{path}/" + str(key).replace("~", "~0").replace("/", "~1")
