"""Edges: rates, totals, and the bounds on their number."""

from __future__ import annotations

from xds.mesh.observe.counts import RETENTION
from xds.mesh.observe.edges import (
    MAX_ADDRESSES,
    MAX_PATHS,
    OTHER_ADDRESSES,
    TRAFFIC_RETENTION,
    Client,
    Denial,
    EdgeKey,
    Reporter,
    Target,
    Traffic,
    TrafficMode,
)

NOON = 1_000_000 * 600.0
WEB = Target("shop", "web", 80)
SLEEP, HTTPBIN = ("full", "sleep-1"), ("full", "httpbin-1")


def key(client: str = "sleep", mode: TrafficMode = TrafficMode.MTLS) -> EdgeKey:
    return EdgeKey(Client("full", client), WEB, mode)


def add(traffic: Traffic, edge: EdgeKey, requests: int, now: float, **how) -> None:
    source, reporter = how.pop("source", Reporter.CLIENT), how.pop("reporter", SLEEP)
    traffic.add(edge, source, reporter, requests=requests, now=now, **how)


def only(traffic: Traffic):
    [(_, edge)] = traffic.edges()
    return edge


def test_rate_is_the_average_since_the_edge_was_first_seen():
    traffic = Traffic()
    add(traffic, key(), 30, NOON)
    assert only(traffic).rate(NOON + 1) == 30
    assert only(traffic).rate(NOON + 120) == 15
    assert only(traffic).rate(NOON + 240) == 30 / 4
    assert only(traffic).rate(NOON + 300) == 0


def test_plaintext_that_both_sidecars_report_counts_once():
    traffic, plaintext = Traffic(), key(mode=TrafficMode.PLAINTEXT)
    add(traffic, plaintext, 5, NOON)
    add(traffic, plaintext, 6, NOON + 3, source=Reporter.SERVER, reporter=HTTPBIN)
    add(traffic, plaintext, 2, NOON + 10)

    edge = only(traffic)
    assert (edge.minutes(NOON + 10)[-1], edge.day(NOON + 10), edge.total) == (7, 7, 7)
    assert traffic.totals == {("shop", TrafficMode.PLAINTEXT): 7}


def test_report_without_requests_updates_last_seen_only():
    traffic = Traffic()
    add(traffic, key(), 1, NOON)
    add(traffic, key(), 0, NOON + 60, source=Reporter.SERVER)

    assert (only(traffic).last_seen, only(traffic).first_seen) == (NOON + 60, NOON)
    assert traffic.totals == {("shop", TrafficMode.MTLS): 1}


def test_failed_requests_are_counted():
    traffic = Traffic()
    add(traffic, key(), 5, NOON, failed=2)
    assert only(traffic).failed_in_hour(NOON) == 2


def test_edge_that_was_seen_longest_ago_is_forgotten():
    traffic = Traffic(max_edges=2)
    for number, client in enumerate(("a", "b", "a", "c")):
        add(traffic, key(client), 1, NOON + number)

    assert [edge.client.name for edge, _ in traffic.edges()] == ["a", "c"]
    assert (len(traffic), traffic.evicted) == (2, 1)


def test_one_sidecar_cannot_create_all_edges():
    traffic = Traffic(max_edges_per_reporter=2)
    for client in "abc":
        add(traffic, key(client), 1, NOON)
    add(traffic, key("a"), 1, NOON)
    add(traffic, key("d"), 1, NOON, reporter=HTTPBIN)

    assert sorted(edge.client.name for edge, _ in traffic.edges()) == ["a", "b", "d"]
    assert traffic.excess == 1


def test_many_addresses_of_a_target_share_an_edge():
    traffic = Traffic()
    addresses = [EdgeKey(Client("", f"192.0.2.{n}"), WEB, TrafficMode.PLAINTEXT) for n in range(100)]
    add(traffic, key(), 1, NOON)
    for edge in addresses * 2:
        add(traffic, edge, 1, NOON, source=Reporter.SERVER)
    add(traffic, key("late"), 1, NOON)
    other = addresses[99]._replace(target=Target("shop", "web", 90))
    add(traffic, other, 1, NOON, source=Reporter.SERVER)

    shared = EdgeKey(OTHER_ADDRESSES, WEB, TrafficMode.PLAINTEXT)
    assert {edge for edge, _ in traffic.edges()} == {
        key(), *addresses[:MAX_ADDRESSES], shared, key("late"), other
    }  # fmt: skip
    assert dict(traffic.edges())[shared].total == 2 * (100 - MAX_ADDRESSES)


def test_expired_addresses_make_room_for_others():
    traffic = Traffic()
    for number in range(MAX_ADDRESSES + 1):
        edge = EdgeKey(Client("", f"192.0.2.{number}"), WEB, TrafficMode.PLAINTEXT)
        add(traffic, edge, 1, NOON, source=Reporter.SERVER)
    add(traffic, edge, 1, NOON + RETENTION + 1, source=Reporter.SERVER)
    assert [found for found, _ in traffic.edges()] == [edge]


def test_edges_of_a_sidecar_are_released_when_they_expire():
    traffic = Traffic(max_edges_per_reporter=1)
    add(traffic, key("a"), 1, NOON)
    add(traffic, key("b"), 1, NOON + TRAFFIC_RETENTION + 1)

    assert [edge.client.name for edge, _ in traffic.edges()] == ["b"]
    traffic.expire(NOON + TRAFFIC_RETENTION + 3 * RETENTION)
    assert not list(traffic.edges())


def test_edges_of_a_namespace_include_its_clients_and_servers():
    traffic = Traffic()
    add(traffic, key(), 1, NOON)

    assert [len(list(traffic.edges(name))) for name in ("", "full", "shop", "other")] == [1, 1, 1, 0]


def test_traffic_is_remembered_longer_than_its_counts():
    traffic, plaintext = Traffic(), key(mode=TrafficMode.PLAINTEXT)
    add(traffic, plaintext, 5, NOON, source=Reporter.SERVER)
    later = NOON + RETENTION + 1
    traffic.expire(later)
    assert not list(traffic.edges())
    [(found, edge)] = traffic.seen_since(NOON)
    assert (found, edge.first_seen, edge.last_seen, edge.by_server) == (plaintext, NOON, NOON, True)
    assert not list(traffic.seen_since(NOON + 1))

    add(traffic, plaintext, 2, later)
    assert (only(traffic).day(later), only(traffic).first_seen) == (2, NOON)
    traffic.expire(later + TRAFFIC_RETENTION + 1)
    assert not list(traffic.seen_since(0))


def test_remembered_traffic_counts_for_the_limits():
    traffic = Traffic(max_edges=2, max_edges_per_reporter=2)
    for client in ("a", "b"):
        add(traffic, key(client, TrafficMode.PLAINTEXT), 1, NOON)
    later = NOON + RETENTION + 1
    add(traffic, key("c"), 1, later)
    assert (traffic.excess, len(list(traffic.edges()))) == (1, 0)
    add(traffic, key("c"), 1, later, reporter=HTTPBIN)
    assert (traffic.evicted, [found.client.name for found, _ in traffic.seen_since(0)]) == (1, ["b", "c"])
    add(traffic, key("d"), 1, later)
    assert traffic.evicted == 2


def test_totals_of_a_namespace_are_forgotten_with_its_last_edge():
    traffic = Traffic()
    add(traffic, key("a"), 5, NOON)
    add(traffic, key("b"), 3, NOON + 60)
    other = EdgeKey(Client("full", "sleep"), Target("bank", "web", 80), TrafficMode.MTLS)
    add(traffic, other, 1, NOON + RETENTION + 30)
    assert traffic.totals == {("shop", TrafficMode.MTLS): 8, ("bank", TrafficMode.MTLS): 1}

    add(traffic, other, 1, NOON + RETENTION + 61)
    assert traffic.totals == {("bank", TrafficMode.MTLS): 2}


def test_edges_without_requests_have_no_total():
    traffic = Traffic()
    add(traffic, key(), 0, NOON)
    traffic.expire(NOON + RETENTION + 1)
    assert (len(traffic), traffic.totals) == (0, {})


def test_paths_of_a_denial_are_limited():
    traffic = Traffic()

    def deny(path: str, client: str = "sleep") -> None:
        denial = Denial("ns[a]-policy[b]-rule[0]", "GET", path)
        add(traffic, key(client)._replace(denial=denial), 1, NOON)

    for number in range(MAX_PATHS + 5):
        deny(f"/{number}")
    deny("/0")
    deny("/a", "other")

    counts = {key.denial.path: edge.day(NOON) for key, edge in traffic.edges() if key.client.name == "sleep"}
    assert counts == {"/0": 2, **{f"/{number}": 1 for number in range(1, MAX_PATHS)}, "*": 5}
    assert len(traffic) == MAX_PATHS + 2
    assert traffic.totals == {("shop", "false"): MAX_PATHS + 7}

    traffic.expire(NOON + RETENTION + 1)
    deny("/new")
    assert {key.denial.path for key, _ in traffic.edges()} == {"/new"}


def test_denied_plaintext_is_forgotten_after_a_day():
    """Nobody can see it afterwards, and it would use up the limits for a week."""
    traffic, plaintext = Traffic(), key(mode=TrafficMode.PLAINTEXT)
    add(traffic, plaintext._replace(denial=Denial("ns[a]-policy[b]-rule[0]", "GET", "/a")), 1, NOON)
    add(traffic, plaintext, 1, NOON)
    traffic.expire(NOON + RETENTION + 1)
    assert [found for found, _ in traffic.changes(0)] == [plaintext]


def test_paths_of_an_address_count_once():
    def of(address: str, path: str) -> EdgeKey:
        return EdgeKey(Client("", address), WEB, TrafficMode.PLAINTEXT, Denial("", "GET", path))

    traffic = Traffic()
    for number in range(MAX_ADDRESSES):
        for path in "/a", "/b":
            add(traffic, of(f"203.0.113.{number}", path), 1, NOON)
    add(traffic, of("203.0.114.1", "/a"), 1, NOON)
    assert {edge.client.name for edge, _ in traffic.edges()} == {
        *(f"203.0.113.{number}" for number in range(MAX_ADDRESSES)),
        OTHER_ADDRESSES.name,
    }
    traffic.expire(NOON + RETENTION + 1)
    add(traffic, of("203.0.114.1", "/a"), 1, NOON + RETENTION + 1)
    assert [edge.client.name for edge, _ in traffic.edges()] == ["203.0.114.1"]
