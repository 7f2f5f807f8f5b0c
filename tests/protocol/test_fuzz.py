"""Invalid requests are rejected or tolerated, and never cause another exception."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.protocol.stream import TYPES
from xds.protocol.limits import RequestError
from xds.protocol.session import Session, Variant
from xds.snapshot import VIRTUAL_HOST, Resource, ResourceSet, Snapshot
from xds.testing.messages import request_class, response_class

NAMES = [
    "",
    "*",
    "a",
    "b",
    "g/a",
    "g/*",
    "/*",
    "*/*",
    "/",
    "xdstp://",
    "xdstp://x/*?p",
    "xdstp://x/a?p",
    "é\u2028\0",
    "n" * 9999,
]
URLS = [*TYPES.values(), "", "unknown", "type.googleapis.com/"]
names = st.lists(st.sampled_from(NAMES), max_size=4)
words = st.one_of(
    st.sampled_from(["", "1", "2", "3", "7", "-1", "99999999999999999999"]), st.text(max_size=3)
)
messages = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "Error adding/updating cluster(s) a: no",
            "Error adding/updating listener(s) \na: no\n",
            "Error adding/updating cluster(s) ",
            "resource index 0: a: no; resource index 18446744073709551616: x",
        ]
    ),
)
errors = st.one_of(st.none(), st.tuples(st.integers(-(2**31), 2**31 - 1), messages))


@st.composite
def requests(draw, variant: Variant, *, first: bool) -> bytes:
    request = request_class(variant)(type_url=draw(st.sampled_from(URLS)), response_nonce=draw(words))
    if first or draw(st.booleans()):
        request.node.id = draw(st.sampled_from(["n", "n", "n", ""]))
    if (error := draw(errors)) is not None:
        request.error_detail.code, request.error_detail.message = error
    if variant is Variant.SOTW:
        request.resource_names.extend(draw(names))
        request.version_info = draw(words)
    else:
        request.resource_names_subscribe.extend(draw(names))
        request.resource_names_unsubscribe.extend(draw(names))
        request.initial_resource_versions.update(
            draw(st.dictionaries(st.sampled_from(NAMES), words, max_size=3))
        )
    return request.SerializeToString()


@st.composite
def snapshots(draw) -> Snapshot:
    types = {}
    for url in draw(st.lists(st.sampled_from([url for url in URLS if url]), max_size=4)):
        types[url] = ResourceSet(
            Resource.of(
                url,
                name,
                b"",
                version=draw(st.sampled_from("123")),
                refs=tuple((draw(st.sampled_from(URLS)), ref) for ref in draw(names)),
                aliases=tuple(draw(names)) if url == VIRTUAL_HOST else (),
                ttl=draw(st.sampled_from([None, 1.0])),
            )
            for name in draw(names)
        )
    return Snapshot(types)


def look_at(session: Session) -> None:
    """Call all methods that read the state of a session."""
    for status in session.status():
        assert sum(status.counts.values()) == len(list(status.resources))
    assert session.synced in {True, False}
    deadline = session.deadline()
    assert deadline is None or deadline >= 0


def take(session: Session, variant: Variant, now: float, nonces: set[str]) -> None:
    """Take all responses. Each is well-formed, and their number is finite."""
    for _ in range(1000):
        data = session.next(now)
        if data is None:
            return
        response = response_class(variant).FromString(data)
        assert response.nonce not in nonces
        nonces.add(response.nonce)
        if variant is Variant.DELTA:
            sent = [resource.name for resource in response.resources]
            assert len(sent) == len({*sent}), "R30"
            assert not {*sent} & {*response.removed_resources}
    raise AssertionError("there is no end to it")


@settings(deadline=None)
@given(
    variant=st.sampled_from(Variant), data=st.lists(st.binary(max_size=80), max_size=4), begun=st.booleans()
)
@example(variant=Variant.SOTW, data=[b"\x0a\x03\xff\xfe\xfd"], begun=True)
@example(variant=Variant.DELTA, data=[b"\x0a\x03\x0a\x01a\x12\x02\xc3\x28"], begun=False)
@example(
    variant=Variant.DELTA, data=[b"\x12\x01t\x2a\x00\x2a\x02\x0a\x00\x2a\x06\x0a\x01a\x12\x01b"], begun=True
)
def test_any_bytes_are_parsed_or_rejected(variant, data, begun):
    session = Session(variant)
    if begun:
        first = request_class(variant)(type_url=TYPES["CDS"])
        first.node.id = "n"
        session.receive(first.SerializeToString(), 0.0)
    session.serve(Snapshot({TYPES["CDS"]: ResourceSet([Resource.of(TYPES["CDS"], "a", b"")])}))
    for each in data:
        with suppress(RequestError):
            session.receive(each, 0.0)
        take(session, variant, 0.0, set())
        look_at(session)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), variant=st.sampled_from(Variant))
def test_unusual_requests_are_tolerated(data, variant):
    session = Session(variant, type_url=data.draw(st.sampled_from(["", TYPES["EDS"]])))
    now = 0.0
    nonces: set[str] = set()
    for _ in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(["ask", "ask", "ask", "serve", "wait"])):
            case "ask":
                with suppress(RequestError):
                    session.receive(data.draw(requests(variant, first=session.node is None)), now)
            case "serve":
                session.serve(data.draw(snapshots()))
            case _:
                now += data.draw(st.sampled_from([0.5, 30.0, 1000.0]))
        if data.draw(st.booleans()):
            take(session, variant, now, nonces)
        look_at(session)
