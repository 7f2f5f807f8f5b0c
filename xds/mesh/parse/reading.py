"""Reading kubectl-shaped values: every complaint says where, what, and what to write instead.

A `Field` is a value and the path that led to it. Asked to be what it should be, it either is, or says on its
`Log` why not and gives a harmless default, so that all that is wrong with an object is found in one reading;
an object with a refusal on its log never becomes a fact.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from xds.mesh.model.objects import Problem
from xds.mesh.parse.problems import Problems

Path: TypeAlias = tuple[str | int, ...]
Locate: TypeAlias = Callable[[Path], str]
"""Where a path of the document is: `FILE:LINE`, or a name where there is no file."""
Flaw: TypeAlias = tuple[Path, str]
"""Something wrong with the text at a path, such as a key that is there twice."""

E = TypeVar("E", bound=StrEnum)

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_DURATION_PART = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:h|ms|m|s|us|µs|ns)"
_PART = re.compile(_DURATION_PART)
_DURATION = re.compile(f"(?:{_DURATION_PART})+")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_SHOWN = 60
"""How much of a wrong value a message repeats."""
_SHOWN_KEY = 100
"""How much of a key a message repeats."""
_SHOWN_BITS = 3000
"""Size of the largest number that a message repeats; Python refuses to write numbers of over 4300 digits."""

MAX_PROBLEMS = 10
"""How many problems are listed for one object, and how many notices: a tenant's object must not fill the
log."""
MAX_UNKNOWN = 3
"""How many unknown fields of one mapping are listed one by one; the others are counted in one problem."""
MAX_SUGGESTIONS = 5
"""How many unknown words of one object are compared with the known ones, which takes up to a millisecond
each."""
MAX_SUGGESTION_LENGTH = 64
"""Characters of the longest word that is compared: comparing takes time by the square of the length."""
MAX_DURATION_LENGTH = 64
"""Characters of the longest duration that is read; all units with nine digits each have fewer."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known word was probably meant: `did you mean ...?`, or nothing.

    A word of more than MAX_SUGGESTION_LENGTH characters is not compared.
    """
    if len(word) > MAX_SUGGESTION_LENGTH:
        return ""
    spelled = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=0.65)
    return f"did you mean {spelled[found[0]]}?" if found else ""


def shown(value: object) -> str:
    """Show a wrong value, as YAML would say it and not at length."""
    match value:
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str() if len(value) > _SHOWN:
            return repr(value[:_SHOWN])[:_SHOWN] + "..."
        case int() if value.bit_length() > _SHOWN_BITS:
            return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def dotted(path: Path) -> str:
    """Write a path as people do: `spec.ports[0].name`. Long keys are cut."""
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
    return key if len(key) <= _SHOWN_KEY else f"{key[:_SHOWN_KEY]}..."


LONGEST = 2562047 * 3600.0
"""Seconds of the longest duration that Go, and so Kubernetes and Envoy, can hold: 2^63 ns in whole hours."""


class Log:
    """What was found wrong with one object, in order; at most MAX_PROBLEMS are listed, and as many notices."""

    def __init__(self, locate: Locate, subject: str = "", root: Path = ()) -> None:
        self.locate = locate
        self.root = root
        """Path of the object in its document."""
        self.subject = subject
        """The object's name, once it is known."""
        self.any_field = False
        """Whether fields that are not known are no mistake."""
        self.refusals: list[Path] = []
        """Paths in the object of what makes it unusable."""
        self._problems = Problems(MAX_PROBLEMS)
        self._suggestions = MAX_SUGGESTIONS

    @property
    def problems(self) -> list[Problem]:
        """The first problems, then how many more there were."""
        where = self.locate(())
        return [*self._problems.listed(where, "" if self.subject == where else self.subject)]

    @property
    def refused(self) -> bool:
        """Whether the object cannot be used."""
        return bool(self.refusals)

    def is_readable(self, *path: str | int) -> bool:
        """Whether nothing was refused at a path, above it or below it."""
        return not any(at[: len(path)] == path[: len(at)] for at in self.refusals)

    def only_refused_below(self, *paths: Path) -> bool:
        """Whether everything that was refused is at or below one of these paths."""
        return all(any(at[: len(path)] == path for path in paths) for at in self.refusals)

    def add(
        self, path: Path, what: str, hint: str = "", *, notice: bool = False, warning: bool = False
    ) -> None:
        """Note something about a path. A notice or a warning does not make the object unusable."""
        if not notice and not warning:
            self.refusals.append(path[len(self.root) :])
        if not self._problems.admit(notice=notice):
            return
        where = self.locate(path)
        subject = "" if self.subject == where else self.subject
        words = ": ".join(part for part in (subject, dotted(path)) if part)
        joint = " " if path else ": " if words else ""
        self._problems.keep(Problem(where=where, what=words + joint + what, hint=hint, notice=notice))

    def nearest(self, word: object, known: Iterable[str]) -> str:
        """Say which known word was probably meant, for the first MAX_SUGGESTIONS words of an object."""
        if not isinstance(word, str) or self._suggestions <= 0:
            return ""
        self._suggestions -= 1
        return nearest(word, known)


@dataclass(frozen=True, slots=True)
class Field:
    """A value of an object. `null` is the same as absent, as it is in Kubernetes."""

    value: Any
    path: Path
    log: Log

    def __getitem__(self, name: str) -> Field:
        """Return a field of this mapping; absent if this is none."""
        value = self.value.get(name) if isinstance(self.value, Mapping) else None
        return Field(value, (*self.path, name), self.log)

    def __bool__(self) -> bool:
        """Whether it is there."""
        return self.value is not None

    def has(self, name: str) -> bool:
        """Whether the mapping names a field at all, be it as null."""
        return isinstance(self.value, Mapping) and name in self.value

    def refuse(self, what: str, hint: str = "") -> None:
        """Note why the object cannot be used."""
        self.log.add(self.path, what, hint)

    def notice(self, what: str, hint: str = "") -> None:
        """Note something that is passed over."""
        self.log.add(self.path, what, hint, notice=True)

    def warn(self, what: str, hint: str = "") -> None:
        """Note something that the author of the object has to know, though the object is not refused."""
        self.log.add(self.path, what, hint, warning=True)

    def required(self) -> Field:
        """Refuse the object if this is absent, or an empty string, which Kubernetes takes for the same."""
        if self.value is None or self.value == "":
            self.refuse("is required")
        return self

    def _wants(self, what: str, hint: str = "") -> None:
        self.refuse(f"must be {what}, not {shown(self.value)}", hint)

    def mapping(self, known: str = "", *, strict: bool = False) -> Field:
        """Expect a mapping of these fields (of any, if none are named); others are pointed out and ignored.

        `strict`: others are refused. So it must be where leaving out what was meant would open what was to be
        closed.
        """
        if self.value is None:
            return self
        if not isinstance(self.value, Mapping):
            self._wants("a mapping")
            return Field(None, self.path, self.log)
        words = known.split()
        if not words or (self.log.any_field and not strict):
            return self
        unknown = [str(name) for name in self.value if name not in words]
        for name in unknown[:MAX_UNKNOWN]:
            hint = self.log.nearest(name, words)
            if strict:
                self[name].refuse("is not a known field", hint)
            else:
                self[name].notice("is not a known field and is ignored", hint)
        if more := unknown[MAX_UNKNOWN:]:
            named = ", ".join(map(_cut_key, more[:MAX_UNKNOWN])) + (
                ", ..." if len(more) > MAX_UNKNOWN else ""
            )
            ignored = "" if strict else " that are ignored"
            self.log.add(
                self.path, f"has {len(more)} more unknown fields{ignored}: {named}", notice=not strict
            )
        return self

    def items(self) -> Iterator[Field]:
        """Expect a list; yield its members."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            self._wants("a list", f"put '- ' before what {dotted(self.path[-1:])} has")
            return
        for index, value in enumerate(self.value):
            item = Field(value, (*self.path, index), self.log)
            if value is None:
                item.refuse("is empty")
            else:
                yield item

    def entries(self) -> Iterator[tuple[str, Field]]:
        """Expect a mapping whose keys are the user's; yield it."""
        for name in self.mapping().value or ():
            yield str(name), Field(self.value[name], (*self.path, str(name)), self.log)

    def text(self, default: str = "") -> str:
        """Expect a string."""
        if self.value is None:
            return default
        if isinstance(self.value, str):
            return self.value
        self._wants("a string", "" if isinstance(self.value, Mapping | list) else "put it in quotes")
        return default

    def name(self, check: Callable[[str], str], default: str = "") -> str:
        """Expect a string that a rule for names (which says what is wrong) has nothing against, or an empty one."""
        text = self.text(default)
        if text and isinstance(self.value, str) and (wrong := check(text)):
            self.refuse(f"{shown(text)} {wrong}")
        return text

    def boolean(self) -> bool | None:
        """Expect true or false."""
        if self.value is None or isinstance(self.value, bool):
            return self.value
        self._wants("true or false", "without quotes" if self.value in ("true", "false") else "")
        return None

    def integer(self, low: int = 0, high: int = 2**32 - 1) -> int | None:
        """Expect a whole number in a range."""
        if self.value is None:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            quoted = isinstance(self.value, str) and self.value.isdecimal()
            self._wants(f"a number from {low} to {high}", "without quotes" if quoted else "")
            return None
        return self.value

    def port(self) -> int:
        """Expect a port number."""
        return self.integer(1, 65535) or 1

    def seconds(self, least: float = 0.0, most: float = LONGEST) -> float | None:
        """Expect a duration such as `10s`, `500ms` or `1h30m`; return seconds."""
        if self.value is None:
            return None
        text = self.value if isinstance(self.value, str) else ""
        if len(text) > MAX_DURATION_LENGTH:
            self.refuse(f"must be a duration of at most {MAX_DURATION_LENGTH} characters, not {len(text)}")
            return None
        if not _DURATION.fullmatch(text):
            number = isinstance(self.value, int) and not isinstance(self.value, bool)
            self._wants("a duration such as 10s or 500ms", f"write {shown(self.value)}s" if number else "")
            return None
        total = sum(
            float(part.rstrip("hmsuµn")) * _SECONDS[part.lstrip("0123456789.")]
            for part in _PART.findall(text)
        )
        if total < least:
            self.refuse(f"must be at least {round(least * 1000)}ms, not {text}")
            return None
        if total > most:
            self.refuse(f"must be at most {round(most / 3600)}h, not {shown(text)}")
            return None
        return total

    def choice(self, known: type[E], hint: str = "") -> E | None:
        """Expect one of an enumeration's words."""
        if self.value is None:
            return None
        words = [word.value for word in known]
        if self.value in words:
            return known(self.value)
        self.refuse(
            f"must be one of {', '.join(words)}, not {shown(self.value)}",
            hint or self.log.nearest(self.value, words),
        )
        return None
