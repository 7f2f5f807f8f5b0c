"""Types with rules of their own: scopes, virtual hosts, runtime layers, filters and collections."""

from __future__ import annotations

import pytest

from tests.protocol.stream import TYPES, Stream, synced, world
from xds.protocol import types
from xds.protocol.limits import LimitError, Limits
from xds.protocol.session import Variant
from xds.protocol.status import State
from xds.snapshot import CLUSTER, EXTENSION_CONFIG, SECRET, VIRTUAL_HOST, Resource, ResourceSet, Snapshot


def one(resource: Resource, *more: Resource) -> Snapshot:
    return Snapshot({resource.type_url: ResourceSet((resource, *more))})


def host(name: str, *aliases: str, version: str = "1") -> Resource:
    return Resource.of(VIRTUAL_HOST, name, f"{name}={version}".encode(), version=version, aliases=aliases)


def lived(name: str, version: str, ttl: float | None, *, type_url: str = SECRET) -> Resource:
    return Resource.of(type_url, name, f"{name}={version}".encode(), version=version, ttl=ttl)


@pytest.mark.parametrize(
    ("type_url", "name"), [(CLUSTER, "CDS"), ("type.googleapis.com/a.b.Thing", "Thing"), ("odd/", "odd/")]
)
def test_short_name_of_a_type(type_url, name):
    assert types.short_name(type_url) == name


# --- order ---


def test_r40_sending_order_is_independent_of_the_requests():
    stream = Stream(Variant.DELTA, world(**dict.fromkeys(TYPES, "x=1")))
    for short in reversed(TYPES):
        stream.ask(short, "x")
    assert [text.split()[0] for text in stream.settle()] == [
        "RTDS",
        "CDS",
        "EDS",
        "LEDS",
        "SDS",
        "ECDS",
        "LDS",
        "SRDS",
        "RDS",
        "VHDS",
    ]


def test_r42_scopes_and_virtual_hosts_wait_for_clusters(variant):
    stream = Stream(variant, world(**dict.fromkeys(("CDS", "SRDS", "VHDS", "RTDS", "ECDS"), "x=1")))
    for short in ("CDS", "SRDS", "VHDS", "RTDS", "ECDS"):
        stream.ask(short, "x")
    assert stream.get() == ["RTDS x=1", "CDS x=1", "ECDS x=1"]
    stream.ack("CDS")
    assert stream.get() == ["SRDS x=1", "VHDS x=1"]


def test_r41_cluster_stays_until_its_virtual_hosts_are_acked():
    stream = Stream(Variant.DELTA, world(CDS="old=1", EDS="old=1", VHDS="v=old"))
    for short, names in (("CDS", ()), ("EDS", ("old",)), ("VHDS", ("v",))):
        stream.ask(short, *names)
    stream.settle()
    assert stream.push(VHDS="v=none") == ["VHDS v=none"]
    stream.ack("VHDS")
    assert stream.settle() == ["CDS -old", "EDS -old"]


def test_r41_routes_go_after_the_scopes_that_used_them():
    stream = synced(Variant.DELTA, world(SRDS="s=1>r", RDS="r=1"), SRDS="", RDS="r")
    assert stream.push(SRDS="s=2") == ["SRDS s=2"]
    stream.ack("SRDS")
    assert stream.get() == ["RDS -r"]


@pytest.mark.parametrize(("user", "used"), [("LDS", "SRDS"), ("RDS", "VHDS"), ("EDS", "LEDS")])
def test_r41_resource_is_removed_after_its_users(user, used):
    stream = Stream(Variant.DELTA, world(**{user: "x=1", used: "y=1"}))
    for short, name in ((user, "x"), (used, "y")):
        stream.ask(short, name)
    stream.settle()
    assert stream.push(**{user: "x=2"}) == [f"{user} x=2"]
    stream.ack(user)
    assert stream.settle() == [f"{used} -y"]


# --- SRDS, RTDS, ECDS ---


def test_r23_scopes_are_subscribed_by_wildcard_and_sent_in_full(variant):
    stream = Stream(variant, world(SRDS="a=1 b=1"))
    stream.ask("SRDS")
    assert stream.settle() == ["SRDS a=1 b=1"]
    assert stream.settle(SRDS="a=2 b=1") == [
        {Variant.SOTW: "SRDS a=2 b=1", Variant.DELTA: "SRDS a=2"}[variant]
    ]
    assert stream.settle(SRDS="a=2") == [{Variant.SOTW: "SRDS a=2", Variant.DELTA: "SRDS -b"}[variant]]


@pytest.mark.parametrize("short", ["RTDS", "ECDS", "LEDS", "VHDS"])
def test_r23_r32_empty_subscription_to_other_types_gets_nothing(variant, short):
    stream = Stream(variant, world(**{short: "a=1"}))
    stream.ask(short)
    assert stream.get() == []


def test_runtime_layer_is_sent_on_subscription_and_on_change(variant):
    stream = Stream(variant, world(RTDS="layer=1 other=1"))
    stream.ask("RTDS", "layer")
    assert stream.settle() == ["RTDS layer=1"]
    assert stream.settle(RTDS="layer=2 other=2") == ["RTDS layer=2"]


def test_r27_subscribed_filter_is_never_removed():
    stream = Stream(Variant.DELTA, world(ECDS="f=1"))
    stream.ask("ECDS", "f", "none")
    assert stream.settle() == ["ECDS f=1 -none"]
    assert stream.push() == []
    assert stream.push(ECDS="f=1") == []
    assert stream.settle(ECDS="f=2") == ["ECDS f=2"]
    stream.serve(world())
    stream.ask("ECDS", "f")
    assert stream.get() == ["ECDS -f"]  # The client subscribed again, so it has lost the resource.


def test_r27_filter_of_an_earlier_stream_is_never_removed():
    stream = Stream(Variant.DELTA, world(ECDS="g=1"))
    stream.ask("ECDS", "f", "g", initial={"f": "1", "g": "1"})
    assert stream.get() == []
    assert stream.session._watches[EXTENSION_CONFIG].sent == {"f": "1", "g": "1"}


def test_r33_missing_on_demand_cluster_is_reported_at_once():
    stream = synced(Variant.DELTA, world(CDS="a=1"), CDS="*")
    stream.ask("CDS", "a", "missing")
    assert stream.settle() == ["CDS a=1 -missing"]
    assert stream.settle(CDS="a=1 missing=1") == ["CDS missing=1"]
    stream.ask("CDS", unsubscribe=("missing",))
    assert stream.settle() == ["CDS missing=1"]


def test_r3_a_stream_has_a_bounded_number_of_types(variant):
    own = [f"type.googleapis.com/own{number}" for number in range(20)]
    stream = Stream(variant, world(*own), limits=Limits(unknown_types=2))
    for type_url in (*TYPES.values(), *own, "type.googleapis.com/a", "type.googleapis.com/b"):
        stream.ask(type_url, "x")
    stream.ask("type.googleapis.com/a", "x", "y")
    with pytest.raises(
        LimitError, match="too many types that this server does not know: the limit is 2 per stream"
    ):
        stream.ask("type.googleapis.com/c", "x")


# --- virtual hosts by alias ---


def test_r31_virtual_host_is_found_by_an_alias():
    stream = Stream(Variant.DELTA, one(host("r/v", "r/a.com", "r/b.com"), host("r/w", "r/c.com")))
    stream.ask("VHDS")
    stream.ask("VHDS", "r/a.com")
    data = stream.session.next(0.0)
    assert data is not None
    assert b"r/a.com" in data
    assert str(stream._decode(data)) == "VHDS r/v=1"
    stream.ack("VHDS")
    stream.serve(one(host("r/v", "r/a.com", version="2"), host("r/w", "r/c.com", version="2")))
    assert stream.settle() == ["VHDS r/v=2"]
    stream.serve(one(host("r/w", "r/c.com", version="2")))
    assert stream.settle() == ["VHDS -r/v"]


def test_r31_unknown_alias_is_answered_without_a_body():
    stream = Stream(Variant.DELTA, one(host("r/v", "r/a.com")))
    stream.ask("VHDS", "r/late.com")
    assert stream.settle() == ["VHDS ?r/late.com"]
    stream.ask("VHDS", "r/late.com")
    assert stream.settle() == ["VHDS ?r/late.com"]
    stream.serve(one(host("r/v", "r/a.com"), host("r/l", "r/late.com")))
    assert stream.settle() == ["VHDS r/l=1"]


def test_r31_alias_that_appears_before_the_response_is_not_unknown():
    stream = Stream(Variant.DELTA)
    stream.ask("VHDS", "r/a.com")
    stream.serve(one(host("r/v", "r/a.com")))
    assert stream.settle() == ["VHDS r/v=1"]


def test_r31_virtual_host_is_covered_by_any_of_its_names():
    stream = Stream(Variant.DELTA, one(host("r/v", "r/a.com", "r/b.com")))
    stream.ask("VHDS", "r/a.com", "r/b.com")
    assert stream.settle() == ["VHDS r/v=1"]
    stream.ask("VHDS", unsubscribe=("r/a.com",))
    stream.serve(one(host("r/v", "r/a.com", "r/b.com", version="2")))
    assert stream.settle() == ["VHDS r/v=2"]
    stream.ask("VHDS", unsubscribe=("r/b.com",))
    stream.serve(one(host("r/v", "r/a.com", "r/b.com", version="3")))
    assert stream.settle() == []


def test_r31_name_unsubscribes_from_its_aliases():
    stream = Stream(Variant.DELTA, one(host("r/v", "r/a.com")))
    stream.ask("VHDS", "r/a.com")
    stream.settle()
    stream.ask("VHDS", unsubscribe=("r/v",))
    stream.serve(one(host("r/v", "r/a.com", version="2")))
    assert stream.settle() == []


def test_r31_reconnect_sends_virtual_hosts_that_differ():
    stream = Stream(Variant.DELTA, one(host("r/v", "r/a.com"), host("r/w", "r/b.com", version="2")))
    stream.ask("VHDS", "r/a.com", "r/b.com", initial={"r/v": "1", "r/w": "1", "r/x": "1"})
    assert stream.settle() == ["VHDS r/w=2"]


def test_r31_status_resolves_aliases():
    stream = Stream(Variant.DELTA, one(host("r/v", "r/a.com")))
    stream.ask("VHDS", "r/a.com", "r/none.com")
    stream.settle()
    (status,) = stream.session.status()
    assert [(each.name, each.state) for each in status.resources] == [
        ("r/none.com", State.NOT_SENT),
        ("r/v", State.SYNCED),
    ]


def test_only_virtual_hosts_have_aliases():
    with pytest.raises(ValueError, match="only a VirtualHost can have aliases"):
        Resource.of(CLUSTER, "c", b"", aliases=("d",))


def test_a_virtual_host_may_be_called_like_a_collection():
    stream = Stream(Variant.DELTA, one(host("r/*"), host("r/v")))
    stream.ask("VHDS", "r/*")
    assert stream.settle() == ["VHDS r/*=1"]


# --- collections ---

URN = "xdstp://authority/envoy.config.endpoint.v3.LbEndpoint/zone"


def members(*names: str, version: str = "1") -> Snapshot:
    return one(
        *(Resource.of(TYPES["LEDS"], name, f"{name}={version}".encode(), version=version) for name in names)
    )


@pytest.mark.parametrize(("prefix", "suffix"), [(URN, ""), (URN, "?env=prod"), ("zone", "")])
def test_r34_collection_has_direct_members_only(variant, prefix, suffix):
    inside = f"{prefix}/a{suffix}", f"{prefix}/b{suffix}"
    outside = f"{prefix}{suffix}", f"{prefix}/deeper/c{suffix}", "other/d", "e"
    stream = Stream(variant, members(*inside, *outside))
    stream.ask("LEDS", f"{prefix}/*{suffix}")
    stream.get()
    assert stream.last["LEDS"].resources.keys() == set(inside)
    stream.ack("LEDS")
    stream.serve(members(inside[0], *outside, version="2"))
    stream.get()
    assert stream.last["LEDS"].resources == {inside[0]: "2"}
    assert stream.last["LEDS"].removed == ((inside[1],) if variant is Variant.DELTA else ())


def test_r34_parameters_distinguish_collections():
    stream = Stream(Variant.DELTA, members(f"{URN}/a?env=prod", f"{URN}/a?env=test", f"{URN}/a"))
    stream.ask("LEDS", f"{URN}/*?env=test")
    stream.get()
    assert stream.last["LEDS"].resources.keys() == {f"{URN}/a?env=test"}


def test_r34_an_empty_collection_is_answered_and_grows(variant):
    stream = Stream(variant, members("other/a"))
    stream.ask("LEDS", "zone/*")
    assert stream.settle() == ["LEDS"]
    stream.serve(members("other/a", "zone/a"))
    assert stream.settle() == ["LEDS zone/a=1"]


def test_r34_a_collection_can_be_left_and_asked_for_again():
    stream = Stream(Variant.DELTA, members("zone/a"))
    stream.ask("LEDS", "zone/*")
    stream.settle()
    stream.ask("LEDS", "zone/*")
    assert stream.settle() == ["LEDS zone/a=1"]  # R19
    stream.ask("LEDS", unsubscribe=("zone/*",))
    stream.serve(members("zone/a", version="2"))
    assert stream.settle() == []


def test_r34_r36_reconnect_with_current_collection_gets_nothing():
    stream = Stream(Variant.DELTA, members("zone/a", "zone/b"))
    stream.ask("LEDS", "zone/*", initial={"zone/a": "1", "zone/b": "0", "zone/c": "1"})
    assert stream.settle() == ["LEDS zone/b=1 -zone/c"]


def test_r21_r34_unsubscribed_collection_is_not_a_resource_name():
    stream = Stream(Variant.DELTA, world(CDS="g/a=1 b=1"))
    stream.ask("CDS", "*", "g/*")
    assert stream.settle() == ["CDS b=1 g/a=1"]
    stream.ask("CDS", unsubscribe=("g/*",))
    assert stream.settle() == ["CDS g/a=1"]
