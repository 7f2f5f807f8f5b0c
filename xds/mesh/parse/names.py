"""Kubernetes' rules for names. Each check returns what is wrong with a name, or an empty string."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from xds.mesh.parse.reading import Field

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_LETTER = re.compile(r"[a-z]")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9._]*[a-z0-9])?")

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")
"""IPv4 addresses in canonical form. `ipaddress` takes ten times as long."""
_ADDRESS_LENGTH = 64
"""Maximum length of an IP address: a full IPv6 address with an interface name."""

_IS_LABEL = "is not a DNS label (a-z, 0-9 and '-', at most 63 characters, no '-' at the start or end)"


def label(name: str) -> str:
    """Check an RFC 1123 label: a namespace, a subset or the name of a service port."""
    return "" if len(name) <= 63 and _LABEL.fullmatch(name) else _IS_LABEL


def service(name: str) -> str:
    """Check an RFC 1035 label: the name of a Service."""
    if error := label(name):
        return error
    return "" if _SERVICE.fullmatch(name) else "does not start with a letter, as the name of a Service must"


def subdomain(name: str) -> str:
    """Check an RFC 1123 subdomain: the name of most kinds of objects."""
    if len(name) <= 253 and _SUBDOMAIN.fullmatch(name):
        return ""
    return "is not a DNS name (a-z, 0-9, '-' and '.', at most 253 characters)"


def port(name: str) -> str:
    """Check an IANA service name: the name of a container port, or a targetPort that refers to one."""
    if len(name) <= 15 and _LABEL.fullmatch(name) and "--" not in name and _LETTER.search(name):
        return ""
    return "is not a port name (a-z, 0-9 and single '-', at least one letter, at most 15 characters)"


def label_key(key: str) -> str:
    """Check a label's key: a name, with an optional DNS prefix before a '/'."""
    prefix, slash, name = key.rpartition("/")
    if (slash and subdomain(prefix)) or len(name) > 63 or not _QUALIFIED.fullmatch(name):
        return "is not a label's name (like app, or example.com/app)"
    return ""


def label_value(value: str) -> str:
    """Check a label's value."""
    if value == "" or (len(value) <= 63 and _QUALIFIED.fullmatch(value)):
        return ""
    return "is not a label's value (letters, digits, '-', '_' and '.', at most 63 characters)"


def address(text: str) -> str:
    """Check an IP address."""
    return "" if _canonical(text) else "is not an IP address"


def is_special(text: str) -> bool:
    """Return whether text is an IP address that is link-local, loopback, multicast or unspecified."""
    if not (found := _canonical(text)):
        return False
    parsed = ipaddress.ip_address(found)
    return parsed.is_link_local or parsed.is_loopback or parsed.is_multicast or parsed.is_unspecified


def canonical(text: str) -> str:
    """Return an IP address in canonical form, and an IPv4-mapped IPv6 address as IPv4.

    Any other text is returned unchanged. Addresses must be canonical because they are compared as text, while
    Envoy accepts every form of an address.
    """
    return _canonical(text) or text


@lru_cache(maxsize=1024)
def _canonical(text: str) -> str:
    """Return an IP address in canonical form; empty for any other text. A pod lists its address twice."""
    if _IPV4.fullmatch(text):
        return text
    if len(text) > _ADDRESS_LENGTH:
        return ""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return str((isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped) or parsed)


def api_service(name: str) -> str:
    """Check the name of an APIService. That of the core group ends with a dot: `v1.`."""
    return subdomain(name.removesuffix("."))


def host(name: str) -> str:
    """Check a DNS name, a wildcard such as `*.local`, or `*`."""
    domain = name if name != "*" and not name.startswith("*.") else name[2:]
    if (domain or name == "*") and (not domain or not subdomain(domain)):
        return ""
    return "is not a host name (a DNS name, '*', or '*.' and a DNS name)"


def trust_domain(name: str) -> str:
    """Check a SPIFFE trust domain."""
    if len(name) <= 255 and _TRUST_DOMAIN.fullmatch(name):
        return ""
    return "is not a trust domain (a-z, 0-9, '-', '_' and '.'; without spiffe://)"


def labels(field: Field, *, select: bool = False) -> dict[str, str]:
    """Parse labels.

    Args:
        field: the labels by key.
        select: whether they select pods. A label without a value is then an error: the selector would match
            only pods whose label is empty. In the labels of an object, it is an empty label.
    """
    labels = field.mapping().value or {}
    for key, value in labels.items():
        if not (type(value) is type(key) is str and _is_label(key, value)):
            break
    else:
        return dict(labels)
    parsed: dict[str, str] = {}
    for key, entry in field.entries():
        if error := label_key(key):
            entry.refuse(error)
        if select and entry.value is None:
            entry.refuse("must be a string, not null", 'write the value of the label, or "" if it is empty')
        parsed[key] = entry.name(label_value)
    return parsed


def _is_label(key: str, value: str) -> bool:
    return len(key) < 320 and len(value) < 64 and _is_short_label(key, value)


@lru_cache(maxsize=4096)
def _is_short_label(key: str, value: str) -> bool:
    """Whether a label is valid. Most labels are those of several objects."""
    return not (label_key(key) or label_value(value))


def selected(field: Field) -> dict[str, str] | None:
    """Parse an Istio selector; return None if it is absent.

    Istio supports only `matchLabels`. Any other field is an error, because a selector without it could match
    more workloads.
    """
    if not field.mapping():
        return None
    for name in field.value or ():
        if name != "matchLabels":
            field[str(name)].refuse("is not supported in a selector", "write matchLabels")
    return labels(field["matchLabels"], select=True)
