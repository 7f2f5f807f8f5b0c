"""Parse Sidecars."""

from __future__ import annotations

from dataclasses import replace

from xds.mesh.model.objects import Fact, Meta, Sidecar
from xds.mesh.parse import names
from xds.mesh.parse.core import TOP
from xds.mesh.parse.entries import workload_selector
from xds.mesh.parse.fail_closed import FailClosed, as_oldest, oldest
from xds.mesh.parse.reading import Field, Log, shown

_KNOWN = "workloadSelector egress ingress outboundTrafficPolicy inboundConnectionPool"
_LISTENER = "port bind captureMode"
"""Fields of an entry of egress that make listeners of their own in Istio."""


def sidecar(obj: Field, meta: Meta) -> Sidecar:
    """Parse a Sidecar."""
    obj.mapping(f"{TOP} spec status")
    spec = obj["spec"].mapping(_KNOWN, strict=True)
    for name in ("ingress", "inboundConnectionPool"):
        if spec[name]:
            spec[name].warn("is not supported, so it has no effect")
    hosts: dict[tuple[str, str], None] = {}
    for entry in spec["egress"].items():
        entry.mapping(f"hosts {_LISTENER}", strict=True)
        for name in _LISTENER.split():
            if entry[name] and (name, entry[name].value) != ("captureMode", "DEFAULT"):
                entry[name].notice("is ignored: clients see the hosts of the entry with all ports")
        if not entry["hosts"].value:
            entry["hosts"].refuse("is required", "write ~/* for no service")
        hosts.update(dict.fromkeys(map(_host, entry["hosts"].items())))
    found = Sidecar(
        meta=meta,
        selector=workload_selector(spec["workloadSelector"]),
        allow_any_outbound=_allow_any_outbound(spec["outboundTrafficPolicy"]),
    )
    return replace(found, hosts=tuple(hosts)) if hosts else found


def _allow_any_outbound(policy: Field) -> bool | None:
    if policy.value is None:
        return None
    policy.mapping("mode", strict=True)
    # Istio's default is REGISTRY_ONLY, unlike that of MeshConfig.
    return policy["mode"].one_of("ALLOW_ANY", "REGISTRY_ONLY") == "ALLOW_ANY"


def _host(field: Field) -> tuple[str, str]:
    """Parse `NAMESPACE/HOST`."""
    text = field.required().text()
    namespace, slash, host = text.partition("/")
    if not slash:
        field.refuse(f"{shown(text)} is not NAMESPACE/HOST", "write ./* for all services of the namespace")
    elif namespace not in (".", "*", "~") and (error := names.label(namespace)):
        hint = "write a namespace, '.' (the client's), '*' (all) or '~' (none) before the slash"
        field.refuse(f"{shown(text)}: {shown(namespace)} {error}", hint)
    elif host != "*" and (error := names.host(host) or ("" if "." in host else "is not a full name")):
        field.refuse(
            f"{shown(text)}: {shown(host)} {error}", "write NAME.NAMESPACE.svc.cluster.local, *.SUFFIX or *"
        )
    return namespace, host


def sidecar_fail_closed(meta: Meta, parsed: Fact | None, log: Log) -> FailClosed:
    """Return the replacement of a rejected Sidecar: its clients see all services that are exported to them.

    Otherwise, they would pass connections to hidden services through in plaintext. If it is not certain which
    outboundTrafficPolicy it sets for which clients, it is REGISTRY_ONLY.
    """
    known = parsed if isinstance(parsed, Sidecar) else Sidecar(meta=meta)
    # Another field may be a misspelled one.
    is_spelled = log.only_refused_below(("metadata",), *(("spec", name) for name in _KNOWN.split()))
    has_selector = log.is_readable("spec", "workloadSelector") and bool(known.selector or is_spelled)
    has_policy = log.is_readable("spec", "outboundTrafficPolicy") and (
        is_spelled or known.allow_any_outbound is not None
    )
    is_certain = has_selector and has_policy
    fact = Sidecar(
        meta=oldest(meta, log) if has_selector else as_oldest(meta),
        selector=known.selector if has_selector else {},
        allow_any_outbound=known.allow_any_outbound if is_certain else False,
        scope_unknown=not has_selector,
    )
    effect = "clients that it applies to see all services that are exported to them"
    return FailClosed(fact, effect if is_certain else f"{effect}, and cannot connect to other addresses")
