"""Authorization decisions: which requests the sidecar of a pod denies.

No other module implements these rules. Predictions evaluate what `rules_of` returns with `decide`, and the
translator serves what `served_rules_of` returns: the same, except during transitions.

A rule never admits more because a part of it cannot be enforced: a rule of an ALLOW policy is dropped as a
whole, and a rule of a DENY policy loses only the condition, so it denies more. This concerns conditions that
sidecars do not support, and conditions on HTTP requests where connections are not parsed as HTTP.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple, assert_never

from xds.mesh.model.authorization import (
    MAX_TEMPLATE_LENGTH,
    Action,
    Attribute,
    Condition,
    Pattern,
    PatternKind,
    Rule,
)
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    DEFAULT_TRUST_DOMAIN,
    AllowStage,
    AuthorizationPolicy,
    MeshConfig,
    Pod,
    Ref,
    spiffe_id,
)


class NamedRule(NamedTuple):
    """A rule that a sidecar enforces."""

    name: str
    """Istio's name of the rule: `ns[NAMESPACE]-policy[NAME]-rule[INDEX]`."""
    policy: Ref
    """Policy that contains it."""
    rule: Rule
    """The rule, without what cannot be enforced."""


class Rules(NamedTuple):
    """The rules that a sidecar enforces. They are the same for many pods."""

    digest: int = 0
    """Hash of the rules, which is computed once."""
    deny: tuple[NamedRule, ...] = ()
    """Rules that deny a request if one of them matches."""
    allow: tuple[NamedRule, ...] | None = None
    """Rules of which one must match; None to allow all requests that are not denied."""
    policies: tuple[Ref, ...] = ()
    """Enforced policies that apply to the pod, also those of which no rule is left."""
    proposed: Rules | None = None
    """The rules that `istio.io/dry-run` and `sidecar.xds/dry-run` try; None if they are equal. Sidecars
    report what they would deny."""

    def __hash__(self) -> int:
        return self.digest

    @property
    def served(self) -> tuple[Ref, ...]:
        """All policies that apply to the pod, also those that are not enforced."""
        proposed = self.proposed.policies if self.proposed else ()
        return tuple(dict.fromkeys((*self.policies, *proposed)))

    def without_policies(self) -> Rules:
        """Return the rules alone. They may be the same for pods with different policies."""
        proposed = self.proposed and self.proposed.without_policies()
        return self._replace(policies=(), proposed=proposed)


def policies_of(mesh: Mesh, pod: Pod) -> tuple[AuthorizationPolicy, ...]:
    """Return the policies that apply to a pod, those of the root namespace first.

    Unlike PeerAuthentications, a narrower policy overrides no other policy.
    """
    root = mesh.config.root_namespace
    namespaces = dict.fromkeys((root, pod.namespace))
    return tuple(
        policy for name in namespaces for policy in mesh.in_namespace(name).authorizing(pod.meta.labels)
    )


def rules_of(mesh: Mesh, pod: Pod, *, http: bool) -> Rules:
    """Return the rules that a pod's sidecar enforces.

    Args:
        mesh: the facts.
        pod: the pod.
        http: whether for connections that are parsed as HTTP; others have no attributes of requests.
    """
    return _cached_rules(mesh, pod, (), http=http)


def served_rules_of(mesh: Mesh, pod: Pod, *, http: bool) -> Rules:
    """Return the rules that a pod's sidecar is served. During a transition, earlier policies may allow more.

    For the arguments, see `rules_of`.
    """
    return _cached_rules(mesh, pod, mesh.served.allow.get(pod.ref, ()), http=http)


def _cached_rules(mesh: Mesh, pod: Pod, stages: tuple[AllowStage, ...], *, http: bool) -> Rules:
    policies = policies_of(mesh, pod)
    cache: dict[object, Rules] = mesh.scratch.setdefault("authorization", {})
    key = (tuple(policy.ref for policy in policies), stages, http)
    if key not in cache:
        cache[key] = _rules(policies, stages, http=http)
    return cache[key]


def _rules(policies: Iterable[AuthorizationPolicy], stages: tuple[AllowStage, ...], *, http: bool) -> Rules:
    deciding = [policy for policy in policies if policy.action is not Action.AUDIT]
    enforced = [policy for policy in deciding if policy.is_enforced]
    tried = [policy for policy in deciding if not policy.tries_deletion]
    rules = _enforcing(enforced, stages, http=http)
    if stages or tried == enforced:
        return rules
    proposed, values = _enforcing(tried, (), http=http), sum(map(count_values, tried))
    is_too_much = values <= MAX_VALUES < values + sum(map(count_values, enforced))
    # Other rules in a filter chain end its connections.
    is_same = not http and (proposed.deny, proposed.allow) == (rules.deny, rules.allow)
    if is_too_much or is_same:
        return rules
    return rules._replace(digest=hash((rules, proposed)), proposed=proposed)


def _enforcing(
    enforced: Sequence[AuthorizationPolicy], stages: tuple[AllowStage, ...], *, http: bool
) -> Rules:
    refs = tuple(policy.ref for policy in enforced)
    denying = [policy for policy in enforced if policy.action is not Action.ALLOW]
    deny = tuple(rule for policy in denying for rule in enforceable_rules(policy, http=http))
    allow = _allow_rules([policy for policy in enforced if policy.action is Action.ALLOW], http=http)
    staged = [policy for stage in stages if stage.mtls for policy in stage.policies]
    if sum(map(count_values, enforced)) > MAX_VALUES:
        deny, allow = (NamedRule(TOO_MANY_VALUES, refs[-1], Rule()),), None
    elif stages and sum(map(count_values, (*denying, *staged))) <= MAX_VALUES:
        allow = tuple(_staged(stages, http=http))
    return Rules(hash((deny, allow)), deny, allow, refs)


def _allow_rules(policies: Sequence[AuthorizationPolicy], *, http: bool) -> tuple[NamedRule, ...] | None:
    """Return the rules of ALLOW policies; None if there is no policy."""
    rules = tuple(rule for policy in policies for rule in enforceable_rules(policy, http=http))
    return rules if policies else None


def _staged(stages: tuple[AllowStage, ...], *, http: bool) -> Iterator[NamedRule]:
    """Yield the rules of ALLOW policies during a transition. The earliest stage comes last."""
    mtls = (Pattern(PatternKind.PRESENT, ""),)
    everything = (NamedRule("no-policy", Ref("AuthorizationPolicy", "", ""), Rule()),)
    for number, stage in enumerate(reversed(stages)):
        rules = _allow_rules(stage.policies, http=http) if stage.mtls else ()
        more: tuple[Condition, ...] = ()
        if len(stage.mtls) == 1:
            values, excluded = (mtls, ()) if True in stage.mtls else ((), mtls)
            more = (Condition(Attribute.PRINCIPAL, values, excluded),)
        for name, policy, rule in everything if rules is None else rules:
            suffix = f"-earlier[{number}]" if number else ""
            yield NamedRule(name + suffix, policy, rule._replace(conditions=(*rule.conditions, *more)))


def allow_policies_of(mesh: Mesh, pod: Pod) -> tuple[AuthorizationPolicy, ...]:
    """Return the enforced ALLOW policies that apply to a pod."""
    return tuple(policy for policy in policies_of(mesh, pod) if policy.restricts)


def enforceable_rules(policy: AuthorizationPolicy, *, http: bool) -> Iterator[NamedRule]:
    """Yield the rules of a policy, without what cannot be enforced; see `rules_of`."""
    for index, rule in enumerate(policy.rules):
        name = f"ns[{policy.namespace}]-policy[{policy.name}]-rule[{index}]"
        if policy.action is not Action.ALLOW:
            yield NamedRule(name, policy.ref, _without_unenforceable(rule, http=http))
        elif all(is_enforceable(condition, http=http) for condition in conditions_of(rule)):
            yield NamedRule(name, policy.ref, rule)


MAX_VALUES = 5000
"""Maximum number of values in the policies of a pod. With more, all requests to it are denied: its sidecar
might not be able to receive the rules, and would keep the earlier ones. Proposed rules are left out if there
are more together."""
TOO_MANY_VALUES = "too-many-values"
"""Name of the rule that denies them."""


def count_values(policy: AuthorizationPolicy) -> int:
    """Return the number of values in the conditions of a policy's rules; at least one for each rule."""
    return sum(
        1 + sum(len(condition.values) + len(condition.excluded) for condition in conditions_of(rule))
        for rule in policy.rules
    )


def conditions_of(rule: Rule) -> Iterator[Condition]:
    """Yield all conditions of a rule."""
    for alternative in (*rule.sources, *rule.operations):
        yield from alternative
    yield from rule.conditions


def is_enforceable(condition: Condition, *, http: bool) -> bool:
    """Whether sidecars can enforce a condition, in connections that are parsed as HTTP or in others."""
    if condition.attribute is Attribute.UNSUPPORTED or (condition.attribute.is_http and not http):
        return False
    return not _NO_HEADER.search(condition.name) and all(
        pattern.kind is not PatternKind.TEMPLATE or _is_accepted(pattern.text)
        for pattern in (*condition.values, *condition.excluded)
    )


_NO_HEADER = re.compile(r"[\0\r\n]")
"""Characters in the name of a header with which Envoy rejects all rules."""


def _is_accepted(template: str) -> bool:
    """Whether Envoy accepts a template. It crashes if one has an empty segment (Envoy 1.40)."""
    return "//" not in template and len(template) <= MAX_TEMPLATE_LENGTH


def _without_unenforceable(rule: Rule, *, http: bool) -> Rule:
    def without(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
        return tuple(condition for condition in conditions if is_enforceable(condition, http=http))

    def alternatives(found: tuple[tuple[Condition, ...], ...]) -> tuple[tuple[Condition, ...], ...]:
        left = tuple(map(without, found))
        return left if all(left) else ()  # An alternative without conditions matches everything.

    return Rule(alternatives(rule.sources), alternatives(rule.operations), without(rule.conditions))


def unenforceable(policy: AuthorizationPolicy, *, http: bool) -> bool:
    """Whether a rule of a policy has a condition that cannot be enforced."""
    return any(
        not is_enforceable(condition, http=http) for rule in policy.rules for condition in conditions_of(rule)
    )


# --- decisions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is known of a request or connection. None: not known."""

    identity: str | None = ""
    """SPIFFE ID of the client; empty if it does not send mutual TLS."""
    source_ip: str | None = None
    """IP address of the client."""
    remote_ip: str | None = None
    """IP address of the original client, behind proxies."""
    destination_ip: str | None = None
    """IP address of the server."""
    port: int
    """Port of the server's pod."""
    sni: str | None = None
    """Server name of TLS; empty without TLS."""
    host: str | None = None
    """`Host` header, with its port."""
    method: str | None = None
    """HTTP method."""
    path: str | None = None
    """Normalized path, without a query."""
    headers: Mapping[str, str] | None = None
    """Headers, in lower case."""

    @property
    def is_http(self) -> bool:
        """Whether it is known to be an HTTP request."""
        return any(each is not None for each in (self.host, self.method, self.path, self.headers))


class Access(StrEnum):
    """Whether a request is allowed."""

    ALLOWED = "allowed"
    DENIED = "denied"
    DEPENDS = "depends"
    """It depends on what is not known of the request."""


class Verdict(NamedTuple):
    """Whether a request is allowed, and why."""

    access: Access
    """Whether it is allowed."""
    rules: tuple[NamedRule, ...] = ()
    """Rules that decide, or on which it depends. Empty if no rule of an ALLOW policy matches."""


def decide(config: MeshConfig, rules: Rules, request: Request) -> Verdict:
    """Decide whether a sidecar with these rules allows a request."""
    denying, may_deny = matching(config, rules.deny, request)
    if denying:
        return Verdict(Access.DENIED, denying[:1])
    if rules.allow is None:
        return Verdict(Access.DEPENDS, may_deny) if may_deny else Verdict(Access.ALLOWED)
    allowing, may_allow = matching(config, rules.allow, request)
    if not allowing and not may_allow:
        return Verdict(Access.DENIED)
    if may_deny or not allowing:
        return Verdict(Access.DEPENDS, (*may_deny, *(() if allowing else may_allow)))
    return Verdict(Access.ALLOWED, allowing[:1])


def matching(
    config: MeshConfig, rules: Iterable[NamedRule], request: Request
) -> tuple[tuple[NamedRule, ...], tuple[NamedRule, ...]]:
    """Return the rules that match, in Envoy's order, and those of which it is not known."""
    found = [(rule, _matches(config, rule.rule, request)) for rule in rules]
    matching = sorted((rule for rule, matches in found if matches), key=lambda rule: rule.name)
    return tuple(matching), tuple(rule for rule, matches in found if matches is None)


def _matches(config: MeshConfig, rule: Rule, request: Request) -> bool | None:
    """Whether a rule matches a request; None if that is not known."""

    def every(conditions: Iterable[Condition]) -> bool | None:
        return _all(holds(config, condition, request) for condition in conditions)

    return _all(
        (
            _any(map(every, rule.sources)) if rule.sources else True,
            _any(map(every, rule.operations)) if rule.operations else True,
            every(rule.conditions),
        )
    )


def _all(results: Iterable[bool | None]) -> bool | None:
    found = [*results]
    return False if False in found else None if None in found else True


def _any(results: Iterable[bool | None]) -> bool | None:
    found = [*results]
    return True if True in found else None if None in found else False


def holds(config: MeshConfig, condition: Condition, request: Request) -> bool | None:
    """Whether a request meets a condition; None if that is not known."""

    def has_one(patterns: tuple[Pattern, ...]) -> bool | None:
        return _any(_has(config, condition, pattern, request) for pattern in patterns)

    wanted = has_one(condition.values) if condition.values else True
    forbidden = has_one(condition.excluded) if condition.excluded else False
    return _all((wanted, None if forbidden is None else not forbidden))


def _has(config: MeshConfig, condition: Condition, pattern: Pattern, request: Request) -> bool | None:
    """Whether an attribute matches a pattern; None if it is not known."""
    match condition.attribute:
        case attribute if attribute.is_identity:
            found = spiffe_patterns(config, attribute, pattern)
            return None if request.identity is None else any(each.matches(request.identity) for each in found)
        case Attribute.SOURCE_IP:
            return _is_in(request.source_ip, pattern)
        case Attribute.REMOTE_IP:
            return _is_in(request.remote_ip, pattern)
        case Attribute.DESTINATION_IP:
            return _is_in(request.destination_ip, pattern)
        case Attribute.DESTINATION_PORT:
            return str(request.port) == pattern.text
        case Attribute.SNI:
            return is_like(request.sni, pattern)
        case Attribute.HOST:
            return _is_in_header(None if request.host is None else request.host.lower(), pattern)
        case Attribute.METHOD:
            return _is_in_header(request.method, pattern)
        case Attribute.PATH:
            return is_like(request.path, pattern)
        case Attribute.HEADER:
            return _has_header(request, condition.name, pattern)
        case _:
            raise AssertionError(f"rules_of leaves no condition on {condition.attribute}")


def _has_header(request: Request, name: str, pattern: Pattern) -> bool | None:
    match name:
        case ":authority" | "host":
            return _is_in_header(request.host, pattern)
        case ":method":
            return _is_in_header(request.method, pattern)
        case _ if name.startswith(":"):
            return None  # With the query, or of the connection.
        case _ if request.headers is None:
            return None
    return name in request.headers and _is_in_header(request.headers[name], pattern)


def _is_in_header(value: str | None, pattern: Pattern) -> bool | None:
    """Whether a header's value matches a pattern. An empty value is present."""
    return is_like(value, pattern) if value is None or pattern.kind is not PatternKind.PRESENT else True


def _is_in(address: str | None, block: Pattern) -> bool | None:
    if address is None:
        return None
    found = ipaddress.ip_address(address)
    # Sidecars see the clients of an IPv6 socket that use IPv4 at their IPv4 address.
    return (getattr(found, "ipv4_mapped", None) or found) in network(block)


def network(block: Pattern) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return a CIDR block."""
    return _network(block.text)


@lru_cache(maxsize=4096)
def _network(block: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(block)


def is_like(text: str | None, pattern: Pattern) -> bool | None:
    """Whether a text matches a pattern; None if the text is not known."""
    if text is None:
        return None
    match pattern.kind:
        case PatternKind.EXACT:
            return text == pattern.text
        case PatternKind.PREFIX:
            return text.startswith(pattern.text)
        case PatternKind.SUFFIX:
            return text.endswith(pattern.text)
        case PatternKind.PRESENT:
            return bool(text)
        case PatternKind.TEMPLATE:
            return _fits(text, pattern.text)
        case PatternKind.CONTAINS:
            return pattern.text in text
        case _:
            assert_never(pattern.kind)


_SEGMENT = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+,;:@=]+")
_REST = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+,;:@=/]*")
"""What Envoy accepts for `*` and `**` of a URI template."""


def _fits(path: str, template: str) -> bool:
    """Whether a path fits a template."""
    wanted, found = template.split("/"), path.split("/")
    if wanted[-1] == "{**}":
        wanted.pop()
        rest, found = found[len(wanted) :], found[: len(wanted)]
        if not rest or not _REST.fullmatch("/".join(rest)):
            return False
    return len(wanted) == len(found) and all(
        _SEGMENT.fullmatch(segment) if part == "{*}" else segment == part
        for part, segment in zip(wanted, found, strict=True)
    )


# --- identities -------------------------------------------------------------------------------------------


class SpiffePattern(NamedTuple):
    """A pattern for SPIFFE IDs. It needs no regular expression, so that no name has to be escaped."""

    pattern: Pattern
    """Pattern for the whole SPIFFE ID."""
    unless: tuple[str, ...] = ()
    """SPIFFE IDs that do not count."""
    unless_contains: str = ""
    """SPIFFE IDs that contain this do not count either."""

    def matches(self, identity: str) -> bool:
        """Whether it matches a SPIFFE ID; an empty one never matches."""
        if not identity or identity in self.unless:
            return False
        if self.unless_contains and self.unless_contains in identity:
            return False
        return bool(is_like(identity, self.pattern))


_SCHEME = "spiffe://"
_SEGMENTS_OF_PRINCIPAL = 5


def spiffe_patterns(config: MeshConfig, attribute: Attribute, pattern: Pattern) -> tuple[SpiffePattern, ...]:
    """Return the patterns for SPIFFE IDs of which one must match.

    SPIFFE IDs are `spiffe://DOMAIN/ns/NAMESPACE/sa/NAME`, and sidecars accept only the mesh's trust domains.

    Args:
        config: settings of the mesh.
        attribute: part of the SPIFFE ID.
        pattern: pattern for the part.
    """
    match attribute:
        case Attribute.PRINCIPAL:
            return tuple(_principal(Pattern.parse(name)) for name in _with_aliases(config, str(pattern)))
        case Attribute.TRUST_DOMAIN:
            # A trust domain of the mesh stands for all of them, as in principals.
            is_of_mesh = pattern.kind is PatternKind.EXACT and pattern.text in config.trust_domains
            domains = [each for each in config.trust_domains if is_of_mesh or is_like(each, pattern)]
            return tuple(_spiffe(PatternKind.PREFIX, f"{_SCHEME}{domain}/") for domain in domains)
        case Attribute.SERVICE_ACCOUNT:
            namespace, _, name = pattern.text.partition("/")
            return tuple(
                _spiffe(PatternKind.EXACT, spiffe_id(domain, namespace, name))
                for domain in config.trust_domains
            )
        case _:
            return _namespace(config, pattern)


def _spiffe(kind: PatternKind, text: str) -> SpiffePattern:
    return SpiffePattern(Pattern(kind, text))


def _principal(pattern: Pattern) -> SpiffePattern:
    text = pattern.text
    match pattern.kind:
        case PatternKind.SUFFIX:
            # The text may match the scheme as well as the rest, which is too short then.
            starts = (_SCHEME[index:] for index in range(len(_SCHEME)))
            unless = tuple(_SCHEME + text.removeprefix(start) for start in starts if text.startswith(start))
            return SpiffePattern(pattern, unless)
        case PatternKind.EXACT:
            return _spiffe(PatternKind.EXACT, _SCHEME + text)
        case _:
            return _spiffe(PatternKind.PREFIX, _SCHEME + text)


def _with_aliases(config: MeshConfig, principal: str) -> tuple[str, ...]:
    """Return a principal for each trust domain of the mesh, if it names one of them, as in Istio."""
    domain, *rest = principal.split("/")
    named = Pattern.parse(domain)
    is_of_mesh = domain == DEFAULT_TRUST_DOMAIN or (
        named.kind is not PatternKind.PRESENT and any(is_like(each, named) for each in config.trust_domains)
    )
    if len(rest) + 1 == _SEGMENTS_OF_PRINCIPAL and is_of_mesh:
        return tuple("/".join((name, *rest)) for name in config.trust_domains)
    return (principal,)


def _namespace(config: MeshConfig, pattern: Pattern) -> tuple[SpiffePattern, ...]:
    text = pattern.text
    if "/" in text:
        return ()  # No namespace is like that, but the rest of a SPIFFE ID may be.
    match pattern.kind:
        case PatternKind.SUFFIX:
            # In namespace sa, /ns/sa/ looks like the end of a namespace whose name ends with ns.
            unless = "/ns/sa/sa/" if "ns".endswith(text) else ""
            return (SpiffePattern(Pattern(PatternKind.CONTAINS, f"{text}/sa/"), unless_contains=unless),)
        case PatternKind.EXACT:
            text += "/"
    return tuple(
        _spiffe(PatternKind.PREFIX, f"{_SCHEME}{domain}/ns/{text}") for domain in config.trust_domains
    )
