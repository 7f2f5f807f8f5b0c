"""Reports as JSON and as JUnit XML."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from xds.conformance.rules import RULES_VERSION, TITLES
from xds.conformance.runner import Outcome, Report, Result
from xds.conformance.sources import SOURCES, Citation, Source


def to_dict(report: Report) -> dict[str, Any]:
    """Return a report as plain values: its rules, each with the outcome and the checks by variant."""
    rules = [_rule(report, rule) for rule in report.rules]
    return {
        "rules_version": RULES_VERSION,
        "passed": not report.failed,
        "fail_on": report.fail_on.value,
        "node": report.node,
        "rules": rules,
    }


def _rule(report: Report, rule: str) -> dict[str, Any]:
    return {
        "rule": rule,
        "title": TITLES[rule],
        "level": report.level(rule),
        "outcomes": {variant.value: report.outcome(rule, variant).value for variant in report.variants},
        "reason": report.reason(rule),
        "source": _source(SOURCES[rule]),
        "checks": [_check(result) for result in report.results if result.rule == rule],
    }


def _check(result: Result) -> dict[str, Any]:
    return {
        "check": result.check,
        "requires": result.requires,
        "level": result.level.value,
        "source": _source(result.source),
        "variant": result.variant.value,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "conversation": [*result.conversation],
    }


def _source(source: Source) -> dict[str, str]:
    if not isinstance(source, Citation):
        return {"reason": source}
    return {
        "document": source.document.title,
        "repository": source.document.repository,
        "path": source.document.path,
        "commit": source.document.commit,
        "section": source.section,
        "sentence": source.sentence,
        "url": source.url,
    }


def source_line(source: Source) -> str:
    """Return a source for people: the citation, or that there is none and why the check exists."""
    return f"source: {source}" if isinstance(source, Citation) else f"no source: {source}"


def to_junit(report: Report) -> str:
    """Return a report as JUnit XML: a test suite for each variant, and a test case for each check.

    A failed check whose level does not count is a skipped test case, whose message has the level.
    """
    root = ET.Element("testsuites", name="xds conformance")
    for variant in report.variants:
        results = [result for result in report.results if result.variant is variant]
        failures = sum(result.outcome is Outcome.FAIL and report.counts(result.level) for result in results)
        passed = sum(result.outcome is Outcome.PASS for result in results)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=variant.value,
            tests=str(len(results)),
            failures=str(failures),
            skipped=str(len(results) - failures - passed),
        )
        for result in results:
            case = ET.SubElement(suite, "testcase", classname=f"{variant}.{result.rule}", name=result.check)
            if result.outcome is Outcome.FAIL:
                tag, message = ("failure", result.reason)
                if not report.counts(result.level):
                    tag, message = ("skipped", f"differs ({result.level}): {result.reason}")
                element = ET.SubElement(case, tag, message=message)
                element.text = "\n".join((result.requires, source_line(result.source), *result.conversation))
            elif result.outcome is Outcome.NOT_APPLICABLE:
                ET.SubElement(case, "skipped", message=result.reason)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)
