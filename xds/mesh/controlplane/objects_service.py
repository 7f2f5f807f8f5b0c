"""The gRPC service xds.mesh.v1.Objects: problems of objects, and which proxies have ACKed an object.

protos/xds/mesh/v1/objects.proto documents the messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Protocol

import grpc
import grpc.aio

from xds.introspect.clock import Clock
from xds.introspect.guard import GuardedServer
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.object_progress import ObjectProgress, ProgressTracker
from xds.mesh.controlplane.problem_times import FoundProblem
from xds.mesh.model.objects import TRAFFIC_KINDS, Ref, printable
from xds.mesh.sources.report import ReadObject
from xds.mesh.v1 import objects_pb2 as pb
from xds.server import DiscoveryService
from xds.server.stream import now

SERVICE = "xds.mesh.v1.Objects"

POLL_INTERVAL = 0.1
"""Interval at which a Wait call checks for changes, in seconds."""
MAX_LOAD = 0.2
"""Maximum share of the event loop's time that all Wait calls use. In a large mesh, a check takes seconds."""
MAX_CONCURRENT_WAITS = 20
"""Maximum number of Wait calls in progress. A further call ends with RESOURCE_EXHAUSTED."""
MAX_PROBLEMS = 1000
"""Maximum number of problems that a response lists. The rest are only counted."""
MAX_LAGGING = 100
"""Maximum number of lagging proxies that a response lists."""
_MAX_DIGITS = 20
"""Maximum length of a resourceVersion that is compared as a number: 64 bits."""


class ReadObjects(Protocol):
    """What a source has read: `xds.mesh.sources.files.Folder` or `xds.mesh.sources.kubernetes.Kubernetes`."""

    has_versions: bool
    """Whether its objects have a resourceVersion."""

    def read_object(self, ref: Ref) -> ReadObject | None:
        """Return an object as it was last read; None if it does not exist."""

    def is_current(self, since: float) -> bool:
        """Return whether everything was read after a time of `time.monotonic`, as far as can be known."""


class ObjectsService:
    """The service, for `Introspection(added=[...])`."""

    def __init__(
        self,
        controller: Controller,
        source: ReadObjects,
        problems: Callable[[], Awaitable[Iterable[FoundProblem]]],
    ) -> None:
        """Create the service.

        Args:
            controller: the controller.
            source: the source of the controller's objects.
            problems: returns the current problems of objects and settings.
        """
        self._controller, self._source, self._problems = controller, source, problems
        self._waits = 0
        """Number of Wait calls in progress."""

    def __call__(self, server: GuardedServer, _: DiscoveryService) -> None:
        """Add the service to a server that has not started."""

        async def list_problems(
            request: pb.ListProblemsRequest, _: grpc.aio.ServicerContext
        ) -> pb.ListProblemsResponse:
            return await self.list_problems(request)

        server.add_service(SERVICE, ListProblems=list_problems, Wait=self._wait)

    # --- problems -------------------------------------------------------------------------------------------

    async def list_problems(self, request: pb.ListProblemsRequest) -> pb.ListProblemsResponse:
        """Return the requested problems."""
        clock = Clock.read()
        selected = [
            found
            for found in await self._problems()
            if (request.notices or not found.problem.notice)
            and request.namespace in {"", Ref.parse(found.problem.subject).namespace}
        ]
        selected.sort(key=lambda found: found.problem.notice)
        return pb.ListProblemsResponse(
            problems=[self._problem(found, clock) for found in selected[:MAX_PROBLEMS]],
            more_problems=len(selected[MAX_PROBLEMS:]),
            time=clock.to_timestamp(now()),
        )

    def _problem(self, found: FoundProblem, clock: Clock) -> pb.ObjectProblem:
        problem = found.problem
        read = self._source.read_object(Ref.parse(problem.subject)) if self._source.has_versions else None
        return pb.ObjectProblem(
            place=printable(problem.where),
            object=printable(problem.subject),
            what=printable(problem.what),
            hint=printable(problem.hint),
            notice=problem.notice,
            since=None if found.found_at is None else clock.to_timestamp(found.found_at),
            served_version=problem.served_version,
            resource_version=read.version if read else "",
        )

    # --- waiting --------------------------------------------------------------------------------------------

    async def _wait(
        self, request: pb.WaitRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WaitResponse]:
        if request.kind not in TRAFFIC_KINDS:
            known = ", ".join(TRAFFIC_KINDS)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"kind must be one of {known}")
        if self._waits >= MAX_CONCURRENT_WAITS:
            problem = f"{self._waits} other calls wait for objects: retry when one has ended"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        self._waits += 1
        try:
            async for response in self._follow(request):
                yield response
        finally:
            self._waits -= 1

    async def _follow(self, request: pb.WaitRequest) -> AsyncIterator[pb.WaitResponse]:
        """Yield the state of an object, again after each change, until it is final."""
        ref, called_at = Ref(request.kind, request.namespace, request.name), time.monotonic()
        tracker = ProgressTracker(self._controller, ref)
        sent: pb.WaitResponse | None = None
        while True:
            started_at = time.monotonic()
            response = self._read(request, ref, called_at)
            if response.state == pb.WaitResponse.ACKS:
                _add_progress(response, await tracker.read(), request, is_held=tracker.is_held)
            pause = pause_after(time.monotonic() - started_at, self._waits)
            if response != sent:
                sent = response
                yield response
            if response.state >= pb.WaitResponse.READY:
                return
            await asyncio.sleep(pause)

    def _read(self, request: pb.WaitRequest, ref: Ref, called_at: float) -> pb.WaitResponse:
        """Return whether the version is read and applied. If it is, the state is ACKS."""
        source, read = self._source, self._source.read_object(ref)
        absences = self._controller.absences()
        response = pb.WaitResponse(
            state=pb.WaitResponse.READING,
            not_connected=len(absences.pods),
            may_be_on_other_replica=absences.may_be_on_other_replica,
            resource_version=read.version if read else "",
            has_versions=source.has_versions,
        )
        if request.resource_version and not source.has_versions:
            response.state = pb.WaitResponse.NO_VERSIONS
        elif not source.is_current(called_at):
            response.detail = "the control plane is reading the files"
        elif read is None:
            may_come = request.resource_version or not self._controller.ready.is_set()
            response.state = pb.WaitResponse.READING if may_come else pb.WaitResponse.NOT_FOUND
            response.detail = f"the control plane has not read {ref}"
        elif not _is_at_least(read.version, request.resource_version):
            wanted = request.resource_version
            response.detail = f"the control plane has read resourceVersion {read.version}, not {wanted}"
        elif read.rejection:
            response.state, response.detail = pb.WaitResponse.INVALID, str(read.rejection)
        elif self._controller.mesh.get(ref) != read.fact:
            response.detail = "the control plane is applying the change"
        else:
            response.state = pb.WaitResponse.ACKS
        return response


def pause_after(seconds: float, calls: int) -> float:
    """Return the pause after a check that took some seconds, if a number of calls is in progress."""
    return max(POLL_INTERVAL, seconds * (calls / MAX_LOAD - 1))


def _add_progress(
    response: pb.WaitResponse, progress: ObjectProgress, request: pb.WaitRequest, *, is_held: bool
) -> None:
    """Add the progress to a response, and set its state."""
    lagging = progress.lagging
    response.affected, response.acked = progress.affected, progress.affected - len(lagging)
    for proxy in lagging[:MAX_LAGGING]:
        response.lagging.add(node_id=proxy.node_id, reason=printable(proxy.reason), rejected=proxy.rejected)
    response.transitions.extend(map(printable, progress.transitions))
    waits_for_transitions = is_held or request.condition == pb.WaitRequest.IN_FORCE
    if lagging:
        are_final = all(proxy.rejected for proxy in lagging)
        response.state = pb.WaitResponse.REJECTED if are_final else pb.WaitResponse.ACKS
    elif progress.transitions and waits_for_transitions:
        response.state = pb.WaitResponse.TRANSITION
    elif progress.absent_servers == progress.servers > 0 and not response.may_be_on_other_replica:
        response.state = pb.WaitResponse.ACKS
        response.detail = f"none of the {progress.servers} sidecars that should enforce it is connected"
    else:
        response.state = pb.WaitResponse.READY


def _is_at_least(version: str, wanted: str) -> bool:
    """Return whether a resourceVersion is not older than another one.

    The API conventions allow clients to compare those of one kind as numbers, if both are.
    """
    if not wanted or version == wanted:
        return True
    are_numbers = all(text.isdecimal() and len(text) <= _MAX_DIGITS for text in (version, wanted))
    return are_numbers and int(version) >= int(wanted)
