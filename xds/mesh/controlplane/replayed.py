"""Recorded traffic, replayed through a change, as a message. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from xds.mesh.controlplane.explanation import answer_message, hop_change_message
from xds.mesh.controlplane.traffic_comparison import timestamp
from xds.mesh.model.mesh import Mesh
from xds.mesh.observe.edges import EdgeKey
from xds.mesh.observe.record import Flow, Record, in_words
from xds.mesh.observe.replay import Replay, is_outside, replay, unobserved, unused
from xds.mesh.observe.replica_codec import edge_message
from xds.mesh.policy.hop_text import format_clients, format_target
from xds.mesh.policy.prediction import Effect, HopChange, Prediction, outside_changes
from xds.mesh.v1 import policies_pb2 as pb
from xds.mesh.v1.traffic_pb2 import TrafficEdge


def replay_message(
    record: Record, before: Mesh, after: Mesh, prediction: Prediction, not_considered: Sequence[str] = ()
) -> pb.Replay:
    """Return what a change means for recorded traffic.

    Args:
        record: the traffic.
        before: the mesh without the change.
        after: the mesh with the change.
        prediction: the predicted effects of the change on all connections.
        not_considered: what the meshes do not contain, and could change an answer.
    """
    found = replay(before, after, record.flows)
    hops = [*prediction.hops, *outside_changes(before, after)]
    gaps = [*_gaps(record, before, hops), *(f"not considered: {each}" for each in not_considered)]
    refused = sum(refusal.breaks for refusal in prediction.refusals)
    return pb.Replay(
        since=timestamp(record.since),
        until=timestamp(record.until),
        flows=found.flows,
        changes=[
            pb.FlowChange(
                effect=change.effect,
                flows=_edges(change.flows),
                before=answer_message(change.before),
                after=answer_message(change.after),
            )
            for change in found.changes
        ],
        unknown=[pb.UnknownFlows(flows=_edges(flows), reason=reason) for reason, flows in found.unknown],
        failing=found.failing,
        possible=map(hop_change_message, unused(after, hops, record.flows)),
        gaps=gaps,
        safe=not (found.changes or found.unknown or refused or gaps),
        summary=_summary(record, found, gaps, refused),
    )


def _gaps(record: Record, before: Mesh, hops: Iterable[HopChange]) -> Iterator[str]:
    yield from record.gaps
    if not record.flows:
        yield "no traffic was recorded"
    for hop in unobserved(before, hops):
        clients = "clients outside the mesh" if is_outside(hop) else format_clients(hop.clients)
        target = format_target(hop.service, hop.port)
        yield f"traffic that sidecars do not report, or not as such, would break: {clients} -> {target}"


def _edges(flows: Iterable[Flow]) -> list[TrafficEdge]:
    return [
        edge_message(
            EdgeKey(flow.client, flow.target, flow.mode),
            flow.first_seen,
            flow.last_seen,
            by_server=flow.by_server,
        )
        for flow in flows
    ]


def _summary(record: Record, found: Replay, gaps: Sequence[str], refused: int) -> str:
    period = f"from {in_words(record.since)} to {in_words(record.until)}"
    flows = f"{found.flows:,} recorded flow{'s' * (found.flows != 1)} {period}"
    counts = {
        "break": found.count(Effect.BREAKS),
        "may break": found.count(Effect.MAY_BREAK),
        "not known": found.unknown_flows,
    }
    words = ", ".join(f"{word}: {count:,}" for word, count in counts.items() if count)
    if found.changes:
        return f"not safe: of {flows}, {words}"
    if refused:
        return f"not safe: of {flows}, none breaks, but traffic that objects prove does"
    if found.unknown:
        return f"not known to be safe: of {flows}, {words}"
    if gaps:
        return f"not known to be safe: of {flows}, none breaks, but {gaps[0]}"
    return f"safe: of {flows}, none breaks"
