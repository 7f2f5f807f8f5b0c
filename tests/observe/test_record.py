"""Records of traffic: files of `xds observe -o json`, merged, with their gaps."""

from __future__ import annotations

import pytest
from google.protobuf.json_format import MessageToJson

from tests.observe.records import response
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.record import Flow, merge_records, parse_record
from xds.mesh.v1 import traffic_pb2 as pb

HOUR, DAY = 3600, 86400
WEB, DB = Target("shop", "web", 80), Target("shop", "db", 5432)
CLIENT = Client("shop", "front")


def incomplete(pod: str, reason: str, last: float) -> pb.IncompleteReports:
    found = pb.IncompleteReports(namespace="shop", pod=pod, reason=reason)
    found.last.FromSeconds(round(last))
    return found


def test_files_are_merged() -> None:
    mtls, plaintext = TrafficMode.MTLS, TrafficMode.PLAINTEXT
    first = response(0, DAY, Flow(WEB, CLIENT, mtls, 10, 20), Flow(DB, CLIENT, mtls, 5, 6))
    second = response(
        HOUR, DAY + HOUR, Flow(WEB, CLIENT, mtls, 15, 90), Flow(WEB, CLIENT, plaintext, 15, 90, True)
    )
    for files in ([first, second], [second, first]):
        found = merge_records(parse_record(MessageToJson(each)) for each in files)
        assert found.flows == (
            Flow(DB, CLIENT, mtls, 5, 6),
            Flow(WEB, CLIENT, mtls, 10, 90),
            Flow(WEB, CLIENT, plaintext, 15, 90, True),
        )
        assert (found.since, found.until, found.gaps) == (0, DAY + HOUR, ())


GAPS = {
    "none": ([response(0, DAY), response(HOUR, DAY + HOUR)], []),
    "an hour between": (
        [response(0, DAY), response(0, 2 * DAY + HOUR)],
        ["nothing was recorded from 1970-01-02 00:00 UTC to 1970-01-02 01:00 UTC"],
    ),
    "restart": (
        [response(0, HOUR), response(2 * HOUR, DAY)],
        ["nothing was recorded from 1970-01-01 01:00 UTC to 1970-01-01 02:00 UTC"],
    ),
    "replica": (
        [response(0, HOUR, missing_replicas=[pb.MissingReplica(replica="b", reason="UNAVAILABLE")])],
        ["the traffic of replica b is missing: UNAVAILABLE"],
    ),
    "sidecars": (
        [response(0, DAY, incomplete=[incomplete(pod, "not connected", DAY) for pod in ("a", "b", "")])],
        ["not connected: a.shop, b.shop, namespace shop"],
    ),
    "before the record": ([response(0, 3 * DAY, incomplete=[incomplete("a", "not connected", DAY)])], []),
}


@pytest.mark.parametrize(("files", "gaps"), GAPS.values(), ids=GAPS)
def test_gaps_are_named(files: list[pb.ListTrafficResponse], gaps: list[str]) -> None:
    assert list(merge_records(files).gaps) == gaps


def test_dropped_reports_and_disabled_observation_are_gaps() -> None:
    found = response(0, HOUR)
    found.last_dropped.FromSeconds(60)
    found.enabled = False
    assert merge_records([found]).gaps == (
        "observation is disabled",
        "reports of sidecars were dropped, the last at 1970-01-01 00:01 UTC",
    )


OTHERS = ("[]", "[1]", "1", "null", "{", '{"edges": 1}', '{"edges": [1]}')
REFUSED = {
    **{text: (text, "is not the output of xds observe -o json: .") for text in OTHERS},
    "empty": ("{}", "it has no time"),
    "unknown restrictions": (MessageToJson(pb.ListTrafficResponse(time={"seconds": 9})), "it has no request"),
    "one namespace": (
        MessageToJson(response(0, 9, request=pb.ListTrafficRequest(namespace="a"))),
        "without -n, --plaintext, --denied",
    ),
    "denied": (
        MessageToJson(response(0, 9, request=pb.ListTrafficRequest(denied_only=True))),
        "is only a part of the traffic",
    ),
    "mode": (
        MessageToJson(pb.ListTrafficResponse(time={"seconds": 9}, request={}, edges=[{"client": "a"}])),
        "has traffic with an invalid client, service or mode: a to .",
    ),
}

REFUSED |= {
    name: (
        MessageToJson(response(0, 9, Flow(target, client, TrafficMode.MTLS, 1, 2, False))),
        "has traffic with",
    )
    for name, target, client in (
        ("any account", WEB, Client("shop", "*")),
        ("two lines", WEB, Client("shop", "a\nb")),
        ("a name as address", WEB, Client("", "front")),
        ("another service", Target("shop", "a b", 80), CLIENT),
    )
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_record(text)
