"""What is wrong with an object, as a problem that names it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from xds.mesh.model.objects import Object, Problem, Ref

MAX_PER_OBJECT = 10
"""Maximum number of problems reported per object; a DestinationRule can have any number of subsets."""
MAX_PAIRS = 5
"""Maximum number of selector labels in a message."""

Finding: TypeAlias = tuple[Ref, Problem]
"""An object, and what is wrong with it."""


def problem_of(owner: Object, what: str, hint: str = "", *, notice: bool = False) -> Finding:
    """Return a problem of an object, and its reference."""
    # The origin is a file and line: name the object in the text.
    origin = owner.meta.origin
    text = f"{owner.ref}: {what}" if origin else what
    ref = str(owner.ref)
    return owner.ref, Problem(where=origin or ref, what=text, hint=hint, notice=notice, subject=ref)


def capped(owner: Object, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield at most MAX_PER_OBJECT problems of an object, then one with the number of omitted problems."""
    problems = list(findings)
    yield from problems[:MAX_PER_OBJECT]
    if more := problems[MAX_PER_OBJECT:]:
        are_notices = all(problem.notice for _, problem in more)
        yield problem_of(owner, f"{len(more)} more parts have no effect", notice=are_notices)


def format_selector(selector: Mapping[str, str]) -> str:
    """Return a selector as kubectl writes it, shortened."""
    pairs = [f"{key}={value}" for key, value in sorted(selector.items())]
    return ",".join((*pairs[:MAX_PAIRS], *(["..."] if len(pairs) > MAX_PAIRS else ())))
