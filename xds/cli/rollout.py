"""What `xds status --rollout` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from xds.mesh.v1 import rollouts_pb2 as pb

NO_TRANSITIONS = "nothing is on its way"

_TCP = "Open TCP connections keep the mode they were opened in until they close."
_LOCK = (
    "Where a server is to be locked, plaintext is accepted until then; plaintext connections and responses that are still "
    "open when it is locked end at its sidecar's drain time."
)
_LOCKS = (
    "Locked since the control plane started: {locks} ports. As the sidecars say that are connected here, that ended {cut} "
    "plaintext connections or responses."
)
_DRAINING = "{draining} of these ports still drain."
_UNKNOWN = (
    "Of {unknown} of these ports it is not known, because the sidecar could not be asked (docs/metrics.md)."
)


def is_done(answer: pb.ListRolloutsResponse) -> bool:
    """Whether everything wanted is in force, as far as anybody knows."""
    return not (answer.services or answer.rules)


def show(answer: pb.ListRolloutsResponse) -> None:
    """Print a line for each service and DestinationRule, and what else has to be known."""
    _say([each.status for _, each in _lines(answer)] or [NO_TRANSITIONS])
    if notes := list(_notes(answer)):
        _say(["", *notes])


def follow(answers: Iterable[pb.ListRolloutsResponse]) -> None:
    """Print what comes, one after the other: the lines that changed, and who is done."""
    told: dict[str, bytes] | None = None
    noted: set[str] = set()
    for answer in answers:
        before, told = told, {}
        for name, each in _lines(answer):
            said = each.status
            each.ClearField("status")  # The words change with time alone.
            told[name] = each.SerializeToString(deterministic=True)
            if before is None or before.get(name) != told[name]:
                _say([said])
        _say(f"{name}: done" for name in before or () if name not in told)
        if not told and before != told:
            _say([NO_TRANSITIONS])
        notes = [note for note in _notes(answer, counts=is_done(answer)) if note not in noted]
        _say(notes)
        noted.update(notes)


def _lines(answer: pb.ListRolloutsResponse) -> Iterator[tuple[str, pb.ServiceRollout | pb.RuleRollout]]:
    """Go through what there is a line for, each with what to call it."""
    for service in answer.services:
        yield f"{service.service}.{service.namespace}", service
    for rule in answer.rules:
        yield f"DestinationRule/{rule.namespace}/{rule.name}", rule


def _notes(answer: pb.ListRolloutsResponse, *, counts: bool = True) -> Iterator[str]:
    if answer.services:
        yield _TCP
    if any(each.accepts_plaintext for service in answer.services for each in service.waiting):
        yield _LOCK
    if answer.locks and counts:
        said = [_LOCKS, *([_DRAINING] if answer.draining else ()), *([_UNKNOWN] if answer.unknown else ())]
        yield " ".join(said).format(
            locks=answer.locks, cut=answer.cut, draining=answer.draining, unknown=answer.unknown
        )


def _say(lines: Iterable[str]) -> None:
    from xds.mesh.model.objects import printable  # noqa: PLC0415

    for line in lines:
        typer.echo(printable(line))
