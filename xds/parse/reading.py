"""Reading kubectl-shaped values: every complaint says where, what, and what to write instead.

A `Field` is a value and the path that led to it. Asked to be what it should be, it either is, or says on its `Log` why
not and gives a harmless default, so that all that is wrong with an object is found in one reading; an object with a
refusal on its log never becomes a fact.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from xds.model import Problem

Path: TypeAlias = tuple[str | int, ...]
Locate: TypeAlias = Callable[[Path], str]
"""Where a path of the document is: `FILE:LINE`, or a name where there is no file."""
Flaw: TypeAlias = tuple[Path, str]
"""Something wrong with the text at a path, such as a key that is there twice."""

E = TypeVar("E", bound=StrEnum)

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:h|ms|m|s|us|µs|ns)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_SHOWN = 60
"""How much of a wrong value a message repeats."""
MAX_SUGGESTION_LENGTH = 64
"""Characters of the longest word that is compared: comparing takes time by the square of the length."""


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
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def dotted(path: Path) -> str:
    """Write a path as people do: `spec.ports[0].name`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


LONGEST = 2562047 * 3600.0
"""Seconds of the longest duration that Go, and so Kubernetes and Envoy, can hold: 2^63 ns in whole hours."""


class Log:
    """What was found wrong with one object, in order."""

    def __init__(self, locate: Locate, subject: str = "") -> None:
        self.locate = locate
        self.subject = subject
        """The object's name, once it is known."""
        self.any_field = False
        """Whether fields that are not known are no mistake."""
        self.problems: list[Problem] = []

    @property
    def refused(self) -> bool:
        """Whether the object cannot be used."""
        return any(not problem.notice for problem in self.problems)

    def add(self, path: Path, what: str, hint: str = "", *, notice: bool = False) -> None:
        """Note something about a path."""
        where = self.locate(path)
        subject = "" if self.subject == where else self.subject
        words = ": ".join(part for part in (subject, dotted(path)) if part)
        joint = " " if path else ": " if words else ""
        self.problems.append(Problem(where=where, what=words + joint + what, hint=hint, notice=notice))


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

    def required(self) -> Field:
        """Refuse the object if this is absent, or an empty string, which Kubernetes takes for the same."""
        if self.value is None or self.value == "":
            self.refuse("is required")
        return self

    def _wants(self, what: str, hint: str = "") -> None:
        self.refuse(f"must be {what}, not {shown(self.value)}", hint)

    def mapping(self, known: str = "", *, strict: bool = False) -> Field:
        """Expect a mapping of these fields (of any, if none are named); others are pointed out and ignored.

        `strict`: others are refused. So it must be where leaving out what was meant would open what was to be closed.
        """
        if self.value is None:
            return self
        if not isinstance(self.value, Mapping):
            self._wants("a mapping")
            return Field(None, self.path, self.log)
        words = known.split()
        for name in self.value if words else ():
            if name not in words:
                hint = nearest(str(name), words)
                if strict:
                    self[str(name)].refuse("is not a known field", hint)
                elif not self.log.any_field:
                    self[str(name)].notice("is not a known field and is ignored", hint)
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
        parts = _DURATION.findall(text)
        if not parts or "".join(parts) != text:
            number = isinstance(self.value, int) and not isinstance(self.value, bool)
            self._wants("a duration such as 10s or 500ms", f"write {self.value}s" if number else "")
            return None
        total = sum(float(part.rstrip("hmsuµn")) * _SECONDS[part.lstrip("0123456789.")] for part in parts)
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
            hint or nearest(str(self.value), words),
        )
        return None
