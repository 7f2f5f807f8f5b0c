"""Read fields of Kubernetes objects, and report problems with their place and a hint.

A `Field` is a value with its path. Its methods return the value with the expected type. If the value has
another type, they add a problem to the `Log` and return a default, so one pass finds all problems of an
object. The object is rejected if its log has a problem that is neither a notice nor a warning.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import msgspec

from xds.mesh.model.names import MAX_SUGGESTION_LENGTH
from xds.mesh.model.objects import Problem
from xds.mesh.parse.problems import Problems

Path: TypeAlias = tuple[str | int, ...]
Locate: TypeAlias = Callable[[Path], str]
"""Function that returns the place of a path in its document: `FILE:LINE`, or the object's name."""
Flaw: TypeAlias = tuple[Path, str]
"""A problem of a document's text, such as a duplicate key: its path, and its description."""

E = TypeVar("E", bound=StrEnum)

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_DURATION_PART = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:h|ms|m|s|us|µs|ns)"
_PART = re.compile(_DURATION_PART)
_DURATION = re.compile(f"(?:{_DURATION_PART})+")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_MAX_SHOWN = 60
"""Maximum length of a value in a message, in characters."""
_MAX_SHOWN_KEY = 100
"""Maximum length of a key in a message, in characters."""
_MAX_SHOWN_BITS = 3000
"""Maximum size of a number in a message, in bits. Python formats at most 4300 digits."""

MAX_PROBLEMS = 10
"""Maximum number of problems per object, and maximum number of notices: one object must not fill the log."""
MAX_UNKNOWN = 3
"""Maximum number of unknown fields of a mapping with a problem each. One more problem counts all others."""
DID_YOU_MEAN = "did you mean "
MAX_SUGGESTIONS = 5
"""Maximum number of suggestions per object. Computing a suggestion takes up to 1 ms."""
MAX_DURATION_LENGTH = 64
"""Maximum length of a duration. A duration with all units and nine digits for each unit is shorter."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean ...?` with the most similar known word, or an empty string.

    Words over MAX_SUGGESTION_LENGTH characters get no suggestion.
    """
    if len(word) > MAX_SUGGESTION_LENGTH:
        return ""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.65)
    return f"{DID_YOU_MEAN}{by_lower_case[matches[0]]}?" if matches else ""


def shown(value: object) -> str:
    """Return a short representation of a value for messages, in YAML terms."""
    match value:
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str() if len(value) > _MAX_SHOWN:
            return repr(value[:_MAX_SHOWN])[:_MAX_SHOWN] + "..."
        case int() if value.bit_length() > _MAX_SHOWN_BITS:
            return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def dotted(path: Path) -> str:
    """Format a path like kubectl: `spec.ports[0].name`. Long keys are truncated."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        key = _cut_key(step)
        if _PLAIN_KEY.fullmatch(key):
            text += f".{key}" if text else key
        else:
            text += f'["{key}"]'
    return text


def _cut_key(key: str) -> str:
    return key if len(key) <= _MAX_SHOWN_KEY else f"{key[:_MAX_SHOWN_KEY]}..."


MAX_DURATION = 2562047 * 3600.0
"""Maximum duration in seconds. Kubernetes and Envoy store durations as 64-bit numbers of nanoseconds."""


@lru_cache(maxsize=256)
def _word_set(words: str) -> frozenset[str]:
    """Return the words of a text. Each text is a constant of this program."""
    return frozenset(words.split())


class Log:
    """The problems of one object, in order: at most MAX_PROBLEMS problems and MAX_PROBLEMS notices."""

    def __init__(self, locate: Locate, subject: str = "", root: Path = ()) -> None:
        self.locate = locate
        self.root = root
        """Path of the object in its document."""
        self.subject = subject
        """Name of the object; empty until its name is parsed."""
        self.any_field = False
        """Whether unknown fields are accepted."""
        self.refusals: list[Path] = []
        """Paths of the problems that make the object invalid, relative to the object."""
        self._problems = Problems(MAX_PROBLEMS)
        self._suggestions = MAX_SUGGESTIONS

    @property
    def problems(self) -> list[Problem]:
        """The first problems, then a summary with the number of all others."""
        where = self.locate(())
        return [*self._problems.listed(where, "" if self.subject == where else self.subject)]

    @property
    def refused(self) -> bool:
        """Whether the object is rejected."""
        return bool(self.refusals)

    def is_readable(self, *path: str | int) -> bool:
        """Whether no problem at a path, above it or below it makes the object invalid."""
        return not any(refused[: len(path)] == path[: len(refused)] for refused in self.refusals)

    def only_refused_below(self, *paths: Path) -> bool:
        """Whether all problems that make the object invalid are at or below one of these paths."""
        return all(any(refused[: len(path)] == path for path in paths) for refused in self.refusals)

    def add(
        self, path: Path, what: str, hint: str = "", *, notice: bool = False, warning: bool = False
    ) -> None:
        """Add a problem at a path. A notice or a warning does not make the object invalid."""
        if not notice and not warning:
            self.refusals.append(path[len(self.root) :])
        if not self._problems.admit(notice=notice):
            return
        where = self.locate(path)
        subject = "" if self.subject == where else self.subject
        prefix = ": ".join(part for part in (subject, dotted(path)) if part)
        separator = " " if path else ": " if prefix else ""
        self._problems.keep(
            Problem(
                where=where,
                what=prefix + separator + what,
                hint=hint,
                notice=notice,
                subject=self.subject,
            )
        )

    def nearest(self, word: object, known: Iterable[str]) -> str:
        """Like the function `nearest`, but for only the first MAX_SUGGESTIONS words of an object."""
        if not isinstance(word, str) or self._suggestions <= 0:
            return ""
        self._suggestions -= 1
        return nearest(word, known)


class Field(msgspec.Struct, eq=False, gc=False):
    """A value in an object, with its path. As in Kubernetes, `null` is the same as absent.

    A list of pods has millions of fields, and only those with problems need their paths. So a field has only
    the last step of its path, and its parent, and it is a `Struct`, which is created in a third of the time.
    """

    value: Any
    """The value, as decoded from JSON or YAML; None if it is absent."""
    _steps: Path
    """Path of the value in its document, or in its parent."""
    log: Log
    """Log for problems of the object."""
    _parent: Field | None = None
    """Field that contains this one."""

    @property
    def path(self) -> Path:
        """Path of the value in its document."""
        return self._steps if self._parent is None else (*self._parent.path, *self._steps)

    def __getitem__(self, name: str) -> Field:
        """Return a field of this mapping. The field is absent if this value is not a mapping."""
        value = self.value
        return Field(value.get(name) if isinstance(value, dict) else None, (name,), self.log, self)

    def __bool__(self) -> bool:
        """Whether the value is present."""
        return self.value is not None

    def has(self, name: str) -> bool:
        """Whether the mapping contains a field, even as null."""
        return isinstance(self.value, dict) and name in self.value

    def refuse(self, what: str, hint: str = "") -> None:
        """Add a problem that makes the object invalid, so it is rejected."""
        self.log.add(self.path, what, hint)

    def notice(self, what: str, hint: str = "") -> None:
        """Add a notice: the value is ignored."""
        self.log.add(self.path, what, hint, notice=True)

    def warn(self, what: str, hint: str = "") -> None:
        """Add a problem that does not make the object invalid."""
        self.log.add(self.path, what, hint, warning=True)

    def required(self) -> Field:
        """Reject the object if the value is absent or, as in Kubernetes, an empty string."""
        if self.value is None or self.value == "":
            self.refuse("is required")
        return self

    def _expected(self, what: str, hint: str = "") -> None:
        self.refuse(f"must be {what}, not {shown(self.value)}", hint)

    def mapping(self, known: str = "", *, strict: bool = False) -> Field:
        """Expect a mapping. By default, unknown fields are ignored with a notice.

        Args:
            known: names of known fields, separated by spaces; empty to accept any field.
            strict: whether unknown fields are errors. Use it where an ignored field could weaken security.
        """
        if self.value is None:
            return self
        if not isinstance(self.value, dict):
            self._expected("a mapping")
            return Field(None, (), self.log, self)
        if not known or (self.log.any_field and not strict):
            return self
        if self.value.keys() <= _word_set(known):
            return self
        words = known.split()
        unknown = [str(name) for name in self.value if name not in words]
        for name in unknown[:MAX_UNKNOWN]:
            hint = self.log.nearest(name, words)
            if strict:
                self[name].refuse("is not a known field", hint)
            else:
                self[name].notice("is not a known field and is ignored", hint)
        if more := unknown[MAX_UNKNOWN:]:
            listed = ", ".join(map(_cut_key, more[:MAX_UNKNOWN]))
            listed += ", ..." if len(more) > MAX_UNKNOWN else ""
            ignored = "" if strict else " that are ignored"
            self.log.add(
                self.path, f"has {len(more)} more unknown fields{ignored}: {listed}", notice=not strict
            )
        return self

    def items(self) -> Iterator[Field]:
        """Expect a list, and yield its items."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            self._expected("a list", f"start each item of {dotted(self.path[-1:])} with '- '")
            return
        for index, value in enumerate(self.value):
            item = Field(value, (index,), self.log, self)
            if value is None:
                item.refuse("is empty")
            else:
                yield item

    def entries(self) -> Iterator[tuple[str, Field]]:
        """Expect a mapping with arbitrary keys, and yield its entries."""
        for name in self.mapping().value or ():
            yield str(name), Field(self.value[name], (str(name),), self.log, self)

    def texts(self) -> dict[str, str]:
        """Expect a mapping with arbitrary keys, whose values are strings."""
        values = self.mapping().value or {}
        if all(type(value) is type(name) is str for name, value in values.items()):
            return dict(values)
        return {name: entry.text() for name, entry in self.entries()}

    def text(self, default: str = "") -> str:
        """Expect a string."""
        if self.value is None:
            return default
        if isinstance(self.value, str):
            return self.value
        self._expected("a string", "" if isinstance(self.value, dict | list) else "put it in quotes")
        return default

    def name(self, check: Callable[[str], str]) -> str:
        """Expect a valid name or an empty string. `check` returns what is wrong with a name."""
        name = self.value
        if not isinstance(name, str):
            return self.text()
        if name and (error := check(name)):
            self.refuse(f"{shown(name)} {error}")
        return name

    def boolean(self) -> bool | None:
        """Expect true or false."""
        if self.value is None or isinstance(self.value, bool):
            return self.value
        self._expected("true or false", "without quotes" if self.value in ("true", "false") else "")
        return None

    def integer(self, low: int = 0, high: int = 2**32 - 1) -> int | None:
        """Expect an integer in a range."""
        if self.value is None:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            is_quoted = isinstance(self.value, str) and self.value.isdecimal()
            self._expected(f"a number from {low} to {high}", "without quotes" if is_quoted else "")
            return None
        return self.value

    def number(self, low: float, high: float) -> float | None:
        """Expect a number in a range."""
        if self.value is None:
            return None
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not is_number or not low <= self.value <= high:  # Excludes NaN as well.
            self._expected(f"a number from {low:g} to {high:g}")
            return None
        return float(self.value)

    def port(self) -> int:
        """Expect a port number."""
        return self.integer(1, 65535) or 1

    def seconds(self, minimum: float = 0.0, maximum: float = MAX_DURATION) -> float | None:
        """Expect a duration such as `10s`, `500ms` or `1h30m`, and return it in seconds."""
        if self.value is None:
            return None
        text = self.value if isinstance(self.value, str) else ""
        if len(text) > MAX_DURATION_LENGTH:
            self.refuse(f"must be a duration of at most {MAX_DURATION_LENGTH} characters, not {len(text)}")
            return None
        if not _DURATION.fullmatch(text):
            is_number = isinstance(self.value, int) and not isinstance(self.value, bool)
            hint = f"write {shown(self.value)}s" if is_number else ""
            self._expected("a duration such as 10s or 500ms", hint)
            return None
        total = sum(
            float(part.rstrip("hmsuµn")) * _SECONDS[part.lstrip("0123456789.")]
            for part in _PART.findall(text)
        )
        if total < minimum:
            self.refuse(f"must be at least {round(minimum * 1000)}ms, not {text}")
            return None
        if total > maximum:
            self.refuse(f"must be at most {round(maximum / 3600)}h, not {shown(text)}")
            return None
        return total

    def one_of(self, *words: str, hint: str = "") -> str:
        """Expect one of these words. Return an empty string if the value is absent or another one."""
        if self.value is None:
            return ""
        if isinstance(self.value, str) and self.value in words:
            return self.value
        self.refuse(
            f"must be one of {', '.join(words)}, not {shown(self.value)}",
            hint or self.log.nearest(self.value, words),
        )
        return ""

    def choice(self, known: type[E]) -> E | None:
        """Expect a value of an enumeration."""
        word = self.one_of(*known)
        return known(word) if word else None
