"""`xds conformance` passes this library's server, and finds the faults of broken ones."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from xml.etree import ElementTree as ET

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs
from typer.testing import Result

from tests.conformance import broken
from tests.library.messages import assignment, eds_cluster
from tests.support.controlplane import xds_here
from tests.support.loopback import free_port
from xds.conformance import (
    KEYS,
    RULES_VERSION,
    SOURCES,
    TITLES,
    Level,
    Outcome,
    Report,
    UnreachableError,
    Variant,
    collapse,
    parse_keys,
    run,
    runner,
    store_adapter,
    to_github,
)
from xds.conformance import stream as stream_module
from xds.conformance.rules import CHECKS, NOT_JUDGED
from xds.conformance.sources import DISCOVERY
from xds.conformance.v1 import adapter_pb2 as pb
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.protocol import watch
from xds.resources import resource
from xds.server import Limits, XdsServer
from xds.server import discovery as server_module
from xds.store import Store
from xds.testing.streams import SocketStream

SOTW = (Variant.SOTW, Variant.SOTW_ADS)
DELTA = (Variant.DELTA, Variant.DELTA_ADS)
ADS = (Variant.SOTW_ADS, Variant.DELTA_ADS)
PATIENCE = {"response_timeout": 30.0, "concurrency": 16}
"""A correct server answers at once, so only a slow machine needs this time."""
SLOW = ("--timeout", "30s")
"""The same for the command."""


@asynccontextmanager
async def serving(**options: object) -> AsyncIterator[str]:
    store = Store()
    server = XdsServer(
        store, "127.0.0.1:0", identifier="under-test", added=[store_adapter(store)], grace=0.1, **options
    )
    async with server:
        yield f"127.0.0.1:{server.port}"


def failed(report: Report) -> dict[str, str]:
    return {
        result.key: "\n".join((result.reason, *result.conversation))
        for result in report.results
        if result.outcome is Outcome.FAIL
    }


@pytest.mark.parametrize("variant", Variant)
async def test_library_passes_every_check(variant):
    async with serving() as address:
        report = await run(address, variants=[variant], **PATIENCE)
    assert failed(report) == {}
    assert {result.outcome for result in report.results} == {Outcome.PASS}


def test_every_rule_has_a_source():
    assert [*SOURCES] == [*TITLES]
    for source in (*SOURCES.values(), *(check.source for check in CHECKS)):
        if isinstance(source, str):
            assert source.endswith(".")
            continue
        assert re.fullmatch(r"[0-9a-f]{40}", source.document.commit)
        assert all((source.document.title, source.document.repository, source.document.path))
        assert source.section
        assert 5 <= len(source.sentence.split()) <= 25


def test_only_robustness_has_no_citation():
    uncited = [check for check in CHECKS if isinstance(check.source, str)]
    assert {check.level for check in uncited} == {Level.ROBUSTNESS}


def test_every_rule_is_judged_or_says_why_not():
    assert [*TITLES] == [f"R{number}" for number in range(1, 63)]
    assert {check.rule for check in CHECKS}.isdisjoint(NOT_JUDGED)
    assert {check.rule for check in CHECKS} | NOT_JUDGED.keys() == TITLES.keys()
    assert all(check.requires.endswith(".") for check in CHECKS)


FAULTS = [
    (broken.ResendsOnNack, Variant, {"R12"}),
    (broken.ResendsOnNackOfAChange, Variant, {"R12"}),
    (broken.RepeatsNamesInsideAWildcard, SOTW, {"R30"}),
    (broken.KeepsTheLastResource, SOTW, {"R27"}),
    (broken.ForgetsDeletedNames, DELTA, {"R21"}),
    (broken.KeepsTtls, DELTA, {"R44"}),
    (broken.DiesOfPhantoms, DELTA, {"R20"}),
    (broken.IgnoresTheType, Variant, {"R2"}),
    (broken.DiesOfUnknownTypes, ADS, {"R3"}),
    (broken.DiesOfForeignNonces, SOTW, {"R7"}),
    (broken.IgnoresStaleSubscriptions, DELTA, {"R8"}),
    (broken.IgnoresNamesInAnswers, Variant, {"R11"}),
    (broken.SendsUnchanged, Variant, {"R14"}),
    (broken.IgnoresNewNames, SOTW, {"R16"}),
    (broken.AnswersRequestsForAll, SOTW, {"R28"}),
    (broken.AnswersFewerNames, SOTW, {"R17"}),
    (broken.IgnoresReturningNames, Variant, {"R18"}),
    (broken.LetsNobodyReturnToTheWildcard, Variant, {"R24"}),
    (broken.ForgetsMissingNames, SOTW, {"R25"}),
    (broken.HasAWildcardForVirtualHosts, DELTA, {"R32"}),
    (broken.DiesOfKnownVersions, SOTW, {"R35"}),
    (broken.RemovesUnrequested, DELTA, {"R37"}),
    (broken.SendsNoAssignmentAgain, ADS, {"R38"}),
    (broken.SendsRoutesWithListeners, ADS, {"R39"}),
    (broken.SendsTypesInReverse, ADS, {"R40", "R43"}),
    (broken.RemovesAtOnce, ADS, {"R41"}),
    (broken.WaitsForNoAcks, ADS, {"R42", "R43"}),
    (broken.ServesTheNewestStreamOnly, Variant, {"R51"}),
    (broken.LimitsStreams, Variant, {"R56"}),
    (broken.DiesOfUnknownNodes, Variant, {"R59"}),
    (broken.DiesWithOthers, Variant, {"R60"}),
    (broken.AnswersAcks, Variant, {"R15"}),
    (broken.RepeatsNonces, Variant, {"R4"}),
    (broken.AcceptsStaleRequests, SOTW, {"R6"}),
    (broken.TakesOldVersionsForNacks, SOTW, {"R10"}),
    (broken.CountsVersions, Variant, {"R5"}),
    (broken.IgnoresRepeatedSubscriptions, DELTA, {"R19"}),
    (broken.IgnoresUnsubscriptions, DELTA, {"R22", "R29"}),
    (broken.ReportsNoRemovals, DELTA, {"R26", "R27", "R33"}),
    (broken.IgnoresReportedVersions, DELTA, {"R36"}),
    (broken.HasAWildcardForRoutes, Variant, {"R23"}),
    (broken.RepeatsNames, Variant, {"R30"}),
    (broken.SendsNoNames, DELTA, {"R22"}),
    (broken.SendsUnrequested, Variant, {"R28"}),
    (broken.HasNoIdentifier, Variant, {"R46"}),
    (broken.DropsLaterResponses, Variant, {"R22"}),
    (broken.NeedsTheNodeAgain, Variant, {"R1"}),
    (broken.AnswersNacksOfOlderResponses, DELTA, {"R13"}),
    (broken.HasNoAliases, DELTA, {"R31"}),
    (broken.ReportsKnownAliases, DELTA, {"R31"}),
    (broken.HasNoCollections, DELTA, {"R34"}),
    (broken.SendsNestedMembers, DELTA, {"R34"}),
    (broken.KeepsTheLegacyWildcard, Variant, {"R22"}),
    (broken.EndsTheLegacyWildcard, DELTA, {"R22"}),
    (broken.SendsNoTtl, DELTA, {"R44"}),
    (broken.SendsNoHeartbeats, DELTA, {"R44"}),
    (broken.WrapsResources, SOTW, {"R44"}),
    (broken.RefusesUnknownFields, Variant, {"R47"}),
    (broken.WaitsForNewerStreams, Variant, {"R52"}),
    (broken.ForgetsChangesBeforeAnAck, Variant, {"R53"}),
]


def test_every_judged_rule_has_a_fault():
    found = {rule for _, _, rules in FAULTS for rule in rules}
    in_other_tests = {"R49", "R50", "R57", "R58"}
    assert found | in_other_tests == {check.rule for check in CHECKS}


@pytest.mark.parametrize(("fault", "variants", "rules"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
async def test_fault_is_found_by_its_rule(fault, variants, rules, monkeypatch):
    monkeypatch.setattr(server_module, "Session", fault)
    async with serving() as address:
        # A fault ends a check early. Checks that a fault does not concern wait.
        report = await run(
            address, variants=variants, rules=rules, response_timeout=3, quiet=2, concurrency=16
        )
    for variant in variants:
        assert {rule for rule in rules if report.outcome(rule, variant) is Outcome.FAIL} == rules
    assert not any("INTERNAL" in reason for reason in failed(report).values()), "the fault itself is broken"


async def test_check_ends_if_the_server_sends_without_end(monkeypatch):
    monkeypatch.setattr(server_module, "Session", broken.Floods)
    async with serving() as address, asyncio.timeout(60):
        report = await run(address, rules=["R22"], variants=[Variant.DELTA_ADS], response_timeout=5)
    assert failed(report)


@pytest.mark.parametrize(
    ("fault", "variant", "rule"),
    [
        (broken.HasNoIdentifier, Variant.DELTA_ADS, "R46"),
        (broken.ResendsOnNackOfAChange, Variant.SOTW_ADS, "R12"),
        (broken.RepeatsNamesInsideAWildcard, Variant.SOTW_ADS, "R30"),
        (broken.ForgetsDeletedNames, Variant.DELTA_ADS, "R21"),
        (broken.KeepsTtls, Variant.DELTA_ADS, "R44"),
        (broken.DiesOfPhantoms, Variant.DELTA_ADS, "R20"),
        (broken.AnswersRequestsForAll, Variant.SOTW_ADS, "R28"),
    ],
)
async def test_fault_breaks_no_other_rule(fault, variant, rule, monkeypatch):
    monkeypatch.setattr(server_module, "Session", fault)
    async with serving() as address:
        report = await run(address, variants=[variant], response_timeout=10, concurrency=32)
    assert {name.split()[0] for name in failed(report)} == {rule}


async def test_end_of_the_quiet_time_interrupts_no_request(monkeypatch):
    started, written = [], []

    class SlowStream(SocketStream):
        async def write(self, request: bytes) -> None:
            await super().write(request)
            started.append(request)
            await asyncio.sleep(0.5)  # Longer than the quiet time.
            written.append(request)

    monkeypatch.setattr(stream_module, "SocketStream", SlowStream)
    async with serving() as address:
        report = await run(address, rules=["R59"], variants=[Variant.DELTA_ADS], **PATIENCE)
    assert failed(report) == {}
    # gRPC cancels a stream whose write is cancelled.
    assert started
    assert sorted(written) == sorted(started)


async def test_node_can_be_repeated(monkeypatch):
    monkeypatch.setattr(server_module, "Session", broken.NeedsTheNodeAgain)
    async with serving() as address:
        bad = await run(address, rules=["R1"], repeat_node=True, response_timeout=3, concurrency=16)
        good = await run(address, rules=["R4"], repeat_node=True, **PATIENCE)
    assert {name.split()[0] for name in failed(bad)} == {"R1"}
    assert failed(good) == {}
    assert good.outcome("R4", Variant.DELTA) is Outcome.PASS


async def test_missing_limits_are_found(monkeypatch):
    monkeypatch.setattr(watch, "RESPONSE_BUDGET", 64 * 1024 * 1024)
    async with serving() as address, serving(limits=Limits(request_size=4 * 1024 * 1024)) as limited:
        split = await run(address, rules=["R58"], **PATIENCE)
        large = await run(limited, rules=["R57", "R58"], **PATIENCE)
    assert {result.reason for result in split.results} == {"a response has 5.0 MiB"}
    assert all("RESOURCE_EXHAUSTED" in result.reason for result in large.results if result.rule == "R57")
    assert large.reason("R58") == "the adapter does not accept a message of 5 MiB"


class _OnlyAds(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        return handler if "Aggregated" in details.method or "conformance" in details.method else None


class _EmptyFetch(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        async def fetch(_request, _context):
            return b""

        handler = await continuation(details)
        return grpc.unary_unary_rpc_method_handler(fetch) if "/Fetch" in details.method else handler


async def test_empty_fetch_is_found():
    async with serving(interceptors=[_EmptyFetch()]) as address:
        report = await run(address, rules=("R49",), variants=(Variant.SOTW,), **PATIENCE)
    assert {result.reason for result in report.results} == {"0 resources instead of one"}


async def test_missing_services_are_not_applicable():
    async with serving(interceptors=[_OnlyAds()]) as address:
        report = await run(
            address, rules=("R4", "R49", "R50"), variants=(Variant.SOTW, Variant.DELTA_ADS), **PATIENCE
        )
    assert report.outcome("R4", Variant.SOTW) is Outcome.NOT_APPLICABLE
    assert report.outcome("R4", Variant.DELTA_ADS) is Outcome.PASS
    assert report.reason("R49") == "the server does not implement Fetch"
    assert set(failed(report)) == {"R50 sotw services_are_served"}


async def command(*words: str) -> Result:
    with capture_logs():
        return await xds_here("conformance", *words)


def narrow(rules: Iterable[str]) -> list[str]:
    return [word for rule in rules for word in ("--rule", rule)]


async def test_command_prints_rules_and_conversations(monkeypatch):
    async with serving() as address:
        result = await command(address, *narrow(("r12", "R9")), *SLOW, "-o", "wide")
        assert (result.exit_code, result.stderr) == (0, "")
        assert "R12   spec-must  pass  pass      pass   pass       a rejected resource" in result.stdout
        assert "R9    sotw, sotw-ads, delta, delta-ads  a permission, not a requirement" in result.stdout
        monkeypatch.setattr(server_module, "Session", broken.ResendsOnNack)
        result = await command(address, "--rule", "R12", "--variant", "sotw", "--quiet", "30s")
    assert result.exit_code == 1
    assert "FAIL R12 sotw rejected_resource_is_not_sent_again CDS (client-dependent)" in result.stdout
    assert 'related: xDS protocol (ee2107ff308b), When to send an update: "The management' in result.stdout
    lines = [line.strip() for line in result.stdout.splitlines()]
    nack = next(index for index, line in enumerate(lines) if line.endswith("NACK"))
    assert lines[nack + 1].startswith("<-   CDS nonce=")
    assert "  breaks: Envoy and gRPC answer each response at once" in result.stdout
    assert "earlier line" not in result.stdout


async def test_command_cuts_long_conversations(monkeypatch):
    monkeypatch.setattr(server_module, "Session", broken.HasNoIdentifier)
    monkeypatch.setattr(import_module("xds.cli.conformance"), "_MAX_LINES", 1)
    async with serving() as address:
        result = await command(address, "--rule", "R46", "--variant", "sotw", *SLOW)
    lines = [line.strip() for line in result.stdout.splitlines()]
    cut = lines.index("(3 earlier lines: -o json)")
    assert lines[cut + 1].startswith("->   CDS names=")
    assert lines[cut + 2] == ""


async def test_command_prints_each_format(monkeypatch):
    monkeypatch.setattr(server_module, "Session", broken.HasNoIdentifier)
    async with serving() as address:
        words = (address, "--variant", "delta", *narrow(("R4", "R46")), *SLOW)
        document = json.loads((await command(*words, "-o", "json")).stdout)
        suites = ET.fromstring((await command(*words, "-o", "junit")).stdout)
        must = await command(*words, "--level", "spec-must")
        table = await command(*words)
        words = (*words, "--fail-on", "robustness")
        strict = await command(*words)
        (strict_suite,) = ET.fromstring((await command(*words, "-o", "junit")).stdout)
    assert [(rule["rule"], rule["outcomes"]) for rule in document["rules"]] == [
        ("R4", {"delta": "pass"}),
        ("R46", {"delta": "fail"}),
    ]
    assert (document["rules_version"], document["passed"]) == (RULES_VERSION, True)
    assert document["options"]["server"] == document["options"]["adapter"] == address
    assert table.stdout.splitlines()[0].endswith("timeout=30 quiet=0.2 concurrency=16 repeat_node=False")
    assert document["rules"][0]["source"]["sentence"].startswith("The nonce provides a way")
    (check,) = document["rules"][1]["checks"]
    assert document["rules"][0]["source"]["commit"] == DISCOVERY.commit
    assert check["source"] == {"reason": SOURCES["R46"]}
    assert check["reason"] == "control_plane.identifier is empty"
    assert any(line.startswith("<-   CDS") for line in check["conversation"])
    (suite,) = suites
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "1")
    reason = "control_plane.identifier is empty"
    assert suite.find("testcase/skipped").get("message") == f"differs (robustness): {reason}"
    assert strict_suite.find("testcase/failure").get("message") == reason
    assert "R46" not in must.stdout
    assert (table.exit_code, "R46   robustness  differs  system_version_info" in table.stdout) == (0, True)
    assert (strict.exit_code, "R46   robustness  FAIL " in strict.stdout) == (1, True)


REJECTED = "R12 sotw rejected_resource_is_not_sent_again CDS"
CHANGED = "R12 sotw changed_resource_is_sent_after_a_nack CDS"
NAMED = "R46 sotw control_plane_is_set"


def test_keys_identify_results():
    checks = [(check, variant) for check in CHECKS for variant in check.variants]
    assert len(KEYS) == sum(len(check.types) for check, _ in checks)
    assert {REJECTED, CHANGED, NAMED} <= KEYS


def test_list_of_keys_may_have_comments():
    assert parse_keys(f"# Known.\n\n{REJECTED}  # A loop.\n  {NAMED}\n") == {REJECTED, NAMED}
    with pytest.raises(ValueError, match="line 2: unknown check R12 sotw"):
        parse_keys(f"{REJECTED}\nR12 sotw")


async def test_skipped_checks_are_not_run(monkeypatch):
    monkeypatch.setattr(server_module, "Session", broken.HasNoIdentifier)
    async with serving() as address:
        words = (address, "--variant", "sotw", *narrow(("R4", "R12", "R46")), *SLOW)
        result = await command(*words, "--skip", "r46", "--skip", f" {REJECTED}", "-o", "json")
        unknown = await command(*words, "--skip", "R12 sotw")
    assert result.exit_code == 0
    checks = [check for rule in json.loads(result.stdout)["rules"] for check in rule["checks"]]
    skipped = {check["key"] for check in checks if check["outcome"] == "not applicable"}
    assert skipped == {REJECTED, NAMED}
    assert {check["reason"] for check in checks} == {"", "skipped"}
    assert len(checks) > len(skipped)
    assert (unknown.exit_code, "--skip R12 sotw: unknown rule or check" in unknown.stderr) == (2, True)


async def test_only_new_outcomes_fail_if_failures_are_expected(monkeypatch, tmp_path):
    monkeypatch.setattr(server_module, "Session", broken.HasNoIdentifier)
    file = tmp_path / "expected.txt"
    async with serving() as address:
        words = (address, "--variant", "sotw", *narrow(("R4", "R46")), "--fail-on", "robustness", *SLOW)
        expecting = (*words, "--expected-failures", str(file))
        keys = await command(*words, "-o", "keys")
        file.write_text(keys.stdout)
        same = await command(*expecting)
        file.write_text("R4 sotw nonces_are_unique\n")
        other = await command(*expecting)
        (suite,) = ET.fromstring((await command(*expecting, "-o", "junit")).stdout)
        github = await command(*expecting, "-o", "github")
        file.write_text("R4\n")
        unknown = await command(*expecting)
    assert (keys.exit_code, keys.stdout) == (1, f"{NAMED}\n")
    assert (same.exit_code, same.stderr) == (0, "")
    assert f"FAIL {NAMED}" not in same.stdout
    assert "1 pass, 0 fail, 0 differ, 0 not applicable, 1 expected to fail" in same.stdout
    assert other.exit_code == 1
    assert other.stderr.splitlines() == [
        f"new failure: fix it, or add it to {file}: {NAMED}",
        f"new pass: remove it from {file}: R4 sotw nonces_are_unique",
    ]
    assert f"FAIL {NAMED} (robustness)" in other.stdout
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "2", "0")
    assert github.stdout.splitlines()[-1] == (
        "::error title=R4 sotw nonces_are_unique::the check passes: remove it from the expected failures"
    )
    assert (unknown.exit_code, f"{file}: line 1: unknown check R4" in unknown.stderr) == (2, True)


async def test_expected_failures_are_skipped_in_junit(monkeypatch, tmp_path):
    monkeypatch.setattr(server_module, "Session", broken.HasNoIdentifier)
    (tmp_path / "expected.txt").write_text(NAMED)
    async with serving() as address:
        words = ("--rule", "R46", "--variant", "sotw", *SLOW, "-o", "junit")
        result = await command(address, *words, "--expected-failures", str(tmp_path / "expected.txt"))
    (suite,) = ET.fromstring(result.stdout)
    message = "expected failure: control_plane.identifier is empty"
    assert (suite.get("failures"), suite.find("testcase/skipped").get("message")) == ("0", message)


async def test_github_format_annotates_each_rule(monkeypatch):
    monkeypatch.setattr(server_module, "Session", broken.ResendsOnNack)
    async with serving() as address:
        words = (*narrow(("R4", "R12", "R46")), "--variant", "sotw", "--quiet", "30s", *SLOW)
        result = await command(address, *words, "-o", "github")
    (annotation,) = [line for line in result.stdout.splitlines() if line.startswith("::")]
    title, _, text = annotation.removeprefix("::error title=").partition("::")
    assert title == f"R12 {TITLES['R12']}"
    lines = text.split("%0A")
    assert lines[0].startswith(f"{REJECTED}: ")
    assert lines[-1].endswith("more failed checks of R12")
    assert result.stdout.index("TITLE") < result.stdout.index(annotation)


def test_annotations_contain_no_commands():
    report = failing_report("50 %\r\n::stop-commands::x")
    assert to_github(report).count("\n") == 0
    assert "50 %25%0D%0A::stop-commands::x" in to_github(report)
    assert to_github(report).startswith("::warning title=R2 a per-type stream implies its type")


def failing_report(reason: str) -> Report:
    (check,) = [check for check in CHECKS if check.function.__name__ == "other_type_is_rejected"]
    result = runner.Result(
        key=check.key(Variant.SOTW, ""),
        rule=check.rule,
        level=check.level,
        variant=Variant.SOTW,
        check=check.name(""),
        requires=check.requires,
        source=check.source,
        outcome=Outcome.FAIL,
        reason=reason,
    )
    return Report((result,), ("R2",), (Variant.SOTW,))


async def test_concurrency_limits_checks(monkeypatch):
    running, most = 0, 0
    judge = runner._judge

    async def counted(*arguments):
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await judge(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(runner, "_judge", counted)
    async with serving() as address:
        result = await command(address, "--rule", "R15", "--variant", "sotw", "--concurrency", "2", *SLOW)
    assert (result.exit_code, most) == (0, 2)
    assert (await command(address, "--concurrency", "0")).exit_code == 2


async def test_wrong_usage_exits_with_2():
    assert (await command("nowhere")).exit_code == 2
    async with serving() as address:
        nothing = await command(address, "--rule", "R9")
    assert (nothing.exit_code, "nothing was checked" in nothing.stderr) == (2, True)
    assert "R1 to R62" in (await command("127.0.0.1:1", "--rule", "R63")).stderr


async def test_command_verifies_the_server_over_tls(tmp_path):
    ca = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC))
    own = ServerCertificate(["localhost"], lambda: Trust(ca, ca.root_pem), now=lambda: datetime.now(UTC))
    (tmp_path / "ca.pem").write_bytes(ca.root_pem)
    store = Store()
    async with XdsServer(
        *(store, "127.0.0.1:0"),
        grace=0.1,
        secure=[("127.0.0.1:0", own.credentials(certificate_required=False))],
        added=[store_adapter(store)],
    ) as server:
        target = f"localhost:{server.secure_ports[0]}"
        words = ("--adapter", f"127.0.0.1:{server.port}", "--rule", "R4", *SLOW)
        verified = await command(target, *words, "--ca-file", str(tmp_path / "ca.pem"))
        own_adapter = await command(target, *words[2:], "--ca-file", str(tmp_path / "ca.pem"))
        plaintext = await command(target, *words[:-1], "500ms")
    assert (verified.exit_code, verified.stderr) == (0, "")
    assert (own_adapter.exit_code, own_adapter.stderr) == (0, "")
    assert plaintext.exit_code == 3


async def test_unreachable_server_exits_with_3():
    result = await command(f"127.0.0.1:{free_port()}", "--timeout", "100ms")
    assert result.exit_code == 3
    assert "cannot connect" in result.stderr


async def test_failing_adapter_is_an_error():
    async with serving() as address, refusing(grpc.StatusCode.INVALID_ARGUMENT) as adapter:
        words = (address, "--adapter", adapter, "--rule", "R4", "--variant", "sotw", *SLOW)
        table, junit, github = [await command(*words, "-o", form) for form in ("table", "junit", "github")]
    reason = "the adapter failed: INVALID_ARGUMENT: TTLs"
    assert (table.exit_code, f"1 checks were not judged: {reason}" in table.stderr) == (3, True)
    assert "R4    spec-must  error" in table.stdout
    assert "0 pass, 0 fail, 0 differ, 0 not applicable, 1 error\n" in table.stdout
    (suite,) = ET.fromstring(junit.stdout)
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")
    assert suite.find("testcase/error").get("message") == reason
    assert github.stdout.splitlines()[-1] == f"::error title=R4 sotw nonces_are_unique::{reason}"


async def test_versions_of_the_adapter_are_not_judged(monkeypatch):
    monkeypatch.setattr(server_module, "Session", broken.UsesTheVersionsOfTheAdapter)
    async with serving() as address:
        report = await run(address, rules=["R5"], variants=[Variant.SOTW], **PATIENCE)
    assert report.reason("R5") == "the server uses the versions that the adapter got"


@pytest.mark.parametrize(
    ("lines", "collapsed"),
    [
        (["-> a nonce=1", "<- b nonce=2", "-> a nonce=3"], ["-> a nonce=1", "<- b nonce=2", "-> a nonce=3"]),
        (["-> a", "-> a", "<- b"], ["-> a", "-> a", "<- b"]),
        (
            ["<- b nonce=1", "<- b nonce=2", "<- b nonce=3", "-> c"],
            ["<- b nonce=1", "     (the last line 2 more times, with other nonces)", "-> c"],
        ),
        (
            ["-> x", *["-> a nonce=1", "<- b nonce=2"] * 5, "-> a nonce=9"],
            [
                *("-> x", "-> a nonce=1", "<- b nonce=2"),
                *("     (the last two lines 4 more times, with other nonces)", "-> a nonce=9"),
            ],
        ),
    ],
)
def test_repeated_lines_are_collapsed(lines, collapsed):
    assert collapse(lines) == collapsed


def test_every_client_dependent_check_says_what_breaks():
    assert {check.level for check in CHECKS if check.breaks} == {Level.CLIENT_DEPENDENT}
    assert all(check.breaks for check in CHECKS if check.level is Level.CLIENT_DEPENDENT)


def test_passes_by_chance_are_no_new_passes():
    report = failing_report("sent in another order")
    (result,) = report.results
    by_chance = replace(result, outcome=Outcome.PASS, by_chance=True)
    expected = replace(report, expected=frozenset({result.key}))
    assert replace(expected, results=(replace(result, outcome=Outcome.PASS),)).failed
    assert not replace(expected, results=(by_chance,)).failed
    assert not expected.failed


async def test_what_the_adapter_does_not_support_is_not_judged():
    async with serving() as address, refusing(grpc.StatusCode.UNIMPLEMENTED) as adapter:
        report = await run(address, adapter=adapter, rules=["R44"], **PATIENCE)
        words = ("--adapter", adapter, "--variant", "delta", *narrow(("R44", "R50")), *SLOW)
        table = await command(address, *words, "-o", "wide")
        (suite,) = ET.fromstring((await command(address, *words, "-o", "junit")).stdout)
    assert {result.outcome for result in report.results} == {Outcome.NOT_APPLICABLE}
    assert report.reason("R44") == "not supported by the server: TTLs"
    assert table.exit_code == 0
    assert "R44   delta     not supported by the server: TTLs" in table.stdout
    assert "1 pass, 0 fail, 0 differ, 2 not applicable" in table.stdout
    assert suite.find("testcase/skipped").get("message") == "not supported by the server: TTLs"


@asynccontextmanager
async def refusing(code: grpc.StatusCode) -> AsyncIterator[str]:
    """Run an adapter that sets nothing, and refuses requests with resources. Yields its address."""

    async def set_resources(request, context):
        if request.types:
            await context.abort(code, "TTLs")
        return pb.SetResponse()

    def add(server: grpc.aio.Server, _: object) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            set_resources, pb.SetRequest.FromString, pb.SetResponse.SerializeToString
        )
        handlers = {"Set": handler}
        service = "xdsconformance.v1.Adapter"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    async with XdsServer(Store(), "127.0.0.1:0", added=[add], grace=0.1) as server:
        yield f"127.0.0.1:{server.port}"


def _without_adapter() -> XdsServer:
    """Return a server with more resources than checks use, under names that checks do not know."""
    store = Store()
    names = ("web", "api", "db", "queue")
    messages = [each for name in names for each in (eds_cluster(name), assignment(name))]
    store.replace(map(resource, messages), node="edge")
    return XdsServer(store, "127.0.0.1:0", identifier="under-test", grace=0.1)


async def test_library_passes_without_an_adapter():
    async with _without_adapter() as server:
        report = await run(f"127.0.0.1:{server.port}", node="edge", **PATIENCE)
    assert failed(report) == {}
    passed = {result.rule for result in report.results if result.outcome is Outcome.PASS}
    assert passed >= {"R2", "R7", "R10", "R12", "R15", "R18", "R19", "R21", "R22", "R26", "R28", "R36"}
    assert report.reason("R38") == "needs the adapter"
    assert report.reason("R39").startswith("needs ")
    assert report.node == "edge"


async def test_fault_is_found_without_an_adapter(monkeypatch):
    monkeypatch.setattr(server_module, "Session", broken.ResendsOnNack)
    async with _without_adapter() as server:
        words = ("--node", "edge", "--rule", "R12", "--variant", "sotw", "--quiet", "5s")
        result = await command(f"127.0.0.1:{server.port}", *words)
    assert result.exit_code == 1
    assert "    use  CDS alpha=api" in result.stdout
    assert "checked the resources of node edge" in result.stdout


async def test_server_without_resources_is_explained():
    async with XdsServer(Store(), "127.0.0.1:0", grace=0.1) as server:
        with pytest.raises(UnreachableError, match="no clusters or listeners for node conformance"):
            await run(f"127.0.0.1:{server.port}", response_timeout=3)  # Also the time to connect.
        with pytest.raises(UnreachableError, match=r"does not implement xdsconformance\.v1\.Adapter"):
            await run(f"127.0.0.1:{server.port}", adapter=f"127.0.0.1:{server.port}", **PATIENCE)
