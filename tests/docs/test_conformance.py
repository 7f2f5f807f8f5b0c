"""docs/reference/xds-conformance.md lists every rule, and every rule has tests."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "reference" / "xds-conformance.md").read_text()
RULES = [*(f"R{number}" for number in range(1, 63)), *(f"O{number}" for number in range(1, 21))]
SCENARIOS = [
    f"{kind}{number}" for kind, last in (("S", 9), ("U", 3), ("D", 6)) for number in range(1, last + 1)
]
COVERED_BY = dict(re.findall(r"\b([RO]\d+)\s\((\w+)\)", TEXT.partition("no tests of their own")[2]))
UNTESTABLE = {"R62"}


@cache
def names_in(folder: str) -> set[str]:
    return {
        name
        for path in (TESTS / folder).rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def has_tests(number: str, folder: str = "") -> bool:
    return any(f"_{number.lower()}_" in name for name in names_in(folder))


def test_every_rule_has_a_row():
    rows = re.findall(r"^\| ([RO]\d+) \| .+ \| .*\|$", TEXT, re.MULTILINE)
    assert rows == RULES


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in UNTESTABLE])
def test_every_rule_has_tests(rule):
    assert has_tests(rule) != (rule in COVERED_BY)


def test_rules_are_covered_by_tested_rules():
    assert all(rule == "codec" or has_tests(rule) for rule in COVERED_BY.values())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_of_the_harness_has_tests(scenario):
    assert has_tests(scenario, "peers")
