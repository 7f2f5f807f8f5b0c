"""Reports as JSON and as JUnit XML."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from xds.conformance.rules import TITLES
from xds.conformance.runner import Outcome, Report, Result


def to_dict(report: Report) -> dict[str, Any]:
    """Return a report as plain values: its rules, each with the outcome and the checks by variant."""
    rules = [_rule(report, rule) for rule in report.rules]
    return {"passed": not report.failed, "node": report.node, "rules": rules}


def _rule(report: Report, rule: str) -> dict[str, Any]:
    return {
        "rule": rule,
        "title": TITLES[rule],
        "level": report.level(rule),
        "outcomes": {variant.value: report.outcome(rule, variant).value for variant in report.variants},
        "reason": report.reason(rule),
        "checks": [_check(result) for result in report.results if result.rule == rule],
    }


def _check(result: Result) -> dict[str, Any]:
    return {
        "check": result.check,
        "requires": result.requires,
        "level": result.level.value,
        "variant": result.variant.value,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "conversation": [*result.conversation],
    }


def to_junit(report: Report) -> str:
    """Return a report as JUnit XML: a test suite for each variant, and a test case for each check."""
    root = ET.Element("testsuites", name="xds conformance")
    for variant in report.variants:
        results = [result for result in report.results if result.variant is variant]
        outcomes = [result.outcome for result in results]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=variant.value,
            tests=str(len(results)),
            failures=str(outcomes.count(Outcome.FAIL)),
            skipped=str(outcomes.count(Outcome.NOT_APPLICABLE)),
        )
        for result in results:
            case = ET.SubElement(suite, "testcase", classname=f"{variant}.{result.rule}", name=result.check)
            if result.outcome is Outcome.FAIL:
                failure = ET.SubElement(case, "failure", message=result.reason)
                failure.text = "\n".join((result.requires, *result.conversation))
            elif result.outcome is Outcome.NOT_APPLICABLE:
                ET.SubElement(case, "skipped", message=result.reason)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)
