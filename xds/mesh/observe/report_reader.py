"""Read the reports of sidecars: Envoy's load reports of clients, and access logs of servers.

Everything in a report is untrusted. A sidecar reports only about its own pod: as the client of its load
reports, and as the server of its access logs. Entries that make no sense are counted and left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from google.protobuf.message import DecodeError

from xds.codec import message_class
from xds.mesh.envoy import names
from xds.mesh.envoy.endpoints import MTLS_SUB_ZONE
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod
from xds.mesh.model.traffic import TlsMode
from xds.mesh.observe.edges import EdgeKey, Reporter, Traffic, TrafficMode
from xds.mesh.observe.workloads import DeletedPods, Destination, client_at, destination, target_of, workload
from xds.mesh.policy.destination import served_client_rule
from xds.mesh.policy.mtls import explicit_tls

LOAD_REPORT = "envoy.service.load_stats.v3.LoadStatsRequest"
"""Message of a client's report."""
ACCESS_LOGS = "envoy.service.accesslog.v3.StreamAccessLogsMessage"
"""Message of a server's report."""
MAX_ENTRIES = 5_000
"""Maximum number of localities or log entries of one report; further ones are counted and left out."""
MAX_CLUSTERS = 25_000
"""Maximum number of clusters of one report, most without traffic. A report of 1 MiB has room for no more."""
MAX_REQUESTS = 10_000_000
"""Maximum number of requests that one cluster or log entry may add."""
_EXTERNAL_TLS = (TlsMode.SIMPLE, TlsMode.MUTUAL)
# envoy.data.accesslog.v3.AccessLogType: entries about something that an earlier or later entry counts.
_UNCOUNTED = frozenset({2, 3, 5})  # TcpPeriodic, TcpConnectionEnd, DownstreamPeriodic


class ReportReader:
    """Reads reports into the observed traffic.

    Args:
        traffic: receives the edges.
        deleted: the pods that were deleted recently.
    """

    def __init__(self, traffic: Traffic, deleted: DeletedPods) -> None:
        self.traffic = traffic
        self.ignored = 0
        """Number of malformed reports and entries."""
        self._deleted = deleted

    def parse(self, name: str, report: bytes) -> Any:
        """Return a report as a message of type `name`; None if it is malformed."""
        try:
            return message_class(name).FromString(report)
        except DecodeError:
            self.ignored += 1
            return None

    def read_load(self, mesh: Mesh, pod: Pod, message: Any, *, now: float) -> None:
        """Read a LOAD_REPORT of a pod's sidecar. `now` is the Unix time, in seconds."""
        self.ignored += max(len(message.cluster_stats) - MAX_CLUSTERS, 0)
        budget = MAX_ENTRIES
        for cluster in islice(message.cluster_stats, MAX_CLUSTERS):
            if localities := cluster.upstream_locality_stats:  # Most clusters have no traffic.
                count = len(localities)
                if budget:
                    self._read_cluster(mesh, pod, cluster.cluster_name, islice(localities, budget), now)
                self.ignored += max(count - budget, 0)
                budget = max(budget - count, 0)

    def read_access_logs(self, mesh: Mesh, pod: Pod, message: Any, *, now: float) -> None:
        """Read the inbound ACCESS_LOGS of a pod's sidecar. `now` is the Unix time, in seconds."""
        counted: dict[tuple[str, int, bool], int] = {}
        entries = message.tcp_logs.log_entry
        self.ignored += max(len(entries) - MAX_ENTRIES, 0)
        for entry in islice(entries, MAX_ENTRIES):
            common = entry.common_properties
            remote = common.downstream_remote_address.socket_address.address
            port = common.downstream_local_address.socket_address.port_value
            key = remote, port, common.response_flags.no_route_found
            counted[key] = counted.get(key, 0) + (common.access_log_type not in _UNCOUNTED)
        for (remote, port, is_refused), requests in counted.items():
            client = client_at(mesh, self._deleted, remote, now)
            if client is None or not 0 < port < 65536:
                self.ignored += 1
                continue
            mode = TrafficMode.REFUSED if is_refused else TrafficMode.PLAINTEXT
            edge = EdgeKey(client, target_of(mesh, pod, port), mode)
            failed = requests if is_refused else 0
            self._add(edge, Reporter.SERVER, pod, requests=requests, failed=failed, now=now)

    def _read_cluster(self, mesh: Mesh, pod: Pod, name: str, localities: Iterable[Any], now: float) -> None:
        found = destination(mesh, name)
        if found is None:
            self.ignored += bool(names.parse_outbound(name)[2])
            return
        counted: dict[bool, tuple[int, int]] = {}
        for locality in localities:
            requests, failed = locality.total_issued_requests, locality.total_error_requests
            if requests or failed or locality.total_requests_in_progress:
                is_mtls = locality.locality.sub_zone.rpartition("/")[2] == MTLS_SUB_ZONE
                earlier = counted.get(is_mtls, (0, 0))
                counted[is_mtls] = earlier[0] + requests, earlier[1] + failed
        for is_mtls, (requests, failed) in counted.items():
            mode = TrafficMode.MTLS if is_mtls else _mode_by_rule(mesh, pod, found)
            edge = EdgeKey(workload(pod), found.target, mode)
            self._add(edge, Reporter.CLIENT, pod, requests=requests, failed=failed, now=now)

    def _add(
        self, edge: EdgeKey, source: Reporter, pod: Pod, *, requests: int, failed: int = 0, now: float
    ) -> None:
        if max(requests, failed) > MAX_REQUESTS:
            self.ignored += 1
            return
        reporter = pod.key
        self.traffic.add(edge, source, reporter, requests=requests, failed=failed, now=now)


def _mode_by_rule(mesh: Mesh, pod: Pod, to: Destination) -> TrafficMode:
    """Return the mode of requests to endpoints that get no mutual TLS of the mesh."""
    rule = served_client_rule(mesh, pod.namespace, pod.meta.labels, to.service)
    tls = explicit_tls(rule, to.target.port, to.subset if rule and rule.subset(to.subset) else "")
    return TrafficMode.TLS if tls and tls.mode in _EXTERNAL_TLS else TrafficMode.PLAINTEXT
