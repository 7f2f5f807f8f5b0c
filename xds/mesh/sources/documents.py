"""Parser for YAML and JSON with kubectl's rules. It records the line of each value.

kubectl converts YAML to JSON first: keys are strings, times stay text, and 1:30 is not a number. The size of
the result is limited, even with nested aliases. An unreadable document does not affect other documents in its
file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from json import JSONDecoder
from typing import NamedTuple, cast

from yaml import MappingNode, Node, ScalarNode, SequenceNode, YAMLError
from yaml._yaml import CParser
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError
from yaml.resolver import BaseResolver

from xds.mesh.model.objects import Problem
from xds.mesh.parse import Flaw, Path, dotted

MAX_ALIASED_VALUES = 50_000
"""Maximum number of values, including keys, that aliases repeat in a document.

A few lines of nested aliases could otherwise expand to billions of values.
"""
_CHARACTERS_PER_VALUE = 100
"""Number of repeated characters that count as one value, because an alias can repeat megabytes of text."""
MAX_DEPTH = 60
"""Maximum nesting depth of values. Kubernetes objects are far below it."""
MAX_VALUES = 1_000_000
"""Maximum number of values in a document, including keys. Each needs about 300 bytes and 3 µs."""
MAX_FLAWS = 1000
"""Maximum number of flaws in a document's text. A document with more is unreadable."""
MAX_TAG_DIRECTIVES = 100
"""Maximum number of %TAG directives in a document. libyaml compares each with all others."""

_TAG = "tag:yaml.org,2002:"
_STRING = _TAG + "str"
_MARKER = re.compile(r"^(?:%|---(?=\s|$))", re.MULTILINE)
_TAG_DIRECTIVE = re.compile(r"^%TAG", re.MULTILINE)
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


class Parser(CParser, BaseResolver):
    """libyaml with kubectl's rules for plain scalars."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        BaseResolver.__init__(self)
        self._values = 0

    def resolve(self, kind: type[Node], value: str, implicit: tuple[bool, bool]) -> str:
        """Return the tag of a value. Raises YAMLError after MAX_VALUES values."""
        # PyYAML's own implementation also supports tags that depend on paths, and takes twice as long.
        self._values += 1
        if self._values > MAX_VALUES:
            raise YAMLError(f"it has more than {MAX_VALUES} values (split it into several documents)")
        if kind is ScalarNode:
            if implicit[0]:
                for tag, pattern in self.yaml_implicit_resolvers.get(value[:1], ()):
                    if pattern.match(value):
                        return str(tag)
            return _STRING
        return _TAG + ("seq" if kind is SequenceNode else "map")

    def descend_resolver(self, *_: object) -> None:
        """Do nothing: no tag depends on a path."""

    def ascend_resolver(self) -> None:
        """Do nothing: no tag depends on a path."""


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (
        "bool",
        r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        list("yYnNtTfFoO"),
    ),
    ("int", r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    Parser.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), _first)


@dataclass(slots=True)
class Document:
    """A document: its plain value, and the line of each part."""

    _root: Node | None
    """Root node of the document; None if it has not been parsed as YAML."""
    file: str
    """Name of the file."""
    first_line: int
    """Line of the file at which the parsed chunk starts, counted from 1."""
    flaws: list[Flaw] = field(default_factory=list)
    """Problems of the text, such as duplicate keys."""
    value: object = None
    """Plain value of the document."""
    _json: str = ""
    """Text of the document, if it was read as JSON."""
    _visited: set[int] = field(default_factory=set)
    _ancestors: set[int] = field(default_factory=set)
    _aliased_values: int = 0
    _children: dict[int, Mapping[str | int, _Child]] = field(default_factory=dict)
    """Children of the mappings that `locate` has visited, by the mapping's id."""

    def __post_init__(self) -> None:
        if self._root:
            self.value = self._to_value(self._root, ())

    @property
    def root(self) -> Node:
        """Root node of the document."""
        root = self._root
        if root is None:
            # JSON is parsed as YAML only if it has problems, or if it will be edited.
            parser = Parser(self._json)
            parser.check_node()
            root = self._root = cast("Node", parser.get_node())
        return root

    def locate(self, path: Path) -> str:
        """Return `FILE:LINE` of a path, or of its closest existing ancestor."""
        if self._root is None:
            if not path:
                return f"{self.file}:{self.first_line + self._json.count(chr(10), 0, self._json.find('{'))}"
            try:
                _ = self.root
            except YAMLError:  # A tab in JSON is valid, but may not be valid in YAML.
                return self.locate(())
        node, line = self.root, self.root.start_mark.line
        for step in path:
            child: _Child | None = None
            if isinstance(node, MappingNode):
                if id(node) not in self._children:
                    self._children[id(node)] = _children(node)
                child = self._children[id(node)].get(step)
            elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
                child = _Child(node.value[step], node.value[step])
            if child is None:
                break
            line, node = child.key.start_mark.line, child.value
        return f"{self.file}:{self.first_line + line}"

    def _flaw(self, path: Path, what: str) -> None:
        """Record a flaw at a path. Raises YAMLError if there are too many."""
        if len(self.flaws) == MAX_FLAWS:
            path, what = self.flaws[0]
            what = f"it has more than {MAX_FLAWS} mistakes; the first is: {dotted(path)} {what}"
            raise MarkedYAMLError(problem=what, problem_mark=self.root.start_mark)
        self.flaws.append((path, what))

    def _to_value(self, node: Node, path: Path) -> object:
        """Return the plain value of a node. If it has none, record a flaw and return None."""
        if id(node) in self._ancestors:
            self._flaw(path, "contains itself")
            return None
        # Merged mappings (<<) are nested too, but add no step to the path.
        if len(self._ancestors) > MAX_DEPTH:
            self._flaw(path[:3], "is nested too deeply")
            return None
        if self._aliased_values > MAX_ALIASED_VALUES:
            return None
        if id(node) in self._visited:
            self._aliased_values += _size(node)
            if self._aliased_values > MAX_ALIASED_VALUES:
                self._flaw(path, f"exceeds the limit of {MAX_ALIASED_VALUES} values that aliases may repeat")
                return None
        self._visited.add(id(node))
        if isinstance(node, ScalarNode):
            return self._scalar_value(node, path)
        self._ancestors.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self._to_value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping_value(node, path) if isinstance(node, MappingNode) else None
        finally:
            self._ancestors.discard(id(node))

    def _mapping_value(self, node: MappingNode, path: Path) -> dict[str, object]:
        values: dict[str, object] = {}
        merged: list[object] = []
        visited = self._visited
        for key_node, value in node.value:
            if (
                key_node.tag == _STRING
                and value.tag == _STRING
                and type(key_node) is type(value) is ScalarNode
                and key_node.value not in values
                and id(value) not in visited
                and not self._aliased_values
            ):
                # The most common case is worth a shortcut.
                visited.add(id(value))
                values[key_node.value] = value.value
                continue
            if _is_merge(key_node):
                parts = value.value if isinstance(value, SequenceNode) else [value]
                merged += [self._to_value(part, path) for part in parts]
                continue
            key = _key(key_node)
            if key is None:
                self._flaw(path, "has a key that is neither a string nor a number")
            elif key in values:
                self._flaw((*path, key), "is set twice")
            else:
                values[key] = self._to_value(value, (*path, key))
        if not merged:
            return values
        result: dict[str, object] = {}
        for part in reversed(merged):
            if isinstance(part, dict):
                result.update(part)
            else:
                self._flaw(path, "merges (<<) a value that is not a mapping")
        return result | values

    def _scalar_value(self, node: ScalarNode, path: Path) -> object:
        text = str(node.value)
        if node.tag in _NUMBERS and len(text) > _MAX_DIGITS:
            self._flaw(path, "is not a number")
            return None
        try:
            match node.tag.removeprefix(_TAG):
                case "null":
                    return None
                case "bool":
                    return text.lower() in ("yes", "true", "on")
                case "int":
                    return _parse_integer(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                case "str" | "merge" | "binary" | "timestamp":
                    return text
        except ValueError:
            self._flaw(path, "is not a number")
            return None
        self._flaw(path, f"has the unsupported tag {node.tag[:_MAX_TAG_LENGTH]}")
        return None


_MAX_DIGITS = 1000
"""Maximum number of digits: Python cannot format longer numbers for an error message."""
_NUMBERS = frozenset({_TAG + "int", _TAG + "float"})
_MAX_TAG_LENGTH = 100
"""Maximum length of a tag in a flaw."""


def _parse_integer(text: str) -> int:
    """Parse an integer of YAML 1.1: decimal, 0x, 0b, and octal with the prefix 0 or 0o."""
    digits = text.replace("_", "").lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    if re.fullmatch(r"0[0-7]+", digits):
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def _is_merge(node: Node) -> bool:
    return bool(node.tag == _TAG + "merge")


def _key(node: Node) -> str | None:
    """Return a key as a string, as in JSON: `8080: ...` has the key "8080"."""
    return str(node.value) if isinstance(node, ScalarNode) else None


class _Child(NamedTuple):
    """A child of a mapping or list."""

    key: Node
    """Node that determines the line: the key, or the value itself in a list."""
    value: Node
    """Node of the value."""


def _children(node: MappingNode) -> Mapping[str | int, _Child]:
    """Return the children of a mapping by key, including merged ones; the last of duplicate keys wins."""
    children: dict[str | int, _Child] = {}
    pending: list[Node] = [node]
    seen: set[int] = set()
    while pending:
        mapping = pending.pop()
        if not isinstance(mapping, MappingNode) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        direct: dict[str | int, _Child] = {}
        merged: list[Node] = []
        for key_node, value in mapping.value:
            if _is_merge(key_node):
                merged += value.value if isinstance(value, SequenceNode) else [value]
            elif (key := _key(key_node)) is not None:
                direct[key] = _Child(key_node, value)
        for name, child in direct.items():
            children.setdefault(name, child)
        pending += reversed(merged)
    return children


def _size(node: Node) -> int:
    """Return the cost of repeating a node, in values. Keys count, values of children do not."""
    if isinstance(node, MappingNode):
        characters = sum(len(key.value) for key, _ in node.value if isinstance(key, ScalarNode))
        return 1 + len(node.value) + characters // _CHARACTERS_PER_VALUE
    return 1 + (len(node.value) // _CHARACTERS_PER_VALUE if isinstance(node, ScalarNode) else 0)


def read_documents(text: str, file: str, *, json: bool = False) -> Iterator[Document | Problem]:
    """Yield the documents of a file, and a Problem for each unreadable one."""
    for line, chunk in split_documents(join_surrogates(text) if json else text):
        yield from parse_chunk(chunk, file, line)


def join_surrogates(json: str) -> str:
    """Convert JSON to YAML by replacing escaped surrogate pairs, which YAML does not support."""
    return _SURROGATES.sub(lambda m: m[1] + chr(_code_point(int(m[2], 16), int(m[3], 16))), json)


def split_documents(text: str) -> Iterator[tuple[int, str]]:
    """Split a text into chunks that can be parsed independently. Yield the first line and text of each."""
    starts = [0]
    start, directives_end = 0, -1
    for match in _MARKER.finditer(text):
        # Directives belong to the document that follows them.
        if match.start() != directives_end:
            start = match.start()
        if match[0] == "%":
            directives_end = text.find("\n", match.end()) + 1 or len(text)
            continue
        if start:
            starts.append(start)
        directives_end = -1
    line = 1
    for begin, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield line, text[begin:end]
        line += text.count("\n", begin, end)


def parse_chunk(chunk: str, file: str, line: int) -> Iterator[Document | Problem]:
    """Yield the documents of a chunk, and a Problem for an unreadable part."""
    if sum(1 for _ in _TAG_DIRECTIVE.finditer(chunk)) > MAX_TAG_DIRECTIVES:
        what = f"cannot be read as YAML: it has more than {MAX_TAG_DIRECTIVES} %TAG directives"
        yield Problem(where=f"{file}:{line}", what=what)
        return
    if (value := read_json(chunk)) is not None:
        yield Document(None, file, line, value=value, _json=chunk)
        return
    try:
        parser = Parser(chunk)
        while parser.check_node():
            node = parser.get_node()
            document = Document(node, file, line) if node else None
            if document and (document.value is not None or document.flaws):
                yield document
    except YAMLError as error:
        yield _yaml_problem(error, chunk, file, line)


def read_json(chunk: str) -> dict[str, object] | None:
    """Return the value of a JSON object, which is read ten times faster than YAML.

    Return None for anything else, and for JSON that YAML does not support or that has flaws: duplicate keys,
    too many values, or too deep nesting.
    """
    text = chunk.removeprefix("---").strip(" \n")
    is_plain = text.startswith("{") and text.isascii() and "\x7f" not in text and "\\u" not in text
    # Each value takes at least two characters.
    if not is_plain or len(text) > 2 * MAX_VALUES:
        return None
    try:
        value = _JSON.decode(text)
    except (ValueError, RecursionError):
        return None
    is_deep = text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH
    return value if isinstance(value, dict) and not is_deep else None


def _depth(value: object) -> int:
    """Return the nesting depth of mappings and lists."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs) or "<<" in values:
        raise ValueError("YAML reports duplicate keys and merges mappings")
    return values


def _number(convert: type[int | float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        if len(text) > _MAX_DIGITS:
            raise ValueError("YAML reports long numbers")
        return convert(text)

    return read


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_JSON = JSONDecoder(
    object_pairs_hook=_mapping,
    parse_int=_number(int),
    parse_float=_number(float),
    parse_constant=_constant,
)


def _code_point(high: int, low: int) -> int:
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)


def _yaml_problem(error: YAMLError, chunk: str, file: str, first_line: int) -> Problem:
    line, what, hint = 0, str(error), ""
    if isinstance(error, MarkedYAMLError):
        # The parser reports an unclosed quote at the end of the text. Report its start instead.
        quoted = "quoted scalar" in (error.context or "")
        mark = (error.context_mark if quoted else None) or error.problem_mark
        line = mark.line if mark else 0
        what = ", ".join(part for part in (error.context, error.problem) if part)
        lines = chunk.split("\n")
        if line < len(lines) and lines[line].lstrip(" ").startswith("\t"):
            hint = "indent with spaces, not tabs"
    elif isinstance(error, ReaderError):
        line = chunk.encode()[: error.position].count(b"\n")
        what = f"the character {error.character!r} is not allowed"
    return Problem(where=f"{file}:{first_line + line}", what=f"cannot be read as YAML: {what}", hint=hint)
