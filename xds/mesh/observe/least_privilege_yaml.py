"""AuthorizationPolicies as YAML with comments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from xds.mesh.model.names import join_names
from xds.mesh.model.objects import DRY_RUN, printable
from xds.mesh.observe.least_privilege import AllowRule, LeastPrivilege, WorkloadPolicy
from xds.mesh.observe.record import Record, in_words

MAX_NAMES = 5
"""Maximum number of clients that a comment names."""


def document(
    record: Record, missing: Iterable[str], generated: LeastPrivilege, *, dry_run: bool = False
) -> Iterator[str]:
    """Yield the lines of the policies for a record, as YAML with comments.

    Args:
        record: the record.
        missing: why traffic may be missing in it.
        generated: the policies.
        dry_run: whether to add the annotation that tries them.
    """
    yield from comments(record, missing)
    yield from (f"# No policy for {workload}: {reason}" for workload, reason in generated.omitted)
    for number, policy in enumerate(generated.policies):
        if number:
            yield "---"
        yield from policy_lines(policy, dry_run=dry_run)


def comments(record: Record, missing: Iterable[str]) -> Iterator[str]:
    """Yield what must be known before policies for a record are applied, as comments."""
    yield f"# Allows the traffic that was observed from {in_words(record.since)} to {in_words(record.until)}."
    yield "# Check each client: its own sidecar reports what it calls with mutual TLS."
    yield from (f"# Incomplete: {printable(each)}" for each in missing)


def policy_lines(policy: WorkloadPolicy, *, dry_run: bool = False) -> Iterator[str]:
    """Yield the lines of a policy."""
    yield "apiVersion: security.istio.io/v1"
    yield "kind: AuthorizationPolicy"
    yield "metadata:"
    yield f"  name: {json.dumps(policy.name)}"
    yield f"  namespace: {json.dumps(policy.namespace)}"
    if dry_run:
        yield "  annotations:"
        yield f'    {DRY_RUN}: "true"'
    yield "spec:"
    yield "  selector:"
    yield "    matchLabels:"
    yield from (f"      {key}: {json.dumps(value)}" for key, value in policy.selector.items())
    yield "  action: ALLOW"
    yield "  rules:"
    for rule in policy.rules:
        yield from _rule(rule)


def _rule(rule: AllowRule) -> Iterator[str]:
    item = "  - "
    if rule.principals:
        yield "  - from:"
        yield "    - source:"
        yield "        principals:"
        yield from (f"        - {json.dumps(principal)}" for principal in rule.principals)
        item = "    "
    else:
        clients = printable(join_names(rule.without_identity, MAX_NAMES))
        yield f"  # Open to all clients, because some have no identity: {clients}"
    yield f"{item}to:"
    yield "    - operation:"
    yield f"        ports: {json.dumps([*map(str, rule.ports)])}"
