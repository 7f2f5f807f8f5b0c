"""Explain authorization decisions: which policies apply to a request, which match, and which rule is nearest.

`xds.mesh.policy.authorization` decides; this module says why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from xds.mesh.model.authorization import (
    OPERATION_FIELDS,
    SOURCE_FIELDS,
    Action,
    Attribute,
    Condition,
    Rule,
)
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import AuthorizationPolicy, MeshConfig, Pod, Ref
from xds.mesh.policy.access import listed, permission, port_rules, protocols_of, request_to
from xds.mesh.policy.authorization import (
    Access,
    Request,
    decide,
    enforceable_rules,
    holds,
    is_enforceable,
    matching,
    policies_of,
    rules_of,
)


class PolicyMatch(NamedTuple):
    """A policy that applies to the server, and whether it matches a request."""

    ref: Ref
    """The policy."""
    action: Action
    """What happens to a request that it matches."""
    matches: bool | None
    """Whether a rule matches; None if that depends on what is not known of the request."""
    enforced: bool
    """Whether sidecars enforce it: not with the annotation for a dry run, nor with action AUDIT."""


class FieldMatch(NamedTuple):
    """A field of a rule, and whether it matches a request."""

    field: str
    """Name of the field, such as `from.principals` or `when.source.ip`."""
    expected: str
    """What the rule requires, such as `GET|HEAD`."""
    matches: bool | None
    """Whether the request meets it; None if that is not known."""
    actual: str
    """What the request has, such as `POST` or `absent`."""


class NearestRule(NamedTuple):
    """The rule of ALLOW policies of which the fewest fields do not match."""

    policy: Ref
    """Policy that contains it."""
    rule: int
    """Index in `spec.rules`."""
    fields: tuple[FieldMatch, ...]
    """Its fields. Of several items of `from` and of `to`, only the nearest."""


class AccessExplanation(NamedTuple):
    """How AuthorizationPolicies decide on a request or connection."""

    access: Access
    """Whether it is allowed."""
    policies: tuple[PolicyMatch, ...]
    """The policies that apply to the server: enforced ones first, and of these those that match."""
    nearest: NearestRule | None = None
    """If it is denied because no rule of an ALLOW policy matches: the nearest rule."""


def explain_access(
    mesh: Mesh, pod: Pod, port: int, identity: str, request: Request | None = None
) -> AccessExplanation | None:
    """Explain whether a client may connect to a pod's port; None if no policy applies to the pod.

    Args:
        mesh: the facts.
        pod: pod of the server, whose sidecar intercepts the port.
        port: port of the pod.
        identity: SPIFFE ID of the client; empty if it does not send mutual TLS.
        request: the HTTP request. Default: any request or connection.
    """
    policies = policies_of(mesh, pod)
    if not policies:
        return None
    config, asked = mesh.config, request_to(port, identity, request)
    protocols = protocols_of(mesh, pod, port)[: 1 if asked.is_http else None]
    rules = port_rules(mesh, pod, port)
    access = permission(config, rules, identity, request).access if rules else Access.ALLOWED
    nearest = None
    if access is Access.DENIED:
        unmatched = [
            http for http in protocols if not decide(config, rules_of(mesh, pod, http=http), asked).rules
        ]
        nearest = _Comparison(config, asked, unmatched[0]).nearest(policies) if unmatched else None
    found = [_policy(config, policy, asked, protocols) for policy in policies]
    found.sort(key=lambda each: (not each.enforced, _RANKS[each.matches]))
    return AccessExplanation(access, tuple(found), nearest)


_RANKS = {True: 0, None: 1, False: 2}


def _policy(
    config: MeshConfig, policy: AuthorizationPolicy, asked: Request, protocols: Iterable[bool]
) -> PolicyMatch:
    results = set[bool | None]()
    for http in protocols:
        found, unknown = matching(config, enforceable_rules(policy, http=http), asked)
        results.add(True if found else None if unknown else False)
    matches = results.pop() if len(results) == 1 else None
    return PolicyMatch(policy.ref, policy.action, matches, policy.is_enforced)


class _Comparison(NamedTuple):
    """Compares a request with rules, field by field."""

    config: MeshConfig
    request: Request
    http: bool
    """Whether the request is HTTP."""

    def nearest(self, policies: Iterable[AuthorizationPolicy]) -> NearestRule | None:
        """Return the nearest rule of enforced ALLOW policies; the first one of several."""
        rules = (
            NearestRule(policy.ref, index, self._compared(rule))
            for policy in policies
            if policy.restricts
            for index, rule in enumerate(policy.rules)
        )
        return min(rules, key=lambda rule: _distance(rule.fields), default=None)

    def _compared(self, rule: Rule) -> tuple[FieldMatch, ...]:
        sources = (self._item("from", SOURCE_FIELDS, conditions) for conditions in rule.sources)
        operations = (self._item("to", OPERATION_FIELDS, conditions) for conditions in rule.operations)
        return (
            *min(sources, key=_distance, default=()),
            *min(operations, key=_distance, default=()),
            *(field for each in rule.conditions for field in self._condition(each, *_keys(each))),
        )

    def _item(
        self, prefix: str, names: Mapping[Attribute, tuple[str, str]], conditions: Iterable[Condition]
    ) -> tuple[FieldMatch, ...]:
        """Return the fields of an item of `from` or `to`."""
        return tuple(
            field
            for condition in conditions
            for field in self._condition(
                condition, *(f"{prefix}.{name}" for name in names[condition.attribute])
            )
        )

    def _condition(self, condition: Condition, values: str, excluded: str) -> Iterator[FieldMatch]:
        """Yield the two fields of a condition, which have these names."""
        is_enforced = is_enforceable(condition, http=self.http)
        actual = _actual(condition, self.request) if is_enforced else "not enforceable on this port"
        for name, part in (
            (values, condition._replace(excluded=())),
            (excluded, condition._replace(values=())),
        ):
            if patterns := part.values or part.excluded:
                result = holds(self.config, part, self.request) if is_enforced else False
                yield FieldMatch(name, listed(patterns), result, actual)


def _distance(fields: Collection[FieldMatch]) -> tuple[int, int, int]:
    results = [field.matches for field in fields]
    return results.count(False), results.count(None), -len(results)


def _keys(condition: Condition) -> tuple[str, str]:
    """Return the names of the values and the excluded values of a condition in `when`."""
    match condition.attribute:
        case Attribute.HEADER:
            key = f"request.headers[{condition.name}]"
        case Attribute.UNSUPPORTED:
            key = condition.name
        case _:
            key = condition.attribute.value
    return f"when.{key}", f"when.{key} not"


def _actual(condition: Condition, request: Request) -> str:
    """Return the value of an attribute in words, as the end of `is ...`."""
    match condition.attribute:
        case attribute if attribute.is_identity:
            return (request.identity or "").removeprefix("spiffe://") or "absent: the client sends plaintext"
        case Attribute.DESTINATION_PORT:
            return str(request.port)
        case Attribute.METHOD:
            value = request.method
        case Attribute.PATH:
            value = request.path
        case Attribute.HOST:
            value = request.host
        case Attribute.HEADER if request.headers is not None and not condition.name.startswith(":"):
            value = request.headers.get(condition.name, "absent")
        case _:
            value = None
    return "not known" if value is None else value or "empty"
