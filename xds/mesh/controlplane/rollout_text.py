"""One-line summaries of the progress of rollouts, for the log, the API and `xds status --rollout`."""

from __future__ import annotations

from collections import Counter

from xds.mesh.controlplane.status import duration
from xds.mesh.model.names import join_names
from xds.mesh.rollout.progress import API_SERVER, RuleProgress, ServiceProgress, WaitingEndpoint
from xds.mesh.rollout.waits import WaitingFor

_MAX_NAMES = 3
"""Endpoints, clients or replicas that a summary names."""


def service_summary(service: ServiceProgress, now: float) -> str:
    """Return one line: `httpbin.full: 3/5 endpoints mTLS, httpbin-2 waiting for its listener (12s)`."""
    count, mode = (service.plaintext, "plaintext") if service.to_plaintext else (service.mtls, "mTLS")
    ports = Counter(pod for pod, _ in {endpoint.key for endpoint in service.waiting})
    # Stalled endpoints first, then those that have waited longest.
    waiting = sorted(
        service.waiting, key=lambda endpoint: (not (endpoint.skipped or endpoint.rejection), endpoint.since)
    )
    summaries = [
        _endpoint_summary(endpoint, now, with_port=ports[endpoint.key[0]] > 1) for endpoint in waiting
    ]
    head = f"{service.service}.{service.namespace}: {count}/{service.endpoints} endpoints {mode}"
    return ", ".join(filter(None, (head, join_names(summaries, _MAX_NAMES, "endpoints"))))


def rule_summary(rule: RuleProgress, now: float) -> str:
    """Return one line: `DestinationRule full/x held until its servers accept it (3s)`."""
    return f"{rule_line(rule)} ({duration(now - rule.since)})"


def rule_line(rule: RuleProgress) -> str:
    """Return the summary of a rule without a duration."""
    name = f"{'deletion of ' if rule.deleted else ''}{rule.ref}"
    if rule.held:
        return f"{name} held until its servers accept it"
    clients = join_names(rule.lagging, _MAX_NAMES, "clients") or "its clients"
    return f"{name} {_wait_summary(clients, rule)}"


def port_line(endpoint: WaitingEndpoint) -> str:
    """Return the progress of a port without a duration: `httpbin-2.full:8080 waiting for its listener`."""
    pod, port = endpoint.key
    return f"{pod.name}.{pod.namespace}:{port} {_endpoint_status(endpoint)}"


def _endpoint_summary(endpoint: WaitingEndpoint, now: float, *, with_port: bool) -> str:
    pod, port = endpoint.key
    plaintext = "; still accepts plaintext" if endpoint.accepts_plaintext else ""
    name = f"{pod.name}:{port}" if with_port else pod.name
    return f"{name} {_endpoint_status(endpoint)} ({duration(now - endpoint.since)}{plaintext})"


def _endpoint_status(endpoint: WaitingEndpoint) -> str:
    if endpoint.waiting_for is not WaitingFor.LISTENER:
        return _wait_summary(_waiting_for(endpoint), endpoint)
    if endpoint.rejection:
        return f"stopped, its listener was rejected: {endpoint.rejection}"
    if endpoint.skipped:
        return "skipped, its listener was not active in time"
    return "waiting for its listener"


def _wait_summary(names: str, progress: WaitingEndpoint | RuleProgress) -> str:
    status = f"skipped {names}" if progress.skipped else f"waiting for {names}"
    return f"{status}, rejected: {progress.rejection}" if progress.rejection else status


def _waiting_for(endpoint: WaitingEndpoint) -> str:
    if endpoint.waiting_for is WaitingFor.CLIENTS:
        return join_names(endpoint.lagging, _MAX_NAMES, "clients") or "clients"
    replica = "" if endpoint.lagging == (API_SERVER,) else "replica "
    return replica + join_names(endpoint.lagging, _MAX_NAMES, "replicas")
