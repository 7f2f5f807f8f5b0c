"""Authorization of connections, as far as it is known before they are made.

The client's identity and the server's port are known. Paths, methods, addresses and the like are not, so a
result can depend on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from xds.mesh.model.authorization import Attribute, Condition, Pattern, PatternKind, Rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MeshConfig, Pod, Protocol, Ref
from xds.mesh.policy.authorization import (
    Access,
    Request,
    Rules,
    SpiffePattern,
    Verdict,
    conditions_of,
    decide,
    holds,
    policies_of,
    rules_of,
    spiffe_patterns,
)

IdentityPattern: TypeAlias = tuple[Attribute, Pattern]
"""A pattern of a rule for a part of the client's SPIFFE ID."""


class PortRules(NamedTuple):
    """The rules that a sidecar enforces on a port."""

    number: int
    """Port of the pod."""
    http: Rules | None
    """Rules for HTTP requests; None if the port is not declared as HTTP."""
    tcp: Rules | None
    """Rules for other connections; None if the port is declared as HTTP."""

    @property
    def each(self) -> tuple[Rules, ...]:
        """The rules of each protocol."""
        return tuple(filter(None, (self.http, self.tcp)))


class Permission(NamedTuple):
    """Whether a client may connect to a port."""

    access: Access
    """Whether it may."""
    policies: tuple[Ref, ...] = ()
    """Policies that decide; empty if none applies."""
    conditions: tuple[str, ...] = ()
    """If it depends: on what, in words, such as `if GET /info* (AuthorizationPolicy full/info)`."""
    basis: int = 0
    """If it depends: a hash of the rules on which it depends, whatever their names are.

    The words do not contain all values.
    """


def port_rules(mesh: Mesh, pod: Pod, number: int) -> PortRules | None:
    """Return the rules that a pod's sidecar enforces on a port that it intercepts; None if there are none."""
    if not policies_of(mesh, pod):
        return None
    protocols = protocols_of(mesh, pod, number)
    http = rules_of(mesh, pod, http=True) if True in protocols else None
    tcp = rules_of(mesh, pod, http=False) if False in protocols else None
    rules = PortRules(number, http, tcp)
    return rules if any(each.policies for each in rules.each) else None


def protocols_of(mesh: Mesh, pod: Pod, number: int) -> tuple[bool, ...]:
    """Return whether a pod's sidecar parses connections to a port as HTTP; both if it is not declared."""
    exposure = mesh.exposure(pod, number)
    protocol = exposure.port.protocol if exposure else Protocol.AUTO
    return (True, False) if protocol is Protocol.AUTO else (protocol.is_http,)


def request_to(port: int, identity: str, request: Request | None = None) -> Request:
    """Return what is known of a client's request to a port.

    Args:
        port: port of the server's pod.
        identity: SPIFFE ID of the client; empty if it does not send mutual TLS.
        request: what else is known of it. Its identity and port do not matter.
    """
    return (
        replace(request, identity=identity, port=port) if request else Request(identity=identity, port=port)
    )


def permission(
    config: MeshConfig, rules: PortRules, identity: str, request: Request | None = None
) -> Permission:
    """Return whether a client may connect.

    Args:
        config: settings of the mesh.
        rules: the rules of the port.
        identity: SPIFFE ID of the client; empty if it does not send mutual TLS.
        request: what else is known, as for `request_to`.
    """
    asked = request_to(rules.number, identity, request)
    verdicts = [
        (each, decide(config, each, asked)) for each in (rules.each[:1] if asked.is_http else rules.each)
    ]
    accesses = {verdict.access for _, verdict in verdicts}
    if len(accesses) == 1 and Access.DEPENDS not in accesses:
        found, verdict = verdicts[0]
        return Permission(verdict.access, _deciding(found, verdict))
    terms = [
        term
        for protocol, (found, verdict) in zip(("HTTP", "TCP"), verdicts, strict=False)
        for term in _terms(config, found, asked, verdict, f" for {protocol}" if len(verdicts) > 1 else "")
    ]
    policies = dict.fromkeys(ref for found, verdict in verdicts for ref in _deciding(found, verdict))
    words = dict.fromkeys(f"{text} ({refs})" for text, refs, _ in terms)
    basis = hash(frozenset((text, rule) for text, _, rule in terms))
    return Permission(Access.DEPENDS, tuple(policies), tuple(words), basis)


def _deciding(rules: Rules, verdict: Verdict) -> tuple[Ref, ...]:
    if verdict.rules:
        return tuple(dict.fromkeys(rule.policy for rule in verdict.rules))
    if verdict.access is Access.ALLOWED:
        return ()
    denying = {rule.policy for rule in rules.deny}
    return tuple(ref for ref in rules.policies if ref not in denying)


def _terms(
    config: MeshConfig, rules: Rules, request: Request, verdict: Verdict, protocol: str
) -> Iterator[tuple[str, str, Rule | None]]:
    """Yield on what access depends, in words, the policies that say it, and the rule."""
    if verdict.access is Access.DENIED:
        yield f"not{protocol}", ", ".join(map(str, _deciding(rules, verdict))), None
    else:  # A protocol of which all is allowed would leave the other one nothing to depend on.
        for rule in verdict.rules:
            verb = "unless" if rule in rules.deny else "if"
            text = f"{verb} {describe(config, rule.rule, request)}{protocol}"
            yield text, str(rule.policy), rule.rule


def identity_patterns(rules: Iterable[Rule]) -> Iterator[IdentityPattern]:
    """Yield the patterns of rules for the client's SPIFFE ID."""
    for rule in rules:
        for condition in conditions_of(rule):
            if condition.attribute.is_identity:
                yield from ((condition.attribute, each) for each in (*condition.values, *condition.excluded))


def patterns_of(rules: PortRules | None) -> frozenset[IdentityPattern]:
    """Return the patterns of a port's rules for the client's SPIFFE ID."""
    named = (rule for each in (rules.each if rules else ()) for rule in (*each.deny, *(each.allow or ())))
    return frozenset(identity_patterns(rule.rule for rule in named))


def identity_class(mesh: Mesh, client: Pod) -> frozenset[IdentityPattern]:
    """Return the patterns of the mesh's rules that match a client's SPIFFE ID.

    Rules cannot distinguish clients with the same patterns.
    """
    key = "identities"
    if key not in mesh.scratch:
        policies = (
            policy for name in mesh.namespaces() for policy in mesh.in_namespace(name).authorization_policies
        )
        patterns = identity_patterns(rule for policy in policies for rule in policy.rules)
        mesh.scratch[key] = IdentityIndex(mesh.config, patterns)
    found: IdentityIndex = mesh.scratch[key]
    return found.matching(client.identity(mesh.config.trust_domain))


_NO_PATTERNS = frozenset[IdentityPattern]()


class IdentityIndex:
    """Index of patterns for SPIFFE IDs.

    Args:
        config: settings of the mesh.
        patterns: the patterns.
    """

    def __init__(self, config: MeshConfig, patterns: Iterable[IdentityPattern]) -> None:
        self._exact: dict[str, set[IdentityPattern]] = {}
        self._others: list[tuple[SpiffePattern, IdentityPattern]] = []
        self._matching: dict[str, frozenset[IdentityPattern]] = {}
        for pattern in dict.fromkeys(patterns):
            for each in spiffe_patterns(config, *pattern):
                if each.pattern.kind is PatternKind.EXACT:
                    self._exact.setdefault(each.pattern.text, set()).add(pattern)
                else:
                    self._others.append((each, pattern))

    def matching(self, identity: str) -> frozenset[IdentityPattern]:
        """Return the patterns that match a SPIFFE ID."""
        if identity not in self._matching:
            found = [*self._exact.get(identity, ())]
            found += [pattern for each, pattern in self._others if each.matches(identity)]
            self._matching[identity] = frozenset(found) if found else _NO_PATTERNS
        return self._matching[identity]


# --- words ------------------------------------------------------------------------------------------------

_MAX_WORDS = 3
"""Maximum number of values of a condition that are named."""
_NAMELESS = (Attribute.METHOD, Attribute.PATH, Attribute.SOURCE_IP)
"""Attributes whose values say what they are."""


def describe(config: MeshConfig, rule: Rule, request: Request) -> str:
    """Return what a rule requires, beside what is known of the request: `GET /info* from 10.1.0.0/16`."""

    def any_of(alternatives: Iterable[Iterable[Condition]]) -> str:
        texts = []
        for conditions in alternatives:
            results = [(each, holds(config, each, request)) for each in conditions]
            if all(result is not False for _, result in results):
                texts.append(" ".join(_describe(each) for each, result in results if result is None))
        return " or ".join(dict.fromkeys(texts)) if all(texts) else ""

    shared = [each for each in rule.conditions if not each.attribute.is_of_client]
    requests = any_of((*operation, *shared) for operation in rule.operations or ((),)) or "any request"
    shared = [each for each in rule.conditions if each.attribute.is_of_client]
    clients = any_of((*source, *shared) for source in rule.sources or ((),))
    return f"{requests} from {clients}" if clients else requests


def _describe(condition: Condition) -> str:
    attribute, values, excluded, header = condition
    name = "" if attribute in _NAMELESS else f"{f'header {header}' if header else attribute} "
    texts = (listed(values) if values else "", f"not {listed(excluded)}" if excluded else "")
    return name + " ".join(filter(None, texts))


def listed(patterns: tuple[Pattern, ...]) -> str:
    """Return patterns in short, such as `GET|HEAD`."""
    more = f" or {len(patterns) - _MAX_WORDS} more" if len(patterns) > _MAX_WORDS else ""
    return "|".join(map(str, patterns[:_MAX_WORDS])) + more
