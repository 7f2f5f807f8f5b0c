"""Named checks and their findings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

from xds.mesh.kube.api import KubeError


class CheckResult(StrEnum):
    """Result of a check."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    name: str
    """Name of the check."""
    result: CheckResult
    detail: str
    """What was found, or why the check was skipped."""
    hint: str = ""
    """What to do; empty if the check passed."""


class CheckFailedError(Exception):
    """Something is wrong."""

    def __init__(self, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.detail, self.hint = detail, hint


class CheckSkippedError(CheckFailedError):
    """Nothing could be checked."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check that can be run."""

    name: str
    run: Callable[[], Awaitable[str]]
    """Returns what was found, or raises CheckFailedError, CheckSkippedError or KubeError."""


async def run_checks(checks: Iterable[Check]) -> list[Finding]:
    """Run checks one after the other. Once the API server cannot be reached, raises KubeError."""
    return [await _run(check) for check in checks]


async def _run(check: Check) -> Finding:
    try:
        return Finding(check.name, CheckResult.PASS, await check.run())
    except CheckSkippedError as skipped:
        return Finding(check.name, CheckResult.SKIP, skipped.detail, skipped.hint)
    except CheckFailedError as failed:
        return Finding(check.name, CheckResult.FAIL, failed.detail, failed.hint)
    except KubeError as error:
        if not error.status:
            raise
        if error.status == HTTPStatus.FORBIDDEN:
            hint = "run the check as a user with this permission"
            return Finding(check.name, CheckResult.SKIP, f"not permitted: {error}", hint)
        return Finding(check.name, CheckResult.FAIL, str(error), "")
