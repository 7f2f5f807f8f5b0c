"""What is intercepted: Istio's annotations, as arguments of `xds init`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from xds.mesh.inject.containers import PROXY_GROUP
from xds.mesh.inject.settings import Settings
from xds.mesh.model.objects import INTERCEPTION_MODE, Interception
from xds.mesh.parse.reading import Field, nearest
from xds.mesh.sidecar import rules
from xds.mesh.sidecar.settings import NOT_INTERCEPTED, PROXY_ID

_PREFIX = "traffic.sidecar.istio.io/"

MAX_LIST_LENGTH = 4096
"""Characters of an annotation's list: over 200 networks, each of which is a rule of iptables in the pod."""
MAX_SUGGESTIONS = 4
"""Unknown annotations for which a known one is suggested; that takes 0.2 ms for each. More of them are reported without."""
MAX_NOTICES = 16
"""Unknown annotations that are reported."""

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
    unknown = (
        name
        for name in annotations.value or ()
        if isinstance(name, str)
        and name.startswith(_PREFIX)
        and name.removeprefix(_PREFIX) not in _ANNOTATIONS
    )
    for count, name in enumerate(islice(unknown, MAX_NOTICES)):
        suggested = (_PREFIX + known for known in _ANNOTATIONS) if count < MAX_SUGGESTIONS else ()
        annotations[name].notice("has no effect here", nearest(name, suggested))
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
    text = field.text(default)
    if len(text) > MAX_LIST_LENGTH:
        field.refuse(f"has {len(text)} characters, and {MAX_LIST_LENGTH} are supported")
        return default
    text = "".join(text.split())
    if text == "*" != default:
        field.refuse('must be a list: "*" would turn interception off', "remove it, or name what is meant")
        return default
    try:
        read(text)
    except ValueError as error:
        field.refuse(f"is not understood: {str(error)[:_SHOWN]}")
    return text
