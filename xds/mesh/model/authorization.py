"""Rules of AuthorizationPolicies: conditions on who calls, and on what they request."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Action(StrEnum):
    """`spec.action` of an AuthorizationPolicy."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


class Attribute(StrEnum):
    """What a condition is about, named as in `when` where Istio has a name."""

    PRINCIPAL = "source.principal"
    NAMESPACE = "source.namespace"
    SERVICE_ACCOUNT = "source.serviceAccount"
    TRUST_DOMAIN = "source.trustDomain"
    SOURCE_IP = "source.ip"
    REMOTE_IP = "remote.ip"
    DESTINATION_IP = "destination.ip"
    DESTINATION_PORT = "destination.port"
    SNI = "connection.sni"
    HOST = "request.host"
    METHOD = "request.method"
    PATH = "request.path"
    HEADER = "request.headers"
    UNSUPPORTED = "unsupported"
    """A condition that sidecars cannot enforce, such as one on JSON Web Tokens."""

    @property
    def is_http(self) -> bool:
        """Whether only HTTP requests have the attribute."""
        return self in _OF_HTTP

    @property
    def is_identity(self) -> bool:
        """Whether it is a part of the client's SPIFFE ID."""
        return self in _OF_IDENTITY

    @property
    def is_of_client(self) -> bool:
        """Whether it is about the client, not about the connection or the request."""
        return self in _OF_IDENTITY or self in {Attribute.SOURCE_IP, Attribute.REMOTE_IP}


_OF_HTTP = {Attribute.HOST, Attribute.METHOD, Attribute.PATH, Attribute.HEADER}
_OF_IDENTITY = {
    *(Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.SERVICE_ACCOUNT, Attribute.TRUST_DOMAIN)
}

SOURCE_FIELDS = {
    Attribute.PRINCIPAL: ("principals", "notPrincipals"),
    Attribute.NAMESPACE: ("namespaces", "notNamespaces"),
    Attribute.SERVICE_ACCOUNT: ("serviceAccounts", "notServiceAccounts"),
    Attribute.TRUST_DOMAIN: ("trustDomains", "notTrustDomains"),
    Attribute.SOURCE_IP: ("ipBlocks", "notIpBlocks"),
    Attribute.REMOTE_IP: ("remoteIpBlocks", "notRemoteIpBlocks"),
    Attribute.UNSUPPORTED: ("requestPrincipals", "notRequestPrincipals"),
}
OPERATION_FIELDS = {
    Attribute.HOST: ("hosts", "notHosts"),
    Attribute.DESTINATION_PORT: ("ports", "notPorts"),
    Attribute.METHOD: ("methods", "notMethods"),
    Attribute.PATH: ("paths", "notPaths"),
}
"""Fields of `source` and of `operation` with the values of an attribute, and with its excluded values."""

MAX_TEMPLATE_LENGTH = 256
"""Maximum length of a path template in Envoy, in characters."""


class PatternKind(StrEnum):
    """How a pattern matches a text."""

    EXACT = "exact"
    PREFIX = "prefix"
    """`abc*`"""
    SUFFIX = "suffix"
    """`*abc`"""
    PRESENT = "present"
    """`*`: any text that is not empty"""
    TEMPLATE = "template"
    """A path with `{*}` for one segment or `{**}` for any number of segments"""
    CONTAINS = "contains"
    """Any text with this in it. Only patterns for SPIFFE IDs use it: policies cannot contain it"""


class Pattern(NamedTuple):
    """A text, or a pattern for texts."""

    kind: PatternKind
    """How it matches."""
    text: str
    """The text without the wildcard."""

    @classmethod
    def parse(cls, value: str) -> Pattern:
        """Return the pattern that a value means, unless it is a template."""
        if value == "*":
            return cls(PatternKind.PRESENT, "")
        if value.endswith("*"):
            return cls(PatternKind.PREFIX, value[:-1])
        if value.startswith("*"):
            return cls(PatternKind.SUFFIX, value[1:])
        return cls(PatternKind.EXACT, value)

    def __str__(self) -> str:
        match self.kind:
            case PatternKind.PREFIX:
                return f"{self.text}*"
            case PatternKind.SUFFIX:
                return f"*{self.text}"
            case PatternKind.PRESENT:
                return "*"
            case _:
                return self.text


class Condition(NamedTuple):
    """A condition on one attribute: it has one of `values`, if there are any, and none of `excluded`."""

    attribute: Attribute
    """The attribute."""
    values: tuple[Pattern, ...] = ()
    """Patterns of which one must match."""
    excluded: tuple[Pattern, ...] = ()
    """Patterns of which none may match."""
    name: str = ""
    """Name of the header, or the key of a condition that is not supported."""


class Rule(NamedTuple):
    """A rule: one source, one operation and all conditions must match. Empty ones match everything."""

    sources: tuple[tuple[Condition, ...], ...] = ()
    """`from`: alternatives of which all conditions must match."""
    operations: tuple[tuple[Condition, ...], ...] = ()
    """`to`: alternatives of which all conditions must match."""
    conditions: tuple[Condition, ...] = ()
    """`when`."""
