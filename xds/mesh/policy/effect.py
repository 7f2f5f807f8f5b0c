"""Find objects that match nothing in the mesh: a mistyped selector, an unknown host or port.

Such objects are valid, so nothing else reports them: a STRICT policy with a mistyped selector would protect
nothing. `xds.mesh.policy.conflicts` finds objects that other objects override.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from xds.mesh.model.defaults import ORIGIN
from xds.mesh.model.mesh import Mesh, target_port
from xds.mesh.model.namespace import NamespaceFacts, covers
from xds.mesh.model.objects import (
    CLUSTER_DOMAIN,
    AuthenticationPolicy,
    DestinationRule,
    Object,
    PeerAuthentication,
    Pod,
    Problem,
    Ref,
    Service,
    ServicePort,
    Target,
)
from xds.mesh.parse.reading import nearest
from xds.mesh.policy.disregarded import disregarded

MAX_PER_OBJECT = 10
"""Maximum number of problems reported per object; a DestinationRule can have any number of subsets."""
MAX_PAIRS = 5
"""Maximum number of selector labels in a message."""
MAX_CANDIDATES = 100
"""Maximum number of names that are compared for a suggestion; comparing two names takes up to 0.1 ms."""
API_SERVER = f"kubernetes.default.svc.{CLUSTER_DOMAIN}"
"""Host of the API server, which exists in every cluster but rarely in a folder of manifests."""

_SERVICE_SUFFIX = f".svc.{CLUSTER_DOMAIN}"
_MEANT = "did you mean "
_POLICIES = (AuthenticationPolicy, PeerAuthentication, DestinationRule)

_Finding: TypeAlias = tuple[Ref, Problem]
_Local: TypeAlias = tuple[NamespaceFacts, tuple[_Finding, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ineffective:
    """The objects of a mesh that have no effect."""

    problems: Mapping[Ref, tuple[Problem, ...]] = field(default_factory=dict)
    """Problems by object.

    A notice also occurs in a healthy mesh, for example for a Service whose Deployment is scaled to 0.
    """
    root_namespace: str = ""
    """Root namespace that `namespaces` was computed with."""
    namespaces: Mapping[str, _Local] = field(default_factory=dict)
    """Findings that depend on one namespace only, with the facts that they were computed from."""


def without_effect(mesh: Mesh, before: Ineffective | None = None) -> Ineffective:
    """Return the objects that have no effect.

    Safe to call in a thread while the mesh is in use: only facts and the indexes of namespaces are read.

    Args:
        mesh: the facts.
        before: an earlier result; unchanged namespaces are taken from it.
    """
    root = mesh.config.root_namespace
    known = before.namespaces if before and before.root_namespace == root else {}
    namespaces: dict[str, _Local] = {}
    missing = _missing_namespaces(mesh)
    found = list(_in_missing(mesh, missing))
    for name in mesh.namespaces():
        if name in missing:
            continue
        facts = mesh.in_namespace(name, with_defaults=False)
        cached = known.get(name)
        if cached is None or cached[0] is not facts:
            cached = facts, tuple(_in_namespace(facts, is_root=name == root))
        namespaces[name] = cached
        found += cached[1]
    found += _rules(mesh, missing)
    found += _disregarded(mesh)
    problems: dict[Ref, list[Problem]] = {}
    for ref, problem in found:
        problems.setdefault(ref, []).append(problem)
    return Ineffective(
        problems={ref: tuple(each) for ref, each in sorted(problems.items())},
        root_namespace=root,
        namespaces=namespaces,
    )


def _problem(owner: Object, what: str, hint: str = "", *, notice: bool = False) -> _Finding:
    # A file and line does not name the object.
    origin = owner.meta.origin
    text = f"{owner.ref}: {what}" if origin else what
    return owner.ref, Problem(where=origin or str(owner.ref), what=text, hint=hint, notice=notice)


def _capped(owner: Object, found: Iterable[_Finding]) -> Iterator[_Finding]:
    """Yield the first problems of an object, and the number of the others."""
    problems = list(found)
    yield from problems[:MAX_PER_OBJECT]
    if (more := len(problems) - MAX_PER_OBJECT) > 0:
        yield _problem(owner, f"{more} more of its parts have no effect")


# --- one namespace ------------------------------------------------------------------------------


def _in_namespace(facts: NamespaceFacts, *, is_root: bool) -> Iterator[_Finding]:
    """Yield the findings that do not depend on other namespaces."""
    for pa in facts.peer_authentications:
        yield from _capped(pa, _peer_authentication(facts, pa, is_root=is_root))
    for policy in facts.policies:
        found = (_target(facts, policy, target) for target in policy.targets)
        yield from _capped(policy, (each for problems in found for each in problems))
    for service in facts.services.values():
        yield from _capped(service, _service(facts, service))
    for rule in facts.rules:
        if rule.selector and not any(facts.selected(rule.selector)):
            what = f"workloadSelector {_no_pod(rule, rule.selector)}"
            yield _problem(rule, what, _similar_label(facts, rule.selector))


def _peer_authentication(
    facts: NamespaceFacts, pa: PeerAuthentication, *, is_root: bool
) -> Iterator[_Finding]:
    if is_root:
        if pa.selector:
            yield _problem(
                pa,
                f"a selector in the root namespace {pa.namespace} selects nothing, so it has no effect",
                "remove the selector to apply it to the whole mesh, or move it to the workload's namespace",
            )
        return
    selected = facts.selected(pa.selector) if pa.selector else facts.pods.values()
    pods = [pod for pod in selected if not pod.ended]
    if pa.selector and not pods:
        what = f"selector {_no_pod(pa, pa.selector)}"
        scaled = next((s for s in facts.services.values() if _is_scaled_to_zero(facts, s, pa.selector)), None)
        hint = f"Service {scaled.name} selects the same, and has no pod now either" if scaled else ""
        yield _problem(pa, what, hint or _similar_label(facts, pa.selector), notice=scaled is not None)
    elif pods and not any(pod.has_sidecar for pod in pods):
        which = f"selector {_words(pa.selector)} matches only pods" if pa.selector else "all pods are"
        yield _problem(
            pa,
            f"{which} without a sidecar in namespace {pa.namespace}, so it has no effect",
            "plaintext is accepted there: inject the sidecar",
        )
    elif pa.ports:
        yield from _ports(facts, pa, pods)


def _is_scaled_to_zero(facts: NamespaceFacts, service: Service, selector: Mapping[str, str]) -> bool:
    """Whether a Service selects the same workload as a selector and has no pod now."""
    same = covers(service.selector, selector) or covers(selector, service.selector)
    return bool(service.selector) and same and not any(facts.selected(service.selector))


def _ports(facts: NamespaceFacts, pa: PeerAuthentication, pods: list[Pod]) -> Iterator[_Finding]:
    leading = [
        (service, port, target)
        for pod in pods
        for service in facts.selecting(pod.meta.labels)
        for port in service.ports
        if (target := target_port(port, pod)) is not None
    ]
    known = {port.port for pod in pods for port in pod.ports}
    known |= {target for _, _, target in leading}
    known |= {
        port.port for listed in facts.endpoints.values() for e in listed for g in e.groups for port in g.ports
    }
    # Pods need not declare ports: if none is known, every number may be right.
    for number in sorted(pa.ports) if known else ():
        if number not in known:
            service_port = ((s, p, target) for s, p, target in leading if p.port == number)
            hint = next(
                (f"port {number} of Service {s.name} leads to {to}: write {to}" for s, _, to in service_port),
                "",
            )
            yield _problem(
                pa,
                f"portLevelMtls {number}: no selected pod declares port {number} and no Service leads to it, "
                "so it has no effect unless the application listens there undeclared",
                hint,
            )


def _target(facts: NamespaceFacts, policy: AuthenticationPolicy, target: Target) -> Iterator[_Finding]:
    if target.service in facts.unknown_services:
        return  # The Service was refused; until it is repaired, the policy is STRICT for more ports.
    service = facts.services.get(target.service.partition(".")[0])
    if service is None or target.service not in (service.name, service.host):
        yield _problem(
            policy,
            f"target {target.service} is no Service in namespace {policy.namespace}, so it has no effect",
            nearest(target.service, islice(facts.services, MAX_CANDIDATES)),
        )
        return
    names = {name for port in service.ports for name in (port.port, port.name) if name}
    for port in target.ports:
        if port not in names:
            yield _problem(
                policy,
                f"target {target.service} port {port}: the Service has no such port, so it has no effect",
                f"its ports are {_listed(service.ports)}" if service.ports else "",
            )


def _service(facts: NamespaceFacts, service: Service) -> Iterator[_Finding]:
    listed = [group for e in facts.endpoints.get(service.name, ()) for group in e.groups if group.addresses]
    names = {port.name for group in listed for port in group.ports}
    pods = [pod for pod in facts.selected(service.selector) if not pod.ended]
    if not service.ports or names.issuperset(port.name for port in service.ports):
        return
    if not pods and not listed:
        if service.selector:
            what = f"selector {_no_pod(service, service.selector, 'it has no endpoints')}"
            yield _problem(service, what, _similar_label(facts, service.selector), notice=True)
        else:
            what = "it has no selector, and nothing lists its addresses, so it has no endpoints"
            yield _problem(service, what, "add an EndpointSlice or a selector", notice=True)
        return
    for port in service.ports:
        if pods and port.name not in names and all(target_port(port, pod) is None for pod in pods):
            declared = dict.fromkeys(f"{p.name} ({p.port})" for pod in pods for p in pod.ports if p.name)
            yield _problem(
                service,
                f"targetPort {port.target}: no container of its pods declares a port of this name, "
                f"so port {port.port} has no endpoints",
                f"they declare {', '.join(islice(declared, MAX_PER_OBJECT))}" if declared else "",
            )


def _no_pod(owner: Object, selector: Mapping[str, str], so: str = "it has no effect") -> str:
    return f"{_words(selector)} matches no pod in namespace {owner.namespace}, so {so}"


def _words(selector: Mapping[str, str]) -> str:
    pairs = [f"{key}={value}" for key, value in sorted(selector.items())]
    return ",".join((*pairs[:MAX_PAIRS], *(["..."] if len(pairs) > MAX_PAIRS else ())))


def _listed(ports: Iterable[ServicePort]) -> str:
    named = (f"{port.port} ({port.name})" if port.name else str(port.port) for port in ports)
    return ", ".join(islice(named, MAX_PER_OBJECT))


def _similar_label(facts: NamespaceFacts, selector: Mapping[str, str]) -> str:
    """Suggest an existing label for the first pair of a selector that no pod has."""
    for key, value in sorted(selector.items()):
        if (key, value) not in facts.labels:
            values = nearest(value, islice((v for k, v in facts.labels if k == key), MAX_CANDIDATES))
            keys = nearest(key, islice((k for k, v in facts.labels if v == value), MAX_CANDIDATES))
            return values.replace(_MEANT, f"{_MEANT}{key}=") or keys.replace("?", f"={value}?")
    return ""


# --- across namespaces --------------------------------------------------------------------------


def _missing_namespaces(mesh: Mesh) -> dict[str, None]:
    """Return the namespaces that do not exist: they contain policies only, and no Namespace object."""
    present = ("", mesh.config.root_namespace)
    return {
        name: None
        for name in mesh.namespaces()
        if name not in present
        and all(
            isinstance(fact, _POLICIES)
            for fact in mesh.in_namespace(name, with_defaults=False).facts.values()
        )
    }


def _in_missing(mesh: Mesh, missing: Collection[str]) -> Iterator[_Finding]:
    existing = [name for name in mesh.namespaces() if name and name not in missing]
    for name in missing:
        what = f"namespace {name} does not exist (no other object is in it), so it has no effect"
        hint = nearest(name, existing[:MAX_CANDIDATES])
        for fact in mesh.in_namespace(name, with_defaults=False).facts.values():
            yield _problem(fact, what, hint)


def _disregarded(mesh: Mesh) -> Iterator[_Finding]:
    # Endpoint lookups write to the mesh's cache, and the event loop uses the mesh meanwhile.
    own = Mesh(mesh.facts(), mesh.config)
    of_objects: dict[Ref, list[str]] = {}
    for each in disregarded(own):
        of_objects.setdefault(each.ref, []).append(each.what)
    owners = [owner for ref in of_objects if (owner := own.get(ref))]
    for owner in owners:
        yield from _capped(owner, (_problem(owner, what) for what in of_objects[owner.ref]))


def _rules(mesh: Mesh, missing: Collection[str]) -> Iterator[_Finding]:
    services = list(mesh.services())
    for name in mesh.namespaces():
        for rule in () if name in missing else mesh.in_namespace(name, with_defaults=False).rules:
            # During a rollout, a default rule can stand in for a deleted one.
            if rule.host != API_SERVER and not rule.meta.origin.startswith(ORIGIN):
                yield from _capped(rule, _rule(mesh, rule, services))


def _rule(mesh: Mesh, rule: DestinationRule, services: list[Service]) -> Iterator[_Finding]:
    if rule.host.startswith("*"):
        matched = [service for service in services if rule.is_about(service.host)]
    else:
        name, _, namespace = rule.host.removesuffix(_SERVICE_SUFFIX).partition(".")
        service = mesh.service(namespace, name)
        matched = [service] if service and rule.is_about(service.host) else []
    if not matched:
        meant = _without_domain(mesh, rule)
        is_external = not (meant or rule.host.startswith("*") or rule.host.endswith(_SERVICE_SUFFIX))
        yield _problem(
            rule,
            f"host {rule.host} matches no Service, so it has no effect",
            "" if is_external else meant or _similar_host(mesh, rule, services),
            notice=is_external,
        )
        return
    ports = {port.port for service in matched for port in service.ports}
    policies = (rule.policy, *(subset.policy for subset in rule.subsets))
    for number in sorted({number for policy in policies if policy for number in policy.ports} - ports):
        yield _problem(
            rule,
            f"portLevelSettings {number}: no Service that host {rule.host} matches has this port, "
            "so it has no effect",
        )
    pods = [
        pod
        for service in (matched if rule.subsets else ())
        for pod in mesh.in_namespace(service.namespace).selected(service.selector)
    ]
    for subset in rule.subsets if pods else ():
        if not any(covers(subset.labels, pod.meta.labels) for pod in pods):
            yield _problem(
                rule,
                f"subset {subset.name}: {_words(subset.labels)} matches no pod of host {rule.host}, "
                "so it has no effect",
                notice=True,
            )


def _without_domain(mesh: Mesh, rule: DestinationRule) -> str:
    """Suggest the full name for a host such as `web.shop` or `web.shop.svc`; empty if no Service has it."""
    name, _, namespace = rule.host.removesuffix(".svc").partition(".")
    return f"did you mean {name}.{namespace}{_SERVICE_SUFFIX}?" if mesh.service(namespace, name) else ""


def _similar_host(mesh: Mesh, rule: DestinationRule, services: list[Service]) -> str:
    namespace = rule.host.removesuffix(_SERVICE_SUFFIX).partition(".")[2]
    near = list(mesh.in_namespace(namespace).services.values()) or services
    return nearest(rule.host, (service.host for service in islice(near, MAX_CANDIDATES)))
