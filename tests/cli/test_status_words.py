"""The sync status of a proxy in words."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from xds.mesh.controlplane.status import (
    duration,
    object_name,
    proxy_name,
    proxy_state,
    resource_line,
    stream_line,
    type_line,
)
from xds.mesh.v1 import proxies_pb2 as pb
from xds.protocol.types import short_name
from xds.snapshot import CLUSTER, LISTENER, ROUTE, SECRET

NOW = 1_000_000.0
RULE = "DestinationRule full/x (mesh/rules.yaml:12)"


def at(ago: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(round((NOW - ago) * 1000))
    return stamp


def waiting(reason: pb.Waiting.Reason, ago: float, type_url: str = "") -> pb.Type:
    return pb.Type(state=pb.WAITING, waiting=pb.Waiting(reason=reason, since=at(ago), type_url=type_url))


def rejected(message: str, *causes: str) -> pb.Type:
    return pb.Type(state=pb.REJECTED, rejection=pb.Rejection(code=13, message=message, causes=causes))


@pytest.mark.parametrize(
    ("kind", "missing", "text"),
    [
        (pb.Type(state=pb.SYNCED, acked_at=at(2)), "", "synced 2s ago"),
        (pb.Type(state=pb.SYNCED, acked_at=at(-3)), "", "synced 0s ago"),
        (pb.Type(state=pb.SYNCED), "", "synced"),
        (
            pb.Type(state=pb.SYNCED, acked_at=at(90)),
            "its pod is not known",
            "synced 1m30s ago (its pod is not known)",
        ),
        (waiting(pb.Waiting.TYPE, 14, ROUTE), "", "waiting 14s for RDS"),
        (waiting(pb.Waiting.TYPE, 14, SECRET), "", "waiting 14s for SDS"),
        (waiting(pb.Waiting.ACK, 3), "", "waiting 3s for an ACK"),
        (waiting(pb.Waiting.READ, 61), "", "waiting 1m1s for the proxy to read"),
        (waiting(pb.Waiting.CONFIGURATION, 5), "", "waiting 5s for its configuration"),
        (waiting(pb.Waiting.CONFIGURATION, 5), "its pod is not known", "waiting: its pod is not known"),
        (
            waiting(pb.Waiting.ACK, 5),
            "its pod is not known",
            "waiting 5s for an ACK (its pod is not known)",
        ),
        (rejected("no such thing", RULE), "", "rejected: no such thing (from DestinationRule full/x)"),
        (rejected("no", "MeshPolicy default"), "", "rejected: no (from MeshPolicy default)"),
        (
            rejected("no", "Policy full/x", "Pod full/y", "Service full/z", "Service full/w"),
            "",
            "rejected: no (from Policy full/x, Pod full/y and 2 more)",
        ),
        (rejected("no"), "", "rejected: no"),
        (rejected(""), "", "rejected: code 13"),
        (rejected("two\n\tlines\x1b[31m"), "", "rejected: two lines\\x1b[31m"),
    ],
)
def test_type_in_one_line(kind: pb.Type, missing: str, text: str) -> None:
    assert type_line(kind, missing, at(0)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (-5, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m"), (60, "1m"), (61, "1m1s"),
        (3599, "59m59s"), (3600, "1h"), (3659, "1h"), (3660, "1h1m"), (86399, "23h59m"),
        (86400, "1d"), (180000, "2d2h"),
    ],
)  # fmt: skip
def test_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("resource", "text"),
    [
        (
            pb.Resource(state=pb.Resource.ERROR, rejection=pb.Rejection(sources=[RULE])),
            f"rejected, made from {RULE}",
        ),
        (pb.Resource(state=pb.Resource.ERROR), "rejected"),
        (pb.Resource(state=pb.Resource.NOT_SENT, version="1"), "not sent yet"),
        (pb.Resource(state=pb.Resource.NOT_SENT), "does not exist"),
        (pb.Resource(state=pb.Resource.STALE, sent_version="1"), "removal pending"),
        (pb.Resource(state=pb.Resource.STALE, sent_version="1", version="2"), "update pending"),
        (
            pb.Resource(state=pb.Resource.STALE, sent_version="1", version="1", updated_at=at(4)),
            "sent 4s ago, not ACKed",
        ),
        (pb.Resource(state=pb.Resource.STALE, sent_version="1", version="1"), "sent, not ACKed"),
    ],
)
def test_unsynced_resource_in_words(resource: pb.Resource, text: str) -> None:
    assert resource_line(resource, at(0)) == text


def test_stream_in_words() -> None:
    stream = pb.Stream(variant=pb.Stream.DELTA, peer="ipv4:127.0.0.1:9", connected_at=at(14))
    assert stream_line(stream, at(0)) == "delta ADS from ipv4:127.0.0.1:9, connected 14s ago"
    stream = pb.Stream(variant=pb.Stream.SOTW, type_url=LISTENER, peer="unix:", connected_at=at(3600))
    assert stream_line(stream, at(0)) == "sotw LDS from unix:, connected 1h ago"


def test_names() -> None:
    assert (short_name(CLUSTER), short_name("type.googleapis.com/a.b.Thing"), short_name("odd")) == (
        "CDS",
        "Thing",
        "odd",
    )
    assert (short_name("type.googleapis.com/evil0"), short_name("type.googleapis.com/")) == (
        "evil0",
        "type.googleapis.com/",
    )
    assert object_name("Policy full/x (m.yaml:1)") == "Policy full/x"
    assert proxy_name("sidecar~1.2.3.4~web.shop~shop.svc.cluster.local") == "web.shop"
    assert proxy_name("odd\x1bnode") == "odd\\x1bnode"


def test_state_of_a_proxy_names_each_type_that_is_not_synced() -> None:
    def state(*kinds: pb.Type, problem: str = "") -> str:
        return proxy_state(pb.Proxy(streams=[pb.Stream(types=kinds)], problem=problem), at(0))

    synced = pb.Type(type_url=CLUSTER, state=pb.SYNCED, acked_at=at(60))
    late = waiting(pb.Waiting.ACK, 3)
    late.type_url = LISTENER
    unknown = waiting(pb.Waiting.CONFIGURATION, 3)
    assert state(synced, pb.Type(state=pb.SYNCED, acked_at=at(5))) == "synced 5s ago"
    assert state(pb.Type(state=pb.SYNCED)) == "synced"
    assert state(synced, late) == "LDS waiting 3s for an ACK"
    assert state(synced, late, late) == "LDS waiting 3s for an ACK", "two streams that wait equally"
    assert state(unknown, unknown, problem="its pod is not known") == "its pod is not known"
    assert state(late, problem="no pod\x1b") == "no pod\\x1b; LDS waiting 3s for an ACK"
