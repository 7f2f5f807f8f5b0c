"""Comparison of a change with observed traffic, as a message. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from xds.mesh.controlplane.explanation import MODES
from xds.mesh.controlplane.status import duration
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import PodKey
from xds.mesh.observe.edges import TRAFFIC_RETENTION, EdgeKey
from xds.mesh.observe.merged import Missing
from xds.mesh.observe.record import Record, merge_records
from xds.mesh.observe.replica_codec import edge_message
from xds.mesh.observe.strict import Contradictions, PlaintextPort, SeenTraffic
from xds.mesh.policy.hops import Clients
from xds.mesh.policy.prediction import Prediction
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1 import traffic_pb2

MAX_NAMES = 5
"""Maximum number of sidecars or clients that a text names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPeriod:
    """What was observed for some time. Times are Unix times, in seconds."""

    seconds: float
    """The time that was requested."""
    now: float
    """End of that time."""
    enabled: bool = True
    """Whether observation is enabled."""
    since: float = 0.0
    """Start of the observation."""
    last_dropped: float = 0.0
    """When reports were last dropped; 0 if none were."""
    missing_replicas: Sequence[Missing] = ()
    """Replicas whose traffic is missing."""
    connected: frozenset[PodKey] = frozenset()
    """Namespaces and names of the pods whose sidecars are connected."""
    incomplete: Mapping[str, float] = field(default_factory=dict)
    """When something of a sidecar's reports was last left out, by the namespace of its pod."""
    returned: Mapping[PodKey, float] = field(default_factory=dict)
    """When sidecars that had been disconnected for a while came back, by namespace and name of the pod."""
    root_namespace: str = ""
    """Root namespace of the mesh."""
    seen: Sequence[SeenTraffic] = ()
    """Plaintext and refused traffic."""


def observation_message(
    observed: ObservedPeriod, found: Contradictions, prediction: Prediction, *, strict_ports: int
) -> pb.Observation:
    """Return the comparison of a change with observed traffic.

    Args:
        observed: what was observed.
        found: what of it concerns the change.
        prediction: the predicted effects of the change.
        strict_ports: number of pods' ports that its policies apply to, and that are STRICT after it.
    """
    gaps = list(_gaps(observed, found)) if found.locked else []
    is_safe = not found.refused and not gaps
    return pb.Observation(
        enabled=observed.enabled,
        requested=Duration(seconds=round(observed.seconds)),
        since=timestamp(observed.since),
        time=timestamp(observed.now),
        plaintext=map(_edge, found.refused),
        admitted=map(_edge, found.admitted),
        locked_ports=len(found.locked),
        opened_ports=len(found.opened),
        gaps=gaps,
        safe=is_safe,
        strict_ports=strict_ports,
        root_namespace=observed.root_namespace,
        summary=_summary(observed, found, gaps, breaks=prediction.breaks),
    )


def recording(response: traffic_pb2.ListTrafficResponse, seconds: float) -> Record:
    """Return observed traffic as a record of so many seconds."""
    record = merge_records([response])
    age = record.until - record.since
    if round(age, 3) >= round(seconds, 3):
        return record
    is_forgotten = seconds > TRAFFIC_RETENTION
    gap = _forgotten() if is_forgotten else _too_short(age, seconds)
    return replace(record, gaps=(gap, *record.gaps))


def _forgotten() -> str:
    return f"traffic is remembered for only {duration(TRAFFIC_RETENTION)}"


def _too_short(age: float, requested: float) -> str:
    return f"observed for only {duration(age)} of {duration(requested)}"


def _gaps(observed: ObservedPeriod, found: Contradictions) -> Iterator[str]:
    """Yield why traffic to ports may be missing."""
    if not observed.enabled:
        yield "observation is disabled"
        return
    requested, age = observed.seconds, observed.now - observed.since
    if age < requested:
        yield _too_short(age, requested)
    if requested > TRAFFIC_RETENTION:
        yield _forgotten()
    if observed.last_dropped > observed.now - requested:
        ago = duration(observed.now - observed.last_dropped)
        yield f"reports of sidecars were dropped, the last {ago} ago"
    for replica, reason in observed.missing_replicas[:MAX_NAMES]:
        yield f"the traffic of {f'replica {replica}' if replica else 'other replicas'} is missing: {reason}"
    pods = {ref.key for ref, _ in found.locked}
    if missing := sorted(pods - observed.connected):
        names = join_names([f"{name}.{namespace}" for namespace, name in missing], MAX_NAMES)
        yield f"sidecars are not connected, and may have seen more: {names}"
    start = observed.now - requested
    namespaces = {namespace for namespace, _ in pods if observed.incomplete.get(namespace, 0.0) > start}
    if namespaces:
        names = join_names(sorted(namespaces), MAX_NAMES)
        yield f"reports of sidecars were dropped or malformed in {names}: these sidecars may have seen more"
    if returned := sorted(pod for pod in pods if observed.returned.get(pod, 0.0) > start):
        names = join_names([f"{name}.{namespace}" for namespace, name in returned], MAX_NAMES)
        yield f"sidecars were disconnected for a while, and may have seen more: {names}"
    if found.unknown_services:
        names = join_names(sorted(found.unknown_services), MAX_NAMES)
        yield f"plaintext was sent to services that no longer exist: {names}"


def _summary(observed: ObservedPeriod, found: Contradictions, gaps: Sequence[str], *, breaks: bool) -> str:
    if not found.locked:
        return "no port becomes STRICT"
    time = _in_words(observed.seconds)
    if found.refused:
        clients = list(dict.fromkeys("/".join(filter(None, each.client)) for each in found.refused))
        return f"not safe to lock: plaintext traffic of {join_names(clients, MAX_NAMES)} was observed"
    if gaps:
        return f"not known to be safe: {gaps[0]}"
    if breaks:
        return f"not safe to lock: no plaintext traffic was observed for {time}, but connections would break"
    return f"safe to lock: no plaintext traffic was observed for {time}"


def _in_words(seconds: float) -> str:
    days = seconds / 86400
    return f"{days:.0f} days" if days.is_integer() and days > 1 else duration(seconds)


def plaintext_port_message(
    port: PlaintextPort, clients: Callable[[Iterable[Clients]], list[pb.Clients]]
) -> pb.PlaintextPort:
    """Return a port that accepts plaintext. `clients` makes the messages of its pods."""
    return pb.PlaintextPort(
        port=port.port,
        pods=clients(port.clients),
        mode=MODES[port.mode] if port.mode else None,
        decided_by=str(port.decided_by or ""),
        was_strict=port.was_strict,
    )


def _edge(seen: SeenTraffic) -> traffic_pb2.TrafficEdge:
    key = EdgeKey(seen.client, seen.target, seen.mode)
    return edge_message(key, seen.first_seen, seen.last_seen)


def timestamp(seconds: float) -> Timestamp:
    """Return a Unix time as a message, in milliseconds."""
    found = Timestamp()
    found.FromMilliseconds(round(seconds * 1000))
    return found
