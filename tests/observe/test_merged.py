"""Traffic of several replicas: merging any split of the reports equals one replica with all of them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.observe.counts import MINUTES, RETENTION
from xds.mesh.observe.edges import (
    TRAFFIC_RETENTION,
    Client,
    Denial,
    Edge,
    EdgeKey,
    Reporter,
    Target,
    Traffic,
    TrafficMode,
)
from xds.mesh.observe.merged import MergedTraffic, PeerTraffic
from xds.mesh.observe.replica_codec import decode_edge, encode_edge
from xds.mesh.v1 import replicas_pb2 as pb

NOON = 1_000_000 * 600.0
WEB = Target("shop", "web", 80)
POD = ("full", "sleep-1")
CLIENTS = ("sleep", "curl")


class Sent(NamedTuple):
    """A report that a sidecar sends to one of the replicas."""

    replica: int
    client: str
    mode: TrafficMode
    source: Reporter
    requests: int
    failed: int
    after: float
    """Seconds since the previous report."""


reports = st.lists(
    st.builds(
        Sent,
        st.integers(0, 2),
        st.sampled_from(CLIENTS),
        st.sampled_from([TrafficMode.MTLS, TrafficMode.PLAINTEXT]),
        st.sampled_from(list(Reporter)),
        st.integers(0, 1000),
        st.integers(0, 5),
        st.sampled_from([0.0, 1.0, 30.0, 59.0, 600.0, 2800.0]),  # less than 24 h in total
    ),
    max_size=30,
)


def key(client: str = "sleep", mode: TrafficMode = TrafficMode.MTLS, namespace: str = "full") -> EdgeKey:
    return EdgeKey(Client(namespace, client), WEB, mode)


def send(traffic: Traffic, report: Sent, now: float) -> None:
    traffic.add(
        key(report.client, report.mode),
        report.source,
        POD,
        requests=report.requests,
        failed=report.failed,
        now=now,
    )


def copied(replica: str, edge_key: EdgeKey, edge: Edge, now: float, skew: float = 0.0):
    """Return what a replica reads that another one sends, whose clock is `skew` seconds ahead."""
    wire = encode_edge(replica, edge_key, edge, now).SerializeToString()
    message = pb.ReplicaEdge.FromString(wire)
    for field in (message.edge.first_seen, message.edge.last_seen):
        field.FromMilliseconds(field.ToMilliseconds() + round(skew * 1000))
    return decode_edge(message, now + skew, now)


def shown(traffic, now: float) -> dict[EdgeKey, tuple[object, ...]]:
    traffic.expire(now)
    return {
        edge_key: (
            edge.minutes(now),
            edge.day(now),
            edge.failed_in_hour(now),
            pytest.approx(edge.rate(now), rel=0.01),
            pytest.approx(edge.first_seen, abs=0.01),
            pytest.approx(edge.last_seen, abs=0.01),
        )
        for edge_key, edge in traffic.edges()
    }


@given(reports, st.integers(0, 30))
def test_any_split_of_the_reports_merges_to_the_same(sent: list[Sent], first_update: int):
    everything, replicas, peers, now = Traffic(), [Traffic() for _ in range(3)], PeerTraffic(), NOON
    versions = [0, 0, 0]

    def update() -> None:
        for number in (1, 2):
            for edge_key, edge in replicas[number].changes(versions[number]):
                peers.put(*copied(f"replica-{number}", edge_key, edge, now))
            versions[number] = replicas[number].version

    for position, report in enumerate(sent):
        now += report.after
        send(everything, report, now)
        send(replicas[report.replica], report, now)
        if position == first_update:
            update()
    update()
    merged = MergedTraffic(replicas[0], peers)
    assert shown(merged, now) == shown(everything, now)
    later = now + 700
    assert shown(merged, later) == shown(everything, later)
    assert bool(merged) == bool(everything)


def test_both_sidecars_of_a_connection_at_different_replicas_count_once():
    own, peer, peers = Traffic(), Traffic(), PeerTraffic()
    plaintext = key(mode=TrafficMode.PLAINTEXT)
    own.add(plaintext, Reporter.CLIENT, POD, requests=5, now=NOON)
    peer.add(plaintext, Reporter.CLIENT, POD, requests=2, now=NOON)
    peer.add(plaintext, Reporter.SERVER, POD, requests=6, now=NOON)
    for edge_key, edge in peer.changes(0):
        peers.put(*copied("b", edge_key, edge, NOON))
    [(_, merged)] = MergedTraffic(own, peers).edges("shop")
    assert merged.day(NOON) == 7
    assert not list(MergedTraffic(own, peers).edges("other"))


def test_only_changed_edges_are_sent_again():
    traffic = Traffic()
    for client in CLIENTS:
        traffic.add(key(client), Reporter.CLIENT, POD, requests=1, now=NOON)
    version = traffic.version
    assert [edge_key.client.name for edge_key, _ in traffic.changes(0)] == ["sleep", "curl"]
    assert traffic.changes(version) == []
    traffic.add(key("sleep"), Reporter.CLIENT, POD, requests=1, now=NOON)
    assert [edge_key.client.name for edge_key, _ in traffic.changes(version)] == ["sleep"]


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 90.0, 86_400.0])
def test_clocks_of_replicas_need_not_agree(skew: float):
    edge = only(requests=3)
    replica, edge_key, read = copied("b", key(), edge, NOON + 60, skew)
    assert (replica, edge_key) == ("b", key())
    assert read.minutes(NOON + 60) == [0] * (MINUTES - 2) + [3, 0]
    assert read.last_seen == pytest.approx(NOON, abs=0.01)


def only(requests: int = 1) -> Edge:
    traffic = Traffic()
    traffic.add(key(), Reporter.CLIENT, POD, requests=requests, now=NOON)
    [(_, edge)] = traffic.edges()
    return edge


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("replica", ""),
        ("replica", "../x"),
        ("replica", "x" * 300),
        ("edge.client", "x" * 300),
        ("edge.client", "\x1b[2J"),
        ("edge.service", "ü"),
        ("edge.port", 70_000),
        ("edge.mode", 0),
        ("edge.mode", 99),
        ("client.minutes", [1] * 61),
        ("client.tens", [1] * 145),
        ("failed.minutes", [1] * 61),
        ("edge.last_seen.seconds", 2**60),
    ],
)
def test_malformed_edge_is_rejected(field: str, value: object):
    message = encode_edge("b", key(), only(), NOON)
    *path, name = field.split(".")
    target = message
    for part in path:
        target = getattr(target, part)
    if isinstance(value, list):
        getattr(target, name)[:] = value
    else:
        setattr(target, name, value)
    with pytest.raises(ValueError, match=r"."):
        decode_edge(message, NOON, NOON)


def test_times_in_the_future_are_now():
    edge = only()
    edge.last_seen = NOON + 500
    _, _, read = decode_edge(encode_edge("b", key(), edge, NOON), NOON, NOON)
    assert (read.first_seen, read.last_seen) == (NOON, NOON)


def test_edges_of_replicas_are_limited():
    peers = PeerTraffic(max_edges=2, max_replicas=2)
    for number in range(3):
        peers.put("a", key(f"client-{number}"), only())
    assert [edge_key.client.name for edge_key, _ in peers.of("a")] == ["client-1", "client-2"]
    assert peers.evicted == 1
    peers.live = {"a", "c"}
    peers.put("b", key(), only())
    peers.put("c", key(), only())
    assert (peers.of("b"), len(peers.of("a")), len(peers.of("c"))) == ([], 2, 1)
    assert peers.evicted == 2


def test_stopped_replica_is_kept_until_its_edges_expire():
    peers = PeerTraffic()
    peers.live = {"a"}
    peers.put("a", key(), only())
    assert peers.stopped == []
    peers.live = frozenset()
    assert peers.stopped == ["a"]
    peers.expire(NOON + RETENTION)
    assert peers
    peers.expire(NOON + RETENTION + 1)
    assert not peers
    assert peers.stopped == []
    assert len(peers.past) == 1


def test_traffic_of_other_replicas_is_remembered_longer_than_its_counts():
    peers = PeerTraffic()
    peers.put("b", key(), only(requests=9))
    peers.put("b", key()._replace(denial=Denial("rule")), only(requests=9))
    peers.expire(NOON + RETENTION + 60)
    merged = MergedTraffic(Traffic(), peers)
    assert list(merged.edges()) == []
    [(found, edge)] = merged.seen_since(NOON - 60)
    assert (found, edge.day(NOON)) == (key(), 0)
    assert peers.past == [(found, edge)]
    peers.put("b", found, only(requests=1))
    assert (len(peers.of("b")), len(list(merged.seen_since(0.0)))) == (1, 1)
    peers.expire(NOON + TRAFFIC_RETENTION + RETENTION)
    peers.expire(NOON + TRAFFIC_RETENTION + RETENTION)
    assert list(merged.seen_since(0.0)) == []


def test_older_copy_does_not_replace_remembered_traffic():
    peers, plaintext = PeerTraffic(), key(mode=TrafficMode.PLAINTEXT)
    now = NOON + 5 * 86400
    peers.put("b", plaintext, only(requests=1), is_copy=True, now=now)
    older = only(requests=1)
    older.last_seen = NOON - 3600
    peers.put("b", plaintext, older, is_copy=True, now=now)
    [(_, edge)] = peers.seen_since(0.0)
    assert edge.last_seen == NOON


def test_remembered_traffic_of_other_replicas_is_limited():
    peers = PeerTraffic(max_edges=2)
    for client in ("x", "y", "z"):
        peers.put(client, key(client, TrafficMode.PLAINTEXT), only(requests=1))
        peers.expire(NOON + RETENTION + 60)
    assert [found.client.name for found, _ in peers.seen_since(0.0)] == ["y", "z"]
    assert (peers.evicted, peers.last_evicted) == (1, NOON)


def test_remembered_traffic_of_several_replicas_is_one_edge():
    peers, later, of_server = PeerTraffic(), only(requests=1), only(requests=1)
    later.add(Reporter.CLIENT, 1, 0, NOON + 60)
    of_server.add(Reporter.SERVER, 1, 0, NOON)
    for replica, edge in (("a", only(requests=1)), ("b", later), ("c", only(requests=1)), ("d", of_server)):
        peers.put(replica, key(), edge, now=NOON + RETENTION + 120)
    [(_, edge)] = peers.past
    assert (edge.first_seen, edge.last_seen, edge.by_server) == (NOON, NOON + 60, True)
    assert peers.version == 3


def test_older_copy_does_not_replace_an_edge():
    peers, edge, copy = PeerTraffic(), only(requests=9), only(requests=5)
    edge.last_seen = NOON + 100
    peers.put("a", key(), edge)
    peers.put("a", key(), copy, is_copy=True)
    assert peers.of("a") == [(key(), edge)]
    copy.last_seen = NOON + 102
    peers.put("a", key(), copy, is_copy=True)
    assert peers.of("a") == [(key(), copy)]
