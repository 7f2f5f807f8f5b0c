"""Authorization as Envoy's RBAC filters: one for the rules that deny, and one for those that allow.

HTTP filters get their rules by extension config discovery (ECDS): the next request on an open connection
obeys new rules, and no connection is drained. All pods have these filters, so that this applies to the first
policy and to the removal of the last one as well. Network filters are a part of the filter chain. A change of
their rules replaces the chain, so open connections end (ADR 31).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from envoy_data_plane.envoy.config.core.v3 import CidrRange, ExtensionConfigSource, TypedExtensionConfig
from envoy_data_plane.envoy.config.listener.v3 import Filter
from envoy_data_plane.envoy.config.rbac.v3 import (
    Permission,
    PermissionSet,
    Policy,
    Principal,
    PrincipalAuthenticated,
    PrincipalSet,
    Rbac,
    RbacAction,
)
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher
from envoy_data_plane.envoy.extensions.filters.http.rbac.v3 import Rbac as HttpRbac
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.filters.network.rbac.v3 import Rbac as NetworkRbac
from envoy_data_plane.envoy.extensions.path.match.uri_template.v3 import UriTemplateMatchConfig
from envoy_data_plane.envoy.type.matcher.v3 import PathMatcher, RegexMatcher, StringMatcher

from xds.codec import pack
from xds.mesh.envoy.common import ads
from xds.mesh.model.authorization import Attribute, Condition, Pattern, PatternKind
from xds.mesh.model.objects import MeshConfig
from xds.mesh.policy.authorization import (
    NamedRule,
    Rules,
    network,
    spiffe_patterns,
)
from xds.resources import Resource, resource

_HTTP_RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
_ACTIONS = {
    "authorization-deny": (RbacAction.DENY, "deny_"),
    "authorization-allow": (RbacAction.ALLOW, "allow_"),
}
"""Names of the filters, in their order, with their actions and the prefixes of their metadata."""


@lru_cache(maxsize=1)
def http_filters() -> tuple[HttpFilter, ...]:
    """Return the HTTP filters, which get their rules as the resources that `http_rules` returns.

    Without its resource, a filter responds 500 to all requests.
    """
    return tuple(
        HttpFilter(
            name=name, config_discovery=ExtensionConfigSource(config_source=ads(), type_urls=[_HTTP_RBAC])
        )
        for name in _ACTIONS
    )


@lru_cache(maxsize=4096)
def http_rules(config: MeshConfig, rules: Rules, sources: tuple[str, ...]) -> tuple[Resource, ...]:
    """Return the configuration of the HTTP filters."""
    return tuple(
        resource(
            TypedExtensionConfig(
                name=name,
                typed_config=pack(
                    HttpRbac(
                        rules=_rbac(config, rules, action),
                        shadow_rules=_proposed(config, rules, action),
                        shadow_rules_stat_prefix=prefix if rules.proposed else "",
                    )
                ),
            ),
            sources=sources,
        )
        for name, (action, prefix) in _ACTIONS.items()
    )


@lru_cache(maxsize=4096)
def network_filters(config: MeshConfig, rules: Rules) -> tuple[Filter, ...]:
    """Return the network filters for connections that are not parsed as HTTP."""
    return tuple(
        Filter(
            name=name,
            typed_config=pack(
                NetworkRbac(
                    rules=rbac,
                    shadow_rules=proposed,
                    shadow_rules_stat_prefix=prefix if rules.proposed else "",
                    stat_prefix="tcp.",
                )
            ),
        )
        for name, (action, prefix) in _ACTIONS.items()
        for rbac, proposed in [(_rbac(config, rules, action), _proposed(config, rules, action))]
        if rbac is not None or proposed is not None  # An empty message is falsy.
    )


def _proposed(config: MeshConfig, rules: Rules, action: RbacAction) -> Rbac | None:
    return _rbac(config, rules.proposed, action) if rules.proposed else None


def _rbac(config: MeshConfig, rules: Rules, action: RbacAction) -> Rbac | None:
    """Return the rules with an action; None to enforce nothing. ALLOW without rules denies everything."""
    named = rules.allow if action is RbacAction.ALLOW else rules.deny or None
    return (
        None
        if named is None
        else Rbac(action=action, policies={rule.name: _policy(config, rule) for rule in named})
    )


def _policy(config: MeshConfig, named: NamedRule) -> Policy:
    _, operations, conditions = rule = named.rule
    of_client = [condition for condition in conditions if condition.attribute.is_of_client]
    others = [condition for condition in conditions if not condition.attribute.is_of_client]
    return Policy(
        principals=[_every_principal(config, (*source, *of_client)) for source in rule.sources or ((),)],
        permissions=[_every_permission((*operation, *others)) for operation in operations or ((),)],
    )


# --- the client -------------------------------------------------------------------------------------------


def _every_principal(config: MeshConfig, conditions: Iterable[Condition]) -> Principal:
    ids: list[Principal] = []
    for attribute, values, excluded, _ in conditions:
        if values:
            ids.append(_any_principal(config, attribute, values))
        if excluded:
            ids.append(Principal(not_id=_any_principal(config, attribute, excluded)))
    match ids:
        case []:
            return Principal(any=True)
        case [single]:
            return single
    return Principal(and_ids=PrincipalSet(ids=ids))


def _any_principal(config: MeshConfig, attribute: Attribute, patterns: Iterable[Pattern]) -> Principal:
    ids = [found for pattern in patterns for found in _principals(config, attribute, pattern)]
    match ids:
        case []:  # It matches nothing.
            return Principal(not_id=Principal(any=True))
        case [single]:
            return single
    return Principal(or_ids=PrincipalSet(ids=ids))


def _principals(config: MeshConfig, attribute: Attribute, pattern: Pattern) -> Iterator[Principal]:
    match attribute:
        case Attribute.SOURCE_IP:
            yield Principal(direct_remote_ip=_block(pattern))
        case Attribute.REMOTE_IP:
            yield Principal(remote_ip=_block(pattern))
        case _:
            for found in spiffe_patterns(config, attribute, pattern):
                unless = [_with_id(Pattern(PatternKind.EXACT, name)) for name in found.unless]
                if found.unless_contains:
                    unless.append(_with_id(Pattern(PatternKind.CONTAINS, found.unless_contains)))
                ids = [_with_id(found.pattern), *(Principal(not_id=each) for each in unless)]
                yield Principal(and_ids=PrincipalSet(ids=ids)) if unless else ids[0]


def _with_id(pattern: Pattern) -> Principal:
    """Return a principal for clients whose certificate has a SPIFFE ID that matches.

    The listener requires a certificate of the mesh, so it is enough to look at its name. Envoy's principal
    `mtls_authenticated` never matches a TLS session that a client resumes, because Envoy does not remember
    that it verified the certificate.
    """
    name = _matcher(pattern.kind, pattern.text)
    return Principal(authenticated=PrincipalAuthenticated(principal_name=name))


def _block(pattern: Pattern) -> CidrRange:
    block = network(pattern)
    return CidrRange(address_prefix=str(block.network_address), prefix_len=block.prefixlen)


# --- the connection and the request -----------------------------------------------------------------------


def _every_permission(conditions: Iterable[Condition]) -> Permission:
    rules: list[Permission] = []
    for condition in conditions:
        if condition.values:
            rules.append(_any_permission(condition, condition.values))
        if condition.excluded:
            rules.append(Permission(not_rule=_any_permission(condition, condition.excluded)))
    match rules:
        case []:
            return Permission(any=True)
        case [single]:
            return single
    return Permission(and_rules=PermissionSet(rules=rules))


def _any_permission(condition: Condition, patterns: Iterable[Pattern]) -> Permission:
    rules = [_permission(condition, pattern) for pattern in patterns]
    return rules[0] if len(rules) == 1 else Permission(or_rules=PermissionSet(rules=rules))


def _permission(condition: Condition, pattern: Pattern) -> Permission:
    match condition.attribute:
        case Attribute.DESTINATION_IP:
            return Permission(destination_ip=_block(pattern))
        case Attribute.DESTINATION_PORT:
            return Permission(destination_port=int(pattern.text))
        case Attribute.SNI:
            return Permission(requested_server_name=_string(pattern))
        case Attribute.HOST:
            return _header(":authority", pattern, ignore_case=True)
        case Attribute.METHOD:
            return _header(":method", pattern)
        case Attribute.PATH if pattern.kind is PatternKind.TEMPLATE:
            template = pattern.text.replace("{*}", "*").replace("{**}", "**")
            config = pack(UriTemplateMatchConfig(path_template=template))
            name = "envoy.path.match.uri_template.uri_template_matcher"
            return Permission(uri_template=TypedExtensionConfig(name=name, typed_config=config))
        case Attribute.PATH:
            return Permission(url_path=PathMatcher(path=_string(pattern)))
        case _:
            return _header(condition.name, pattern)


def _header(name: str, pattern: Pattern, *, ignore_case: bool = False) -> Permission:
    if pattern.kind is PatternKind.PRESENT:
        return Permission(header=HeaderMatcher(name=name, present_match=True))
    return Permission(header=HeaderMatcher(name=name, string_match=_string(pattern, ignore_case=ignore_case)))


def _string(pattern: Pattern, *, ignore_case: bool = False) -> StringMatcher:
    if pattern.kind is PatternKind.PRESENT:
        return StringMatcher(safe_regex=RegexMatcher(regex=".+"))
    return _matcher(pattern.kind, pattern.text, ignore_case=ignore_case)


def _matcher(kind: str, text: str, *, ignore_case: bool = False) -> StringMatcher:
    fields: dict[str, Any] = {kind: text}
    return StringMatcher(**fields, ignore_case=ignore_case)
