"""Parse AuthorizationPolicies.

An invalid policy is rejected. Conditions that are valid in Istio, but cannot be enforced by sidecars, such as
those on JSON Web Tokens, are kept as unsupported conditions: `policy.authorization` decides what they mean.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator, Mapping

from xds.mesh.model.authorization import (
    MAX_TEMPLATE_LENGTH,
    OPERATION_FIELDS,
    SOURCE_FIELDS,
    Action,
    Attribute,
    Condition,
    Pattern,
    PatternKind,
    Rule,
)
from xds.mesh.model.objects import DRY_RUN, TRY, AuthorizationPolicy, Fact, Meta
from xds.mesh.parse import names
from xds.mesh.parse.core import TOP
from xds.mesh.parse.fail_closed import FailClosed
from xds.mesh.parse.reading import Field, Log, shown

_MAX_ITEMS = 512
"""Maximum number of rules, and of items of `from`, `to` and `when`. Istio does not limit `when`."""
_MAX_SERVICE_ACCOUNTS = 16
"""Maximum number of service accounts of a source, as in Istio."""
_MAX_TARGETS = 16
"""Maximum number of targets, as in Istio."""
_MAX_VALUE_LENGTH = 4096
"""Maximum length of a value or key, in characters."""

_WHEN = {
    attribute.value: attribute
    for attribute in (
        *(Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.SERVICE_ACCOUNT, Attribute.TRUST_DOMAIN),
        *(Attribute.SOURCE_IP, Attribute.REMOTE_IP, Attribute.DESTINATION_IP, Attribute.DESTINATION_PORT),
        Attribute.SNI,
    )
}
_UNSUPPORTED_KEYS = ("request.auth.principal", "request.auth.audiences", "request.auth.presenter")
_HEADER = re.compile(r":?[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CHARACTERS = {
    Attribute.NAMESPACE: re.compile(r"[a-z0-9-]*"),
    Attribute.TRUST_DOMAIN: re.compile(r"[a-z0-9._-]*"),
}
"""Characters of values that contain no others."""
_BLOCK = re.compile(r"[0-9a-fA-F:.]{2,45}(/(0|[1-9][0-9]{0,2}))?")
_PORT = re.compile(r"0*[1-9][0-9]{0,4}")
_PATH = re.compile(r"[][A-Za-z0-9\-._~%!$&'()*+,;:@=/]*")
"""Characters of normalized paths."""
_ESCAPED = re.compile(r"%(2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])", re.IGNORECASE)
"""Escaped characters that a normalized path contains unescaped."""
_SEGMENT = re.compile(r"[A-Za-z0-9\-._~%!$&'()+,;:@=]+")
"""A segment of a path template. Other ones terminate Envoy, such as an empty one that is not the last."""
_NO_TOKENS = "sidecars do not verify JSON Web Tokens"


def authorization_policy(obj: Field, meta: Meta) -> AuthorizationPolicy | None:
    """Parse an AuthorizationPolicy; return None if it is valid and applies to no sidecar."""
    obj.mapping(f"{TOP} spec status", strict=True)
    spec = obj["spec"].mapping("selector targetRef targetRefs rules action provider", strict=True)
    action = spec["action"].choice(Action) or Action.ALLOW
    selector = names.selected(spec["selector"])
    rules = tuple(_Reader(meta.ref.namespace, action).rules(spec["rules"]))
    if spec["rules"].value in (None, []) and action in (Action.DENY, Action.CUSTOM):
        spec["rules"].refuse(
            f"must contain a rule if the action is {action}", "to match all requests, write rules: [{}]"
        )
    dry_run = _dry_run(obj, meta, action)
    if action is Action.CUSTOM:
        spec["provider"].mapping("name", strict=True)["name"].required().text()
        spec["action"].warn(
            "CUSTOM cannot be enforced, because no external authorizer is supported",
            "requests that its rules match are denied",
        )
    elif spec["provider"]:
        spec["provider"].refuse("must be absent unless the action is CUSTOM")
    if action is Action.AUDIT:
        spec["action"].notice("AUDIT has no effect", "no audit provider is supported")
    has_targets = _has_targets(spec)
    if has_targets and not obj.log.refused:
        return None
    return AuthorizationPolicy(
        meta=meta,
        action=action,
        selector=selector or {},
        rules=rules,
        # A rejected policy with targets needs no replacement.
        dry_run=dry_run or (has_targets and selector is None and _names_kind(spec)),
        tries_deletion=_tries_deletion(obj, meta, dry_run=dry_run),
    )


def _names_kind(spec: Field) -> bool:
    """Whether a target names a kind: the policy is certainly not for sidecars, even if it is invalid."""
    several = spec["targetRefs"].value
    targets = [spec["targetRef"].value, *(several if isinstance(several, list) else ())]
    return any(isinstance(target, dict) and target.get("kind") for target in targets)


def _has_targets(spec: Field) -> bool:
    """Check the targets of a policy, and return whether it has some."""
    present = [spec[name] for name in ("targetRef", "targetRefs") if spec[name].value not in (None, [])]
    for target in (spec["targetRef"], *_bounded(spec["targetRefs"], _MAX_TARGETS)):
        if target:
            target.mapping("group kind name namespace", strict=True)
            target["group"].text()
            target["kind"].required().text()
            target["name"].required().text()
            if target["namespace"].value:
                target["namespace"].refuse("must be absent", "a target must be in the policy's namespace")
    if spec["selector"] and present:
        present[0].refuse("must be absent if there is a selector", "remove one of them")
    elif len(present) > 1:
        present[0].refuse("must be absent if there are targetRefs", "add it to targetRefs")
    elif present:
        present[0].warn("is not supported, so the policy has no effect", "sidecars need a selector")
    return bool(present)


def _dry_run(obj: Field, meta: Meta, action: Action) -> bool:
    value = meta.annotations.get(DRY_RUN, "false")
    annotation = obj["metadata"]["annotations"][DRY_RUN]
    # Istio accepts what Go parses as a boolean.
    is_set = value.lower() in ("true", "t", "1")
    if not is_set and value.lower() not in ("false", "f", "0"):
        annotation.refuse(f"must be true or false, not {shown(value)}")
    elif is_set and action not in (Action.ALLOW, Action.DENY):
        annotation.refuse(f"is not supported for action {action}", "use it with ALLOW or DENY")
    elif is_set:
        annotation.notice(
            "is set, so the policy is not enforced", "xds observe --denied prints what it would deny"
        )
    return is_set


def _tries_deletion(obj: Field, meta: Meta, *, dry_run: bool) -> bool:
    if (value := meta.annotations.get(TRY)) is None:
        return False
    annotation = obj["metadata"]["annotations"][TRY]
    if value != "delete":
        annotation.warn(f"must be delete, not {shown(value)}, so it has no effect")
    elif dry_run:
        annotation.warn("has no effect, because the policy is not enforced", f"remove {DRY_RUN}")
    else:
        annotation.notice(
            "is set, so the deletion of the policy is tried",
            "xds observe --denied prints what would be denied without it",
        )
        return True
    return False


def _bounded(field: Field, maximum: float) -> Iterator[Field]:
    """Yield the items of a list, which must not have more than a number of them."""
    if isinstance(field.value, list) and len(field.value) > maximum:
        field.refuse(f"must have at most {maximum} items, not {len(field.value)}")
    else:
        yield from field.items()


def _items(parent: Field, name: str, maximum: float = _MAX_ITEMS) -> Iterator[Field]:
    """Yield the items of a list that may be absent, but not empty: it would then restrict nothing."""
    if parent.has(name) and parent[name].value in (None, []):
        parent[name].refuse("must have an item", f"remove {name} if it is not to restrict anything")
    yield from _bounded(parent[name], maximum)


class _Reader:
    """Read the rules of a policy."""

    def __init__(self, namespace: str, action: Action) -> None:
        self._namespace = namespace
        self._action = action

    def rules(self, field: Field) -> Iterator[Rule]:
        """Yield the rules."""
        for item in _bounded(field, _MAX_ITEMS):
            item.mapping("from to when", strict=True)
            yield Rule(
                sources=tuple(self._alternatives(item, "from", "source", SOURCE_FIELDS)),
                operations=tuple(self._alternatives(item, "to", "operation", OPERATION_FIELDS)),
                conditions=tuple(map(self._when, _items(item, "when"))),
            )

    def _alternatives(
        self, rule: Field, name: str, wrapper: str, attributes: Mapping[Attribute, tuple[str, str]]
    ) -> Iterator[tuple[Condition, ...]]:
        """Yield the conditions of each item of `from` or `to`."""
        known = " ".join(each for lists in attributes.values() for each in lists)
        for item in _items(rule, name):
            inner = item.mapping(wrapper, strict=True)[wrapper].mapping(known, strict=True)
            if not inner.value:
                inner.refuse("is required, with a condition", f"to match everything, remove {name}")
            conditions = []
            for attribute, lists in attributes.items():
                if present := [each for each in lists if inner.has(each)]:
                    label = present[0] if attribute is Attribute.UNSUPPORTED else ""
                    conditions.append(self._condition(attribute, inner, lists, inner[present[0]], label))
            if inner.has("serviceAccounts") or inner.has("notServiceAccounts"):
                for other in ("principals", "notPrincipals", "namespaces", "notNamespaces"):
                    if inner[other]:
                        inner[other].refuse("must be absent if there are service accounts")
            yield tuple(conditions)

    def _when(self, item: Field) -> Condition:
        item.mapping("key values notValues", strict=True)
        attribute, name = self._attribute(item["key"].required())
        if not item["values"] and not item["notValues"]:
            item.refuse("must have values or notValues")
        return self._condition(attribute, item, ("values", "notValues"), item["key"], name)

    def _attribute(self, field: Field) -> tuple[Attribute, str]:
        """Return what a key of `when` means, and the name of the header or the unsupported key."""
        key = field.text()[: _MAX_VALUE_LENGTH + 1]
        family, bracket, rest = key.partition("[")
        name = rest[:-1] if rest.endswith("]") else ""
        if key in _WHEN:
            return _WHEN[key], ""
        if family == "request.headers" and bracket:
            if not _HEADER.fullmatch(name) or len(key) > _MAX_VALUE_LENGTH:
                field.refuse(f"{shown(key)} has no valid name of a header", "write request.headers[NAME]")
            return Attribute.HEADER, name.lower()
        is_unsupported = family == "request.auth.claims" or family.startswith("experimental.envoy.filters.")
        if key in _UNSUPPORTED_KEYS or (is_unsupported and name):
            return Attribute.UNSUPPORTED, key
        if key:
            known = (*_WHEN, "request.headers[NAME]")
            field.refuse(f"{shown(key)} is not a known key", field.log.nearest(key, known))
        return Attribute.UNSUPPORTED, ""

    def _condition(
        self, attribute: Attribute, parent: Field, lists: tuple[str, str], place: Field, name: str
    ) -> Condition:
        """Return the condition of two lists, of values and of excluded values.

        Args:
            attribute: the attribute.
            parent: the mapping with the lists.
            lists: names of the lists.
            place: field that is named if the condition cannot be enforced.
            name: name of the header, or of the unsupported key or field.
        """
        is_token = attribute is Attribute.UNSUPPORTED and not name.startswith("experimental.")
        if self._action is Action.CUSTOM and (attribute.is_identity or is_token):
            place.refuse("is not supported with action CUSTOM")
        elif attribute is Attribute.UNSUPPORTED and name and self._action is not Action.AUDIT:
            what = f"{shown(name)} cannot be enforced" if place.value == name else "cannot be enforced"
            place.warn(
                f"{what}: {_NO_TOKENS}" if is_token else what,
                "the rule allows nothing"
                if self._action is Action.ALLOW
                else "the rule denies requests without regard to this condition",
            )
        maximum = _MAX_SERVICE_ACCOUNTS if attribute is Attribute.SERVICE_ACCOUNT else math.inf
        values, excluded = (
            tuple(self._pattern(item, attribute) for item in _items(parent, each, maximum)) for each in lists
        )
        return Condition(attribute, values, excluded, name)

    def _pattern(self, item: Field, attribute: Attribute) -> Pattern:
        value = item.required().text()
        if len(value) > _MAX_VALUE_LENGTH:
            item.refuse(f"must have at most {_MAX_VALUE_LENGTH} characters, not {len(value)}")
            return Pattern.parse("")
        if not value.isprintable():
            item.refuse(f"{shown(value)} contains a control character")
        match attribute:
            case _ if not value:
                return Pattern.parse("")
            case Attribute.UNSUPPORTED:
                return Pattern.parse(value)
            case Attribute.SOURCE_IP | Attribute.REMOTE_IP | Attribute.DESTINATION_IP:
                return Pattern.parse(_block(item, value))
            case Attribute.DESTINATION_PORT:
                return Pattern.parse(_port(item, value))
            case Attribute.SERVICE_ACCOUNT:
                return Pattern.parse(self._service_account(item, value))
            case Attribute.PATH if "{" in value or "}" in value:
                return _template(item, value)
            case Attribute.HOST | Attribute.SNI:
                value = value.lower()  # As Envoy compares it.
        pattern = Pattern.parse(value)
        if "*" in pattern.text:
            what = f"{shown(value)} must have at most one '*', at its start or end"
            item.refuse(what, "write {*} for a segment of a path" if attribute is Attribute.PATH else "")
        elif attribute in _CHARACTERS and not _CHARACTERS[attribute].fullmatch(pattern.text):
            item.refuse(f"{shown(value)} has a character that cannot occur in a {attribute.value}")
        elif attribute is Attribute.PRINCIPAL and pattern.text.startswith("spiffe://"):
            item.refuse(f"{shown(value)} matches nothing", "remove spiffe://")
        elif attribute is Attribute.PATH and not is_normalized(pattern):
            item.refuse(
                f"{shown(value)} matches nothing", "sidecars compare normalized paths without queries"
            )
        return pattern

    def _service_account(self, item: Field, value: str) -> str:
        namespace, slash, name = value.rpartition("/")
        if names.subdomain(name) or (slash and names.label(namespace)):
            item.refuse(f"{shown(value)} is not a service account", "write NAME or NAMESPACE/NAME")
        return f"{namespace or self._namespace}/{name}"


def _block(item: Field, value: str) -> str:
    """Return an IP address or a CIDR block as a CIDR block. Envoy compares IPv4-mapped addresses as IPv4."""
    try:
        block = ipaddress.ip_network(value if _BLOCK.fullmatch(value) else "", strict=False)
    except ValueError:
        item.refuse(f"{shown(value)} is neither an IP address nor a CIDR block")
        return ""
    mapped = block.network_address.ipv4_mapped if isinstance(block, ipaddress.IPv6Network) else None
    return f"{mapped}/{block.prefixlen - 96}" if mapped and block.prefixlen >= 96 else str(block)


def _port(item: Field, value: str) -> str:
    if not _PORT.fullmatch(value) or int(value) > 65535:
        item.refuse(f"must be a port from 1 to 65535, not {shown(value)}")
    return value.lstrip("0")


def is_normalized(pattern: Pattern) -> bool:
    """Whether the normalization of a path would not change what a pattern compares with it."""
    segments = pattern.text.split("/")
    complete = segments[pattern.kind is PatternKind.SUFFIX :]
    if pattern.kind is PatternKind.PREFIX:
        complete.pop()
    is_plain = _PATH.fullmatch(pattern.text) and not _ESCAPED.search(pattern.text)
    return bool(is_plain) and not {".", ".."} & {*complete}


def _template(item: Field, value: str) -> Pattern:
    segments = value.split("/")
    *others, last = segments[1:] or [""]
    is_valid = segments[0] == "" and all(part == "{*}" or _SEGMENT.fullmatch(part) for part in others)
    is_valid = is_valid and (last in ("", "{*}", "{**}") or bool(_SEGMENT.fullmatch(last)))
    if len(value) > MAX_TEMPLATE_LENGTH:
        item.refuse(f"must have at most {MAX_TEMPLATE_LENGTH} characters, not {len(value)}")
    elif not is_valid or not is_normalized(Pattern.parse(value.replace("{", "").replace("}", ""))):
        item.refuse(
            f"{shown(value)} is not a path template",
            "write {*} for a whole segment, and {**} only as the last one; no other '*', '{' or '}'",
        )
    return Pattern(PatternKind.TEMPLATE, value)


def authorization_policy_fail_closed(meta: Meta, parsed: Fact | None, log: Log) -> FailClosed | None:
    """Return the replacement for a rejected policy: all requests to the pods that it selects are denied."""
    selector = {}
    if isinstance(parsed, AuthorizationPolicy):
        if parsed.dry_run and log.is_readable("metadata", "annotations", DRY_RUN):
            return None
        if parsed.action is Action.AUDIT and log.is_readable("spec", "action"):
            return None
        if log.is_readable("spec", "selector"):
            selector = {**parsed.selector}
    fact = AuthorizationPolicy(meta=meta, action=Action.DENY, selector=selector, rules=(Rule(),))
    scope = f"pods in namespace {meta.ref.namespace}"
    if selector:
        scope += f" with labels {', '.join(f'{key}={value}' for key, value in selector.items())}"
    root_scope = f"(if {meta.ref.namespace} is the root namespace, in the whole mesh)"
    return FailClosed(fact, f"all requests to {scope} {root_scope} are denied")
