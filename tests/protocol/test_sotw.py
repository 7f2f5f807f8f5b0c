"""The state-of-the-world variant, by rule of the protocol."""

from __future__ import annotations

import pytest

from tests.protocol.stream import Stream, world
from xds.protocol.events import Acked, Connected, Subscribed
from xds.protocol.limits import RequestError
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER


def sotw(snapshot=None, **options) -> Stream:
    return Stream(Variant.SOTW, snapshot, **options)


@pytest.mark.parametrize(("short", "world_of"), [("CDS", "CDS"), ("LDS", "LDS")])
def test_o1_empty_subscription_gets_all_clusters_and_listeners(short, world_of):
    stream = sotw(world(**{world_of: "a=1 b=2"}))
    stream.ask(short)
    assert stream.get() == [f"{short} a=1 b=2"]


@pytest.mark.parametrize("short", ["EDS", "RDS", "SDS"])
def test_r23_empty_subscription_to_other_types_gets_nothing(short):
    stream = sotw(world(**{short: "a=1"}))
    assert not any(isinstance(event, Subscribed) for event in stream.ask(short))
    assert stream.get() == []


@pytest.mark.parametrize("short", ["CDS", "LDS", "EDS"])
def test_o6_first_wildcard_request_gets_an_empty_response(short):
    stream = sotw(world())
    stream.ask(short, "*")
    assert stream.get() == [short]
    stream.ack(short)
    assert stream.get() == []


def test_o6_a_legacy_wildcard_is_answered_in_an_empty_world():
    stream = sotw(world())
    stream.ask("CDS")
    assert stream.get() == ["CDS"]


def test_nothing_is_sent_until_there_is_a_snapshot():
    stream = sotw()
    stream.ask("CDS")
    stream.ask("EDS", "a")
    assert stream.get() == []
    assert stream.session.deadline() is None
    assert stream.push(CDS="a=1", EDS="a=1") == ["CDS a=1", "EDS a=1"]


def test_r1_the_node_of_the_first_request_is_kept():
    stream = sotw(world())
    assert isinstance(stream.ask("CDS")[0], Connected)
    assert not any(isinstance(event, Connected) for event in stream.ask("LDS"))
    assert stream.session.node is not None
    assert stream.session.node.id.startswith("sidecar~")


@pytest.mark.parametrize("node", [None, b"", b"\x12\x00"])
def test_r60_a_stream_that_begins_without_a_node_ends(node):
    with pytest.raises(RequestError, match=r"node\.id"):
        sotw(world()).session.receive(node or b"", 0.0)


def test_r2_an_aggregated_stream_needs_a_type():
    with pytest.raises(RequestError, match="type_url"):
        sotw(world()).ask("")


def test_r2_the_type_of_a_stream_for_one_type_is_implied():
    stream = sotw(world(CDS="a=1"), type_url=CLUSTER)
    stream.ask("")
    assert stream.get() == ["CDS a=1"]


def test_r2_stream_for_one_type_rejects_another():
    stream = sotw(world(LDS="a=1"), type_url=CLUSTER)
    with pytest.raises(RequestError, match="only"):
        stream.ask("LDS")


def test_r3_unserved_type_does_not_block_others():
    stream = sotw(world(CDS="a=1"))
    stream.ask("type.googleapis.com/other.Type", "*")
    stream.ask("CDS")
    assert stream.get() == ["CDS a=1"]
    stream.ack("CDS")
    assert stream.push(CDS="a=1", **{"type.googleapis.com/other.Type": "x=1"}) == [
        "type.googleapis.com/other.Type x=1"
    ]


def test_r4_nonces_are_unique_on_a_stream():
    stream = sotw(world(CDS="a=1", EDS="a=1"))
    stream.ask("CDS")
    stream.ask("EDS", "a")
    stream.settle()
    stream.settle(CDS="a=2", EDS="a=1")
    nonces = [reply.nonce for reply in stream.replies]
    assert len(nonces) == len(set(nonces)) == 4


def test_r5_equal_content_has_equal_versions_on_all_streams():
    versions = []
    for order in ("a=1 b=1", "b=1 a=1"):
        stream = sotw(world(CDS=order))
        stream.ask("CDS")
        stream.get()
        versions.append(stream.last["CDS"].version)
    assert versions[0] == versions[1]


def test_r6_a_request_that_answers_an_older_response_is_void():
    stream = sotw(world(EDS="a=1 b=1"))
    stream.ask("EDS", "a")
    stream.get()
    old = stream.last["EDS"].nonce
    assert stream.push(EDS="a=2 b=1") == ["EDS a=2"]
    assert [type(event) for event in stream.ask("EDS", "a", "b", nonce=old)] == [Acked]
    assert stream.get() == []
    stream.ask("EDS", "a", "b", nonce=stream.last["EDS"].nonce)
    assert stream.get() == ["EDS b=1"]


def test_r7_first_request_may_have_a_nonce_of_another_stream():
    stream = sotw(world(CDS="a=1"))
    stream.ask("CDS", nonce="77")
    assert stream.get() == ["CDS a=1"]


def test_r9_a_later_request_supersedes_an_earlier_one():
    stream = sotw(world(EDS="a=1 b=1"))
    stream.ask("EDS", "a")
    stream.ask("EDS", "b")
    assert stream.get() == ["EDS b=1"]


def test_r14_unchanged_resources_are_not_sent():
    stream = sotw(world(CDS="a=1", EDS="a=1"))
    stream.ask("CDS")
    stream.ask("EDS", "a")
    stream.settle()
    assert stream.push(CDS="a=1", EDS="a=1") == []


def test_r15_an_ack_is_not_answered():
    stream = sotw(world(CDS="a=1"))
    stream.ask("CDS")
    stream.get()
    assert [type(event) for event in stream.ack("CDS")] == [Acked]
    assert stream.get() == []
    assert stream.ack("CDS") == []
    assert stream.get() == []


def test_r16_new_name_is_answered_alone():
    stream = sotw(world(EDS="a=1 b=1"))
    stream.ask("EDS", "a")
    stream.settle()
    version = stream.last["EDS"].version
    stream.ask("EDS", "a", "b", nonce=stream.last["EDS"].nonce)
    assert stream.get() == ["EDS b=1"]
    assert stream.last["EDS"].version == version


def test_r16_new_cluster_name_is_answered_with_all_names():
    stream = sotw(world(CDS="a=1 b=1 c=1"))
    stream.ask("CDS", "a")
    assert stream.settle() == ["CDS a=1"]
    stream.ask("CDS", "a", "b", nonce=stream.last["CDS"].nonce)
    assert stream.get() == ["CDS a=1 b=1"]


@pytest.mark.parametrize("short", ["EDS", "LDS"])
def test_r17_fewer_names_are_not_answered(short):
    stream = sotw(world(**{short: "a=1 b=1"}))
    stream.ask(short, "a", "b")
    stream.settle()
    stream.ask(short, "a", nonce=stream.last[short].nonce)
    assert stream.get() == []
    assert stream.push(**{short: "a=2 b=2"}) == [f"{short} a=2"]


def test_o17_empty_list_after_names_ends_the_subscription():
    stream = sotw(world(CDS="a=1", EDS="a=1"))
    stream.ask("CDS", "a")
    stream.ask("EDS", "a")
    stream.settle()
    stream.ask("CDS", nonce=stream.last["CDS"].nonce)
    stream.ask("EDS", nonce=stream.last["EDS"].nonce)
    assert stream.push(CDS="a=2", EDS="a=2") == []


def test_r18_a_name_that_comes_back_is_sent_again():
    stream = sotw(world(EDS="a=1 b=1"))
    stream.ask("EDS", "a", "b")
    stream.settle()
    stream.ask("EDS", "a", nonce=stream.last["EDS"].nonce)
    stream.ask("EDS", "a", "b", nonce=stream.last["EDS"].nonce)
    assert stream.get() == ["EDS b=1"]


def test_r22_a_wildcard_can_be_left_for_names():
    stream = sotw(world(CDS="a=1 b=1"))
    stream.ask("CDS", "*", "a")
    assert stream.settle() == ["CDS a=1 b=1"]
    stream.ask("CDS", "a", nonce=stream.last["CDS"].nonce)
    assert stream.push(CDS="a=1 b=2") == []
    assert stream.push(CDS="a=2 b=2") == ["CDS a=2"]


def test_r22_a_wildcard_can_be_entered_from_names():
    stream = sotw(world(CDS="a=1 b=1"))
    stream.ask("CDS", "a")
    stream.settle()
    stream.ask("CDS", "*", "a", nonce=stream.last["CDS"].nonce)
    assert stream.get() == ["CDS a=1 b=1"]


def test_r25_missing_name_is_sent_once_it_exists():
    stream = sotw(world(EDS="a=1"))
    stream.ask("EDS", "a", "late")
    assert stream.settle() == ["EDS a=1"]
    assert stream.push(EDS="a=1 late=1") == ["EDS late=1"]


def test_r25_named_listeners_are_answered_even_if_none_exists():
    stream = sotw(world())
    stream.ask("LDS", "svc")
    assert stream.settle() == ["LDS"]
    assert stream.push(LDS="svc=1 other=1") == ["LDS svc=1"]


def test_r25_missing_assignment_is_not_answered():
    stream = sotw(world())
    stream.ask("EDS", "late")
    assert stream.get() == []


def test_r27_removed_cluster_is_omitted_from_the_next_response():
    stream = sotw(world(CDS="a=1 b=1"))
    stream.ask("CDS")
    stream.settle()
    assert stream.settle(CDS="b=1") == ["CDS b=1"]
    stream.serve(world())
    assert stream.settle() == ["CDS"]


def test_r27_removed_assignment_is_resent_only_if_it_differs():
    stream = sotw(world(EDS="a=1 b=1"))
    stream.ask("EDS", "a", "b")
    stream.settle()
    assert stream.push(EDS="b=1") == []
    assert stream.push(EDS="a=1 b=1") == []
    assert stream.push(EDS="a=2 b=1") == ["EDS a=2"]


def test_r29_names_are_a_set():
    stream = sotw(world(EDS="a=1"))
    stream.ask("EDS", "a", "a")
    assert stream.get() == ["EDS a=1"]


@pytest.mark.parametrize("short", ["CDS", "EDS", "LDS", "RDS", "SDS"])
def test_r35_a_client_that_reconnects_is_always_answered(short):
    stream = sotw(world(**{short: "a=1"}))
    stream.ask(short, "a")
    assert stream.get() == [f"{short} a=1"]


def test_r46_responses_identify_the_control_plane():
    stream = sotw(world(CDS="a=1"), identifier="xds-1")
    stream.ask("CDS")
    stream.get()
    assert stream.last["CDS"].identifier == "xds-1"


def test_r52_outdated_versions_are_never_sent():
    stream = sotw(world(CDS="a=1"))
    stream.ask("CDS")
    for version in range(2, 1000):
        stream.serve(world(CDS=f"a={version}"))
    assert stream.get() == ["CDS a=999"]


def test_r52_reverted_change_is_not_sent():
    stream = sotw(world(EDS="a=1"))
    stream.ask("EDS", "a")
    stream.settle()
    stream.serve(world(EDS="a=2"))
    assert stream.push(EDS="a=1") == []


def test_r58_incomplete_responses_are_split(monkeypatch):
    monkeypatch.setattr("xds.protocol.watch.RESPONSE_BUDGET", 250)
    names = [f"n{number}" for number in range(5)]
    stream = sotw(world(EDS=" ".join(f"{name}=1" for name in names)))
    stream.ask("EDS", *names)
    assert stream.get() == ["EDS n0=1 n1=1", "EDS n2=1 n3=1", "EDS n4=1"]


def test_events_report_subscriptions_and_acks():
    stream = sotw(world(EDS="a=1"))
    subscribed = stream.ask("EDS", "a", "b")[-1]
    assert isinstance(subscribed, Subscribed)
    assert (subscribed.names, subscribed.wildcard) == ({"a", "b"}, False)
    stream.get()
    stream.now = 1.5
    (acked,) = stream.ack("EDS")
    assert isinstance(acked, Acked)
    assert (acked.names, acked.waited, acked.version) == (("a",), 1.5, stream.last["EDS"].version)


def test_r3_subscription_may_precede_the_snapshot():
    stream = sotw()
    stream.ask("other", "x")
    assert stream.get() == []
    assert stream.push(other="x=1") == ["other x=1"]
