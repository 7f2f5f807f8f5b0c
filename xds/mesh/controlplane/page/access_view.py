"""Who called each workload, the AuthorizationPolicy that allows that and nothing else, and unused access."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import spiffe_id
from xds.mesh.observe.edges import TRAFFIC_RETENTION
from xds.mesh.observe.least_privilege import AllowRule, WorkloadPolicy, gaps, least_privilege
from xds.mesh.observe.least_privilege_yaml import comments, policy_lines
from xds.mesh.observe.record import merge_records
from xds.mesh.observe.unused_access import UnusedRule, unused_access
from xds.mesh.policy.hops import clients_of
from xds.mesh.policy.identities import account_of
from xds.mesh.v1.traffic_pb2 import ListTrafficRequest, ListTrafficResponse

REQUEST = ListTrafficRequest(period=Duration(seconds=round(TRAFFIC_RETENTION)))
"""Requests the traffic that the view needs."""
MAX_CLIENTS = 20
"""Maximum number of clients that a rule lists. The policy has all of them."""


def view(mesh: Mesh, traffic: ListTrafficResponse) -> dict[str, Any]:
    """Return a row for each workload with a sidecar, unused access, and what may be missing in the traffic.

    Args:
        mesh: the facts.
        traffic: the response to `REQUEST`.
    """
    record = merge_records([traffic])
    missing, found = gaps(mesh, record), least_privilege(mesh, record.flows)
    domain = mesh.config.trust_domain
    accounts = {spiffe_id(domain, pod.namespace, pod.service_account) for pod in clients_of(mesh)}
    rows = [_proposed(policy, accounts) for policy in found.policies]
    for name, reason in found.omitted:
        rows.append({"workload": name, "namespace": name.rpartition(".")[2], "reason": reason})
    return {
        "rows": sorted(rows, key=lambda row: (row["namespace"], row["workload"])),
        "unused": [_unused(rule) for rule in unused_access(mesh, record.flows).rules],
        "accounts": len(accounts),
        "enabled": traffic.enabled,
        "seconds": round(record.until - record.since),
        "gaps": missing,
        "comments": list(comments(record, missing)),
    }


def _proposed(policy: WorkloadPolicy, accounts: set[str]) -> dict[str, Any]:
    allowed = {f"spiffe://{principal}" for rule in policy.rules for principal in rule.principals}
    is_open = any(not rule.principals for rule in policy.rules)
    return {
        "workload": f"{policy.name}.{policy.namespace}",
        "namespace": policy.namespace,
        "reason": "",
        "rules": [_rule(rule) for rule in policy.rules],
        "denied": 0 if is_open else len(accounts - allowed),
        "policy": "\n".join(policy_lines(policy)),
    }


def _rule(rule: AllowRule) -> dict[str, Any]:
    clients = [account_of(principal) for principal in rule.principals] or list(rule.without_identity)
    return {
        "ports": list(rule.ports),
        "clients": clients[:MAX_CLIENTS],
        "moreClients": len(clients[MAX_CLIENTS:]),
        "isOpen": not rule.principals,
    }


def _unused(rule: UnusedRule) -> dict[str, Any]:
    return {
        "policy": f"{rule.policy.namespace}/{rule.policy.name}",
        "rule": rule.rule,
        "isUsed": rule.is_used,
        "servers": list(rule.servers),
        "namespaces": sorted({server.partition(":")[0].rpartition(".")[2] for server in rule.servers}),
        "unusedBy": rule.unused_by,
    }
