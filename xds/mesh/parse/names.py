"""Kubernetes' rules for names. Each function returns what is wrong with a name, or an empty string."""

from __future__ import annotations

import ipaddress
import re

from xds.mesh.parse.reading import Field

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9._]*[a-z0-9])?")

_ADDRESS_LENGTH = 64
"""Maximum length of an address: IPv6 in full, with an interface name."""

_IS_LABEL = "is not a DNS label (a-z, 0-9 and '-', at most 63 characters, neither first nor last a '-')"


def label(name: str) -> str:
    """RFC 1123 label: namespaces, subsets, port names of services."""
    return "" if len(name) <= 63 and _LABEL.fullmatch(name) else _IS_LABEL


def service(name: str) -> str:
    """RFC 1035 label: services."""
    if wrong := label(name):
        return wrong
    return "" if _SERVICE.fullmatch(name) else "does not start with a letter, as the name of a Service must"


def subdomain(name: str) -> str:
    """RFC 1123 subdomain: most objects."""
    if len(name) <= 253 and name and all(_LABEL.fullmatch(part) for part in name.split(".")):
        return ""
    return "is not a DNS name (a-z, 0-9, '-' and '.', at most 253 characters)"


def port(name: str) -> str:
    """IANA service name: container ports, and target ports that name one."""
    if len(name) <= 15 and _LABEL.fullmatch(name) and "--" not in name and any(c.isalpha() for c in name):
        return ""
    return "is not a port name (a-z, 0-9 and single '-', at least one letter, at most 15 characters)"


def label_key(key: str) -> str:
    """Key of a label or annotation: a name, with an optional DNS prefix before a '/'."""
    prefix, slash, name = key.rpartition("/")
    if (slash and subdomain(prefix)) or len(name) > 63 or not _QUALIFIED.fullmatch(name):
        return "is not a label's name (like app, or example.com/app)"
    return ""


def label_value(value: str) -> str:
    """Value of a label."""
    if value == "" or (len(value) <= 63 and _QUALIFIED.fullmatch(value)):
        return ""
    return "is not a label's value (letters, digits, '-', '_' and '.', at most 63 characters)"


def address(text: str) -> str:
    """IP address."""
    if len(text) > _ADDRESS_LENGTH:
        return "is not an IP address"
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return "is not an IP address"
    return ""


def canonical(text: str) -> str:
    """Return an IP address in canonical form, an IPv4-mapped address as IPv4; any other text unchanged.

    Owners of addresses are compared as text, while Envoy accepts every form of an address.
    """
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return text
    return str((isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped) or found)


def host(name: str) -> str:
    """DNS name that may begin with a wildcard label: `*`, `*.local`, `web`, `web.shop.svc.cluster.local`."""
    rest = name if name != "*" and not name.startswith("*.") else name[2:]
    if (rest or name == "*") and (not rest or not subdomain(rest)):
        return ""
    return "is not a host name (a DNS name; a wildcard is '*', or '*.' before one)"


def trust_domain(name: str) -> str:
    """SPIFFE trust domain."""
    if len(name) <= 255 and _TRUST_DOMAIN.fullmatch(name):
        return ""
    return "is not a trust domain (a-z, 0-9, '-', '_' and '.'; without spiffe://)"


def labels(field: Field) -> dict[str, str]:
    """Parse labels of an object or a selector."""
    read: dict[str, str] = {}
    for key, entry in field.entries():
        if wrong := label_key(key):
            entry.refuse(wrong)
        read[key] = entry.name(label_value)
    return read


def selected(field: Field) -> dict[str, str] | None:
    """Parse an Istio selector; return None if it is absent.

    Istio supports only `matchLabels`. Other fields are refused, because ignoring them would widen the
    selection.
    """
    if not field.mapping():
        return None
    for name in field.value or ():
        if name != "matchLabels":
            field[str(name)].refuse("is not supported in a selector", "write matchLabels")
    return labels(field["matchLabels"])
