"""Parse Sidecars."""

from __future__ import annotations

from dataclasses import replace

from xds.mesh.model.objects import Fact, Meta, Sidecar
from xds.mesh.parse import names
from xds.mesh.parse.core import TOP
from xds.mesh.parse.entries import workload_selector
from xds.mesh.parse.fail_closed import FailClosed, as_oldest, oldest
from xds.mesh.parse.meshconfig import OutboundPolicy
from xds.mesh.parse.reading import Field, Log, shown

_LISTENER = "port bind captureMode"
"""Fields of an entry of egress that make listeners of their own in Istio."""


def sidecar(obj: Field, meta: Meta) -> Sidecar:
    """Parse a Sidecar."""
    obj.mapping(f"{TOP} spec status")
    spec = obj["spec"].mapping(
        "workloadSelector egress ingress outboundTrafficPolicy inboundConnectionPool", strict=True
    )
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
    return policy["mode"].choice(OutboundPolicy) is OutboundPolicy.ALLOW_ANY


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

    Otherwise, they would pass connections to hidden services through in plaintext. If its
    outboundTrafficPolicy cannot be read, it is REGISTRY_ONLY.
    """
    known = parsed if isinstance(parsed, Sidecar) else None
    if known and log.is_readable("spec", "workloadSelector"):
        fact = Sidecar(meta=oldest(meta, log), selector=known.selector)
    else:
        fact = Sidecar(meta=as_oldest(meta), scope_unknown=True)
    effect = "clients that it applies to see all services that are exported to them"
    if known and log.is_readable("spec", "outboundTrafficPolicy"):
        return FailClosed(replace(fact, allow_any_outbound=known.allow_any_outbound), effect)
    return FailClosed(
        replace(fact, allow_any_outbound=False), f"{effect}, and cannot connect to other addresses"
    )
