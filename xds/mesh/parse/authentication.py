"""Parse authentication policies: v1alpha1 Policy and MeshPolicy, and PeerAuthentication."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from xds.mesh.model.objects import ROLLOUT, Fact, Meta, Mode, ModePolicy, TargetSelector
from xds.mesh.parse import names
from xds.mesh.parse.core import TOP
from xds.mesh.parse.fail_closed import FailClosed, as_oldest, oldest
from xds.mesh.parse.reading import Field, Log, shown

_MAX_PORT_DIGITS = 5
_MAX_MODE_LENGTH = 20
"""Maximum length of a mode that a hint quotes."""


def policy(obj: Field, meta: Meta) -> ModePolicy:
    """Parse a Policy, which applies to the Services that it targets, or to its whole namespace."""
    fact = _v1alpha1(obj, meta)
    targets = obj["spec"]["targets"]
    if meta.ref.name == "default" and fact.targets:
        targets.refuse(
            "must be absent: the Policy named default applies to its whole namespace",
            "use another name for a Policy with targets",
        )
    elif meta.ref.name != "default" and not targets.value:
        obj["metadata"]["name"].refuse(
            f"must be default, not {meta.ref.name}, in a Policy without targets",
            "name it default, or list Services in spec.targets",
        )
    return fact


def mesh_policy(obj: Field, meta: Meta) -> ModePolicy:
    """Parse a MeshPolicy, which must be named default."""
    fact = _v1alpha1(obj, meta)
    if meta.ref.name != "default":
        obj["metadata"]["name"].refuse(f"must be default, not {meta.ref.name}: a mesh has one MeshPolicy")
    if fact.targets:
        obj["spec"]["targets"].refuse("must be absent in a MeshPolicy", "use a Policy to target Services")
    return fact


def _check_rollout_annotation(obj: Field, meta: Meta) -> None:
    # Only a notice: an invalid annotation must not disable the policy.
    if (value := meta.annotations.get(ROLLOUT, "immediate")) != "immediate":
        obj["metadata"]["annotations"][ROLLOUT].notice(
            f"is ignored: unknown value {shown(value)}",
            "write immediate, or remove the annotation to roll changes out in phases",
        )


def _v1alpha1(obj: Field, meta: Meta) -> ModePolicy:
    obj.mapping(f"{TOP} spec status", strict=True)
    _check_rollout_annotation(obj, meta)
    spec = obj["spec"].mapping(
        "targets peers peerIsOptional origins originIsOptional principalBinding", strict=True
    )
    for name in ("origins", "originIsOptional", "principalBinding"):
        if spec[name].value:
            spec[name].notice("is ignored", "only mutual TLS is enforced, not JSON Web Tokens")
    if spec["peerIsOptional"].value:
        spec["peerIsOptional"].notice("is ignored", "the mode decides whether clients need mutual TLS")
    return ModePolicy(meta=meta, mode=_v1alpha1_mode(spec["peers"]), targets=tuple(_targets(spec["targets"])))


def _v1alpha1_mode(peers: Field) -> Mode:
    """Return the mode of the first mtls peer, or DISABLE if no peer is an mtls peer."""
    modes: list[Mode] = []
    for peer in peers.items():
        peer.mapping("mtls jwt", strict=True)
        mtls = peer["mtls"].mapping("mode allowTls", strict=True)
        if peer.has("mtls"):
            # `mtls: {}` and `mtls:` both mean STRICT, the first value of the enumeration.
            modes.append(_peer_mtls_mode(mtls["mode"]))
            if mtls["allowTls"].boolean():
                mtls["allowTls"].notice(
                    "is ignored: a client certificate is always required when the sidecar terminates TLS"
                )
        elif peer.has("jwt"):
            peer["jwt"].notice("is ignored", "only mutual TLS is enforced, not JSON Web Tokens")
        else:
            peer.refuse("has no authentication method", "write mtls: {}")
    return modes[0] if modes else Mode.DISABLE


def _peer_mtls_mode(field: Field) -> Mode:
    is_plaintext = field.value in ("DISABLE", "NONE", "OFF", False)
    hint = "for plaintext, remove spec.peers" if is_plaintext else ""
    return Mode(field.one_of("STRICT", "PERMISSIVE", hint=hint) or "STRICT")


def _targets(field: Field) -> Iterator[TargetSelector]:
    for item in field.items():
        item.mapping("name labels ports", strict=True)
        name = item["name"].required().text()
        if "." in name:
            short_name = name.partition(".")[0]
            item["name"].refuse(
                f"{shown(name)} must be the name of a Service in the Policy's namespace, without a domain",
                f"write {short_name} in a Policy in the Service's namespace",
            )
        elif name:
            item["name"].name(names.label)
        if item["labels"].value:
            item["labels"].refuse("is not supported", "a PeerAuthentication selects workloads by labels")
        yield TargetSelector(service=name, ports=tuple(_target_ports(item["ports"])))


def _target_ports(field: Field) -> Iterator[int | str]:
    for item in field.items():
        if not isinstance(item.value, dict):
            item.refuse(
                f"must be a mapping, not {shown(item.value)}", "write '- number: 8000' or '- name: http'"
            )
            continue
        item.mapping("number name", strict=True)
        if bool(item["number"]) == bool(item["name"]):
            item.refuse("must have a number or a name, and not both")
        yield item["number"].port() if item["number"] else item["name"].required().name(names.label)


def peer_authentication(obj: Field, meta: Meta) -> ModePolicy:
    """Parse a PeerAuthentication for the mesh, a namespace, or the workloads that it selects."""
    obj.mapping(f"{TOP} spec status", strict=True)
    _check_rollout_annotation(obj, meta)
    spec = obj["spec"].mapping("selector mtls portLevelMtls", strict=True)
    selector = names.selected(spec["selector"]) or {}
    ports: dict[int, Mode | None] = {}
    for key, entry in spec["portLevelMtls"].entries():
        if (
            len(key) > _MAX_PORT_DIGITS
            or not (key.isascii() and key.isdecimal())
            or not 1 <= int(key) <= 65535
        ):
            entry.refuse("must be a port of the workload, a number from 1 to 65535")
            continue
        ports[int(key)] = _peer_mode(entry)
    if spec["portLevelMtls"] and not ports:
        spec["portLevelMtls"].refuse("must contain at least one valid port")
    if ports and not selector:
        spec["portLevelMtls"].refuse(
            "needs a selector: ports belong to a workload",
            "add spec.selector.matchLabels, or remove portLevelMtls",
        )
    return ModePolicy(meta=meta, mode=_peer_mode(spec["mtls"]), selector=selector, ports=ports)


def _peer_mode(field: Field) -> Mode | None:
    if isinstance(field.value, str):
        field.refuse(
            f"must be a mapping, not {shown(field.value)}",
            f"write mode: {field.value[:_MAX_MODE_LENGTH]} below it",
        )
        return None
    mode = field.mapping("mode", strict=True)["mode"].one_of("UNSET", *Mode)
    return None if mode in ("", "UNSET") else Mode(mode)


def policy_fail_closed(meta: Meta, parsed: Fact | None, log: Log) -> FailClosed:
    """Return the replacement for a rejected Policy: STRICT for its targets, or for its whole namespace."""
    targets = parsed.targets if isinstance(parsed, ModePolicy) else ()
    known = log.is_readable("spec", "targets") and log.is_readable("metadata", "name")
    if not targets:
        known = known and log.only_refused_below(("spec", "peers"), ("metadata",))
    fact = ModePolicy(
        meta=oldest(meta, log), mode=Mode.STRICT, targets=targets if known else (), scope_unknown=not known
    )
    services = ", ".join(dict.fromkeys(target.service for target in fact.targets))
    pods = f"pods of service {services}" if services else "pods"
    return FailClosed(fact, f"STRICT applies to {pods} in namespace {meta.ref.namespace}")


def mesh_policy_fail_closed(meta: Meta, _parsed: Fact | None, _log: Log) -> FailClosed:
    """Return the replacement for a rejected MeshPolicy: STRICT for the whole mesh.

    It counts as the oldest MeshPolicy: a MeshPolicy with a wrong name overrides the one named default.
    """
    fact = ModePolicy(meta=as_oldest(meta), mode=Mode.STRICT)
    return FailClosed(fact, "STRICT applies to the whole mesh")


def peer_authentication_fail_closed(meta: Meta, parsed: Fact | None, log: Log) -> FailClosed:
    """Return the replacement for a rejected PeerAuthentication: STRICT for its pods, or for its namespace.

    All ports of the pods are STRICT, including ports for which the object sets another mode.
    """
    selector: Mapping[str, str] = parsed.selector if isinstance(parsed, ModePolicy) else {}
    known = log.is_readable("spec", "selector")
    if not selector:
        known = known and log.only_refused_below(("spec", "mtls"), ("metadata",))
    fact = ModePolicy(
        meta=oldest(meta, log),
        mode=Mode.STRICT,
        selector=selector if known else {},
        scope_unknown=not known,
    )
    namespace = meta.ref.namespace
    if fact.selector:
        labels = ", ".join(f"{key}={value}" for key, value in fact.selector.items())
        return FailClosed(fact, f"STRICT applies to pods in namespace {namespace} with labels {labels}")
    root_scope = f"(if {namespace} is the root namespace, to the whole mesh)"
    return FailClosed(fact, f"STRICT applies to pods in namespace {namespace} {root_scope}")
