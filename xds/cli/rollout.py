"""The output of `xds status --rollout`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import typer

from xds.mesh.model.objects import printable
from xds.mesh.v1 import rollouts_pb2 as pb

NO_TRANSITIONS = "no transitions in progress"

_TCP = "Open TCP connections keep their mode until they close."
_LOCK = (
    "A server that becomes STRICT accepts plaintext until its transition ends; plaintext connections and "
    "responses that are still open then are closed after its sidecar's drain time."
)
_PLAINTEXT_DISABLED = "Ports that stopped accepting plaintext since the control plane started: {count}."


def has_transitions(response: pb.ListRolloutsResponse) -> bool:
    """Whether a port or a DestinationRule still changes, as far as this control plane knows."""
    return bool(response.services or response.rules)


def print_rollouts(response: pb.ListRolloutsResponse) -> None:
    """Print a line for each service and DestinationRule in transition, then notes."""
    _print([each.status for _, each in _lines(response)] or [NO_TRANSITIONS])
    if notes := list(_notes(response)):
        _print(["", *notes])


def follow_rollouts(responses: Iterable[pb.ListRolloutsResponse]) -> None:
    """Print the lines that changed in each response, and the services and rules that are done."""
    shown: dict[str, bytes] | None = None
    printed_notes: set[str] = set()
    for response in responses:
        previous, shown = shown, {}
        for name, each in _lines(response):
            status = each.status
            each.ClearField("status")  # The text also changes as time passes.
            shown[name] = each.SerializeToString(deterministic=True)
            if previous is None or previous.get(name) != shown[name]:
                _print([status])
        _print(f"{name}: done" for name in previous or () if name not in shown)
        if not shown and previous != shown:
            _print([NO_TRANSITIONS])
        notes = [
            note
            for note in _notes(response, counts=not has_transitions(response))
            if note not in printed_notes
        ]
        _print(notes)
        printed_notes.update(notes)


def _lines(response: pb.ListRolloutsResponse) -> Iterator[tuple[str, pb.ServiceRollout | pb.RuleRollout]]:
    """Yield each service and DestinationRule in transition, with its name."""
    for service in response.services:
        yield f"{service.service}.{service.namespace}", service
    for rule in response.rules:
        yield f"DestinationRule/{rule.namespace}/{rule.name}", rule


def _notes(answer: pb.ListRolloutsResponse, *, counts: bool = True) -> Iterator[str]:
    if answer.services:
        yield _TCP
    if any(each.accepts_plaintext for service in answer.services for each in service.waiting):
        yield _LOCK
    if answer.plaintext_disabled and counts:
        yield _PLAINTEXT_DISABLED.format(count=answer.plaintext_disabled)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(printable(line))
