"""Runs the checks, and collects their results."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from importlib.metadata import version

import grpc
import grpc.aio

from xds.conformance import (  # noqa: F401 - they register checks
    check_order,
    check_streams,
    check_subscriptions,
    check_transport,
)
from xds.conformance.rules import CHECKS, NOT_JUDGED, TITLES, Check, Level, Run
from xds.conformance.served import Lookup, ServedNames, ServedWorld
from xds.conformance.sources import Source
from xds.conformance.v1 import adapter_pb2 as pb
from xds.conformance.wire import NeedsAdapterError, NotApplicableError, Variant, connect
from xds.conformance.world import SET, AdapterError, CheckError, Set, World

_MAX_SHARING = 8
"""Number of checks that use a node at a time."""
_MAX_TIMEOUTS = 20
"""Maximum duration of a check, as a multiple of the timeout of a response."""
_NODE = "conformance"
"""Default ID of the node whose resources are checked without an adapter."""
_NO_PARTS = "the server never answers requests that name only some of the resources: see R28"
CONCURRENCY = 16
"""Default number of checks that run at a time."""

KEYS = frozenset(
    check.key(variant, kind) for check in CHECKS for variant in check.variants for kind in check.types
)
"""Keys of all results."""


def parse_keys(text: str) -> frozenset[str]:
    """Return the keys of a list of expected failures: one on each line, and `#` starts a comment.

    Raises:
        ValueError: A line is not a key.
    """
    keys = set()
    for number, line in enumerate(text.splitlines(), 1):
        if key := " ".join(line.partition("#")[0].split()):
            if key not in KEYS:
                raise ValueError(f"line {number}: unknown check {key}")
            keys.add(key)
    return frozenset(keys)


class Outcome(StrEnum):
    """The outcome of a check or a rule."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    ERROR = "error"
    """The adapter failed."""
    NOT_APPLICABLE = "not applicable"


class UnreachableError(Exception):
    """The server or the adapter cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one check in one variant."""

    key: str
    """Identifies the result in all runs: rule, variant, check and resource type."""
    rule: str
    level: Level
    variant: Variant
    check: str
    """Name of the check, and the resource type that it was run for."""
    requires: str
    """What the check requires."""
    source: Source
    """Document that requires it; or, as text, this project's reason."""
    outcome: Outcome
    reason: str = ""
    """Why the check fails or does not apply."""
    conversation: tuple[str, ...] = ()
    """Requests, responses and changes, in order."""
    breaks: str = ""
    """What a failure breaks in which client, if the level is `client-dependent`."""
    by_chance: bool = False
    """Whether a server that breaks the rule sometimes passes."""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all checks, and the rules without checks."""

    results: tuple[Result, ...]
    rules: tuple[str, ...]
    """Numbers of the selected rules."""
    variants: tuple[Variant, ...]
    node: str = ""
    """Node whose resources were checked as they are; empty with an adapter."""
    fail_on: Level = Level.CLIENT_DEPENDENT
    """Weakest level whose failures count."""
    expected: frozenset[str] = frozenset()
    """Keys of the results that are expected to fail."""
    options: Mapping[str, str | float] = field(default_factory=dict)
    """How the server was checked: addresses, times and the version of this package."""

    def counts(self, level: Level) -> bool:
        """Whether failures of a level count. Those of weaker levels are only reported."""
        return level.reaches(self.fail_on)

    @property
    def new_failures(self) -> tuple[Result, ...]:
        """Results that fail, and are not expected to."""
        failures = (result for result in self.results if result.outcome is Outcome.FAIL)
        return tuple(result for result in failures if result.key not in self.expected)

    @property
    def new_passes(self) -> tuple[Result, ...]:
        """Results that pass, although they are expected to fail and do not depend on chance."""
        passes = (each for each in self.results if each.outcome is Outcome.PASS and not each.by_chance)
        return tuple(result for result in passes if result.key in self.expected)

    @property
    def errors(self) -> tuple[Result, ...]:
        """Results without a judgement, because the adapter failed."""
        return tuple(result for result in self.results if result.outcome is Outcome.ERROR)

    @property
    def failed(self) -> bool:
        """Whether there are errors, new failures that count, or new passes."""
        return bool(self.errors or self.new_passes) or any(
            self.counts(result.level) for result in self.new_failures
        )

    @property
    def is_empty(self) -> bool:
        """Whether no check applied to the server."""
        return all(result.outcome is Outcome.NOT_APPLICABLE for result in self.results)

    def of(self, rule: str, variant: Variant) -> tuple[Result, ...]:
        """Return the results of a rule in a variant."""
        return tuple(result for result in self.results if (result.rule, result.variant) == (rule, variant))

    def outcome(self, rule: str, variant: Variant) -> Outcome:
        """Return the outcome of a rule: it fails if one of its checks fails."""
        outcomes = {result.outcome for result in self.of(rule, variant)}
        return next(
            (each for each in (Outcome.FAIL, Outcome.ERROR, Outcome.PASS) if each in outcomes),
            Outcome.NOT_APPLICABLE,
        )

    def failed_level(self, rule: str, variant: Variant) -> Level | None:
        """Return the strongest level of a rule's failed checks; None if none failed."""
        levels = {result.level for result in self.of(rule, variant) if result.outcome is Outcome.FAIL}
        return Level.strongest(levels)

    def reason(self, rule: str) -> str:
        """Return why a rule is not judged; empty if it is."""
        if rule in NOT_JUDGED:
            return NOT_JUDGED[rule]
        outcomes = {self.outcome(rule, variant) for variant in self.variants}
        if outcomes != {Outcome.NOT_APPLICABLE}:
            return ""
        reasons = [result.reason for result in self.results if result.rule == rule]
        return reasons[0] if reasons else "no check for this variant or level"

    def level(self, rule: str) -> str:
        """Return the level of a rule: the strongest of its checks; empty if it has no check."""
        level = Level.strongest({check.level for check in CHECKS if check.rule == rule})
        return level.value if level else ""


async def run(
    target: str,
    *,
    adapter: str | None = None,
    node: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    variants: Collection[Variant] = tuple(Variant),
    rules: Collection[str] = tuple(TITLES),
    skip: Collection[str] = (),
    expected_failures: Collection[str] = (),
    level: Level = Level.ROBUSTNESS,
    fail_on: Level = Level.CLIENT_DEPENDENT,
    response_timeout: float = 5.0,
    quiet: float = 0.2,
    repeat_node: bool = False,
    concurrency: int = CONCURRENCY,
    on_result: Callable[[Result], None] | None = None,
) -> Report:
    """Check an xDS server.

    Args:
        target: Address of the server, such as `127.0.0.1:18000`.
        adapter: Address of the adapter, which is reached in plaintext. The default is the server's address
            and credentials. If there is no adapter, only the checks that change no resources are run.
        node: ID of a node that the server knows. Its resources are checked as they are, without an adapter.
        credentials: Credentials for the server; None for plaintext.
        variants: Variants of the protocol to check.
        rules: Numbers of the rules to check, such as `R12`.
        skip: Rules, or keys of results, that are not checked.
        expected_failures: Keys of the results that are expected to fail.
        level: Weakest level of the checks to run.
        fail_on: Weakest level whose failures make the report fail.
        response_timeout: Seconds to wait for a response that must come.
        quiet: Seconds to wait for a response that must not come.
        repeat_node: Send the node in every request. Some servers require it.
        concurrency: Number of checks that run at a time.
        on_result: Called for each result as soon as there is one. The report judges fewer checks if the
            server never answers SotW requests that name only some of the resources (see R28).

    Raises:
        UnreachableError: The server or the adapter cannot be reached, or the server has no resources for
            the node.
    """
    async with connect(adapter or target, credentials if adapter is None else None) as channel:
        call = channel.unary_unary(
            SET,
            request_serializer=pb.SetRequest.SerializeToString,
            response_deserializer=pb.SetResponse.FromString,
        )
        method: Set = partial(call, timeout=response_timeout)
        async with connect(target, credentials) as server:
            how = "over TLS" if credentials else "in plaintext (for TLS, pass --ca-file)"
            await _wait_until_ready(server, f"{target} {how}", response_timeout)
        if node is None and not await _has_adapter(channel, method, adapter, target, response_timeout):
            node = _NODE
        served: dict[Variant, ServedNames] = {}
        if node is not None:
            lookup = Lookup(
                target=target, credentials=credentials, node=node, timeout=response_timeout, quiet=quiet
            )
            found = await asyncio.gather(*(lookup.resources(variant) for variant in variants))
            served = dict(zip(variants, found, strict=True))
            if not any(names for kinds in found for names in kinds.values()):
                reason = f" ({lookup.errors[0]})" if lookup.errors else ""
                raise UnreachableError(
                    f"{target} has no adapter, and no clusters or listeners for node {node}{reason}: "
                    "pass --node ID with a node that the server knows, or --adapter HOST:PORT"
                )
        # Without an adapter, all checks use the same node, and servers limit the streams of a node.
        slots = asyncio.Semaphore(concurrency if node is None else min(concurrency, _MAX_SHARING))
        token = secrets.token_hex(3)  # Nodes of earlier runs are known to the server.

        async def set_supported(request: pb.SetRequest) -> pb.SetResponse:
            try:
                return await method(request)
            except grpc.aio.AioRpcError as error:
                if request.types and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise NotApplicableError(f"not supported by the server: {error.details()}") from None
                raise

        def world_of(variant: Variant, check: int, number: int, say: Callable[[str], None]) -> World:
            if node is None:
                return World(set_supported, f"conformance-{token}-{check}-{number}", say)
            if number > 1:
                raise NeedsAdapterError
            return ServedWorld(node, say, served[variant])

        answers: dict[int, set[bool | None]] = {}

        async def judge(number: int, check: Check, variant: Variant, kind: str) -> Result:
            async with slots:
                this = Run(
                    target=target,
                    credentials=credentials,
                    worlds_of=partial(world_of, variant, number),
                    variant=variant,
                    timeout=response_timeout,
                    quiet=quiet,
                    repeat_node=repeat_node,
                    type=kind,
                )
                is_skipped = not {check.rule, check.key(variant, kind)}.isdisjoint(skip)
                outcome = (Outcome.NOT_APPLICABLE, "skipped") if is_skipped else await _judge(this, check)
            result = _result(this, check, *outcome)
            answers[number] = {stream.answers_parts for stream in this.streams}
            if on_result:
                on_result(result)
            return result

        cases = [
            (check, variant, kind)
            for check in sorted(CHECKS, key=lambda check: [*TITLES].index(check.rule))
            if check.rule in rules and check.level.reaches(level)
            for variant in variants
            if variant in check.variants
            for kind in check.types
        ]
        numbered = list(enumerate(cases, 1))
        alone = [number for number, (check, _, _) in numbered if check.alone and node is not None]
        async with asyncio.TaskGroup() as group:
            tasks = {
                number: group.create_task(judge(number, *case))
                for number, case in numbered
                if number not in alone
            }
        results = {number: task.result() for number, task in tasks.items()}
        for number in alone:
            results[number] = await judge(number, *cases[number - 1])
    _exclude_parts(results, answers)
    return Report(
        tuple(results[number] for number, _ in numbered),
        tuple(rule for rule in TITLES if rule in rules),
        tuple(variants),
        node or "",
        fail_on,
        frozenset(expected_failures),
        {
            "xds": version("xds-mesh"),
            "server": target,
            "adapter": (adapter or target) if node is None else "",
            "timeout": response_timeout,
            "quiet": quiet,
            "concurrency": concurrency,
            "repeat_node": repeat_node,
        },
    )


def _exclude_parts(results: dict[int, Result], answers: dict[int, set[bool | None]]) -> None:
    """Do not judge checks without a response, if no request for a part of the resources got one.

    Args:
        results: Results by their number. They are replaced.
        answers: By the same number: what the check's streams found out about such requests.
    """
    answering = {results[number].variant for number, found in answers.items() if True in found}
    for number, found in answers.items():
        result = results[number]
        is_subject = result.check.startswith(check_subscriptions.part_of_the_resources_is_sent.__name__)
        if False in found and result.variant not in answering and not is_subject:
            results[number] = replace(result, outcome=Outcome.NOT_APPLICABLE, reason=_NO_PARTS)


async def _wait_until_ready(channel: grpc.aio.Channel, address: str, limit: float) -> None:
    try:
        async with asyncio.timeout(limit):
            await channel.channel_ready()
    except TimeoutError:
        raise UnreachableError(f"no gRPC server at {address}: cannot connect within {limit:g} s") from None


async def _has_adapter(
    channel: grpc.aio.Channel, method: Set, adapter: str | None, target: str, limit: float
) -> bool:
    """Return whether there is an adapter. Without an address for it, the server need not have one."""
    address = adapter or target
    await _wait_until_ready(channel, address, limit)
    try:
        await method(pb.SetRequest(node=_NODE))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise UnreachableError(f"adapter at {address}: {error.code().name}: {error.details()}") from None
        if adapter:
            raise UnreachableError(f"{address} does not implement {SET.split('/')[1]}") from None
        return False
    return True


async def _judge(this: Run, check: Check) -> tuple[Outcome, str]:
    """Run a check, and return its outcome and the reason."""
    try:
        async with asyncio.timeout(_MAX_TIMEOUTS * this.timeout):
            await check.function(this)
    except CheckError as error:
        return Outcome.FAIL, str(error)
    except NotApplicableError as error:
        return Outcome.NOT_APPLICABLE, str(error)
    except AdapterError as error:
        return Outcome.ERROR, str(error)
    except TimeoutError:
        return Outcome.FAIL, f"no answer within {this.timeout:g} s"
    finally:
        await this.close()
    return Outcome.PASS, ""


def _result(this: Run, check: Check, outcome: Outcome, reason: str) -> Result:
    return Result(
        key=check.key(this.variant, this.type),
        rule=check.rule,
        level=check.level,
        variant=this.variant,
        check=check.name(this.type),
        requires=check.requires,
        source=check.source,
        outcome=outcome,
        reason=reason,
        conversation=tuple(this.conversation),
        breaks=check.breaks,
        by_chance=check.by_chance,
    )
