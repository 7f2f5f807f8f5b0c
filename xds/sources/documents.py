"""YAML and JSON text as kubectl understands it: plain values, and the line that each of them is on.

kubectl turns YAML into JSON first, so keys are strings, times stay text, and 1:30 is no number. A document that cannot be
read does not take the others of its file with it. What is read is bounded, whatever aliases make of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from yaml import MappingNode, Node, ScalarNode, SequenceNode, YAMLError
from yaml._yaml import CParser
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError
from yaml.resolver import BaseResolver

from xds.model import Problem
from xds.parse import Flaw, Path

MOST_ALIASED = 50_000
"""How many values aliases may repeat in a document: a few lines of nested aliases could stand for billions."""
DEEPEST = 60
"""How deep values may be nested; no Kubernetes object comes near."""

_TAG = "tag:yaml.org,2002:"
_START = re.compile(r"^(?:%[^\n]*\n)*---(?=\s|$)", re.MULTILINE)
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


class Parser(CParser, BaseResolver):
    """libyaml, with the meanings that kubectl gives to plain words."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        BaseResolver.__init__(self)


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
    _seen: set[int] = field(default_factory=set)
    _open: set[int] = field(default_factory=set)
    _repeated: int = 0

    def __post_init__(self) -> None:
        self.value = self._plain(self.root, ())

    def locate(self, path: Path) -> str:
        """Tell `FILE:LINE` of a path, or of what is nearest to it."""
        node, line = self.root, self.root.start_mark.line
        for step in path:
            found: tuple[Node, Node] | None = None
            if isinstance(node, MappingNode):
                found = _find(node, step, set())
            elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = (node.value[step], node.value[step])
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        return f"{self.file}:{self.first_line + line}"

    def _plain(self, node: Node, path: Path) -> object:
        """Make a plain value of a node; what cannot be is noted as a flaw, and None."""
        if id(node) in self._open:
            self.flaws.append((path, "contains itself"))
            return None
        if len(path) > DEEPEST:
            self.flaws.append((path[:3], "is nested too deep"))
            return None
        self._repeated += id(node) in self._seen
        if self._repeated > MOST_ALIASED:
            if self._repeated == MOST_ALIASED + 1:
                self.flaws.append((path, f"is where aliases stand for more than {MOST_ALIASED} values"))
            self._repeated += 1
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        self._seen.add(id(node))
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self._plain(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path) if isinstance(node, MappingNode) else None
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, object]:
        read: dict[str, object] = {}
        merged: list[object] = []
        for key_node, value in node.value:
            if _is_merge(key_node):
                several = isinstance(value, SequenceNode)
                merged += [self._plain(part, path) for part in (value.value if several else [value])]
                continue
            key = _key(key_node)
            if key is None:
                self.flaws.append((path, "has a key that is neither a word nor a number"))
            elif key in read:
                self.flaws.append(((*path, key), "is there twice"))
            else:
                read[key] = self._plain(value, (*path, key))
        for part in merged:
            if not isinstance(part, dict):
                self.flaws.append((path, "merges (<<) something that is no mapping"))
                continue
            read = part | read
        return read

    def _scalar(self, node: ScalarNode, path: Path) -> object:
        text = str(node.value)
        try:
            match node.tag.removeprefix(_TAG):
                case "null":
                    return None
                case "bool":
                    return text.lower() in ("yes", "true", "on")
                case "int":
                    return _integer(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                case "str" | "merge" | "binary" | "timestamp":
                    return text
        except ValueError:
            self.flaws.append((path, "is no number"))
            return None
        self.flaws.append((path, f"has the tag {node.tag}, which means nothing here"))
        return None


_MOST_DIGITS = 1000
"""Python writes no longer number out in decimal, as an error about it would have to."""


def _integer(text: str) -> int:
    """Read a number as YAML 1.1 writes it: decimal, 0x, 0b, and octal with 0 or 0o before it."""
    digits = text.replace("_", "").lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"{len(digits)} digits")
    if re.fullmatch(r"0[0-7]+", digits):
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def _is_merge(node: Node) -> bool:
    return bool(node.tag == _TAG + "merge")


def _key(node: Node) -> str | None:
    """Tell a key's name: in JSON every key is a string, `8080: ...` too."""
    return str(node.value) if isinstance(node, ScalarNode) else None


def _find(node: MappingNode, key: str | int, searched: set[int]) -> tuple[Node, Node] | None:
    """Find the node of a key (the last of equal ones) and of its value, in a mapping and what is merged into it."""
    searched.add(id(node))
    merged: list[Node] = []
    found: tuple[Node, Node] | None = None
    for key_node, value in node.value:
        if _is_merge(key_node):
            merged += value.value if isinstance(value, SequenceNode) else [value]
        elif _key(key_node) == key:
            found = (key_node, value)
    for part in merged if found is None else ():
        if isinstance(part, MappingNode) and id(part) not in searched:
            found = found or _find(part, key, searched)
    return found


def read(text: str, file: str, *, json: bool = False) -> Iterator[Document | Problem]:
    """Yield a file's documents; in place of one that cannot be read, a Problem."""
    for line, chunk in chunks(joined(text) if json else text):
        yield from parsed(chunk, file, line)


def joined(json: str) -> str:
    """Return JSON as YAML: it writes what is beyond 16 bits as two escapes, which YAML does not know."""
    return _SURROGATES.sub(lambda m: m[1] + chr(_beyond(int(m[2], 16), int(m[3], 16))), json)


def chunks(text: str) -> Iterator[tuple[int, str]]:
    """Yield parts of a text that can be read each for itself, and the line that each begins on; together they are it."""
    starts = [0, *(match.start() for match in _START.finditer(text) if match.start())]
    line = 1
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield line, text[start:end]
        line += text.count("\n", start, end)


def parsed(chunk: str, file: str, line: int) -> Iterator[Document | Problem]:
    """Yield the documents of a chunk; in place of what cannot be read, a Problem."""
    try:
        parser = Parser(chunk)
        while parser.check_node():
            node = parser.get_node()
            document = Document(node, file, line) if node else None
            if document and (document.value is not None or document.flaws):
                yield document
    except YAMLError as error:
        yield _unreadable(error, chunk, file, line)


def _beyond(high: int, low: int) -> int:
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)


def _unreadable(error: YAMLError, chunk: str, file: str, first_line: int) -> Problem:
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
