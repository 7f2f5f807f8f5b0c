"""Translate Istio's traffic annotations to arguments of `xds init`."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from itertools import islice

from xds.mesh.inject.containers import PROXY_GROUP
from xds.mesh.inject.settings import InjectionSettings
from xds.mesh.parse.reading import Field, nearest
from xds.mesh.parse.redirection import (
    MAX_LIST_LENGTH,
    TRAFFIC_PREFIX,
    includes_pod_interface,
    networks_with_host_bits,
    parse_interfaces,
    parse_networks,
    parse_ports,
)
from xds.mesh.sidecar.settings import PROXY_ID, SIDECAR_PORTS

MAX_SUGGESTIONS = 4
"""Maximum number of suggestions for unknown annotations; each takes 0.2 ms to compute."""
MAX_NOTICES = 16
"""Maximum number of unknown annotations that are reported."""

MAX_EXAMPLES = 3
"""Maximum number of networks in a notice."""

_MAX_ERROR_LENGTH = 200
"""Maximum length of a parse error in a problem."""
_ANNOTATIONS: dict[str, tuple[str, str, Callable[[str], object]]] = {
    "includeOutboundIPRanges": ("-i", "*", parse_networks),
    "excludeOutboundIPRanges": ("-x", "", parse_networks),
    "includeInboundPorts": ("-b", "*", parse_ports),
    "excludeInboundPorts": ("-d", "", parse_ports),
    "includeOutboundPorts": ("-q", "", parse_ports),
    "excludeOutboundPorts": ("-o", "", parse_ports),
    "excludeInterfaces": ("-c", "", parse_interfaces),
}
"""Flag, default and parser by annotation."""


_VIRTUAL_INTERFACES = f"{TRAFFIC_PREFIX}kubevirtInterfaces"
"""Istio's annotation with interfaces of virtual machines. `excludeInterfaces` would be the opposite."""


def init_arguments(annotations: Field, settings: InjectionSettings) -> list[str]:
    """Return the arguments of `xds init` for a pod.

    Refuse invalid annotations. A guess could let traffic bypass the sidecar, or break traffic that should.
    """
    unknown = (
        name
        for name in annotations.value or ()
        if isinstance(name, str)
        and name.startswith(TRAFFIC_PREFIX)
        and name.removeprefix(TRAFFIC_PREFIX) not in _ANNOTATIONS
    )
    for count, name in enumerate(islice(unknown, MAX_NOTICES)):
        may_be_misspelled = count < MAX_SUGGESTIONS and name != _VIRTUAL_INTERFACES
        suggested = (TRAFFIC_PREFIX + known for known in _ANNOTATIONS) if may_be_misspelled else ()
        annotations[name].notice("has no effect here", nearest(name, suggested))
    ports = ("-p", str(settings.outbound_port), "-z", str(settings.inbound_port))
    result = [*ports, "-u", str(PROXY_ID), "-g", str(PROXY_GROUP), "-m", "REDIRECT"]
    for name, (flag, default, parse) in _ANNOTATIONS.items():
        value = _read_list(annotations[TRAFFIC_PREFIX + name], default, parse)
        if flag == "-d":
            value = ",".join([*map(str, SIDECAR_PORTS), *filter(None, [value])])
        if value or flag in ("-i", "-x", "-b", "-o"):
            result += [flag, value]
    return result


def _read_list(field: Field, default: str, parse: Callable[[str], object]) -> str:
    text = field.text(default)
    if len(text) > MAX_LIST_LENGTH:
        field.refuse(f"has {len(text)} characters; at most {MAX_LIST_LENGTH} are supported")
        return default
    text = "".join(text.split())
    if text == "*" != default:
        field.refuse('must be a list: "*" would turn interception off', "remove it, or list the values")
        return default
    try:
        parse(text)
    except ValueError as error:
        field.refuse(f"is invalid: {str(error)[:_MAX_ERROR_LENGTH]}")
        return text
    if parse is parse_networks and (inexact := networks_with_host_bits(text)):
        networks = ", ".join(
            f"{part} means {ip_network(part, strict=False)}" for part in inexact[:MAX_EXAMPLES]
        )
        more = f" and {len(inexact) - MAX_EXAMPLES} more" if len(inexact) > MAX_EXAMPLES else ""
        field.notice(f"has host bits set, which iptables ignores: {networks}{more}")
    if parse is parse_interfaces and includes_pod_interface(parse_interfaces(text)):
        field.refuse("includes eth0, so it would turn interception off", "list additional interfaces only")
    return text
