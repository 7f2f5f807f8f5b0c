"""The page of rules is whole: each is there, with tests that exist and are where it says."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "conformance.md").read_text()
RULES = [*(f"R{number}" for number in range(1, 63)), *(f"O{number}" for number in range(1, 21))]
ROWS = re.findall(r"^\| ([RO]\d+) \| (.+) \|(.*)\|$", TEXT, re.MULTILINE)
SHOWN = re.findall(r"^- ([RO]\d+): (.+(?:\n  .+)*)", TEXT.partition("## Where this server")[0], re.MULTILINE)
NAMED = re.findall(r"`(test_\w+)`", TEXT)
WHO = {"Envoy": "real/", "gRPC": "peers/test_grpc_"}
"""Who a test is with, and where such tests are."""


@cache
def functions() -> dict[str, set[str]]:
    """Return where functions are defined in the tests, by name."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name].add(str(path.relative_to(TESTS)))
    return found


def test_every_rule_has_a_row_and_its_tests():
    assert [number for number, *_ in ROWS] == RULES
    assert [number for number, _ in SHOWN] == RULES
    assert all(rule.strip() for _, rule, _ in ROWS)


def places_of(name: str) -> set[str]:
    return {path for path in functions().get(name, ()) if Path(path).name.startswith("test_")}


def who_is_in(path: str) -> str:
    return next((who for who, folder in WHO.items() if path.startswith(folder)), "")


@pytest.mark.parametrize(("number", "text"), SHOWN, ids=[number for number, _ in SHOWN])
def test_the_tests_of_a_rule_are_where_it_says(number, text):
    assert "`" in text or re.match(r"no test: \w+", text), f"{number} has no test and does not say why"
    who = ""
    for other, name in re.findall(r"\b(Envoy|gRPC):|`(\w+)`", text):
        who = other or who
        if name:
            places = places_of(name)
            assert places, f"there is no test {name}"
            assert who in map(who_is_in, places), (
                f"{name} is in {places}, which is not with {who or 'our client'}"
            )


@pytest.mark.parametrize("name", sorted({*NAMED}))
def test_a_test_that_is_named_exists(name):
    assert places_of(name)


def test_what_the_state_machines_check_is_there():
    _, _, section = TEXT.partition("## What the state machines check")
    checks = [
        name
        for row in re.findall(r"^\| .+ \| (`.+`) \|$", section, re.MULTILINE)
        for name in row.split("`")[1::2]
    ]
    assert len(checks) > 10
    for name in checks:
        assert functions().get(name, set()) & {"protocol/test_model.py", "protocol/stream.py"}, name


def test_each_scenario_of_the_harness_has_a_row():
    scenarios = re.findall(r"^\| ([SUD]\d) \| .+ \| (\d+) \| `test_(\w\d)_\w+` \|$", TEXT, re.MULTILINE)
    assert [name for name, _, test in scenarios if name.lower() == test] == [
        *(f"S{number}" for number in range(1, 10)),
        *(f"U{number}" for number in range(1, 4)),
        *(f"D{number}" for number in range(1, 7)),
    ]
    assert sum(int(runs) for _, runs, _ in scenarios) == 98


def test_links_lead_to_files():
    for link in re.findall(r"\]\((\.\./[^)]+)\)", TEXT):
        assert (TESTS.parent / "docs" / link).exists(), link
