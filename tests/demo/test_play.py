"""The expected answers of each step, and their comparison with the actual answers."""

from collections import Counter

import pytest

from xds.demo.play import (
    AUTHORIZATION_STEPS,
    AUTOMATIC,
    DENIED,
    FULL_FULL,
    FULL_PARTIAL,
    LEGACY_FULL,
    MAX_REQUESTS,
    MIXED,
    MTLS,
    NO_ANSWER,
    PLAINTEXT,
    REQUESTS,
    STEPS,
    UNAVAILABLE,
    Answer,
    Step,
    StepResult,
)

SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"
MTLS_200, PLAIN_200 = Answer("200", SLEEP), Answer("200")


def seen(expected, pair=FULL_FULL, **counts):
    answers = {"mtls": MTLS_200, "plain": PLAIN_200, "none": Answer("000"), "unavailable": Answer("503")}
    return StepResult(
        Step(name="a step", what="", expected={pair: expected}),
        {pair: Counter({answers[name]: count for name, count in counts.items()})},
    )


@pytest.mark.parametrize(
    ("expected", "counts"),
    [
        (MTLS, {"mtls": 10}),
        (PLAINTEXT, {"plain": 10}),
        (MIXED, {"mtls": 9, "plain": 1}),
        (NO_ANSWER, {"none": 10}),
        (UNAVAILABLE, {"unavailable": 10}),
    ],
)
def test_expected_answers_make_no_difference(expected, counts):
    assert list(seen(expected, **counts).differences()) == []


@pytest.mark.parametrize(
    ("expected", "counts"),
    [
        (MTLS, {"mtls": 9, "plain": 1}),
        (MTLS, {}),
        (PLAINTEXT, {"mtls": 1, "plain": 9}),
        (MIXED, {"mtls": 10}),
        (MIXED, {"plain": 10}),
        (MIXED, {"mtls": 5, "plain": 4, "unavailable": 1}),
        (NO_ANSWER, {"unavailable": 10}),
        (UNAVAILABLE, {"none": 10}),
    ],
)
def test_other_answers_are_a_difference(expected, counts):
    assert len(list(seen(expected, **counts).differences())) == 1


def test_difference_names_step_pair_and_answers():
    (difference,) = seen(MTLS, mtls=9, plain=1).differences()
    assert difference == (
        f"a step: sleep.full to httpbin.full: expected 200 with {SLEEP}, "
        f"got 1x 200 without an identity, 9x 200 with {SLEEP}"
    )


def test_wrong_client_identity_is_a_difference():
    other = Answer("200", "spiffe://cluster.local/ns/full/sa/httpbin")
    step = Step(name="a step", what="", expected={FULL_FULL: MTLS})
    assert list(StepResult(step, {FULL_FULL: Counter({other: 10})}).differences())


def test_mixed_pair_needs_both_kinds_and_ten_requests():
    assert not MIXED.is_settled(FULL_PARTIAL, Counter({MTLS_200: 5, PLAIN_200: 4}))
    assert not MIXED.is_settled(FULL_PARTIAL, Counter({MTLS_200: REQUESTS}))
    assert MIXED.is_settled(FULL_PARTIAL, Counter({MTLS_200: REQUESTS, PLAIN_200: 1}))


def test_requests_end_at_the_maximum():
    assert MIXED.is_settled(FULL_PARTIAL, Counter({MTLS_200: MAX_REQUESTS}))


def test_unexpected_answer_ends_the_requests():
    assert MTLS.is_settled(FULL_FULL, Counter({PLAIN_200: REQUESTS}))


def test_steps_are_those_of_the_istio_task():
    assert [step.name for step in STEPS] == [
        "initial check",
        "PERMISSIVE",
        "migration",
        "STRICT",
        "plaintext policy",
        "DestinationRule override",
        "clean-up",
        "auto=false",
        "auto=false, STRICT",
    ]


def test_step_differences_are_those_of_the_istio_task():
    special = {
        step.name: {pair: e for pair, e in step.expected.items() if e != AUTOMATIC[pair]}
        for step in (*STEPS, *AUTHORIZATION_STEPS)
    }
    assert special == {
        "initial check": {},
        "PERMISSIVE": {},
        "migration": {},
        "STRICT": {LEGACY_FULL: NO_ANSWER},
        "plaintext policy": {FULL_FULL: PLAINTEXT},
        "DestinationRule override": {FULL_FULL: UNAVAILABLE},
        "clean-up": {},
        "auto=false": {FULL_FULL: PLAINTEXT, FULL_PARTIAL: PLAINTEXT},
        "auto=false, STRICT": {FULL_FULL: UNAVAILABLE, FULL_PARTIAL: PLAINTEXT, LEGACY_FULL: NO_ANSWER},
        "AuthorizationPolicy": {LEGACY_FULL: DENIED},
        "AuthorizationPolicy deleted": {},
    }
