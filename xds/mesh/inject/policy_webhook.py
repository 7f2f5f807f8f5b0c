"""Check the effects of policies at admission, for callers that cannot be authenticated.

A check can compare the connections of the whole mesh. It runs on the event loop in short slices, one check at
a time, and all checks together use a bounded share of the CPU, so xDS is not delayed.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace

import structlog

from xds.checkpoint import TIME_SLICE
from xds.mesh.inject.policy_review import Effects, Json, Proposal, respond, summarize
from xds.mesh.model.applied import as_applied
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, printable
from xds.mesh.policy.ineffective import why_ineffective_steps
from xds.mesh.policy.prediction import predict_change_steps, scope_of
from xds.mesh.policy.steps import Steps
from xds.server.fair_share import CpuShare, FairSemaphore

log = structlog.get_logger(__name__)

TIME_LIMIT = 3.0
"""Maximum time for a check in seconds, with the wait for other checks. The API server's timeout is 5 s."""
MAX_CACHED = 64
"""Maximum number of cached results. A change of the mesh clears the cache."""


class PlanShare(CpuShare):
    """CPU time of all checks together."""

    BURST = 5.0
    """Burst in CPU seconds: 50 namespace policies, or 3 for the whole mesh, in a mesh of 10,000 pods."""


class NotCheckedError(Exception):
    """The effects of a change were not computed. The message says why."""


class EffectChecker:
    """Computes the effects of changes within limits of time and CPU."""

    def __init__(self, mesh: Callable[[], Mesh]) -> None:
        """Create a checker; `mesh` returns the current mesh."""
        self._mesh = mesh
        self._turns = FairSemaphore(1, 1)
        self._share = PlanShare()
        self._cache: OrderedDict[bytes, Effects] = OrderedDict()
        self._cached_mesh: weakref.ref[Mesh] | None = None

    async def check(self, change: Change, key: bytes, client: str) -> Effects:
        """Return the effects of a change on the current mesh.

        Args:
            change: the change.
            key: changes with equal keys have the same effects.
            client: address of the client. Clients take turns.

        Raises:
            NotCheckedError: a limit was exceeded, or an unexpected error occurred.
        """
        if cached := self._cached(self._mesh(), key):
            return cached
        deadline = asyncio.get_running_loop().time() + TIME_LIMIT
        try:
            async with asyncio.timeout_at(deadline), self._turns.slot(client):
                mesh = self._mesh()
                if cached := self._cached(mesh, key):
                    return cached
                effects = await self._run(_effects(mesh, change), deadline)
        except TimeoutError:
            raise NotCheckedError(f"it took longer than {TIME_LIMIT:.0f} s") from None
        if self._cached_mesh and self._cached_mesh() is mesh:
            self._cache[key] = effects
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return effects

    def _cached(self, mesh: Mesh, key: bytes) -> Effects | None:
        """Return a cached result. Clear the cache if the mesh has changed."""
        if self._cached_mesh is None or self._cached_mesh() is not mesh:
            self._cache.clear()
            self._cached_mesh = weakref.ref(mesh)
        return self._cache.get(key)

    async def _run(self, steps: Steps[Effects], deadline: float) -> Effects:
        """Do the steps in slices, between which the event loop does other work."""
        loop = asyncio.get_running_loop()
        while True:
            wait = self._share.wait(loop.time())
            if wait and loop.time() + wait > deadline:
                raise NotCheckedError(
                    f"checks of policies have used more than {PlanShare.SHARE:.0%} of a CPU core; "
                    f"try again in {wait:.0f} s"
                )
            await asyncio.sleep(wait)
            cpu_start, slice_end = time.thread_time(), loop.time() + TIME_SLICE
            try:
                while loop.time() < slice_end:
                    next(steps)
            except StopIteration as stop:
                effects: Effects = stop.value
                return effects
            except Exception as error:
                raise NotCheckedError(f"unexpected {type(error).__name__}") from error
            finally:
                self._share.charge(time.thread_time() - cpu_start, loop.time())


def _effects(before: Mesh, change: Change) -> Steps[Effects]:
    change = replace(change, applied=tuple(as_applied(before, fact) for fact in change.applied))
    after = before.apply(change)
    yield
    prediction = yield from predict_change_steps(before, after, scope_of(change, before, after))
    ineffective = yield from why_ineffective_steps(after, {fact.ref for fact in change.applied})
    return summarize(prediction, ineffective)


class PolicyReviewer:
    """Answers admission requests for policies and DestinationRules."""

    def __init__(self, mesh: Callable[[], Mesh], *, enforce: bool = False) -> None:
        """Create a reviewer.

        Args:
            mesh: returns the current mesh.
            enforce: whether to refuse objects that break connections, or whose effects are unknown.
        """
        self._checker = EffectChecker(mesh)
        self._enforce = enforce
        self.results = Counter[str]()
        """Number of requests by result (`policy_review.RESULTS`)."""

    async def review(self, proposal: Proposal, client: str, may_log: Callable[[], bool]) -> tuple[str, Json]:
        """Return the result and the response.

        Args:
            proposal: the proposed change.
            client: address of the client.
            may_log: returns whether another line may be logged.
        """
        effects, problem = None, ""
        if proposal.change:
            try:
                effects = await self._checker.check(proposal.change, proposal.key, client)
            except NotCheckedError as error:
                problem = str(error)
                if error.__cause__ and may_log():
                    log.exception("failed to check a policy", object=printable(proposal.title))
        result, response = respond(proposal, effects, problem, enforce=self._enforce)
        if result == "refused" and may_log():
            dry_run = {"dry_run": True} if proposal.dry_run else {}
            message = response["status"]["message"][:1000]
            log.warning("policy refused", object=printable(proposal.title), problem=message, **dry_run)
        return result, response
