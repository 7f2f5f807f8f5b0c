"""Reports of replicas, as encoded in annotations."""

from __future__ import annotations

from base64 import b64encode
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.kube.report_codec import MAX_LENGTH, decode_report, encode_report
from xds.mesh.model.objects import Mode, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import UNKNOWN_POD, PortReport, ReplicaReport

names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
keys = st.tuples(st.builds(Ref, st.just("Pod"), names, names), st.integers(0, 65535))
port_reports = st.builds(
    PortReport,
    in_transition=st.booleans(),
    modes=st.frozensets(st.sampled_from(Mode)),
    sends=st.frozensets(st.sampled_from(Send)),
)
reports = st.builds(
    ReplicaReport,
    number=st.integers(1, 2**40),
    rules_version=st.text("0123456789abcdef", max_size=16),
    ports=st.none() | st.dictionaries(keys, port_reports, max_size=60),
)


@given(reports)
def test_report_round_trips(report: ReplicaReport) -> None:
    text = encode_report(report)
    assert text is not None
    assert decode_report(text) == report


def test_small_report_is_readable_json() -> None:
    port = PortReport(
        in_transition=True,
        modes=frozenset({Mode.PERMISSIVE, Mode.STRICT}),
        sends=frozenset({Send.MTLS, Send.PLAINTEXT}),
    )
    report = ReplicaReport(
        7,
        "e1",
        {(Ref("Pod", "ns", "web-1"), 80): port, (Ref("Pod", "ns", "web-1"), 90): UNKNOWN_POD},
    )
    assert encode_report(report) == (
        '{"number":7,"view":"e1","stands":{"PS/mp+":{"ns":{"web-1":[80]}},"/":{"ns":{"web-1":[90]}}}}'
    )


def many(count: int) -> ReplicaReport:
    random = Random(1)
    port = PortReport(in_transition=True, modes=frozenset({Mode.PERMISSIVE}), sends=frozenset({Send.MTLS}))
    letters = "bcdfghjklmnpqrstvwxz2456789"
    pods = [
        f"service-{number // 10}-{random.randrange(16**9):09x}-{''.join(random.choices(letters, k=5))}"
        for number in range(count)
    ]
    return ReplicaReport(
        1, "", {(Ref("Pod", f"team-{n % 50}", pod), 8080): port for n, pod in enumerate(pods)}
    )


def test_report_beyond_the_size_limit_is_not_encoded() -> None:
    text = encode_report(report := many(10_000))
    assert text is not None
    assert len(text) <= MAX_LENGTH
    assert decode_report(text) == report
    assert encode_report(many(60_000)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "not base64!",
        b64encode(b"not packed").decode(),
        '{"number":1,"view":"","stands":{"X/m+":{"ns":{"web":[1]}}}}',
        '{"number":1,"view":"","stands":{"P/m+":{"ns":["web"]}}}',
        '{"number":1,"view":"","stands":[]}',
        "[]",
    ],
)
def test_malformed_report_has_no_ports(text: str) -> None:
    assert decode_report(text).ports is None
