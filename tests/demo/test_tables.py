"""The output of the demo."""

import io
from collections import Counter

from rich.console import Console

from xds.demo.play import FULL_PARTIAL, LEGACY_FULL, MIXED, NO_ANSWER, Answer, Step, StepResult
from xds.demo.tables import as_json, table

SLEEP = "spiffe://cluster.local/ns/full/sa/sleep"
SEEN = StepResult(
    Step(name="STRICT", what="mutual TLS only", expected={FULL_PARTIAL: MIXED, LEGACY_FULL: NO_ANSWER}),
    {
        FULL_PARTIAL: Counter({Answer("200"): 4, Answer("200", SLEEP): 6}),
        LEGACY_FULL: Counter({Answer("000"): 10}),
    },
)


def test_table_prints_the_output_of_the_istio_task():
    console = Console(width=80, file=io.StringIO())
    console.print(table(SEEN, 4))
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [
        "4. STRICT: mutual TLS only",
        f"sleep.full to httpbin.partial  URI={SLEEP}",
        "                               response code: 200 (6x)",
        "                               response code: 200 (4x)",
        "sleep.legacy to httpbin.full   response code: 000 (10x)",
    ]


def test_json_counts_codes_and_lists_identities():
    assert as_json([SEEN]) == [
        {
            "step": "STRICT",
            "from": "sleep.full",
            "to": "httpbin.partial",
            "codes": {"200": 10},
            "identities": [SLEEP],
        },
        {
            "step": "STRICT",
            "from": "sleep.legacy",
            "to": "httpbin.full",
            "codes": {"000": 10},
            "identities": [],
        },
    ]
