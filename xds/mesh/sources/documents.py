"""Parser for YAML and JSON as kubectl reads them, which records the line of each value.

kubectl turns YAML into JSON first, so keys are strings, times stay text, and 1:30 is no number. A document
that cannot be read does not take the others of its file with it. What is read is bounded, whatever aliases
make of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from yaml import MappingNode, Node, ScalarNode, SequenceNode, YAMLError
from yaml._yaml import CParser
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError
from yaml.resolver import BaseResolver

from xds.mesh.model.objects import Problem
from xds.mesh.parse import Flaw, Path, dotted

MAX_ALIASED_VALUES = 50_000
"""How many values, keys included, aliases may repeat in a document: a few lines of nested aliases could stand
for billions."""
_CHARACTERS_PER_VALUE = 100
"""As many characters that an alias repeats count as one more value: an alias may stand for a text of
megabytes."""
MAX_DEPTH = 60
"""Maximum nesting depth of values. Kubernetes objects are far below it."""
MAX_VALUES = 1_000_000
"""How many values a document may have, keys included. Each takes about 300 bytes of memory while it is read,
and 3 µs."""
MAX_FLAWS = 1000
"""How many mistakes of a document's text are noted one by one. With more of them, all of the document is
unreadable."""
MAX_TAG_DIRECTIVES = 100
"""How many %TAG directives a document may have: libyaml compares each with all the others."""

_TAG = "tag:yaml.org,2002:"
_MARKER = re.compile(r"^(?:%|---(?=\s|$))", re.MULTILINE)
_TAG_DIRECTIVE = re.compile(r"^%TAG", re.MULTILINE)
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


class Parser(CParser, BaseResolver):
    """libyaml, with the meanings that kubectl gives to plain words."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        BaseResolver.__init__(self)
        self._values = 0

    def resolve(self, kind: type[Node], value: str | None, implicit: tuple[bool, bool]) -> str:
        """Return the tag of a value; libyaml asks for it once for each. YAMLError: there are more than MAX_VALUES."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise YAMLError(f"it has more than {MAX_VALUES} values (write several documents)")
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


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
    """One document: its plain value, and where everything in it is."""

    root: Node
    file: str
    first_line: int
    """The line of the file that the parser called its first; counted from 1."""
    flaws: list[Flaw] = field(default_factory=list)
    value: object = None
    _visited: set[int] = field(default_factory=set)
    _ancestors: set[int] = field(default_factory=set)
    _aliased_values: int = 0
    _children: dict[int, Mapping[str | int, _Child]] = field(default_factory=dict)
    """By the id of a mapping, where its keys are; only of mappings that were looked into."""

    def __post_init__(self) -> None:
        self.value = self._to_value(self.root, ())

    def locate(self, path: Path) -> str:
        """Tell `FILE:LINE` of a path, or of what is nearest to it."""
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
        """Note what is wrong at a path. YAMLError: too much is."""
        if len(self.flaws) == MAX_FLAWS:
            what = f"it has more than {MAX_FLAWS} mistakes, the first of which: {dotted(self.flaws[0][0])} {self.flaws[0][1]}"
            raise MarkedYAMLError(problem=what, problem_mark=self.root.start_mark)
        self.flaws.append((path, what))

    def _to_value(self, node: Node, path: Path) -> object:
        """Make a plain value of a node; what cannot be is noted as a flaw, and None."""
        if id(node) in self._ancestors:
            self._flaw(path, "contains itself")
            return None
        # Not the path's length: what is merged (<<) is nested as well, and adds no step to the path.
        if len(self._ancestors) > MAX_DEPTH:
            self._flaw(path[:3], "is nested too deep")
            return None
        if self._aliased_values > MAX_ALIASED_VALUES:
            return None
        if id(node) in self._visited:
            self._aliased_values += _size(node)
            if self._aliased_values > MAX_ALIASED_VALUES:
                self._flaw(path, f"is where aliases stand for more than {MAX_ALIASED_VALUES} values")
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
        read: dict[str, object] = {}
        merged: list[object] = []
        for key_node, value in node.value:
            if _is_merge(key_node):
                several = isinstance(value, SequenceNode)
                merged += [self._to_value(part, path) for part in (value.value if several else [value])]
                continue
            key = _key(key_node)
            if key is None:
                self._flaw(path, "has a key that is neither a word nor a number")
            elif key in read:
                self._flaw((*path, key), "is there twice")
            else:
                read[key] = self._to_value(value, (*path, key))
        if not merged:
            return read
        result: dict[str, object] = {}
        for part in reversed(merged):
            if isinstance(part, dict):
                result.update(part)
            else:
                self._flaw(path, "merges (<<) something that is no mapping")
        return result | read

    def _scalar_value(self, node: ScalarNode, path: Path) -> object:
        text = str(node.value)
        if node.tag in _NUMBERS and len(text) > _MAX_DIGITS:
            self._flaw(path, "is no number")
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
            self._flaw(path, "is no number")
            return None
        self._flaw(path, f"has the tag {node.tag[:_MAX_TAG_LENGTH]}, which means nothing here")
        return None


_MAX_DIGITS = 1000
"""Python writes no longer number out in decimal, as an error about it would have to."""
_NUMBERS = frozenset({_TAG + "int", _TAG + "float"})
_MAX_TAG_LENGTH = 100
"""Characters of a tag that a flaw repeats."""


def _parse_integer(text: str) -> int:
    """Read a number as YAML 1.1 writes it: decimal, 0x, 0b, and octal with 0 or 0o before it."""
    digits = text.replace("_", "").lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    if re.fullmatch(r"0[0-7]+", digits):
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def _is_merge(node: Node) -> bool:
    return bool(node.tag == _TAG + "merge")


def _key(node: Node) -> str | None:
    """Tell a key's name: in JSON every key is a string, `8080: ...` too."""
    return str(node.value) if isinstance(node, ScalarNode) else None


class _Child(NamedTuple):
    """A value of a mapping or list, and what says where it is: its key, or itself."""

    key: Node
    value: Node


def _children(node: MappingNode) -> Mapping[str | int, _Child]:
    """Return what a mapping has and what is merged into it, by key: the last of equal keys, and before what is merged."""
    found: dict[str | int, _Child] = {}
    todo: list[Node] = [node]
    seen: set[int] = set()
    while todo:
        mapping = todo.pop()
        if not isinstance(mapping, MappingNode) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        own: dict[str | int, _Child] = {}
        merged: list[Node] = []
        for key_node, value in mapping.value:
            if _is_merge(key_node):
                merged += value.value if isinstance(value, SequenceNode) else [value]
            elif (key := _key(key_node)) is not None:
                own[key] = _Child(key_node, value)
        for name, child in own.items():
            found.setdefault(name, child)
        todo += reversed(merged)
    return found


def _size(node: Node) -> int:
    """Return what repeating a node costs, in values: with its keys, without the values of its members."""
    if isinstance(node, MappingNode):
        characters = sum(len(key.value) for key, _ in node.value if isinstance(key, ScalarNode))
        return 1 + len(node.value) + characters // _CHARACTERS_PER_VALUE
    return 1 + (len(node.value) // _CHARACTERS_PER_VALUE if isinstance(node, ScalarNode) else 0)


def read_documents(text: str, file: str, *, json: bool = False) -> Iterator[Document | Problem]:
    """Yield a file's documents; in place of one that cannot be read, a Problem."""
    for line, chunk in split_documents(join_surrogates(text) if json else text):
        yield from parse_chunk(chunk, file, line)


def join_surrogates(json: str) -> str:
    """Return JSON as YAML: it writes what is beyond 16 bits as two escapes, which YAML does not know."""
    return _SURROGATES.sub(lambda m: m[1] + chr(_code_point(int(m[2], 16), int(m[3], 16))), json)


def split_documents(text: str) -> Iterator[tuple[int, str]]:
    """Yield parts of a text that can be read each for itself, and the line that each begins on; together they are it."""
    starts = [0]
    begins, ended = 0, -1
    for match in _MARKER.finditer(text):
        # Directives belong to the document that begins right after them.
        if match.start() != ended:
            begins = match.start()
        if match[0] == "%":
            ended = text.find("\n", match.end()) + 1 or len(text)
            continue
        if begins:
            starts.append(begins)
        ended = -1
    line = 1
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield line, text[start:end]
        line += text.count("\n", start, end)


def parse_chunk(chunk: str, file: str, line: int) -> Iterator[Document | Problem]:
    """Yield the documents of a chunk; in place of what cannot be read, a Problem."""
    if sum(1 for _ in _TAG_DIRECTIVE.finditer(chunk)) > MAX_TAG_DIRECTIVES:
        what = f"cannot be read as YAML: it has more than {MAX_TAG_DIRECTIVES} %TAG directives"
        yield Problem(where=f"{file}:{line}", what=what)
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


def _code_point(high: int, low: int) -> int:
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)


def _yaml_problem(error: YAMLError, chunk: str, file: str, first_line: int) -> Problem:
    line, what, hint = 0, str(error), ""
    if isinstance(error, MarkedYAMLError):
        # An unclosed quote is noticed at the end, and is to be mended where it begins.
        quoted = "quoted scalar" in (error.context or "")
        mark = (error.context_mark if quoted else None) or error.problem_mark
        line = mark.line if mark else 0
        what = ", ".join(part for part in (error.context, error.problem) if part)
        lines = chunk.split("\n")
        if line < len(lines) and lines[line].lstrip(" ").startswith("\t"):
            hint = "YAML indents with spaces, never with tabs"
    elif isinstance(error, ReaderError):
        line = chunk.encode()[: error.position].count(b"\n")
        what = f"the character {error.character!r} is not allowed"
    return Problem(where=f"{file}:{first_line + line}", what=f"cannot be read as YAML: {what}", hint=hint)
