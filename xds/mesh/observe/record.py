"""Records of observed traffic: what `xds observe -o json` prints, at one or several times."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from google.protobuf.json_format import ParseDict, ParseError

from xds.mesh.model.names import join_names
from xds.mesh.model.objects import printable
from xds.mesh.observe.counts import RETENTION
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.replica_codec import MODE_OF
from xds.mesh.v1 import traffic_pb2 as pb

_NAME = "[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?"
_ACCOUNT = re.compile(f"{_NAME}/{_NAME}")
_ADDRESS = re.compile("[0-9a-f.:]+|other addresses")
_SERVICE = re.compile(f"(?:pod/)?{_NAME}")
MAX_NAMES = 5
"""Maximum number of sidecars that a text names."""


class Flow(NamedTuple):
    """Traffic of one client to one port in one mode. AuthorizationPolicies may have denied some of it."""

    target: Target
    """Port that was called."""
    client: Client
    """Client workload, or an address."""
    mode: TrafficMode
    """How it sent its requests."""
    first_seen: float
    """Unix time of the first report, in seconds."""
    last_seen: float
    """Unix time of the last report, in seconds."""
    by_server: bool = False
    """Whether the server's sidecar has reported it, not only the client's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was observed, and what may be missing."""

    flows: tuple[Flow, ...]
    """The traffic, ordered by target, client and mode."""
    since: float
    """Unix time of the start, in seconds."""
    until: float
    """Unix time of the end, in seconds."""
    gaps: tuple[str, ...]
    """Why traffic may be missing, in words."""


def parse_record(text: str) -> pb.ListTrafficResponse:
    """Read what `xds observe -o json` printed.

    Raises:
        ValueError: it is something else, or a part of the traffic. The message says what to do.
    """
    found = pb.ListTrafficResponse()
    try:
        ParseDict(json.loads(text, object_hook=_without_minutes), found, ignore_unknown_fields=True)
    except (ParseError, ValueError, TypeError, AttributeError) as error:  # the last two: no object
        raise ValueError(f"is not the output of xds observe -o json: {error}") from error
    for field in ("time", "request"):
        if not found.HasField(field):
            raise ValueError(f"is not the output of xds observe -o json: it has no {field}")
    request = found.request
    if request.namespace or request.plaintext_only or request.denied_only:
        raise ValueError(
            "is only a part of the traffic: run xds observe -o json without -n, --plaintext, --denied"
        )
    for edge in found.edges:
        client = f"{edge.client_namespace}/{edge.client}" if edge.client_namespace else edge.client
        is_named = _ACCOUNT.fullmatch(client) or _ADDRESS.fullmatch(client)
        if edge.mode not in MODE_OF or not is_named or not _SERVICE.fullmatch(edge.service):
            name = printable(f"{client} to {edge.service}.{edge.namespace}")
            raise ValueError(f"has traffic with an invalid client, service or mode: {name}")
    return found


def _without_minutes(value: dict[str, object]) -> dict[str, object]:
    """Drop the requests of each minute, which take most of the time to parse."""
    value.pop("minutes", None)
    return value


def merge_records(responses: Iterable[pb.ListTrafficResponse]) -> Record:
    """Return what responses of the service Traffic say together. They may overlap.

    Args:
        responses: at least one, each with all traffic.
    """
    ordered = sorted(responses, key=lambda each: each.time.ToMilliseconds())
    flows: dict[tuple[Target, Client, TrafficMode], Flow] = {}
    for response in ordered:
        for edge in response.edges:
            flow = _flow(edge)
            known = flows.get(flow[:3], flow)
            first, last = min(known.first_seen, flow.first_seen), max(known.last_seen, flow.last_seen)
            by_server = known.by_server or flow.by_server
            flows[flow[:3]] = Flow(*flow[:3], first, last, by_server)
    return Record(
        flows=tuple(sorted(flows.values())),
        since=min(map(_start, ordered)),
        until=_time(ordered[-1]),
        gaps=tuple(dict.fromkeys(_gaps(ordered))),
    )


def _flow(edge: pb.TrafficEdge) -> Flow:
    return Flow(
        Target(edge.namespace, edge.service, edge.port),
        Client(edge.client_namespace, edge.client),
        MODE_OF[edge.mode],
        edge.first_seen.ToMilliseconds() / 1000,
        edge.last_seen.ToMilliseconds() / 1000,
        edge.by_server,
    )


def _time(response: pb.ListTrafficResponse) -> float:
    return response.time.ToMilliseconds() / 1000


def _start(response: pb.ListTrafficResponse) -> float:
    """Return since when a response has all traffic."""
    # An older control plane ignores the period of the request.
    period = response.period.ToMilliseconds() / 1000 if response.HasField("period") else RETENTION
    return max(response.since.ToMilliseconds() / 1000, _time(response) - period)


def _gaps(ordered: list[pb.ListTrafficResponse]) -> Iterator[str]:
    """Yield why traffic may be missing, from responses in the order of their times."""
    until = min(map(_start, ordered))
    for response in ordered:
        start, reasons = _start(response), dict[str, list[str]]()
        if start > until:
            yield f"nothing was recorded from {in_words(until)} to {in_words(start)}"
        until = _time(response)
        if not response.enabled:
            yield "observation is disabled"
        dropped = response.last_dropped.ToMilliseconds() / 1000
        if response.HasField("last_dropped") and dropped >= start:
            yield f"reports of sidecars were dropped, the last at {in_words(dropped)}"
        for missing in response.missing_replicas:
            replica = f"replica {missing.replica}" if missing.replica else "other replicas"
            yield f"the traffic of {replica} is missing: {missing.reason}"
        for each in response.incomplete:
            if each.last.ToMilliseconds() / 1000 >= start:
                name = f"{each.pod}.{each.namespace}" if each.pod else f"namespace {each.namespace}"
                reasons.setdefault(each.reason, []).append(name)
        for reason, names in reasons.items():
            yield f"{reason}: {join_names(names, MAX_NAMES)}"


def in_words(seconds: float) -> str:
    """Return a Unix time as `2026-12-01 15:04 UTC`."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
