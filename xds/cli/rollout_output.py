"""The output of `xds status --rollout`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import typer

from xds.mesh.controlplane.status import duration, since
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import Ref, printable
from xds.mesh.v1 import rollouts_pb2 as pb

FINISHED = "Finished within the last hour:"
_MAX_NAMES = 3
"""Services that a line about finished transitions names."""
NO_TRANSITIONS = "no transitions in progress"

_TCP = "Open TCP connections keep their mode until they close."
_STRICT = (
    "A server that becomes STRICT accepts plaintext until its transition ends. Its sidecar closes the "
    "remaining plaintext connections after the drain time."
)
_PLAINTEXT_DISABLED = "Ports that stopped accepting plaintext since the control plane started: {count}."


def has_transitions(response: pb.ListRolloutsResponse) -> bool:
    """Whether a port or a DestinationRule is in transition."""
    return bool(response.services or response.rules)


def print_rollouts(response: pb.ListRolloutsResponse) -> None:
    """Print a line for each service and DestinationRule in transition, finished transitions and notes."""
    _print([rollout.status for _, rollout in _named_rollouts(response)] or [NO_TRANSITIONS])
    if finished := list(_finished_lines(response)):
        _print(["", FINISHED, *finished])
    if notes := list(_notes(response)):
        _print(["", *notes])


def follow_rollouts(responses: Iterable[pb.ListRolloutsResponse]) -> None:
    """For each response, print the lines that changed, and the services and rules that are done."""
    current: dict[str, bytes] | None = None
    printed_notes: set[str] = set()
    for response in responses:
        previous, current = current, {}
        for name, rollout in _named_rollouts(response):
            status = rollout.status
            rollout.ClearField("status")  # The text contains durations, so it always changes.
            current[name] = rollout.SerializeToString(deterministic=True)
            if previous is None or previous.get(name) != current[name]:
                _print([status])
        _print(f"{name}: done" for name in previous or () if name not in current)
        if not current and previous != current:
            _print([NO_TRANSITIONS])
        notes = [
            note
            for note in _notes(response, counts=not has_transitions(response))
            if note not in printed_notes
        ]
        _print(notes)
        printed_notes.update(notes)


def _named_rollouts(
    response: pb.ListRolloutsResponse,
) -> Iterator[tuple[str, pb.ServiceRollout | pb.RuleRollout]]:
    """Yield each service and DestinationRule in transition, with its name."""
    for service in response.services:
        yield f"{service.service}.{service.namespace}", service
    for rule in response.rules:
        yield str(Ref("DestinationRule", rule.namespace, rule.name)), rule


def _finished_lines(response: pb.ListRolloutsResponse) -> Iterator[str]:
    """Yield a line for the finished transitions of the same services and modes, latest first."""
    groups: dict[tuple[object, ...], list[pb.FinishedTransition]] = {}
    for finished in response.finished:
        key = (*finished.services, finished.from_mode, finished.to_mode)
        groups.setdefault(key, []).append(finished)
    for first, *others in groups.values():
        endpoints = [first, *others]
        services = join_names(first.services, _MAX_NAMES) or f"{first.pod}.{first.namespace}"
        count = "1 endpoint" if not others else f"{len(endpoints)} endpoints"
        modes = f"from {pb.Mode.Name(first.from_mode)} to {pb.Mode.Name(first.to_mode)}"
        seconds = max(
            each.finished_at.ToMilliseconds() - each.started_at.ToMilliseconds() for each in endpoints
        )
        took = f"in {duration(seconds / 1000)}" if seconds >= 1000 else "in less than 1s"
        skipped = sum(each.skipped for each in endpoints)
        note = f"; {skipped} without lagging proxies or replicas" if skipped else ""
        ago = since(first.finished_at.ToDatetime(), response.time)
        yield f"{services}: {count} {modes} {took}, {ago} ago{note}"


def _notes(response: pb.ListRolloutsResponse, *, counts: bool = True) -> Iterator[str]:
    if response.services:
        yield _TCP
    if any(endpoint.accepts_plaintext for service in response.services for endpoint in service.waiting):
        yield _STRICT
    if response.plaintext_disabled and counts:
        yield _PLAINTEXT_DISABLED.format(count=response.plaintext_disabled)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(printable(line))
