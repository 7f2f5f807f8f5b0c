"""What is intercepted: Istio's annotations, as arguments of `xds init`."""

from __future__ import annotations

from collections.abc import Callable

from xds.inject.containers import PROXY_GROUP
from xds.inject.settings import Settings
from xds.model import INTERCEPTION_MODE, Interception
from xds.parse.reading import Field, nearest
from xds.sidecar import rules
from xds.sidecar.settings import NOT_INTERCEPTED, PROXY_ID

_PREFIX = "traffic.sidecar.istio.io/"

_SHOWN = 200
"""Characters of what is wrong with a value that are repeated."""
_ANNOTATIONS: dict[str, tuple[str, str, Callable[[str], object]]] = {
    "includeOutboundIPRanges": ("-i", "*", rules.networks),
    "excludeOutboundIPRanges": ("-x", "", rules.networks),
    "includeInboundPorts": ("-b", "*", rules.ports),
    "excludeInboundPorts": ("-d", "", rules.ports),
    "includeOutboundPorts": ("-q", "", rules.ports),
    "excludeOutboundPorts": ("-o", "", rules.ports),
    "excludeInterfaces": ("-c", "", rules.interfaces),
}
"""Flag, default, and what reads it."""


def interception(annotations: Field) -> Interception:
    """Return the interception mode that the pod asks for."""
    mode = annotations[INTERCEPTION_MODE]
    return mode.choice(Interception) or Interception.REDIRECT


def arguments(annotations: Field, settings: Settings) -> list[str]:
    """Return the arguments that make a pod's interception; what cannot be understood is refused.

    Guessing would either leave open what was to be intercepted, or cut off what was not.
    """
    for name, field in annotations.entries():
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in _ANNOTATIONS:
            field.notice("has no effect here", nearest(name, (_PREFIX + known for known in _ANNOTATIONS)))
    ports = ("-p", str(settings.outbound_port), "-z", str(settings.inbound_port))
    result = [*ports, "-u", str(PROXY_ID), "-g", str(PROXY_GROUP), "-m", "REDIRECT"]
    for name, (flag, default, read) in _ANNOTATIONS.items():
        value = _list(annotations[_PREFIX + name], default, read)
        if flag == "-d":
            value = ",".join([*map(str, NOT_INTERCEPTED), *filter(None, [value])])
        if value or flag in ("-i", "-x", "-b", "-o"):
            result += [flag, value]
    return result


def _list(field: Field, default: str, read: Callable[[str], object]) -> str:
    text = "".join(field.text(default).split())
    if text == "*" != default:
        field.refuse('must be a list: "*" would turn interception off', "remove it, or name what is meant")
        return default
    try:
        read(text)
    except ValueError as error:
        field.refuse(f"is not understood: {str(error)[:_SHOWN]}")
    return text
