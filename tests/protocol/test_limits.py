"""What a client may ask for at most."""

from __future__ import annotations

import pytest

from tests.server.proxies import DELTA_REQUEST, REQUEST
from xds.protocol.session import Session, Variant
from xds.protocol.wire import LONGEST_ID, MOST_NAMES, RequestError
from xds.snapshot import ENDPOINT

NODE = {"id": "proxy"}
TOO_MANY = [str(number) for number in range(MOST_NAMES + 1)]


def opening(variant: Variant, **fields: object) -> bytes:
    message = REQUEST if variant is Variant.SOTW else DELTA_REQUEST
    return message(**{"node": NODE, "type_url": ENDPOINT} | fields).SerializeToString()


def test_r57_as_many_names_as_there_may_be_are_taken(variant):
    field = "resource_names" if variant is Variant.SOTW else "resource_names_subscribe"
    session = Session(variant)
    session.receive(opening(variant, **{field: TOO_MANY[:-1]}), 0.0)
    with pytest.raises(RequestError, match="at most 500,000 of one type on a stream"):
        session.receive(opening(variant, **{field: TOO_MANY}), 0.0)


def test_r57_more_names_in_one_list_are_refused_before_they_are_looked_at(variant):
    lists = (
        [{"resource_names": TOO_MANY}]
        if variant is Variant.SOTW
        else [
            {"resource_names_subscribe": TOO_MANY},
            {"resource_names_unsubscribe": TOO_MANY},
            {"initial_resource_versions": dict.fromkeys(TOO_MANY, "1")},
        ]
    )
    for fields in lists:
        session = Session(variant)
        with pytest.raises(RequestError, match=f"{next(iter(fields))}: 500,001 names"):
            session.receive(opening(variant, **fields), 0.0)
        assert session.node is None


def test_r57_more_names_in_several_requests_are_refused():
    session = Session(Variant.DELTA)
    session.receive(opening(Variant.DELTA, resource_names_subscribe=TOO_MANY[:-1]), 0.0)
    session.receive(opening(Variant.DELTA, resource_names_subscribe=TOO_MANY[:1]), 0.0)
    with pytest.raises(RequestError, match="ClusterLoadAssignment: 500,001 names"):
        session.receive(opening(Variant.DELTA, resource_names_subscribe=TOO_MANY[-1:]), 0.0)


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("node.id", {"node": {"id": "é" * (LONGEST_ID // 2) + "x"}}),
        ("type_url", {"type_url": "x" * (LONGEST_ID + 1)}),
    ],
)
def test_r60_what_is_kept_and_logged_has_a_longest_form_and_a_longer_one_is_not_quoted(variant, what, fields):
    session = Session(variant)
    with pytest.raises(RequestError) as refusal:
        session.receive(opening(variant, **fields), 0.0)
    assert str(refusal.value) == f"{what} is longer than 1,024 bytes"
    session.receive(opening(variant, node={"id": "é" * (LONGEST_ID // 2)}), 0.0)
    assert session.node
    assert session.node.id == "é" * (LONGEST_ID // 2)
