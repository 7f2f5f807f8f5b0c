"""The delta variant, by rule of the protocol."""

from __future__ import annotations

import pytest
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryResponse

from tests.protocol.stream import Stream, world
from xds.protocol.acks import MAX_UNANSWERED
from xds.protocol.events import Acked, Subscribed
from xds.protocol.limits import RequestError
from xds.protocol.responses import encoded_size
from xds.protocol.session import Variant
from xds.protocol.watch import RESPONSE_BUDGET
from xds.snapshot import ENDPOINT, SECRET, Resource, ResourceSet, Snapshot


def delta(snapshot=None, **options) -> Stream:
    return Stream(Variant.DELTA, snapshot, **options)


@pytest.mark.parametrize("short", ["CDS", "LDS"])
def test_o1_empty_subscription_gets_all_clusters_and_listeners(short):
    stream = delta(world(**{short: "a=1 b=2"}))
    stream.ask(short)
    assert stream.get() == [f"{short} a=1 b=2"]


@pytest.mark.parametrize("short", ["EDS", "RDS", "SDS"])
def test_r23_empty_subscription_to_other_types_gets_nothing(short):
    stream = delta(world(**{short: "a=1"}))
    assert not any(isinstance(event, Subscribed) for event in stream.ask(short))
    assert stream.get() == []


def test_o6_first_wildcard_request_gets_an_empty_response():
    stream = delta(world())
    stream.ask("CDS")
    stream.ask("LDS", "*")
    assert stream.settle() == ["CDS", "LDS"]
    assert stream.get() == []


def test_nothing_is_sent_until_there_is_a_snapshot():
    stream = delta()
    stream.ask("CDS")
    stream.ask("EDS", "a", "gone")
    assert stream.get() == []
    assert stream.push(CDS="a=1", EDS="a=1") == ["CDS a=1", "EDS a=1 -gone"]


def test_r2_an_aggregated_stream_needs_a_type():
    with pytest.raises(RequestError, match="type_url"):
        delta(world()).ask("")


def test_r3_unserved_type_reports_no_missing_names():
    stream = delta(world(CDS="a=1"))
    stream.ask("other", "x")
    stream.ask("CDS")
    assert stream.get() == ["CDS a=1"]
    stream.ack("CDS")
    assert stream.push("other", CDS="a=1") == ["other -x"]


def test_r4_and_r58_large_push_is_split_with_separate_nonces(monkeypatch):
    monkeypatch.setattr("xds.protocol.watch.RESPONSE_BUDGET", 190)
    stream = delta(world(CDS=" ".join(f"n{number}=1" for number in range(5))))
    stream.ask("CDS")
    assert stream.get() == ["CDS n0=1 n1=1", "CDS n2=1 n3=1", "CDS n4=1"]
    assert len({reply.nonce for reply in stream.replies}) == 3
    for reply in stream.replies:
        (acked,) = stream.ack("CDS", nonce=reply.nonce)
        assert acked.names == tuple(reply.resources)


def test_r58_resource_larger_than_the_limit_is_sent(monkeypatch):
    monkeypatch.setattr("xds.protocol.watch.RESPONSE_BUDGET", 1)
    stream = delta(world(CDS="a=1"))
    stream.ask("CDS")
    assert stream.get() == ["CDS a=1"]


def test_r58_full_response_is_below_3_mib():
    body = bytes(RESPONSE_BUDGET // 2)
    pair = [Resource.of(ENDPOINT, name, body, version="1") for name in "ab"]
    over = sum(map(encoded_size, pair)) - RESPONSE_BUDGET
    full = [pair[0], Resource.of(ENDPOINT, "b", body[over:], version="1")]
    assert sum(map(encoded_size, full)) == RESPONSE_BUDGET
    stream = delta(Snapshot({ENDPOINT: ResourceSet(full)}), identifier="x" * 100)
    stream.ask("EDS", "a", "b", "none")
    data = stream.session.next(0.0)
    assert data is not None
    assert len(DeltaDiscoveryResponse.parse(data).resources) == 2
    assert RESPONSE_BUDGET < len(data) < 3 << 20


@pytest.mark.parametrize("short", ["EDS", "VHDS"])
def test_r58_removed_names_are_split_too(short):
    stream = delta(world())
    names = [f"{number}{'ü' * 200}" for number in range(10_000)]
    stream.ask(short, *names)
    parts = []
    while data := stream.session.next(0.0):
        assert len(data) < 3 << 20
        parts.append(DeltaDiscoveryResponse.parse(data))
    sent = [name for part in parts for name in part.removed_resources]
    sent += [resource.name for part in parts for resource in part.resources]
    assert sorted(sent) == sorted(names)


def test_r8_subscription_applies_whatever_the_nonce():
    stream = delta(world(EDS="a=1 b=1"))
    stream.ask("EDS", "a")
    stream.get()
    stream.push(EDS="a=2 b=1")
    stream.ask("EDS", "b", nonce=stream.replies[0].nonce)
    assert stream.get() == ["EDS b=1"]
    stream.ask("EDS", unsubscribe=("b",), nonce="unheard-of")
    assert stream.push(EDS="a=2 b=2") == []


def test_r13_responses_in_flight_are_answered_individually():
    stream = delta(world(EDS="a=1"))
    stream.ask("EDS", "a")
    stream.get()
    stream.push(EDS="a=2")
    first, second = (reply.nonce for reply in stream.replies)
    (acked,) = stream.ack("EDS", nonce=second)
    assert (acked.nonce, acked.resources[0].version) == (second, "2")
    (acked,) = stream.ack("EDS", nonce=first)
    assert (acked.nonce, acked.resources[0].version) == (first, "1")
    assert stream.ack("EDS", nonce=first) == []


def test_r14_only_changes_are_sent():
    stream = delta(world(CDS="a=1 b=1 c=1"))
    stream.ask("CDS")
    stream.settle()
    stream.serve(world(CDS="a=1 b=2 d=1"))
    assert stream.get()[0] == "CDS b=2 d=1 -c"


def test_r15_an_ack_is_not_answered():
    stream = delta(world(CDS="a=1"))
    stream.ask("CDS")
    stream.get()
    assert [type(event) for event in stream.ack("CDS")] == [Acked]
    assert stream.get() == []


def test_r18_a_name_that_comes_back_is_sent_again():
    stream = delta(world(EDS="a=1"))
    stream.ask("EDS", "a")
    stream.settle()
    stream.ask("EDS", unsubscribe=("a",))
    assert stream.get() == []
    stream.ask("EDS", "a")
    assert stream.get() == ["EDS a=1"]


def test_r19_a_name_that_is_subscribed_to_again_is_sent_again():
    stream = delta(world(EDS="a=1"))
    stream.ask("EDS", "a")
    stream.settle()
    stream.ask("EDS", "a", "gone")
    assert stream.get() == ["EDS a=1 -gone"]
    stream.ask("EDS", "gone")
    assert stream.get() == ["EDS -gone"]


def test_r20_unsubscribing_from_an_unknown_name_is_ignored():
    stream = delta(world(CDS="a=1"))
    stream.ask("CDS")
    stream.settle()
    stream.ask("CDS", unsubscribe=("a", "b"))
    stream.ask("EDS", unsubscribe=("a",))
    assert stream.get() == []


def test_r21_unsubscribing_under_a_wildcard_is_answered():
    stream = delta(world(CDS="a=1"))
    stream.ask("CDS", "*", "a", "gone")
    assert stream.settle() == ["CDS a=1 -gone"]
    stream.ask("CDS", unsubscribe=("a",))
    assert stream.settle() == ["CDS a=1"]
    stream.ask("CDS", unsubscribe=("gone",))
    assert stream.settle() == ["CDS -gone"]


def test_r22_name_does_not_end_the_legacy_wildcard():
    stream = delta(world(CDS="a=1"))
    stream.ask("CDS")
    stream.settle()
    stream.ask("CDS", "x")
    assert stream.settle() == ["CDS -x"]
    assert stream.settle(CDS="a=2 x=1") == ["CDS a=2 x=1"]
    stream.ask("CDS", unsubscribe=("*",))
    assert stream.settle(CDS="a=3 x=2") == ["CDS x=2"]


def test_r22_names_first_are_no_wildcard():
    stream = delta(world(CDS="a=1 b=1"))
    stream.ask("CDS", "a")
    assert stream.settle() == ["CDS a=1"]
    stream.ask("CDS")
    assert stream.get() == []


def test_r22_later_wildcard_sends_only_missing_resources():
    stream = delta(world(CDS="a=1 b=1"))
    stream.ask("CDS", "a")
    stream.settle()
    stream.ask("CDS", "*")
    assert stream.settle() == ["CDS b=1"]
    stream.ask("CDS", "*")
    assert stream.settle() == []


def test_r22_wildcard_added_and_removed_at_once_is_void():
    stream = delta(world(CDS="a=1"))
    stream.ask("CDS", "*", unsubscribe=("*",))
    assert stream.get() == []


def test_r24_wildcard_can_end_unanswered_and_start_again():
    stream = delta(world(CDS="a=1"))
    stream.ask("CDS")
    stream.settle()
    stream.ask("CDS", unsubscribe=("*",))
    assert stream.get() == []
    stream.ask("CDS", "*")
    assert stream.get() == ["CDS a=1"]


def test_r26_missing_name_is_reported_once_and_sent_later():
    stream = delta(world())
    stream.ask("EDS", "late")
    assert stream.settle() == ["EDS -late"]
    assert stream.settle(EDS="other=1") == []
    assert stream.settle(EDS="late=1") == ["EDS late=1"]


def test_r26_name_that_returns_unsent_is_not_reported_again():
    stream = delta(world())
    stream.ask("EDS", "late")
    stream.settle()
    stream.serve(world(EDS="late=1"))
    assert stream.push() == []


def test_r27_removal_is_sent_once():
    stream = delta(world(EDS="a=1", RDS="r=1"))
    stream.ask("EDS", "a")
    stream.ask("RDS", "r")
    stream.settle()
    stream.serve(world())
    assert stream.settle() == ["EDS -a", "RDS -r"]
    assert stream.get() == []


def test_r29_subscribing_comes_before_unsubscribing():
    stream = delta(world(EDS="a=1"))
    stream.ask("EDS", "a", "a", unsubscribe=("a", "a"))
    assert stream.get() == []


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("short", "names"), [("LDS", ()), ("RDS", ("same", "other", "new", "gone"))])
def test_r36_reconnect_sends_only_what_differs(known, short, names):
    after = world(**{short: "same=1 other=2 new=1"})
    stream = delta(after if known else None)
    stream.ask(short, *names, initial={"same": "1", "other": "1", "gone": "1"})
    if not known:
        stream.serve(after)
    assert stream.settle()[-1] == f"{short} new=1 other=2 -gone"


def test_r36_outdated_resource_is_sent_although_others_change():
    stream = delta(world(CDS="outdated=2 other=1"))
    stream.ask("CDS", initial={"outdated": "1", "other": "1"})
    assert stream.push(CDS="outdated=2 other=2") == ["CDS other=2 outdated=2"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("short", "names"), [("CDS", ()), ("RDS", ("a", "b"))])
def test_o14_synced_client_is_not_answered(known, short, names):
    snapshot = world(**{short: "a=1 b=1"})
    stream = delta(snapshot if known else None)
    stream.ask(short, *names, initial={"a": "1", "b": "1"})
    if not known:
        stream.serve(snapshot)
    assert stream.get() == []


def test_r36_names_are_sent_that_the_client_did_not_bring():
    stream = delta(world(RDS="a=1 b=1"))
    stream.ask("RDS", "a", "b", "c", "d", initial={"a": "1", "d": "1"})
    assert sorted(stream.settle()[0].split()) == ["-c", "-d", "RDS", "b=1"]


def test_refused_name_is_reported_with_the_reason():
    served = world(SDS="roots=1")
    stream = delta(Snapshot(served.types, {(SECRET, "default"): "not in plaintext"}))
    stream.ask("SDS", "default", "roots", "other")
    message = DeltaDiscoveryResponse.parse(stream.session.next(0.0))
    assert [each.name for each in message.resources] == ["roots"]
    assert sorted(message.removed_resources) == ["default", "other"]
    [error] = message.resource_errors
    assert (error.resource_name.name, error.error_detail.message) == ("default", "not in plaintext")


def test_r36_versions_count_only_in_the_first_request_of_a_type():
    stream = delta(world(EDS="a=1"))
    stream.ask("EDS")
    stream.ask("EDS", "a", initial={"a": "1"})
    assert stream.get() == ["EDS a=1"]


def test_r36_resubscription_to_a_removed_name_is_answered():
    stream = delta(world(CDS="x=1", LDS="l=1"))
    stream.ask("LDS")
    stream.ask("CDS", initial={"gone": "1", "x": "1"})
    assert stream.get() == ["LDS l=1"]  # The cluster is not ACKed, so `gone` must stay.
    stream.ask("CDS", "gone")
    assert stream.get() == ["CDS -gone"]


def test_r37_initial_versions_without_subscription_are_ignored():
    stream = delta(world(EDS="a=1 b=1"))
    stream.ask("EDS", "a", initial={"b": "0", "c": "1"})
    assert stream.get() == ["EDS a=1"]


def test_o5_secrets_are_sent_again_after_a_reconnect():
    stream = delta(world(SDS="default=1"))
    stream.ask("SDS", "default", initial={"default": "1"})
    assert stream.get() == ["SDS default=1"]


def test_r46_the_system_version_is_that_of_the_type():
    snapshot = world(CDS="a=1")
    stream = delta(snapshot, identifier="xds-1")
    stream.ask("CDS")
    stream.get()
    (version,) = {resources.version for resources in snapshot.types.values()}
    assert (stream.last["CDS"].version, stream.last["CDS"].identifier) == (version, "xds-1")


def test_r52_client_without_answers_gets_a_bounded_number():
    stream = delta(world(EDS="a=0"), patience=20.0)
    stream.ask("EDS", "a")
    sent = []
    for version in range(1, 10 * MAX_UNANSWERED):
        sent += stream.get()
        stream.serve(world(EDS=f"a={version}"))
    assert len(sent) == MAX_UNANSWERED
    assert stream.session.deadline() == 20.0
    stream.now = 20.0
    assert stream.get() == [f"EDS a={10 * MAX_UNANSWERED - 1}"]
    assert stream.ack("EDS", nonce=stream.replies[0].nonce) == []
    assert stream.ack("EDS", nonce=stream.replies[1].nonce) != []


def test_acked_event_has_resources_and_removed_names():
    stream = delta(world(EDS="a=1"))
    stream.ask("EDS", "a", "gone")
    stream.get()
    stream.now = 2.0
    (acked,) = stream.ack("EDS")
    assert (acked.names, acked.removed, acked.waited) == (("a",), ("gone",), 2.0)
