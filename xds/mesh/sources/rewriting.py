"""Editor for YAML and JSON text that preserves comments, order, quotes and spaces.

Only changed lines are rewritten. If that is not possible, for example because the changed value comes from an
alias, all documents are written anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml
from yaml import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from xds.mesh.inject.jsonpatch import common_ends
from xds.mesh.sources.documents import Document, Parser, parse_chunk


class _Edit(NamedTuple):
    """A replacement of the characters from `start` to `end`."""

    start: int
    end: int
    text: str


class _Dumper(yaml.SafeDumper):
    """Quotes strings that kubectl would otherwise read as another type."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


for _first, _resolvers in Parser.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def rewrite(text: str, changes: Sequence[tuple[Document, Any]]) -> str:
    """Return the text with new values for its documents.

    Args:
        text: YAML or JSON, as passed to `documents.parse_chunk`.
        changes: every document of the text, with its new value.
    """
    desired = [value for _, value in changes]
    edits = [
        edit for document, value in changes for edit in _edits(text, document.root, document.value, value)
    ]
    newline = "\r\n" if "\r\n" in text else "\n"
    parts: list[str] = []
    position = 0
    # The sort is stable: of two edits at the same position, the deeper one comes first.
    for start, end, new in sorted(edits, key=lambda edit: edit.start):
        parts += [text[position:start], new.replace("\n", newline)]
        position = max(position, end)
    result = "".join([*parts, text[position:]])
    return result if _has_values(result, desired) else "".join(f"---\n{_dump(value)}" for value in desired)


def _has_values(text: str, desired: list[Any]) -> bool:
    documents = list(parse_chunk(text, "", 1))
    values = [document.value for document in documents if isinstance(document, Document)]
    return len(values) == len(documents) and _comparable(values) == _comparable(desired)


def _comparable(value: Any) -> str:
    """Return the value as JSON, which distinguishes values that are equal in Python, such as 1 and True."""
    return json.dumps(value, sort_keys=True)


def _edits(text: str, node: Node, before: Any, after: Any, column: int | None = None) -> Iterator[_Edit]:
    """Yield the edits of a node. `column` is the column of its key in block style, else None."""
    if before == after:
        return
    if (
        isinstance(node, MappingNode)
        and isinstance(after, dict)
        and node.value
        and before.keys() <= after.keys()
    ):
        yield from _mapping_edits(text, node, before, after)
    elif isinstance(node, SequenceNode) and isinstance(after, list) and node.value:
        yield from _sequence_edits(text, node, before, after)
    else:
        yield _replacement(text, node, after, column)


def _mapping_edits(
    text: str, node: MappingNode, before: dict[str, Any], after: dict[str, Any]
) -> Iterator[_Edit]:
    key, _ = node.value[0]
    column = None if node.flow_style else key.start_mark.column
    children = {str(key.value): value for key, value in node.value if isinstance(key, ScalarNode)}
    for name, child in children.items():
        if name in before:
            yield from _edits(text, child, before[name], after[name], column)
    new = {name: value for name, value in after.items() if name not in children and value != before.get(name)}
    if not new:
        return
    if node.flow_style:
        parts = [f"{_json(name)}: {_json(value)}" for name, value in new.items()]
        yield _append_to_flow(node, key, node.value[-1][1], parts)
    else:
        yield _insert_after(text, node, _indented(_dump(new), key.start_mark.column))


def _sequence_edits(text: str, node: SequenceNode, before: list[Any], after: list[Any]) -> Iterator[_Edit]:
    start, end = common_ends(before, after)
    for index in (*range(start), *range(-end, 0)):
        yield from _edits(text, node.value[index], before[index], after[index])
    new = after[start : len(after) - end]
    if len(before) > start + end:
        yield _replacement(text, node, after, None)
    elif new and node.flow_style:
        parts = [_json(item) for item in new]
        if start == len(before):
            yield _append_to_flow(node, node.value[0], node.value[-1], parts)
        else:
            at = node.value[start].start_mark.index
            yield _Edit(at, at, "".join(f"{part}, " for part in parts))
    elif new:
        lines = _indented(_dump(new), node.start_mark.column)
        if start == len(before):
            yield _insert_after(text, node, lines)
        else:
            at = text.rfind("\n", 0, node.value[start].start_mark.index) + 1
            yield _Edit(at, at, lines)


def _replacement(text: str, node: Node, after: Any, column: int | None) -> _Edit:
    start, end = node.start_mark.index, _end(node)
    if isinstance(after, dict | list) and after:
        if isinstance(node, CollectionNode) and not node.flow_style:
            return _Edit(start, end, _indented(_dump(after), node.start_mark.column).strip())
        if column is not None and (isinstance(node, ScalarNode) or not node.value):
            # The value was empty: write the new one below its key.
            while text[start - 1 : start] == " ":
                start -= 1
            lines = _indented(_dump(after), column + 2 * isinstance(after, dict)).rstrip("\n")
            return _Edit(start, end, f"\n{lines}")
    gap = "" if start != end or text[start - 1 : start].isspace() else " "
    return _Edit(start, end, gap + _json(after))


def _insert_after(text: str, node: Node, lines: str) -> _Edit:
    """Add lines below the last line of a node in block style."""
    end = _end(node)
    if text[end - 1 : end] == "\n":
        return _Edit(end, end, lines)
    newline = text.find("\n", end)
    return (
        _Edit(newline + 1, newline + 1, lines) if newline >= 0 else _Edit(len(text), len(text), "\n" + lines)
    )


def _append_to_flow(node: Node, first: Node, last: Node, parts: list[str]) -> _Edit:
    """Add items at the end of a node in flow style, on separate lines if the existing items are."""
    separate_lines = first.start_mark.line != node.start_mark.line
    gap = "\n" + " " * first.start_mark.column if separate_lines else " "
    end = _end(last)
    return _Edit(end, end, "".join(f",{gap}{part}" for part in parts))


def _end(node: Node) -> int:
    """Return the end of a node's text. For a block, the parser returns the start of the next token."""
    while isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(node, MappingNode) else last
    return int(node.end_mark.index)


def _dump(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=float("inf"), allow_unicode=True))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _indented(text: str, columns: int) -> str:
    return "".join(" " * columns + line if line.strip() else line for line in text.splitlines(keepends=True))
