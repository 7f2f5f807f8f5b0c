"""The exceptions in a report: what mutual TLS does not protect, and what is not enforced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from xds.mesh.controlplane.explanation import object_message
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import DestinationRule, Pod, Problem, Ref
from xds.mesh.model.redirection import Redirection
from xds.mesh.model.traffic import ClientTls, TlsMode, TrafficPolicy
from xds.mesh.model.workload import Workload
from xds.mesh.policy.acceptance import enforcement
from xds.mesh.policy.describe import OTHER_PORTS
from xds.mesh.policy.reach import Result
from xds.mesh.v1 import reports_pb2 as pb
from xds.mesh.v1 import rollouts_pb2

MANAGED_BY = "app.kubernetes.io/managed-by"
MAX_NAMES = 10
"""Maximum number of ports or pods that a text names."""


def of_workload(
    mesh: Mesh, workload: Workload, reported: pb.ReportedWorkload
) -> Iterator[pb.ReportException]:
    """Yield the exceptions of a workload."""
    subject = f"{workload.name}.{workload.namespace}"
    without = [pod for pod in workload.pods if not pod.has_sidecar]
    if without:
        names = join_names([pod.name for pod in without], MAX_NAMES)
        what = f"{_share(len(without), workload)} have no sidecar: {names}"
        yield _exception(mesh, "no-sidecar", subject, what, without[0].ref)
    plaintext: dict[tuple[str, str, Ref], list[str]] = {}
    for port in reported.ports:
        name = "all other ports" if port.port == OTHER_PORTS else f"port {port.port}"
        if port.mode == rollouts_pb2.MODE_UNSPECIFIED:
            what = f"{name} of {_share(port.pods, workload)}: not intercepted, and any client is accepted"
            yield _exception(mesh, "not-intercepted", subject, what, _beside(mesh, workload, port.port).ref)
            continue
        decided_by = Ref(port.decided_by.kind, port.decided_by.namespace, port.decided_by.name)
        mode, desired = (rollouts_pb2.Mode.Name(each) for each in (port.mode, port.desired_mode))
        if mode != desired:
            what = f"{name}: {mode} is served until the rollout to {desired} has finished"
            yield _exception(mesh, "in-transition", subject, what, decided_by)
        if mode != "STRICT":
            is_allowed = any(each.send == Result.PLAINTEXT for each in port.allowed)
            result = (
                "accepts plaintext" if is_allowed else "accepts plaintext that AuthorizationPolicies deny"
            )
            plaintext.setdefault((mode, result, decided_by), []).append(name)
    for (mode, result, decided_by), ports in plaintext.items():
        what = f"mode {mode} {result}: {join_names(dict.fromkeys(ports), MAX_NAMES)}"
        yield _exception(mesh, "plaintext", subject, what, decided_by)
    bypassed: dict[str, list[Pod]] = {}
    for pod in workload.pods:
        if pod.has_sidecar and (words := _bypassed(pod.redirection)):
            bypassed.setdefault(words, []).append(pod)
    for words, pods in bypassed.items():
        what = f"connections of {_share(len(pods), workload)} bypass their sidecars, in plaintext: {words}"
        yield _exception(mesh, "not-intercepted", subject, what, pods[0].ref)


def of_mesh(
    mesh: Mesh, namespaces: Collection[str], problems: Iterable[Problem]
) -> Iterator[pb.ReportException]:
    """Yield the exceptions that objects cause, in namespaces or in all if empty, and problems."""
    if not mesh.config.enable_auto_mtls:
        what = "enableAutoMtls is false: clients without a DestinationRule for mutual TLS send plaintext"
        yield pb.ReportException(kind="mesh-setting", subject="the mesh", what=what)
    for name in sorted(mesh.namespaces()):
        if namespaces and name not in namespaces:
            continue
        facts = mesh.in_namespace(name)
        for rule in facts.rules:
            for what in dict.fromkeys(_tls(rule)):
                yield _exception(mesh, "destination-rule", rule.host, what, rule.ref)
        for policy in facts.authorization_policies:
            if policy.dry_run:
                what = "is not enforced: it has the annotation istio.io/dry-run"
                yield _exception(mesh, "dry-run", str(policy.ref), what, policy.ref)
    for problem in problems:
        if not problem.notice:
            yield pb.ReportException(kind="problem", subject=problem.where, what=problem.what)


def _share(pods: int, workload: Workload) -> str:
    return f"{pods} of {len(workload.pods)} pods"


def _exception(mesh: Mesh, kind: str, subject: str, what: str, owner: Ref) -> pb.ReportException:
    fact = mesh.get(owner)
    return pb.ReportException(
        kind=kind,
        subject=subject,
        what=what,
        owner=object_message(mesh, owner),
        managed_by=fact.meta.labels.get(MANAGED_BY, "") if fact else "",
    )


def _beside(mesh: Mesh, workload: Workload, port: int) -> Pod:
    """Return the first pod whose sidecar does not intercept a port."""
    return next(
        pod
        for pod in workload.pods
        if pod.has_sidecar
        and enforcement(mesh, Endpoint(address=pod.address, port=port, pod=pod)).mode is None
    )


def _bypassed(redirection: Redirection) -> str:
    """Return which outbound connections bypass a sidecar; empty if none do."""
    parts = []
    if redirection.exclude_outbound_ports:
        parts.append(f"to ports {join_names(map(str, redirection.exclude_outbound_ports), MAX_NAMES)}")
    if redirection.exclude_networks:
        parts.append(f"to {join_names(map(str, redirection.exclude_networks), MAX_NAMES)}")
    if redirection.networks is not None:
        networks = join_names(map(str, redirection.networks), MAX_NAMES)
        parts.append(f"to other networks than {networks}" if networks else "to all networks")
    return " and ".join(parts)


def _tls(rule: DestinationRule) -> Iterator[str]:
    """Yield which TLS settings of a DestinationRule are not the mesh's mutual TLS."""
    policies = chain([(rule.policy, "")], ((each.policy, f"subset {each.name}") for each in rule.subsets))
    for policy, subset in policies:
        for tls, port in _settings(policy) if policy else ():
            where = " ".join(filter(None, (f"for {subset}" if subset else "", port)))
            suffix = f" {where}" if where else ""
            if tls.mode is TlsMode.DISABLE:
                yield f"clients send plaintext{suffix}: tls.mode is DISABLE"
            elif tls.mode is not TlsMode.ISTIO_MUTUAL:
                trust = ", without verifying the server" if tls.insecure_skip_verify else ""
                yield f"clients send TLS of mode {tls.mode}, not that of the mesh{suffix}{trust}"


def _settings(policy: TrafficPolicy) -> Iterator[tuple[ClientTls, str]]:
    if policy.tls:
        yield policy.tls, ""
    for number, of_port in policy.ports.items():
        if of_port.tls:
            yield of_port.tls, f"on port {number}"
