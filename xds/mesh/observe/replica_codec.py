"""Encoding of edges for other replicas (protos/xds/mesh/v1/replicas.proto).

Counts end with the current interval, so replicas need not agree on the time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from xds.mesh.observe.counts import Counts
from xds.mesh.observe.edges import Client, Denial, Edge, EdgeKey, Reporter, Target, TrafficMode
from xds.mesh.v1 import replicas_pb2 as pb
from xds.mesh.v1 import traffic_pb2

_MODES = {
    TrafficMode.MTLS: traffic_pb2.TrafficEdge.MTLS,
    TrafficMode.TLS: traffic_pb2.TrafficEdge.TLS,
    TrafficMode.PLAINTEXT: traffic_pb2.TrafficEdge.PLAINTEXT,
    TrafficMode.REFUSED: traffic_pb2.TrafficEdge.REFUSED,
}
MODE_OF = {number: mode for mode, number in _MODES.items()}
"""The mode of each number in messages."""
_FIELDS = {Reporter.CLIENT: "client", Reporter.SERVER: "server"}
_REPLICA = re.compile(r"[a-z0-9-]{1,253}")
_NAME = re.compile(r"[\x20-\x7e]{0,260}")
_TEXT = re.compile(r"[\x20-\x7e]{0,550}")
_MAX_PORT = 65535


def edge_message(
    key: EdgeKey, first_seen: float, last_seen: float, *, by_server: bool = False
) -> traffic_pb2.TrafficEdge:
    """Return an edge as a message without its counts. Times are Unix times, in seconds."""
    message = traffic_pb2.TrafficEdge(
        client_namespace=key.client.namespace,
        client=key.client.name,
        namespace=key.target.namespace,
        service=key.target.name,
        port=key.target.port,
        mode=_MODES[key.mode],
        denial=traffic_pb2.Denial(**key.denial._asdict()) if key.denial else None,
        by_server=by_server,
    )
    message.first_seen.FromMilliseconds(round(first_seen * 1000))
    message.last_seen.FromMilliseconds(round(last_seen * 1000))
    return message


def encode_edge(replica: str, key: EdgeKey, edge: Edge, now: float) -> pb.ReplicaEdge:
    """Return an edge as a message.

    Args:
        replica: name of the replica whose sidecars reported it.
        key: key of the edge.
        edge: the edge.
        now: Unix time, in seconds.
    """
    return pb.ReplicaEdge(
        replica=replica,
        edge=edge_message(key, edge.first_seen, edge.last_seen),
        client=_encode(edge.counts.get(Reporter.CLIENT), now),
        server=_encode(edge.counts.get(Reporter.SERVER), now),
        failed=_encode(edge.failures, now),
        by_server=edge.by_server,
    )


def decode_edge(message: pb.ReplicaEdge, sent_at: float, now: float) -> tuple[str, EdgeKey, Edge]:
    """Return a replica, and an edge that its sidecars reported.

    Args:
        message: the edge.
        sent_at: Unix time by the sender's clock, in seconds.
        now: Unix time by the own clock, in seconds.

    Raises:
        ValueError: the message is malformed.
    """
    edge = message.edge
    names = (edge.client_namespace, edge.client, edge.namespace, edge.service, edge.denial.method)
    if not _REPLICA.fullmatch(message.replica) or not all(map(_NAME.fullmatch, names)):
        raise ValueError("a name is too long or has characters that no name has")
    if not all(map(_TEXT.fullmatch, (edge.denial.rule, edge.denial.path))):
        raise ValueError("a rule or path is too long or has characters that none has")
    if edge.mode not in MODE_OF or edge.port > _MAX_PORT:
        raise ValueError(f"mode {edge.mode} or port {edge.port} does not exist")
    last_seen = min(now + edge.last_seen.ToMilliseconds() / 1000 - sent_at, now)
    first_seen = min(now + edge.first_seen.ToMilliseconds() / 1000 - sent_at, last_seen)
    counts = {
        reporter: _decode(getattr(message, field), now)
        for reporter, field in _FIELDS.items()
        if message.HasField(field)
    }
    key = EdgeKey(
        Client(edge.client_namespace, edge.client),
        Target(edge.namespace, edge.service, edge.port),
        MODE_OF[edge.mode],
        _denial(edge.denial) if edge.HasField("denial") else None,
    )
    failed = _decode(message.failed, now) if message.HasField("failed") else None
    restored = Edge.restore(first_seen, last_seen, counts, failed, by_server=message.by_server)
    return message.replica, key, restored


def _denial(message: traffic_pb2.Denial) -> Denial:
    return Denial(message.rule, message.method, message.path, message.dry_run)


def _encode(counts: Counts | None, now: float) -> pb.TrafficCounts | None:
    if counts is None:
        return None
    return pb.TrafficCounts(minutes=_stripped(counts.minutes(now)), tens=_stripped(counts.tens(now)))


def _decode(message: pb.TrafficCounts, now: float) -> Counts:
    return Counts.restore(message.minutes, message.tens, now)


def _stripped(values: Sequence[int]) -> Sequence[int]:
    """Return values without leading zeros."""
    first = next((position for position, value in enumerate(values) if value), len(values))
    return values[first:]
