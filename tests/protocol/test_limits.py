"""Limits on what one client can make the server store."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.stream import Stream, world
from tests.server.proxies import DELTA_REQUEST, REQUEST
from xds.protocol.limits import Budgets, LimitError, Limits, RequestError, size_of
from xds.protocol.session import Session, Variant
from xds.protocol.wire import MAX_CLIENT_FEATURES, MAX_ID_LENGTH, parse_delta_request, parse_request
from xds.snapshot import ENDPOINT

NODE = {"id": "proxy"}
LIMITS = Limits(names=5, size=100, name_length=30, unknown_types=2, streams=2)
SIX = tuple("abcdef")


def opening(variant: Variant, **fields: object) -> bytes:
    message = REQUEST if variant is Variant.SOTW else DELTA_REQUEST
    return message(**{"node": NODE, "type_url": ENDPOINT} | fields).SerializeToString()


def lists(variant: Variant) -> list[str]:
    if variant is Variant.SOTW:
        return ["resource_names"]
    return ["resource_names_subscribe", "resource_names_unsubscribe", "initial_resource_versions"]


def filled(field: str, names: tuple[str, ...]) -> object:
    return dict.fromkeys(names, "1") if field == "initial_resource_versions" else names


# --- one request ---


def test_r57_request_with_too_many_names_is_not_applied(variant):
    for field in lists(variant):
        session = Session(variant, limits=LIMITS)
        with pytest.raises(LimitError, match=f"^{field} has 6 names, and the limit is 5 names per client: "):
            session.receive(opening(variant, **{field: filled(field, SIX)}), 0.0)
        assert session.node is None


def test_r57_too_long_name_is_rejected_and_not_quoted(variant):
    for field in lists(variant):
        session = Session(variant, limits=LIMITS)
        with pytest.raises(LimitError) as refusal:
            session.receive(opening(variant, **{field: filled(field, ("a", "x" * 31))}), 0.0)
        assert str(refusal.value) == (
            f"{field} has a name of 31 characters, and the limit is 30 characters per name"
        )
        Session(variant, limits=LIMITS).receive(opening(variant, **{field: filled(field, ("é" * 20,))}), 0.0)


def test_default_limits_hold_where_none_are_given(variant):
    session = Session(variant)
    with pytest.raises(LimitError, match="100,001 names, and the limit is 100,000 names per client"):
        session.receive(
            opening(variant, **{lists(variant)[0]: [str(number) for number in range(100_001)]}), 0
        )


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("node.id", {"node": {"id": "é" * (MAX_ID_LENGTH // 2) + "x"}}),
        ("node.cluster", {"node": NODE | {"cluster": "x" * (MAX_ID_LENGTH + 1)}}),
        ("node.user_agent_name", {"node": NODE | {"user_agent_name": "x" * (MAX_ID_LENGTH + 1)}}),
        ("node.user_agent_version", {"node": NODE | {"user_agent_version": "x" * (MAX_ID_LENGTH + 1)}}),
        ("node.client_features", {"node": NODE | {"client_features": ["x", "x" * (MAX_ID_LENGTH + 1)]}}),
        ("type_url", {"type_url": "x" * (MAX_ID_LENGTH + 1)}),
    ],
)
def test_r60_stored_strings_are_limited_and_not_quoted(variant, what, fields):
    session = Session(variant)
    with pytest.raises(RequestError) as refusal:
        session.receive(opening(variant, **fields), 0.0)
    assert str(refusal.value) == f"{what} is longer than 1,024 bytes"
    session.receive(opening(variant, node={"id": "é" * (MAX_ID_LENGTH // 2)}), 0.0)
    assert session.node
    assert session.node.id == "é" * (MAX_ID_LENGTH // 2)


def test_r60_node_has_a_limited_number_of_client_features(variant):
    features = ["x"] * MAX_CLIENT_FEATURES
    Session(variant).receive(opening(variant, node=NODE | {"client_features": features}), 0.0)
    with pytest.raises(RequestError, match=r"node\.client_features has more than 256 items"):
        Session(variant).receive(opening(variant, node=NODE | {"client_features": [*features, "x"]}), 0.0)


def test_names_from_clients_are_not_interned():
    """Since Python 3.12, interned strings are never freed."""
    for number, parse in enumerate((parse_request, parse_delta_request)):
        name = f"a name that nothing else has interned {number}"
        variant = Variant.SOTW if parse is parse_request else Variant.DELTA
        request = parse(opening(variant, **{lists(variant)[0]: (name,)}))
        [taken] = request.names if parse is parse_request else request.subscribe
        assert taken == name
        assert sys.intern("".join(list(name))) is not taken


# --- one stream ---


def test_r57_too_many_names_in_several_requests_are_rejected():
    stream = Stream(Variant.DELTA, limits=LIMITS)
    stream.ask("EDS", "a", "b", "c")
    stream.ask("EDS", "c", "d")
    stream.ask("EDS", "e", "f", unsubscribe=("a", "f"))
    with pytest.raises(LimitError, match=r"^this stream has 6 names, and the limit is 5 names per client"):
        stream.ask("EDS", "g", "h")


def test_names_of_all_types_count_together(variant):
    stream = Stream(variant, limits=LIMITS)
    stream.ask("EDS", "a", "b", "c")
    stream.ask("RDS", "a", "b")
    with pytest.raises(LimitError, match="this stream has 6 names"):
        stream.ask("SDS", "a")


def test_bytes_of_names_are_limited(variant):
    stream = Stream(variant, limits=LIMITS)
    stream.ask("EDS", "x" * 30, "é" * 15)
    assert stream.session.size == 90
    with pytest.raises(
        LimitError, match="this stream has names of 101 bytes, and the limit is 100 bytes per client"
    ):
        stream.ask("RDS", "x" * 11)


def test_initial_versions_count_towards_the_size():
    stream = Stream(Variant.DELTA, limits=LIMITS)
    stream.ask("CDS", initial={"a": "x" * 40, "b": "x" * 40})
    assert (stream.session.name_count, stream.session.size) == (2, 82)
    with pytest.raises(LimitError, match="names of 112 bytes"):
        stream.ask("EDS", "y" * 30)
    stream = Stream(Variant.SOTW, limits=LIMITS)
    with pytest.raises(LimitError, match="names of 101 bytes"):
        stream.ask("CDS", version="x" * 101)


def test_unanswered_removals_count_until_they_are_answered():
    """Otherwise a client could name new resources again and again without an answer."""
    stream = Stream(Variant.DELTA, world(EDS=""), limits=LIMITS)
    stream.ask("EDS", "a", "b", "c")
    assert stream.get() == ["EDS -a -b -c"]
    with pytest.raises(LimitError, match="this stream has 6 names"):
        stream.ask("EDS", "d", "e", "f", unsubscribe=("a", "b", "c"))
    stream.ack("EDS")
    assert (stream.session.name_count, stream.session.size) == (3, 3)


def test_replaced_subscription_leaves_nothing_behind(variant):
    stream = Stream(variant, world(EDS="a=1 b=1"), limits=LIMITS)
    stream.ask("CDS")
    for number in range(50):
        names = ("a", "b", f"x{number}") if number % 2 else (f"y{number}", f"z{number}")
        gone = () if variant is Variant.SOTW else (*stream.session._watches[ENDPOINT].subscription.names,)
        stream.ask("EDS", *names, unsubscribe=gone)
        stream.settle()
    watch = stream.session._watches[ENDPOINT]
    assert stream.session.name_count == 3
    assert stream.session.size == len("".join(names))
    kept = (
        watch.sent,
        watch.states.due,
        watch.states.records,
    )
    assert all(len(each) <= 3 for each in kept)
    assert not watch.acks.unanswered


def test_known_names_are_the_servers_strings(variant):
    """A thousand clients subscribe to the same names."""
    served = world(EDS="".join(list("some-name")) + "=1")
    [own] = served.of(ENDPOINT)
    stream = Stream(variant)
    initial = {"initial": {"some-name": "1"}} if variant is Variant.DELTA else {}
    stream.ask("EDS", "some-name", "other", **initial)
    stream.serve(served)
    watch = stream.session._watches[ENDPOINT]
    assert any(name is own for name in watch.subscription.names)
    assert all(name is own for name in watch.sent)
    assert all(version is served.of(ENDPOINT)[own].version for version in watch.sent.values())
    stream.settle()
    stream.ask("EDS", unsubscribe=("some-name",))
    stream.ask("EDS", "some-name", "more")
    assert any(name is own for name in watch.subscription.names)


# --- several streams ---


def test_streams_of_one_client_share_its_budget():
    budgets = Budgets(LIMITS)
    first, second, other = budgets.open("a"), budgets.open("a"), budgets.open("b")
    first.use(3, 50)
    second.use(2, 50)
    other.use(5, 100)
    with pytest.raises(
        LimitError, match=r"^the streams of this client have 6 names, and the limit is 5 names per client"
    ):
        second.use(3, 50)
    first.close()
    second.use(3, 50)
    with pytest.raises(LimitError, match="names of 101 bytes"):
        second.use(3, 101)


def test_client_has_a_limited_number_of_streams():
    budgets = Budgets(LIMITS)
    first, _ = budgets.open("a"), budgets.open("a")
    budgets.open("b")
    with pytest.raises(LimitError, match=r"^the limit is 2 streams per client at the same time"):
        budgets.open("a")
    first.close()
    budgets.open("a")


def test_stream_that_moves_is_charged_to_its_new_client():
    budgets = Budgets(LIMITS)
    lease = budgets.open("account")
    lease.use(5, 10)
    lease.move("pod")
    budgets.open("account").use(5, 10)
    with pytest.raises(LimitError, match="6 names"):
        budgets.open("pod").use(1, 1)
    lease.use(4, 10)


def test_stream_that_moves_ends_if_its_new_client_exceeds_a_limit():
    budgets = Budgets(LIMITS)
    moved, other = budgets.open("account"), budgets.open("pod")
    moved.use(3, 10)
    other.use(3, 10)
    moved.move("pod")
    other.use(3, 10)
    for _ in range(2):
        with pytest.raises(LimitError, match="6 names"):
            moved.use(3, 10)


def test_client_whose_streams_have_ended_takes_no_memory():
    budgets = Budgets(LIMITS)
    first, second = budgets.open("account"), budgets.open("account")
    first.use(3, 10)
    first.close()
    assert len(budgets) == 1
    second.move("pod")
    assert len(budgets) == 1
    second.close()
    assert len(budgets) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 50), st.sampled_from("cmu")),
        max_size=20,
    )
)
def test_clients_without_streams_leave_nothing_behind(steps):
    budgets, leases = Budgets(Limits(names=10**6, streams=100)), []
    for client, names, size, step in steps:
        leases.append(budgets.open(client))
        leases[-1].use(names, size)
        if step == "c":
            leases.pop(0).close()
        elif step == "m":
            leases[0].move(client)
    assert bool(len(budgets)) == bool(leases)
    for lease in leases:
        lease.close()
    assert len(budgets) == 0


@pytest.mark.parametrize("name", Limits.__slots__)
def test_limit_below_zero_is_an_error(name):
    with pytest.raises(ValueError, match=rf"Limits\({name}=-1\): a limit must be at least 0"):
        Limits(**{name: -1})


@given(st.lists(st.text(max_size=5)), st.lists(st.text(max_size=5)))
def test_size_of_strings_adds_up(some, more):
    assert size_of([*some, *more]) == size_of(some) + size_of(more)
    assert size_of(some) >= sum(len(each.encode()) for each in some)
