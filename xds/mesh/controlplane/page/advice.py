"""Whether a namespace or a workload can become STRICT, and what to do next, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xds.mesh.model.names import join_names
from xds.mesh.model.workload import WorkloadKey
from xds.mesh.observe.edges import TrafficMode
from xds.mesh.policy.prediction import Effect

MAX_NAMES = 3
"""Maximum number of workloads that a text names."""


class Break(NamedTuple):
    """Traffic that STRICT would stop."""

    effect: str
    """`breaks` or `may break`."""
    clients: str
    """Who sends it, in words."""
    target: str
    """Service and port, or port of the pods."""
    remedy: str
    """How to keep it working."""
    servers: frozenset[WorkloadKey]
    """Workloads that would refuse it."""
    workloads: tuple[str, ...]
    """Who sends it: the workloads, or what the traffic is if no workload sends it."""


class Verdict(NamedTuple):
    """Whether a namespace or a workload can be locked, that is, accept mutual TLS only."""

    answer: str
    """`locked`, `yes`, `unsure`, `no` or `checking`."""
    text: str
    """The answer and its reason, as a sentence."""


def verdict(row: Mapping[str, Any], breaks: Sequence[Break] | None) -> Verdict:
    """Return whether the pods of a row can be locked."""
    name = ".".join(filter(None, (row["workload"], row["namespace"])))
    if not row["sidecars"]:
        return Verdict("no", f"{name} cannot be locked: no pod has a sidecar.")
    if row["strict"] == row["pods"]:
        return Verdict("locked", f"{name} is locked: its sidecars accept mutual TLS only.{_refused(row)}")
    if breaks is None:
        return Verdict("checking", f"Checking what would break if {name} were locked.")
    if sure := _clients(breaks, Effect.BREAKS):
        return Verdict("no", f"{name} cannot be locked: {_list(sure)} would break.")
    if away := _disconnected(row):
        return Verdict("unsure", f"It is not known whether {name} is locked, or can be: {away}.")
    if possible := _clients(breaks, Effect.MAY_BREAK):
        return Verdict("unsure", f"{name} may not be safe to lock: {_list(possible)} may break.")
    if senders := _senders(row):
        text = f"{name} may not be safe to lock: plaintext was observed from {join_names(senders, MAX_NAMES)}"
        return Verdict("unsure", f"{text}.")
    if missing := row["pods"] - row["sidecars"]:
        rest = f"{missing} of {row['pods']} pods {'has' if missing == 1 else 'have'} no sidecar"
        return Verdict("yes", f"{name} can be locked in part: {rest}, and no known client would break.")
    return Verdict("yes", f"{name} can be locked: no known client would break.")


def _disconnected(row: Mapping[str, Any]) -> str:
    """Return that sidecars are not connected; empty if all are."""
    away = row["sidecars"] - row["connected"]
    verb = "is" if away == 1 else "are"
    return f"{away} of {row['sidecars']} sidecars {verb} not connected to the control plane" if away else ""


def _refused(row: Mapping[str, Any]) -> str:
    seen = next((seen for seen in row["observed"] if seen["mode"] == TrafficMode.REFUSED), None)
    if not seen:
        return ""
    names = join_names([client["name"] for client in seen["clients"]], MAX_NAMES)
    return f" They refused plaintext from {names}."


def _clients(breaks: Sequence[Break], effect: Effect) -> list[str]:
    found = (each.workloads for each in breaks if each.effect == effect)
    return list(dict.fromkeys(name for names in found for name in names))


def _list(names: Sequence[str]) -> str:
    return f"{len(names)} client{'' if len(names) == 1 else 's'} ({join_names(names, MAX_NAMES)})"


def _senders(row: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(client["name"] for seen in row["observed"] for client in seen["clients"]))


def next_step(
    row: Mapping[str, Any], without: Sequence[str], breaks: Sequence[Break] | None
) -> tuple[str, str]:
    """Return the stage of a row, and what to do next.

    The stages are sidecars, checking, blocked, disconnected, ready and done.

    Args:
        row: the row, without them.
        without: names of workloads with a pod without a sidecar.
        breaks: what STRICT would stop; None if it is not known yet.
    """
    if without:
        text = f"Add sidecars to {join_names(without, MAX_NAMES)}"
        return "sidecars", f"{text}, then resolve what STRICT would break" if breaks else text
    if row["strict"] == row["pods"]:
        return "done", "Done: the sidecars accept mutual TLS only"
    if breaks is None:
        return "checking", "Checking what STRICT would break"
    breaks = [each for each in breaks if each.effect == Effect.BREAKS]
    if not breaks and row["observed"]:
        only_refused = all(seen["mode"] == TrafficMode.REFUSED for seen in row["observed"])
        what = "sent plaintext that was refused" if only_refused else "sends plaintext"
        return "blocked", f"Find out who {what}: {join_names(_senders(row), MAX_NAMES)}"
    if not breaks and (away := _disconnected(row)):
        return "disconnected", f"Find out why {away} (xds status)"
    if not breaks:
        how = "" if row["workload"] else f" (xds lock {row['namespace']})"
        return "ready", f"Set STRICT{how}: no known connection would break"
    text = breaks[0].remedy
    return "blocked", text[:1].upper() + text[1:]
