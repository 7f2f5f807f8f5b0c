"""What changes one JSON value into another, as a JSON Patch (RFC 6902)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]


def difference(before: Any, after: Any) -> list[Json]:
    """Return the operations, in order, that make `after` of `before`.

    Only `add`, `remove` and `replace` are used. What is new in a list is added where it is; its other members stay.
    """
    return list(_changes(before, after, ""))


def _changes(before: Any, after: Any, path: str) -> Iterator[Json]:
    if before is after:  # Most of a pod: `inject` shares what it leaves alone.
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() - after.keys():
            yield {"op": "remove", "path": _step(path, key)}
        for key, value in after.items():
            if key in before:
                if before[key] is not value:
                    yield from _changes(before[key], value, _step(path, key))
            else:
                yield {"op": "add", "path": _step(path, key), "value": value}
    elif isinstance(before, list) and isinstance(after, list):
        yield from _list_changes(before, after, path)
    elif not _same(before, after):
        yield {"op": "replace", "path": path, "value": after}


def _list_changes(before: list[Any], after: list[Any], path: str) -> Iterator[Json]:
    start, end = alike(before, after)
    for index in range(start):
        yield from _changes(before[index], after[index], _step(path, index))
    for index in range(1, end + 1):
        yield from _changes(before[-index], after[-index], _step(path, len(before) - index))
    for _ in before[start : len(before) - end]:
        yield {"op": "remove", "path": _step(path, start)}
    for index in range(start, len(after) - end):
        yield {"op": "add", "path": _step(path, index), "value": after[index]}


def alike(before: list[Any], after: list[Any]) -> tuple[int, int]:
    """Return how many members two lists share at their beginning, and how many of the rest at their end.

    Shared is what is equal, or has the same name, as containers and volumes do.
    """
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if not _shared(before[i], after[i])), shorter)
    rest = shorter - start
    end = next((i for i in range(rest) if not _shared(before[-1 - i], after[-1 - i])), rest)
    return start, end


def _shared(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict) and "name" in one and "name" in other:
        return _same(one["name"], other["name"])
    return _same(one, other)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: to Python, True is 1 and 1.0, and to JSON it is neither."""
    if one is other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _step(path: str, key: object) -> str:
    return f"{path}/" + str(key).replace("~", "~0").replace("/", "~1")
