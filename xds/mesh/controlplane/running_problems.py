"""Problems of the running mesh: expiring certificates, replicas without contact, and requests that fail.

Problems of objects come from their source (`xds.mesh.sources`) and from `ineffective_objects.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain

import structlog

from xds.checkpoint import Checkpoint
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.problem_times import SettlingProblems
from xds.mesh.controlplane.publisher import traceback_of
from xds.mesh.identity import CERTIFICATE
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod, Problem
from xds.mesh.observe.edges import Client, Edge, EdgeKey, Edges, Target
from xds.mesh.policy.explain import explanations
from xds.mesh.policy.hops import hops
from xds.mesh.policy.reach import Result
from xds.mesh.sources.report import SourceUpdate, identity
from xds.protocol.status import State
from xds.server import Subscriber
from xds.snapshot import SECRET

log = structlog.get_logger(__name__)

CHECK_INTERVAL = 5.0
"""Seconds between two checks."""
UNACKED_TIME = 60.0
"""Seconds after which a certificate that a sidecar has not ACKed is a problem."""
MAX_SIDECARS = 100
"""Maximum number of sidecars whose problems are reported one by one."""
MAX_FAILING = 100
"""Maximum number of pairs of a client and a service port whose failing requests are reported."""

_LOGS = "see the log of this replica"


class RunningProblems:
    """Track the problems of the running mesh; `run` works until cancelled.

    Args:
        controller: the controller.
        traffic: returns the observed traffic, and the denied requests.
        record: called with the problems that are new and those that are solved.
    """

    def __init__(
        self,
        controller: Controller,
        traffic: Callable[[], Iterable[Edges]],
        record: Callable[[SourceUpdate], None],
    ) -> None:
        self._controller, self._traffic, self._record = controller, traffic, record
        self._tracked = SettlingProblems[tuple[object, ...]]()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems that have lasted for a while."""
        return tuple(self._tracked.settled.values())

    async def run(self) -> None:
        """Check the mesh every few seconds, until cancelled."""
        await self._controller.ready.wait()
        log_error = OnceLogger(log, "failed to check the running mesh for problems", level="error")
        while True:
            try:
                await self.check(datetime.now(UTC))
                log_error("")
            except Exception as error:  # noqa: BLE001 - serving does not depend on it
                log_error(f"{type(error).__name__}: {error}", stack=traceback_of(error))
            await asyncio.sleep(CHECK_INTERVAL)

    async def check(self, now: datetime) -> None:
        """Update the problems.

        Args:
            now: the current time.
        """
        found = [
            *_authority_problems(self._controller, now),
            *await self._sidecar_problems(now),
            *await self._traffic_problems(now),
            *_replica_problems(self._controller, self._clock()),
        ]
        self._tracked.find({identity(problem): problem for problem in found})
        if not (update := self._tracked.settle()).empty:
            self._record(update)

    def _clock(self) -> float:
        return asyncio.get_running_loop().time()

    async def _sidecar_problems(self, now: datetime) -> list[Problem]:
        """Return the problems of the certificates of connected sidecars."""
        controller, checkpoint = self._controller, Checkpoint()
        problems: list[Problem] = []
        count = 0
        for key, pod in tuple(controller.connections.pods()):
            await checkpoint()
            streams = controller.connections.streams.get(key, ())
            what = _not_renewed(controller, pod, streams, now) or _not_acked(streams, self._clock())
            if what and len(problems) < MAX_SIDECARS:
                hint = f"xds status {pod.name}.{pod.namespace} prints what the sidecar waits for"
                problems.append(Problem(where=str(pod.ref), what=what, hint=hint, subject=str(pod.ref)))
            count += bool(what)
        if count > MAX_SIDECARS:
            problems.append(Problem(where="sidecars", what="further sidecars have such certificates"))
        return problems

    async def _traffic_problems(self, now: datetime) -> list[Problem]:
        """Return the observed requests of pods that fail because of the policies."""
        checkpoint = Checkpoint()
        failing: dict[tuple[Client, Target], None] = {}
        for key, edge in chain.from_iterable(edges.edges() for edges in self._traffic()):
            await checkpoint()
            if key.client.namespace and _has_failed(key, edge, now.timestamp()):
                failing[key.client, key.target] = None
        mesh = self._controller.mesh
        problems: list[Problem] = []
        for client, target in failing:
            await checkpoint()
            if found := _failing(mesh, client, target):
                problems.append(found)
            if len(problems) == MAX_FAILING:
                break
        return problems


def _has_failed(key: EdgeKey, edge: Edge, now: float) -> bool:
    """Whether requests have failed recently. Responses 403 do not count as failed requests of an edge."""
    if key.denial:
        return edge.rate(now) > 0 and not key.denial.dry_run
    return edge.has_failed(now)


def _failing(mesh: Mesh, client: Client, target: Target) -> Problem | None:
    """Return why requests of a service account to a service port fail; None if policies allow them."""
    service = mesh.service(target.namespace, target.name)
    ports = [port for port in service.ports if port.port == target.port] if service else []
    if service is None or not ports:
        return None
    senders = [
        pod
        for pod in mesh.in_namespace(client.namespace).pods.values()
        if pod.service_account == client.name and not pod.ended
    ]
    hop = next(hops(mesh, senders, [(service, ports[0])]), None)  # Failing hops come first.
    if hop is None or hop.answer.result is not Result.FAILS:
        return None
    pod = next(iter(hop.clients[0].pods))
    why = next(
        explanation.why
        for explanation, _ in explanations(mesh, pod, service, ports)
        if explanation.result is Result.FAILS
    )
    return Problem(
        where=str(service.ref),
        what=f"requests of {client.namespace}/{client.name} to port {target.port} fail: {why}",
        hint=f"see xds explain {pod.name}.{pod.namespace} {service.name}.{service.namespace}:{target.port}",
        subject=str(service.ref),
    )


SIGNER_NOTICE = timedelta(days=30)
"""Time before the expiry of an external signer's root in which it is a problem."""


def _authority_problems(controller: Controller, now: datetime) -> Iterator[Problem]:
    expires = controller.certificates.trust[0].expires
    if controller.mesh.config.sds_socket:
        return
    if at := controller.certificates.signer_expiry:
        if at - now < SIGNER_NOTICE:
            what = f"a root of the external signer {_expires(at, now)}"
            yield Problem(where="signer roots", what=what, hint="add the next root to --signer-roots")
    elif controller.certificates.trust[0].expires_soon(now):
        what = f"the CA certificate {_expires(expires, now)}; no certificate is valid for longer"
        yield Problem(where="mesh CA", what=what, hint="replace it: xds rotate-root, or renew your own CA")


def _not_renewed(controller: Controller, pod: Pod, streams: Iterable[Subscriber], now: datetime) -> str:
    """Return that the certificate of a pod is overdue for renewal; empty if it is not."""
    renew_at = controller.certificates.renew_at(pod)
    expires = next(filter(None, map(controller.certificate_expiry, streams)), None)
    # Half of the time between renewal and expiry: a renewal may be retried.
    if renew_at is None or expires is None or now < renew_at + (expires - renew_at) / 2:
        return ""
    reason = controller.publisher.error_of(pod.key)
    what = f"the certificate {_expires(expires, now)} and is not renewed"
    return f"{what}: {reason}" if reason else what


def _expires(at: datetime, now: datetime) -> str:
    return f"{'expires' if at > now else 'expired'} on {at:%Y-%m-%d %H:%M} UTC"


def _not_acked(streams: Iterable[Subscriber], clock: float) -> str:
    """Return that a sidecar has not ACKed its certificate for too long; empty if it has."""
    for stream in streams:
        session = stream.session
        if session is None or (session.has_answered(SECRET) and not session.rejected(SECRET)):
            continue  # Nearly always. The status takes ten times as long.
        status = session.resource_status(SECRET, CERTIFICATE)
        if status is None or status.state is State.SYNCED or status.updated_at is None:
            continue
        if clock >= status.updated_at + UNACKED_TIME:
            return "the sidecar has not ACKed its latest certificate for more than a minute"
    return ""


def _replica_problems(controller: Controller, clock: float) -> Iterator[Problem]:
    """Yield why replicas have lost contact, or serve different states."""
    rollouts = controller.rollouts
    if (sync := rollouts.sync) is None:
        return
    own = f"replica {sync.name}"
    if sync.reports.is_isolated(clock):
        what = "this replica cannot renew its Lease, so other replicas do not know the state of its sidecars"
        yield Problem(where=own, what=what, hint=_LOGS)
    if rollouts.follower.is_alone:
        what = "this replica follows its own plan, which it could not store"
        yield Problem(where=own, what=what, hint=_LOGS)
    if not rollouts.follower.can_follow:
        what = "the plan contains a version of a DestinationRule that this replica has not read"
        yield Problem(where=own, what=what, hint=_LOGS)
    for name in sync.reports.expired(clock):
        what = (
            "its report has expired, but its Lease is not deleted: transitions do not wait for its sidecars"
        )
        yield Problem(where=f"replica {name}", what=what, hint="see the log of that replica")
    stored = sync.stored
    for name, report in sync.reports.peers(clock).items():
        if stored and report.generation < stored.generation:
            what = "it serves an earlier generation than the plan: transitions wait for it"
            yield Problem(where=f"replica {name}", what=what, hint="see the log of that replica")
