"""`xds conformance`."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from xds.cli.client_credentials import ClientCredentials
from xds.cli.durations import parse_duration
from xds.cli.options import fail, fail_unreachable, file_option, parse_address
from xds.cli.output import print_document
from xds.cli.tables import Table
from xds.conformance import (
    CONCURRENCY,
    KEYS,
    RULES_VERSION,
    TITLES,
    Level,
    Outcome,
    Report,
    Result,
    UnreachableError,
    Variant,
    collapse,
    explanation,
    parse_keys,
    run,
    to_dict,
    to_github,
    to_junit,
)
from xds.mesh.model.objects import printable

EXAMPLES = """
xds conformance 127.0.0.1:18000
xds conformance xds.example.com:443 --adapter 127.0.0.1:18001 --ca-file ca.pem
xds conformance 127.0.0.1:18000 --node ingress-1
xds conformance 127.0.0.1:18000 --variant delta-ads --rule R12 --rule R38
xds conformance 127.0.0.1:18000 --fail-on spec-should -o junit > report.xml
xds conformance 127.0.0.1:18000 -o keys > expected-failures.txt
xds conformance 127.0.0.1:18000 --expected-failures expected-failures.txt -o github
"""

_MARKS = {Outcome.PASS: "pass", Outcome.ERROR: "error", Outcome.NOT_APPLICABLE: "-"}
_MAX_LINES = 20
"""Number of lines that are shown of a conversation."""

ReportFormat = Literal["table", "wide", "json", "yaml", "junit", "github", "keys"]
"""An output format of a report."""


def conformance(
    *,
    target: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Address of the xDS server.")],
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="HOST:PORT",
            help="Address of the adapter, in plaintext. Default: the server's address.",
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(
            "--node",
            metavar="ID",
            help="Node that the server has resources for: check those, without an adapter. "
            "Default: conformance, if the server has no adapter.",
        ),
    ] = None,
    variants: Annotated[
        list[Variant] | None,
        typer.Option("--variant", help="Variant to check; repeatable. Default: all."),
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="RULE", help="Rule to check; repeatable. Default: all."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="RULE|KEY",
            help="Rule or check not to run, such as R34 or 'R15 sotw ack_gets_no_response CDS'; repeatable.",
        ),
    ] = None,
    expected_failures: Annotated[
        Path | None,
        file_option(
            "--expected-failures",
            "Keys of the checks that are expected to fail, one on each line; # starts a comment. The command "
            "fails if another check fails, or if one of these passes.",
        ),
    ] = None,
    level: Annotated[
        Level,
        typer.Option("--level", help="Weakest level of the checks to run. The first level is the strongest."),
    ] = Level.ROBUSTNESS,
    fail_on: Annotated[
        Level,
        typer.Option("--fail-on", help="Weakest level whose failures make the exit status 1."),
    ] = Level.CLIENT_DEPENDENT,
    timeout: Annotated[
        str,
        typer.Option("--timeout", metavar="DURATION", help="Time to wait for a response that must come."),
    ] = "5s",
    quiet: Annotated[
        str,
        typer.Option("--quiet", metavar="DURATION", help="Time to wait for a response that must not come."),
    ] = "200ms",
    concurrency: Annotated[
        int,
        typer.Option(
            "--concurrency",
            metavar="N",
            min=1,
            help="Number of checks that run at a time; without an adapter, at most 8.",
        ),
    ] = CONCURRENCY,
    repeat_node: Annotated[
        bool,
        typer.Option(
            "--repeat-node",
            help="Send the node in every request, not only in the first. Some servers require it (see R1).",
        ),
    ] = False,
    ca_file: Annotated[
        Path | None,
        file_option("--ca-file", "Root certificates (PEM) to verify the server against. Default: plaintext."),
    ] = None,
    cert_file: Annotated[
        Path | None,
        file_option("--cert-file", "Client certificate (PEM). Requires --ca-file and --key-file."),
    ] = None,
    key_file: Annotated[Path | None, file_option("--key-file", "Private key (PEM) of --cert-file.")] = None,
    output: Annotated[ReportFormat, typer.Option("-o", "--output", help="Output format.")] = "table",
) -> None:
    """Check whether an xDS server follows the rules of the protocol.

    The server is seen as a client sees it. Most rules need an adapter: a gRPC service that sets the resources
    of a node, about ten lines around the server's own cache. Without one, the checks use the resources that
    the server has for --node, and rules about changes do not apply.

    The table has a line for each rule. FAIL means that a check fails whose level is --fail-on or stronger,
    and differs, that only weaker ones fail. The first failed check of each rule follows, with its source and
    the end of its conversation. The wide format has all failed checks, and the rules that do not apply, with
    the reason. JSON has the whole conversations. The format keys prints the keys of the failed checks that
    count, for --expected-failures. The format github is the table and annotations of GitHub Actions.

    Exit status: 0 no check fails that counts, or exactly the expected ones; 1 such a check fails, or an
    expected failure passes; 2 nothing was checked or wrong usage; 3 the server or the adapter cannot be
    reached, or the adapter failed.
    """
    if adapter is not None and node is not None:
        fail("--adapter and --node exclude each other")
    for option, address in (("HOST:PORT", target), ("--adapter", adapter)):
        if address is not None:
            parse_address(option, address)
    selected = [rule.upper() for rule in rules or TITLES]
    if unknown := [rule for rule in selected if rule not in TITLES]:
        fail(f"--rule {unknown[0]}: unknown rule; rules are R1 to R{len(TITLES)}")
    skipped = [key.upper() if key.upper() in TITLES else " ".join(key.split()) for key in skip or ()]
    if unknown := [key for key in skipped if key not in TITLES and key not in KEYS]:
        fail(f"--skip {unknown[0]}: unknown rule or check; -o json prints the keys of all checks")
    try:
        expected = parse_keys(expected_failures.read_text()) if expected_failures else frozenset[str]()
    except ValueError as error:
        fail(f"{expected_failures}: {error}; -o keys prints the keys of the failed checks")
    counts: Counter[Outcome] = Counter()

    def show_progress(result: Result) -> None:
        counts[result.outcome] += 1
        if sys.stderr.isatty():
            typer.echo(f"\r{counts.total()} checks, {counts[Outcome.FAIL]} failed", nl=False, err=True)

    try:
        report = asyncio.run(
            run(
                target,
                adapter=adapter,
                node=node,
                credentials=ClientCredentials(roots=ca_file, certificate=cert_file, key=key_file).load(),
                variants=variants or tuple(Variant),
                rules=selected,
                skip=skipped,
                expected_failures=expected,
                level=level,
                fail_on=fail_on,
                response_timeout=parse_duration("--timeout", timeout),
                quiet=parse_duration("--quiet", quiet),
                repeat_node=repeat_node,
                concurrency=concurrency,
                on_result=show_progress,
            )
        )
    except UnreachableError as error:
        fail_unreachable(str(error))
    if sys.stderr.isatty():
        typer.echo("\r\033[K", nl=False, err=True)
    _print(report, output)
    if expected_failures:
        for result in report.new_failures:
            if report.counts(result.level):
                typer.echo(f"new failure: fix it, or add it to {expected_failures}: {result.key}", err=True)
        for result in report.new_passes:
            typer.echo(f"new pass: remove it from {expected_failures}: {result.key}", err=True)
    if report.errors:
        fail_unreachable(f"{len(report.errors)} checks were not judged: {report.errors[0].reason}")
    if report.is_empty:
        reasons = {report.reason(rule) for rule in report.rules}
        fail(
            f"nothing was checked: {reasons.pop() if len(reasons) == 1 else 'no rule applies (see -o wide)'}"
        )
    raise typer.Exit(int(report.failed))


def _print(report: Report, output: ReportFormat) -> None:
    if output == "junit":
        typer.echo(to_junit(report))
    elif output in ("json", "yaml"):
        print_document(to_dict(report), output)
    elif output == "keys":
        for result in report.results:
            if result.outcome is Outcome.FAIL and report.counts(result.level):
                typer.echo(result.key)
    else:
        _print_tables(report, is_wide=output == "wide")
        if output == "github":
            typer.echo(to_github(report))


def _print_tables(report: Report, *, is_wide: bool) -> None:
    shown = (
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in report.options.items()
    )
    typer.echo(f"version {RULES_VERSION} of the rules, {printable(' '.join(shown))}\n")
    judged = [rule for rule in report.rules if not report.reason(rule)]
    table = Table("RULE", "LEVEL", *(variant.value.upper() for variant in report.variants), "TITLE")
    for rule in judged:
        levels = {report.failed_level(rule, variant) for variant in report.variants}
        table.add_row(
            rule,
            Level.strongest(levels) or report.level(rule),
            *(_mark(report, rule, variant) for variant in report.variants),
            TITLES[rule],
        )
    if judged:
        table.show()
    if is_wide:
        _print_not_applicable(report)
    failures = report.new_failures
    for rule in report.rules:
        of_rule = [result for result in failures if result.rule == rule]
        of_rule.sort(key=lambda result: [*Level].index(result.level))
        for result in of_rule if is_wide else of_rule[:1]:
            _print_failure(result, counts=report.counts(result.level))
        if (more := len(of_rule) - 1) > 0 and not is_wide:
            typer.echo(f"  {more} more failed check{'s' * (more > 1)} of {rule}: -o wide")
    if report.node:
        typer.echo(f"\nNo adapter: checked the resources of node {printable(report.node)}, without changes.")
    counts = Counter(result.outcome for result in report.results)
    failed = [report.counts(result.level) for result in failures]
    words = [f"{counts[Outcome.PASS]} pass", f"{failed.count(True)} fail", f"{failed.count(False)} differ"]
    words += [f"{counts[Outcome.NOT_APPLICABLE]} not applicable"]
    words += [f"{len(report.errors)} error{'s' * (len(report.errors) > 1)}"] * bool(report.errors)
    words += [f"{counts[Outcome.FAIL] - len(failed)} expected to fail"] * bool(report.expected)
    typer.echo(f"\n{', '.join(words)}")


def _print_not_applicable(report: Report) -> None:
    """Print why rules or some of their checks do not apply, and in which variants."""
    rows = []
    for rule in report.rules:
        reasons: dict[str, list[Variant]] = {}
        for result in report.results:
            if result.rule == rule and result.outcome is Outcome.NOT_APPLICABLE:
                reasons.setdefault(result.reason, []).append(result.variant)
        if not reasons and (reason := report.reason(rule)):
            reasons[reason] = [*report.variants]
        for reason, variants in reasons.items():
            rows.append((rule, ", ".join(each for each in report.variants if each in variants), reason))
    if rows:
        typer.echo()
        table = Table("RULE", "VARIANTS", "NOT APPLICABLE")
        for row in rows:
            table.add_row(*row)
        table.show()


def _mark(report: Report, rule: str, variant: Variant) -> str:
    level = report.failed_level(rule, variant)
    return _failed_mark(counts=report.counts(level)) if level else _MARKS[report.outcome(rule, variant)]


def _failed_mark(*, counts: bool) -> str:
    return "FAIL" if counts else "differs"


def _print_failure(result: Result, *, counts: bool) -> None:
    mark = typer.style(_failed_mark(counts=counts), fg="red" if counts else "yellow")
    typer.echo(f"\n{mark} {result.key} ({result.level})")
    required, *reasons = explanation(result)
    for line in (f"required: {required}", *reasons, printable(result.reason)):
        typer.echo(f"  {line}")
    conversation = collapse(result.conversation)
    if (left_out := len(conversation) - _MAX_LINES) > 0:
        typer.echo(f"    ({left_out} earlier line{'s' * (left_out > 1)}: -o json)")
    for line in conversation[-_MAX_LINES:]:
        typer.echo(f"    {printable(line)}")
