"""Read the reports of sidecars: Envoy's load reports of clients, and access logs of servers.

Everything in a report is untrusted. A sidecar reports only about its own pod: as the client of its load
reports, and as the server of its access logs. Entries that make no sense are counted and left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

from google.protobuf.message import DecodeError

from xds.codec import message_class
from xds.mesh.envoy import access_logs, names
from xds.mesh.envoy.endpoints import MTLS_SUB_ZONE
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Pod
from xds.mesh.model.traffic import TlsMode
from xds.mesh.observe.edges import Client, Denial, EdgeKey, Reporter, Traffic, TrafficMode
from xds.mesh.observe.workloads import DeletedPods, Destination, client_at, destination, target_of, workload
from xds.mesh.policy.authorization import TOO_MANY_VALUES
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
# Denied connections have no entry when they start.
_UNCOUNTED_DENIALS = frozenset({1, 2, 5})  # TcpUpstreamConnected, TcpPeriodic, DownstreamPeriodic
_NAME = r"[A-Za-z0-9._-]{1,253}"
_SPIFFE_ID = re.compile(rf"spiffe://([a-z0-9._-]{{1,255}})/ns/({_NAME})/sa/({_NAME})")
_DETAILS = re.compile(r"rbac_access_denied_matched_policy\[(.+)\]")
_RULE = re.compile(rf"ns\[{_NAME}\]-policy\[{_NAME}\]-rule\[[0-9]{{1,3}}\]|{TOO_MANY_VALUES}")
_NO_RULE = "none"
"""Envoy's name of the rule if no rule of an ALLOW policy matches."""
_PREFIXES = (access_logs.ENFORCED, access_logs.SHADOW_DENY, access_logs.SHADOW_ALLOW)
_METHOD = re.compile(r"[A-Z-]{1,32}")
_PATH = re.compile(r"/[\x21-\x7e]*")
_MAX_SEGMENTS, _MAX_PREFIX = 2, 64
"""Number of segments and characters of a path that are kept."""


class ReportReader:
    """Reads reports into the observed traffic.

    Args:
        traffic: receives the edges.
        denials: receives the edges of denied requests.
        deleted: the pods that were deleted recently.
    """

    def __init__(self, traffic: Traffic, denials: Traffic, deleted: DeletedPods) -> None:
        self.traffic, self.denials = traffic, denials
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
        counted: dict[tuple[str, int, bool, Client | None, Denial | None], int] = {}
        entries = message.tcp_logs.log_entry
        self.ignored += max(len(entries) - MAX_ENTRIES, 0)
        for entry in islice(entries, MAX_ENTRIES):
            common = entry.common_properties
            remote = common.downstream_direct_remote_address.socket_address.address
            port = common.downstream_local_address.socket_address.port_value
            is_refused, uncounted = common.response_flags.no_route_found, _UNCOUNTED
            identity = denial = None
            if common.custom_tags.get(access_logs.LOG_TAG) == access_logs.DENIED:
                identity, denial = _authenticated(mesh, common), _denial(common)
                uncounted = _UNCOUNTED_DENIALS
                if denial is None:
                    self.ignored += 1
                    continue
            elif _is_denied(common, access_logs.HTTP_RBAC, access_logs.ENFORCED):
                continue  # STRICT would not stop it: it is denied already.
            key = remote, port, is_refused, identity, denial
            counted[key] = counted.get(key, 0) + (common.access_log_type not in uncounted)
        for (remote, port, is_refused, identity, denial), requests in counted.items():
            client = identity or client_at(mesh, self._deleted, remote, now)
            if client is None or not 0 < port < 65536:
                self.ignored += 1
                continue
            mode = TrafficMode.MTLS if identity else TrafficMode.PLAINTEXT
            mode = TrafficMode.REFUSED if is_refused else mode
            edge = EdgeKey(client, target_of(mesh, pod, port), mode, denial)
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
        traffic = self.denials if edge.denial else self.traffic
        traffic.add(edge, source, pod.key, requests=requests, failed=failed, now=now)


def _mode_by_rule(mesh: Mesh, pod: Pod, to: Destination) -> TrafficMode:
    """Return the mode of requests to endpoints that get no mutual TLS of the mesh."""
    rule = served_client_rule(mesh, pod.namespace, pod.meta.labels, to.service)
    tls = explicit_tls(rule, to.target.port, to.subset if rule and rule.subset(to.subset) else "")
    return TrafficMode.TLS if tls and tls.mode in _EXTERNAL_TLS else TrafficMode.PLAINTEXT


# --- denied requests --------------------------------------------------------------------------------------


def _authenticated(mesh: Mesh, common: Any) -> Client | None:
    """Return the client that mutual TLS authenticated."""
    for name in common.tls_properties.peer_certificate_properties.subject_alt_name:
        found = _SPIFFE_ID.fullmatch(name.uri)
        if found and found[1] in mesh.config.trust_domains:
            return Client(found[2], found[3])
    return None


def _denial(common: Any) -> Denial | None:
    """Return why a request is denied, or would be; None if the entry makes no sense."""
    tags = common.custom_tags
    method = tags.get(access_logs.METHOD_TAG, "")
    if found := _DETAILS.fullmatch(tags.get(access_logs.DETAILS_TAG, "")):
        rule, is_dry_run = found[1], False
    else:
        namespace = access_logs.HTTP_RBAC if method else access_logs.NETWORK_RBAC
        prefix = next((each for each in _PREFIXES if _is_denied(common, namespace, each)), "")
        rule = (_metadata(common, namespace, prefix + access_logs.RULE) or _NO_RULE) if prefix else ""
        is_dry_run = prefix != access_logs.ENFORCED
    if rule != _NO_RULE and not _RULE.fullmatch(rule):
        return None
    return Denial(
        "" if rule == _NO_RULE else rule,
        method if not method or _METHOD.fullmatch(method) else "*",
        _prefix(tags.get(access_logs.PATH_TAG, "")) if method else "",
        is_dry_run,
    )


def _is_denied(common: Any, namespace: str, prefix: str) -> bool:
    return _metadata(common, namespace, prefix + access_logs.RESULT) == access_logs.DENIED


def _metadata(common: Any, namespace: str, key: str) -> str:
    """Return what an RBAC filter has set; empty if it has not. Reading a missing key of a map adds it."""
    found = common.metadata.filter_metadata
    if namespace not in found or key not in found[namespace].fields:
        return ""
    text: str = found[namespace].fields[key].string_value
    return text


def _prefix(path: str) -> str:
    """Return a path without its query, or as a prefix with `*` if it is long."""
    path = re.sub(";[^/]*", "", path.partition("?")[0])
    if not _PATH.fullmatch(path):
        return "*"
    prefix = "/".join(path.split("/", _MAX_SEGMENTS + 1)[: _MAX_SEGMENTS + 1])[:_MAX_PREFIX]
    return path if prefix == path else f"{prefix}/*" if path.startswith(f"{prefix}/") else f"{prefix}*"
