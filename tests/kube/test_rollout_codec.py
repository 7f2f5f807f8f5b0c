"""Plans and reports of replicas, as encoded in annotations."""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Sequence
from math import inf
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.kube.rollout_codec import (
    MAX_LENGTH,
    MAX_PLAIN_LENGTH,
    CodecError,
    decode_plan,
    decode_report,
    encode_plan,
    encode_report,
)
from xds.mesh.model.objects import Mode, PortKey, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.observation import Ask, Generations, Report
from xds.mesh.rollout.plan import StoredPlan, StoredRule
from xds.mesh.rollout.stages import BOTH, Staged

T = TypeVar("T")

WEB = Ref("Pod", "ns", "web-1")
RULE = Ref("DestinationRule", "ns", "rule")

names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
replicas = st.frozensets(names, max_size=5)
pods = st.builds(Ref, st.just("Pod"), names, names)
rules = st.builds(Ref, st.just("DestinationRule"), names, names)
keys = st.tuples(pods, st.integers(0, 65535))
numbers = st.integers(0, 2**40)
hashes = st.text("0123456789abcdef", max_size=16)
errors = st.text(max_size=30)


def stages(values: Sequence[T]) -> st.SearchStrategy[Staged[T]]:
    possible = st.lists(st.sampled_from(values), min_size=1, unique=True)
    return possible.flatmap(
        lambda known: st.builds(Staged, st.sampled_from(known), numbers, st.just(tuple(known)))
    )


plans = st.builds(
    StoredPlan,
    numbers,
    st.dictionaries(keys, st.tuples(stages(tuple(Mode)), stages(BOTH)), max_size=40),
    st.dictionaries(rules, st.builds(StoredRule, hashes, hashes, numbers, st.booleans()), max_size=5),
    replicas,
)
generations = st.integers(-1, 2**40)
others = generations | st.just(inf)
reports = st.builds(
    Report,
    generation=numbers,
    is_alone=st.booleans(),
    servers=st.builds(Generations, st.dictionaries(pods, generations, max_size=5), others),
    clients=st.builds(Generations, st.dictionaries(names, generations, max_size=5), others),
    rejected_listeners=st.dictionaries(pods, errors, max_size=3),
    rejected_clusters=st.dictionaries(names, st.dictionaries(names, errors, max_size=3), max_size=3),
    has_earlier_connections=st.booleans(),
    asks=st.dictionaries(
        keys, st.builds(Ask, st.sampled_from(Mode), st.sampled_from(BOTH), st.booleans()), max_size=40
    ),
    unplanned_rules=st.frozensets(rules, max_size=5),
)


@given(plans)
def test_plan_round_trips(plan: StoredPlan) -> None:
    assert decode_plan(encode_plan(plan)) == plan


@given(reports)
def test_report_round_trips(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


def test_shared_report_of_a_replica_without_proxies_round_trips() -> None:
    for report in (Report(), Report().without_progress(), Report(generation=3).shared()):
        assert decode_report(encode_report(report)) == report


def test_small_plan_is_readable_json() -> None:
    plan = StoredPlan(
        7,
        {
            (WEB, 80): (
                Staged(Mode.PERMISSIVE, 7, (Mode.DISABLE, Mode.PERMISSIVE)),
                Staged(Send.PLAINTEXT, 0, (Send.PLAINTEXT,)),
            ),
            (WEB, 90): (Staged(Mode.PERMISSIVE, 3, (Mode.PERMISSIVE,)), Staged(Send.MTLS, 6, BOTH)),
        },
        {RULE: StoredRule("e1", "", 5, is_settled=True)},
        frozenset({"xds-b", "xds-a"}),
    )
    assert encode_plan(plan) == (
        '{"generation":7,"members":["xds-a","xds-b"],'
        '"ports":{"P7DP/p0p":{"ns":{"web-1":[80]}},"P3P/m6pm":{"ns":{"web-1":[90]}}},'
        '"rules":{"ns/rule":["e1","",5,true]}}'
    )


def test_small_report_is_readable_json() -> None:
    report = Report(
        generation=7,
        servers=Generations({WEB: 6}, 7),
        has_earlier_connections=True,
        asks={
            (WEB, 80): Ask(Mode.STRICT, Send.MTLS, is_from_server=True),
            (WEB, 90): Ask(Mode.DISABLE, Send.PLAINTEXT, is_from_server=False),
        },
        unplanned_rules=frozenset({RULE}),
    )
    assert encode_report(report) == (
        '{"generation":7,"alone":false,"servers":{"ns/web-1":6},"otherServers":7,'
        '"clients":{},"otherClients":null,"rejectedListeners":{},"rejectedClusters":{},"returned":true,'
        '"asks":{"S/m+":{"ns":{"web-1":[80]}},"D/p":{"ns":{"web-1":[90]}}},"heldRules":["ns/rule"]}'
    )


def many(count: int) -> list[PortKey]:
    random = Random(1)

    def name(number: int) -> str:
        suffix = "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        return f"service-{number // 10}-{random.randrange(16**9):09x}-{suffix}"

    return [(Ref("Pod", f"team-{number % 50}", name(number)), 8080) for number in range(count)]


def test_plan_beyond_the_size_limit_is_not_encoded() -> None:
    def plan(count: int) -> StoredPlan:
        state = Staged(Mode.PERMISSIVE, 7, (Mode.DISABLE, Mode.PERMISSIVE)), Staged(Send.MTLS, 8, BOTH)
        return StoredPlan(8, dict.fromkeys(many(count), state))

    text = encode_plan(large := plan(10_000))
    assert MAX_PLAIN_LENGTH < len(text) <= MAX_LENGTH
    assert decode_plan(text) == large
    with pytest.raises(CodecError, match="characters do not fit into an annotation; the limit is 204800"):
        encode_plan(plan(60_000))


def test_report_beyond_the_size_limit_is_not_encoded() -> None:
    with pytest.raises(CodecError, match="do not fit"):
        encode_report(Report(servers=Generations({pod: 1 for pod, _ in many(60_000)})))


MALFORMED = [
    "",
    "{",
    "{}",
    "[]",
    "not base64!",
    b64encode(b"not packed").decode(),
    b64encode(zlib.compress(b"\xff")).decode(),
    b64encode(zlib.compress(b"x" * 2**25)).decode(),
    b64encode(zlib.compress(b"[" * 10**6)).decode(),
]


def plan_text(**changed: str) -> str:
    parts = {"generation": "1", "members": "[]", "ports": "{}", "rules": "{}"} | changed
    return "{" + ",".join(f'"{name}":{value}' for name, value in parts.items()) + "}"


@pytest.mark.parametrize(
    "text",
    [
        *MALFORMED,
        plan_text(generation='"one"'),
        plan_text(generation="1e999"),
        plan_text(members="null"),
        plan_text(ports='{"P1P":{"ns":{"web":[1]}}}'),
        plan_text(ports='{"P1P/":{"ns":{"web":[1]}}}'),
        plan_text(ports='{"X1X/p1p":{"ns":{"web":[1]}}}'),
        plan_text(ports='{"P1/p1p":{"ns":{"web":[1]}}}'),
        plan_text(ports='{"P1S/p1p":{"ns":{"web":[1]}}}'),
        plan_text(ports='{"P1P/p1m":{"ns":{"web":[1]}}}'),
        plan_text(ports='{"PxP/p1p":{"ns":{"web":[1]}}}'),
        plan_text(ports='{"P1P/p1p":{"ns":["web"]}}'),
        plan_text(ports='{"P1P/p1p":{"ns":{"web":["x"]}}}'),
        plan_text(ports="[]"),
        plan_text(rules='{"rule":["","",1,true]}'),
        plan_text(rules='{"ns/rule":["","",1]}'),
    ],
)
def test_malformed_plan_is_refused(text: str) -> None:
    assert decode_plan(plan_text()) == StoredPlan(1)
    with pytest.raises(CodecError, match="cannot read the plan"):
        decode_plan(text)


REPORT = encode_report(Report())


@pytest.mark.parametrize(
    "text",
    [
        *MALFORMED,
        plan_text(),
        *(
            REPORT.replace(f'"{name}":{before}', f'"{name}":{after}')
            for name, before, after in (
                ("generation", "0", "null"),
                ("servers", "{}", '{"web":1}'),
                ("servers", "{}", "[]"),
                ("otherServers", "null", '"x"'),
                ("clients", "{}", '{"one":"x"}'),
                ("rejectedClusters", "{}", '{"one":1}'),
                ("asks", "{}", '{"X/p":{"ns":{"web":[1]}}}'),
                ("asks", "{}", '{"S":{"ns":{"web":[1]}}}'),
                ("heldRules", "[]", '["rule"]'),
                ("heldRules", "[]", "1"),
            )
        ),
    ],
)
def test_malformed_report_tells_nothing(text: str) -> None:
    assert text != REPORT
    assert decode_report(text) == Report().without_progress()
