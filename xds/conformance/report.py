"""Reports as JSON, as JUnit XML, and as annotations of GitHub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree as ET

from xds.conformance.rules import RULES_VERSION, TITLES, Level
from xds.conformance.runner import Outcome, Report, Result
from xds.conformance.sources import SOURCES, Citation, Source

_NONCE = re.compile(r"nonce=\S+")
_REMOVE = "the check passes: remove it from the expected failures"


def to_dict(report: Report) -> dict[str, Any]:
    """Return a report as plain values: its rules, each with the outcome and the checks by variant."""
    rules = [_rule(report, rule) for rule in report.rules]
    return {
        "rules_version": RULES_VERSION,
        "options": {**report.options},
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
        "checks": [_check(report, result) for result in report.results if result.rule == rule],
    }


def _check(report: Report, result: Result) -> dict[str, Any]:
    return {
        "key": result.key,
        "check": result.check,
        "requires": result.requires,
        "level": result.level.value,
        "breaks": result.breaks,
        "by_chance": result.by_chance,
        "source": _source(result.source),
        "variant": result.variant.value,
        "outcome": result.outcome.value,
        "expected_failure": result.key in report.expected,
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


def source_line(source: Source, level: Level) -> str:
    """Return a source for people: the citation, or that there is none and why the check exists.

    `related` says that the sentence does not require what the check does.
    """
    if not isinstance(source, Citation):
        return f"no source: {source}"
    is_related = level in (Level.CLIENT_DEPENDENT, Level.ROBUSTNESS)
    return f"{'related' if is_related else 'source'}: {source}"


def explanation(result: Result) -> list[str]:
    """Return for people what a check requires, what a failure breaks, and the source."""
    breaks = [f"breaks: {result.breaks}"] * bool(result.breaks)
    return [result.requires, *breaks, source_line(result.source, result.level)]


def collapse(conversation: Iterable[str]) -> list[str]:
    """Return a conversation without repetitions: of lines and pairs of lines that differ only in nonces."""
    lines, collapsed, start = [*conversation], list[str](), 0
    shapes = [_NONCE.sub("nonce=", line) for line in lines]
    while start < len(lines):
        for size in (1, 2):
            times = 1
            while shapes[start : start + size] == shapes[start + times * size : start + (times + 1) * size]:
                times += 1
            if times > 2:
                break
        else:
            size = times = 1
        collapsed += lines[start : start + size]
        if times > 1:
            what = "the last line" if size == 1 else "the last two lines"
            collapsed.append(f"     ({what} {times - 1} more times, with other nonces)")
        start += size * times
    return collapsed


def to_junit(report: Report) -> str:
    """Return a report as JUnit XML: a test suite for each variant, and a test case for each check.

    Expected failures, and failures whose level does not count, are skipped. New passes are failures.
    """
    root = ET.Element("testsuites", name="xds conformance")
    new_failures, new_passes = report.new_failures, report.new_passes
    for variant in report.variants:
        suite = ET.SubElement(root, "testsuite", name=variant.value)
        for result in report.results:
            if result.variant is not variant:
                continue
            case = ET.SubElement(suite, "testcase", classname=f"{variant}.{result.rule}", name=result.check)
            if result in new_failures:
                counts = report.counts(result.level)
                message = result.reason if counts else f"differs ({result.level}): {result.reason}"
                element = ET.SubElement(case, "failure" if counts else "skipped", message=message)
                element.text = "\n".join((*explanation(result), *collapse(result.conversation)))
            elif result.outcome is Outcome.ERROR:
                ET.SubElement(case, "error", message=result.reason)
            elif result in new_passes:
                ET.SubElement(case, "failure", message=_REMOVE)
            elif result.outcome is not Outcome.PASS:
                expected = "expected failure: " * (result.outcome is Outcome.FAIL)
                ET.SubElement(case, "skipped", message=f"{expected}{result.reason}")
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("errors", str(len(suite.findall("testcase/error"))))
        suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def to_github(report: Report) -> str:
    """Return annotations of GitHub Actions: for each rule with new failures, each new pass and each error.

    GitHub shows only the first ten errors and the first ten warnings of a step.
    """
    lines = []
    by_rule: dict[tuple[str, Level], list[Result]] = {}
    for result in report.new_failures:
        by_rule.setdefault((result.rule, result.level), []).append(result)
    for (rule, level), (first, *others) in by_rule.items():
        more = [f"{len(others)} more failed checks of {rule}"] * bool(others)
        first_lines = (f"{first.key}: {first.reason}", *explanation(first), *collapse(first.conversation))
        text = "\n".join((*first_lines, *more))
        kind = "error" if report.counts(level) else "warning"
        lines.append(_annotation(kind, f"{rule} {TITLES[rule]}", text))
    lines += [_annotation("error", result.key, _REMOVE) for result in report.new_passes]
    lines += [_annotation("error", result.key, result.reason) for result in report.errors]
    return "\n".join(lines)


def _annotation(kind: str, title: str, text: str) -> str:
    """Return a workflow command. Its values are escaped, so text of the server is no command."""
    in_text = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
    in_title = in_text | str.maketrans({":": "%3A", ",": "%2C"})
    return f"::{kind} title={title.translate(in_title)}::{text.translate(in_text)}"
