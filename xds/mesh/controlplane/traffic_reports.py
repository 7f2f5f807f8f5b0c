"""The gRPC services that receive sidecars' reports: Envoy's load reporting and access log services.

A stream is authenticated like a stream of xDS, and a sidecar can report only about its own pod.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from math import ceil
from typing import Any

import grpc
import grpc.aio
import structlog

from xds.codec import message_class
from xds.mesh.controlplane.authorization import budget_key
from xds.mesh.controlplane.controller import Controller
from xds.mesh.envoy.names import NodeId
from xds.mesh.identity.claims import Caller, denial_reason
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod, PodKey
from xds.mesh.observe.edges import MAX_DENIALS, MAX_DENIALS_PER_REPORTER, Traffic
from xds.mesh.observe.report_reader import ACCESS_LOGS, LOAD_REPORT, ReportReader
from xds.protocol.limits import Budgets, LimitError, Limits, Reservation
from xds.server import DiscoveryService, Refused, StreamInfo
from xds.server.report_streams import MAX_REPORT_BYTES

LOAD_SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
LOG_SERVICE = "envoy.service.accesslog.v3.AccessLogService"

INTERVAL = 10
"""Minimum interval of load reports, in seconds."""
MAX_INTERVAL = 60
"""Maximum interval of load reports in a large mesh, in seconds."""
SERVICES_PER_INTERVAL = 500
"""Number of services that one INTERVAL is sufficient for. A report has an entry for every service port."""
REPORTS_PER_SECOND = 30
"""Number of load reports per second above which the interval grows with the number of sidecars."""
MAX_STREAMS = 96
"""Maximum number of streams of one sidecar. Envoy has one, and up to two for each of its worker threads."""
MAX_INCOMPLETE = 10_000
"""Maximum number of namespaces in `incomplete`; beyond it, the gap counts for all namespaces."""
MAX_LOGGED = 1_000
"""Maximum number of sidecars whose reports that are too large are logged."""

log = structlog.get_logger(__name__)


class TrafficReports:
    """Receives reports, for XdsServer(added=[...]).

    If the mesh's settings disable observation, load reports are not requested, and access logs are refused.

    Args:
        controller: has the mesh, and knows which pods were deleted.
    """

    def __init__(self, controller: Controller) -> None:
        self.traffic = Traffic()
        """The observed edges."""
        self.denials = Traffic(MAX_DENIALS, MAX_DENIALS_PER_REPORTER)
        """Edges of denied requests."""
        self.reader = ReportReader(self.traffic, self.denials, controller.connections.deleted_pods)
        self.received: Counter[str] = Counter({LOAD_SERVICE: 0, LOG_SERVICE: 0})
        """Number of reports that were read, by service."""
        self.dropped: Counter[str] = Counter(
            {"too large": 0, "overload": 0, "CPU budget": 0, "unknown pod": 0, "too many streams": 0}
        )
        """Number of reports that were not read, by reason."""
        self.last_dropped = 0.0
        """Unix time at which something of an unknown sidecar was last left out; 0 if nothing was."""
        self.incomplete: dict[str, float] = {}
        """Unix time at which something of a sidecar was last left out, by the namespace of its pod.

        Servers report all plaintext that they accept, so this concerns only ports of pods in the namespace.
        """
        self._started = time.time()
        self._controller = controller
        self._budgets = Budgets(Limits(streams=MAX_STREAMS))
        self._logged: set[PodKey] = set()
        """Pods whose sidecar has sent a report that is too large."""

    def __call__(self, server: grpc.aio.Server, discovery: DiscoveryService) -> None:
        """Add the services to a server that has not started."""
        methods = {
            LOAD_SERVICE: ("StreamLoadStats", self._open_load),
            LOG_SERVICE: ("StreamAccessLogs", self._open_access_logs),
        }
        for service, (method, open_reports) in methods.items():
            handlers = {method: discovery.report_method(open_reports, self._refused)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
            discovery.connections.own_services.add(service)

    @property
    def enabled(self) -> bool:
        """Whether the mesh's settings enable observation."""
        return self._controller.mesh.config.observe

    @property
    def since(self) -> float:
        """Unix time at which the observation started, in seconds."""
        return max(self._started, self._controller.observe_since)

    def dropped_total(self) -> int:
        """Return the number of reports, entries and edges that were left out."""
        denials = self.denials.excess + self.denials.evicted
        return self.dropped.total() + self._omitted + self.traffic.evicted + denials

    def _note_incomplete(self, namespace: str) -> None:
        now = time.time()
        if namespace in self.incomplete or len(self.incomplete) < MAX_INCOMPLETE:
            self.incomplete[namespace] = now
        else:
            self.last_dropped = now

    def _refused(self, reason: str, caller: Caller | None) -> None:
        """Count the first report of a stream if it is not read."""
        self.dropped[reason] += 1
        self._note_unread(caller)

    def _note_unread(self, caller: Caller | None) -> None:
        """Note that the first report of a stream is not read. Without a caller, its pod is not known."""
        if caller:
            self._note_incomplete(caller.namespace)
        else:
            self.last_dropped = time.time()

    def _open_load(self, info: StreamInfo, report: bytes) -> _Stream:
        # Without a response, Envoy sends no reports, and does not reconnect.
        response = _interval(self._controller.mesh) if self.enabled else None
        message = self._first(LOAD_REPORT, info, report)
        return self._open(LOAD_SERVICE, info, message.node.id, message, response)

    def _open_access_logs(self, info: StreamInfo, report: bytes) -> _Stream:
        if not self.enabled:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "observation is disabled (--observe)")
        message = self._first(ACCESS_LOGS, info, report)
        return self._open(LOG_SERVICE, info, message.identifier.node.id, message, None)

    def _first(self, name: str, info: StreamInfo, report: bytes) -> Any:
        """Return the first report of a stream."""
        if (message := self.reader.parse(name, report)) is None:
            self._note_unread(info.caller)
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"the report is not a {name}")
        return message

    def _open(
        self, service: str, info: StreamInfo, node_id: str, message: Any, response: bytes | None
    ) -> _Stream:
        try:
            node = NodeId.parse(node_id)
        except ValueError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        key = node.namespace, node.pod
        pod = self._controller.mesh.pod(*key)
        _check(info.caller, key, pod)
        client = budget_key(info.caller, key, is_known=pod is not None)
        try:
            reservation = self._budgets.open(client)
        except LimitError:
            self._refused("too many streams", info.caller)
            raise
        stream = _Stream(self, service, key, pod, info.caller, client, reservation, response)
        try:
            self.read(service, key, pod, message)
        except BaseException:
            stream.close()
            raise
        return stream

    def pod(self, key: PodKey) -> Pod | None:
        """Return a pod (namespace, name) of the current mesh; None if it is unknown."""
        return self._controller.mesh.pod(*key)

    def read(self, service: str, key: PodKey, pod: Pod | None, message: Any) -> None:
        """Read a report of a pod's sidecar. The message is None if it is malformed."""
        if not self.enabled:
            return
        now, omitted = time.time(), self._omitted
        if pod is None:
            self.dropped["unknown pod"] += 1
        else:
            self.received[service] += 1
            if message is not None:
                read = self.reader.read_load if service == LOAD_SERVICE else self.reader.read_access_logs
                read(self._controller.mesh, pod, message, now=now)
        if pod is None or message is None or self._omitted != omitted:
            self._note_incomplete(key[0])

    @property
    def _omitted(self) -> int:
        return self.reader.ignored + self.traffic.excess

    def drop(self, service: str, key: PodKey, reason: str) -> None:
        """Count a report that is not read. Log the first one of a sidecar that is too large."""
        self.dropped[reason] += 1
        self._note_incomplete(key[0])
        is_first = key not in self._logged and len(self._logged) < MAX_LOGGED
        if reason == "too large" and is_first and self.pod(key):
            self._logged.add(key)
            log.warning(
                "report too large, dropped", pod="/".join(key), service=service, limit=MAX_REPORT_BYTES
            )


@dataclass(slots=True)
class _Stream:
    """One stream of reports of a pod's sidecar."""

    reports: TrafficReports
    service: str
    key: PodKey
    pod: Pod | None
    caller: Caller | None
    client: Hashable
    reservation: Reservation
    response: bytes | None

    def receive(self, report: bytes) -> None:
        pod = self.reports.pod(self.key)
        if pod is not self.pod:
            _check(self.caller, self.key, pod)
            self.pod = pod
        name = LOAD_REPORT if self.service == LOAD_SERVICE else ACCESS_LOGS
        self.reports.read(self.service, self.key, pod, self.reports.reader.parse(name, report))

    def dropped(self, reason: str) -> None:
        self.reports.drop(self.service, self.key, reason)

    def close(self) -> None:
        self.reservation.close()


def _check(caller: Caller | None, key: PodKey, pod: Pod | None) -> None:
    """Raise Refused unless the caller may act for a pod."""
    if caller and (reason := denial_reason(caller, *key, pod)):
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, reason)


def _interval(mesh: Mesh) -> bytes:
    """Return the response that requests load reports of all clusters."""
    if "report interval" not in mesh.scratch:
        services = sum(1 for _ in mesh.services())
        sidecars = sum(pod.has_sidecar for pod in mesh.pods())
        needed = max(INTERVAL * ceil(services / SERVICES_PER_INTERVAL), ceil(sidecars / REPORTS_PER_SECOND))
        mesh.scratch["report interval"] = min(max(needed, INTERVAL), MAX_INTERVAL)
    seconds: int = mesh.scratch["report interval"]
    message: Any = message_class("envoy.service.load_stats.v3.LoadStatsResponse")(send_all_clusters=True)
    message.load_reporting_interval.seconds = seconds
    return bytes(message.SerializeToString())
