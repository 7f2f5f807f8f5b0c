"""Find objects that match nothing in the mesh, for example because of a mistyped selector, host or port.

These objects are valid, so parsing does not report them. However, a STRICT policy with a mistyped selector
protects no pod. `xds.mesh.policy.conflicts` finds objects that other objects override.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TypeAlias, assert_never

from xds.mesh.model.authorization import Action, Attribute, Condition, Rule
from xds.mesh.model.injection import NAMESPACE_LABEL, unused_label
from xds.mesh.model.mesh import Mesh, target_port
from xds.mesh.model.names import MAX_CANDIDATES, join_names
from xds.mesh.model.namespace import NamespaceFacts, covers
from xds.mesh.model.objects import (
    TRAFFIC_KINDS,
    AuthorizationPolicy,
    DestinationRule,
    ModePolicy,
    Object,
    Pod,
    Problem,
    Protocol,
    Ref,
    Service,
    ServicePort,
    Sidecar,
    TargetSelector,
    TrafficFact,
)
from xds.mesh.parse.reading import DID_YOU_MEAN, nearest
from xds.mesh.policy.authorization import MAX_VALUES, conditions_of, count_values, unenforceable
from xds.mesh.policy.conflicts import overridden_steps
from xds.mesh.policy.disregarded import disregarded
from xds.mesh.policy.finding import MAX_PER_OBJECT, Finding, capped, format_selector, problem_of
from xds.mesh.policy.steps import Steps, finish
from xds.mesh.policy.unknown_names import (
    in_missing,
    missing_namespaces,
    unknown_egress_hosts,
    unknown_export_scopes,
    unknown_identities,
    unmatched_discovery_selectors,
    unmatched_rules,
)

_MAX_NAMES = 3
"""Maximum number of Services that a message names."""

_INJECT = "inject the sidecar; until then, these pods accept plaintext"

_NamespaceFindings: TypeAlias = tuple[NamespaceFacts, tuple[Finding, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ineffective:
    """The objects of a mesh that have no effect."""

    problems: Mapping[Ref, tuple[Problem, ...]] = field(default_factory=dict)
    """Problems by object.

    A notice can also occur in a healthy mesh, for example for a Service whose Deployment is scaled to 0.
    """
    root_namespace: str = ""
    """Root namespace with which `namespaces` was computed."""
    root_policies: tuple[AuthorizationPolicy, ...] = ()
    """AuthorizationPolicies of the root namespace with which `namespaces` was computed."""
    namespaces: Mapping[str, _NamespaceFindings] = field(default_factory=dict)
    """Cached findings that depend only on one namespace, and the facts they were computed from."""


def without_effect(mesh: Mesh, previous: Ineffective | None = None) -> Ineffective:
    """Return the objects that have no effect.

    Safe to call in a thread while the mesh is in use: it reads only facts and the indexes of namespaces.

    Args:
        mesh: the facts.
        previous: an earlier result. Its findings for unchanged namespaces are reused.
    """
    root = mesh.config.root_namespace
    root_policies = mesh.in_namespace(root, with_defaults=False).authorization_policies
    inputs = (root, root_policies)
    is_valid = previous and (previous.root_namespace, previous.root_policies) == inputs
    cache = previous.namespaces if previous and is_valid else {}
    namespaces: dict[str, _NamespaceFindings] = {}
    missing = missing_namespaces(mesh)
    findings = list(in_missing(mesh, missing))
    for name in mesh.namespaces():
        if name in missing:
            continue
        facts = mesh.in_namespace(name, with_defaults=False)
        cached = cache.get(name)
        if cached is None or cached[0] is not facts:
            cached = facts, tuple(_in_namespace(_Space(mesh, name)))
        namespaces[name] = cached
        findings += cached[1]
    existing = [
        mesh.in_namespace(name, with_defaults=False) for name in mesh.namespaces() if name not in missing
    ]
    findings += unmatched_rules(mesh, [rule for facts in existing for rule in facts.rules])
    policies = (policy for facts in existing for policy in facts.authorization_policies)
    findings += unknown_identities(mesh, missing, policies)
    findings += unknown_egress_hosts(mesh, [sidecar for facts in existing for sidecar in facts.sidecars])
    exported: list[Service | DestinationRule] = [
        each for facts in existing for group in (facts.services.values(), facts.rules) for each in group
    ]
    findings += unknown_export_scopes(mesh, missing, exported)
    findings += _unused_labels(mesh)
    findings += unmatched_discovery_selectors(mesh)
    findings += _disregarded(mesh)
    if not _has_sidecars(mesh):
        reported = {ref for ref, _ in findings}
        unreported = (policy for policy in _policies(mesh) if policy.ref not in reported)
        findings += _in_mesh_without_sidecars(mesh, unreported)
    by_object: dict[Ref, list[Problem]] = {}
    for ref, problem in findings:
        by_object.setdefault(ref, []).append(problem)
    return Ineffective(
        problems={ref: tuple(problems) for ref, problems in sorted(by_object.items())},
        root_namespace=root,
        root_policies=root_policies,
        namespaces=namespaces,
    )


def policy_without_effect(mesh: Mesh, ref: Ref) -> Iterator[Problem]:
    """Yield the problems of `without_effect` for one policy or DestinationRule. Checks only this object."""
    policy, namespace = mesh.get(ref), ref.namespace
    missing = missing_namespaces(mesh)
    if namespace in missing:
        findings = [*in_missing(mesh, [namespace])]
    elif isinstance(policy, TrafficFact):
        rules = [policy] if isinstance(policy, DestinationRule) else []
        findings = [*_policy(_Space(mesh, namespace), policy), *unmatched_rules(mesh, rules)]
        findings += unknown_export_scopes(mesh, missing, rules)
        if isinstance(policy, AuthorizationPolicy):
            findings += unknown_identities(mesh, missing, [policy])
        if isinstance(policy, Sidecar):
            findings += unknown_egress_hosts(mesh, [policy])
        if not findings and not rules and not _has_sidecars(mesh):
            findings = [*_in_mesh_without_sidecars(mesh, [policy])]
    else:
        return
    yield from (problem for owner, problem in findings if owner == ref)


def why_ineffective(mesh: Mesh, refs: Collection[Ref]) -> list[Problem]:
    """Return why some of these objects have no effect: they match nothing, or other objects override them."""
    return finish(why_ineffective_steps(mesh, refs))


def why_ineffective_steps(mesh: Mesh, refs: Collection[Ref]) -> Steps[list[Problem]]:
    """Compute `why_ineffective` in steps. With objects other than policies and rules, one step is large."""
    if all(ref.kind in TRAFFIC_KINDS for ref in refs):
        problems = [problem for ref in sorted(refs) for problem in policy_without_effect(mesh, ref)]
    else:
        by_ref = without_effect(mesh).problems
        problems = [problem for ref in by_ref if ref in refs for problem in by_ref[ref]]
    yield
    found = yield from overridden_steps(mesh, refs)
    for ref, override in found.items():
        if ref in refs and (fact := mesh.get(ref)):
            part = f"{override.what} " if override.what else ""
            what = f"{ref}: {part}has no effect, because {', '.join(map(str, override.by))} overrides it"
            problems.append(Problem(where=fact.meta.origin or str(ref), what=what))
    return problems


# --- one namespace ------------------------------------------------------------------------------


_Exposed: TypeAlias = tuple[Service, ServicePort, int]
"""A port of a Service, and the port of a pod to which it forwards."""


class _Space:
    """A namespace, and what its checks compute once for all of its policies."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        self.facts = mesh.in_namespace(name, with_defaults=False)
        self.is_root = name == mesh.config.root_namespace
        self._root = mesh.in_namespace(mesh.config.root_namespace, with_defaults=False)
        self._exposed: dict[str, list[_Exposed]] = {}

    def exposed(self, pod: Pod) -> list[_Exposed]:
        """Return the Service ports that forward to a pod."""
        if pod.name not in self._exposed:
            self._exposed[pod.name] = [
                (service, port, target)
                for service in self.facts.selecting(pod.meta.labels)
                for port in service.ports
                if (target := target_port(port, pod)) is not None
            ]
        return self._exposed[pod.name]

    @cached_property
    def listed_ports(self) -> frozenset[int]:
        """Ports in EndpointSlices."""
        listed = (endpoints for each in self.facts.endpoints.values() for endpoints in each)
        return frozenset(port.port for each in listed for group in each.groups for port in group.ports)

    @cached_property
    def authorization_policies(self) -> list[AuthorizationPolicy]:
        """AuthorizationPolicies of this and of the root namespace."""
        spaces = (self.facts,) if self.is_root else (self._root, self.facts)
        return [policy for facts in spaces for policy in facts.authorization_policies]

    @cached_property
    def allowing_all(self) -> list[AuthorizationPolicy]:
        """ALLOW policies with a rule that matches all requests, of this and of the root namespace."""
        return [each for each in self.authorization_policies if each.restricts and Rule() in each.rules]

    @cached_property
    def closed(self) -> list[tuple[Pod, set[str]]]:
        """Pods with a sidecar and without an ALLOW policy that has rules, and the names of their Services."""
        spaces = (self._root, self.facts)
        policies = [each for facts in spaces for each in facts.authorization_policies if _has_rules(each)]
        if not all(policy.selector for policy in policies):
            return []
        return [
            (pod, {service.name for service in self.facts.selecting(pod.meta.labels)})
            for pod in self.facts.pods.values()
            if pod.has_sidecar and not pod.ended
            if not (policies and any(_has_rules(e) for f in spaces for e in f.authorizing(pod.meta.labels)))
        ]


def _has_rules(policy: AuthorizationPolicy) -> bool:
    return policy.restricts and bool(policy.rules)


def _in_namespace(space: _Space) -> Iterator[Finding]:
    """Yield the findings that depend only on this namespace, and on policies of the root namespace."""
    facts = space.facts
    for fact in facts.facts.values():
        if isinstance(fact, TrafficFact):
            yield from _policy(space, fact)
    for service in facts.services.values():
        yield from capped(service, _service(facts, service))
    for entry in facts.service_entries:
        for service in entry.services:
            if (owner := facts.services[service.name].ref) != entry.ref:
                what = f"host {service.name} is also defined by the older {owner}, so it has no effect"
                yield problem_of(entry, what, "remove the host from one of them")


def _policy(space: _Space, policy: TrafficFact) -> Iterator[Finding]:
    facts = space.facts
    match policy:
        case ModePolicy():
            yield from capped(policy, _mode_policy(space, policy))
        case DestinationRule(selector=selector) | Sidecar(selector=selector):
            if selector and not any(facts.selected(selector)):
                what = f"workloadSelector {_matches_no_pod(policy, selector)}"
                yield problem_of(policy, what, _similar_label(facts, selector))
        case AuthorizationPolicy():
            yield from capped(policy, _authorization(space, policy))
        case _:
            assert_never(policy)


def _authorization(space: _Space, policy: AuthorizationPolicy) -> Iterator[Finding]:
    facts = space.facts
    newest = facts.authorization_policies[-1]
    if policy is newest and (total := sum(map(count_values, space.authorization_policies))) > MAX_VALUES:
        where = " and ".join(dict.fromkeys(each.namespace for each in space.authorization_policies))
        yield problem_of(
            policy,
            f"the AuthorizationPolicies of namespace {where} have {total} values: "
            f"a pod with more than {MAX_VALUES} denies all requests",
            "use fewer values, such as namespaces instead of principals, or selectors",
        )
    pods = [] if space.is_root else _pods_of(facts, policy)
    if not space.is_root and (finding := _without_sidecar(facts, policy, pods)):
        yield finding
        return
    if policy.restricts:
        yield from _allow(space, policy)
    if space.is_root:
        return
    conditions = [condition for rule in policy.rules for condition in conditions_of(rule)]
    yield from _ports(space, policy, pods, "ports", _ports_in(conditions))
    if unenforceable(policy, http=False) and not unenforceable(policy, http=True):
        services = (service for pod in pods for service in facts.selecting(pod.meta.labels))
        ports = ((service, port) for service in services for port in service.ports)
        found = next(((s, p) for s, p in ports if p.protocol is Protocol.TCP), None)
        if found:
            result = (
                "its rules with them allow nothing"
                if policy.action is Action.ALLOW
                else "it denies without them"
            )
            port = f"TCP port {found[1].port} of Service {found[0].name}"
            what = f"conditions on HTTP requests do not apply to {port}: {result} there"
            yield problem_of(policy, what, "restrict the rules to ports", notice=True)


def _allow(space: _Space, policy: AuthorizationPolicy) -> Iterator[Finding]:
    """Yield why an ALLOW policy changes nothing, or allows nothing."""
    others = (each for each in space.allowing_all if each.ref != policy.ref)
    shadowing = next((each for each in others if covers(each.selector, policy.selector)), None)
    if shadowing and Rule() not in policy.rules:
        what = f"{shadowing.ref} allows all requests to the same pods, so it has no effect"
        yield problem_of(policy, what, f"remove the empty rule from {shadowing.ref}")
    elif not (policy.rules or space.is_root):
        closed = (services for pod, services in space.closed if covers(policy.selector, pod.meta.labels))
        if names := {name for services in closed for name in services}:
            services = join_names(sorted(names), _MAX_NAMES)
            what = f"it has no rules, so all requests to the pods of these Services are denied: {services}"
            yield problem_of(policy, what, "to allow all requests, write rules: [{}]", notice=True)


def _ports_in(conditions: Iterable[Condition]) -> Iterator[int]:
    for condition in conditions:
        if condition.attribute is Attribute.DESTINATION_PORT:
            texts = (pattern.text for pattern in (*condition.values, *condition.excluded))
            yield from (int(text) for text in texts if text.isdecimal())


def _mode_policy(space: _Space, pa: ModePolicy) -> Iterator[Finding]:
    facts = space.facts
    if pa.targets:
        for target in pa.targets:
            yield from _target(facts, pa, target)
        return
    if space.is_root and pa.is_peer_authentication:
        if pa.selector:
            yield problem_of(
                pa,
                f"a selector in the root namespace {pa.namespace} selects nothing, so it has no effect",
                "remove the selector to apply it to the whole mesh, or move it to the workload's namespace",
            )
        return
    pods = _pods_of(facts, pa)
    if finding := _without_sidecar(facts, pa, pods):
        yield finding
    else:
        yield from _ports(space, pa, pods, "portLevelMtls", pa.ports)


def _pods_of(facts: NamespaceFacts, policy: ModePolicy | AuthorizationPolicy) -> list[Pod]:
    selected = facts.selected(policy.selector) if policy.selector else facts.pods.values()
    return [pod for pod in selected if not pod.ended]


def _without_sidecar(
    facts: NamespaceFacts, policy: ModePolicy | AuthorizationPolicy, pods: Collection[Pod]
) -> Finding | None:
    """Return the problem of a policy that applies to no pod with a sidecar, or None."""
    selector = policy.selector
    if selector and not pods:
        what = f"selector {_matches_no_pod(policy, selector)}"
        scaled = next((s for s in facts.services.values() if _is_scaled_to_zero(facts, s, selector)), None)
        hint = f"Service {scaled.name} selects the same workload and has no pods either" if scaled else ""
        return problem_of(policy, what, hint or _similar_label(facts, selector), notice=scaled is not None)
    if not _have_no_sidecar(pods):
        return None
    if not selector:
        return _no_sidecar_in(policy)
    pods_text = f"only pods without a sidecar in namespace {policy.namespace}"
    what = f"selector {format_selector(selector)} matches {pods_text}, so it has no effect"
    return problem_of(policy, what, _INJECT)


def _have_no_sidecar(pods: Iterable[Pod]) -> bool:
    """Whether there are running pods, and none of them has a sidecar."""
    running = [pod.has_sidecar for pod in pods if not pod.ended]
    return bool(running) and not any(running)


def _no_sidecar_in(policy: Object) -> Finding:
    what = f"no pod in namespace {policy.namespace} has a sidecar, so it has no effect"
    return problem_of(policy, what, _INJECT)


def _is_scaled_to_zero(facts: NamespaceFacts, service: Service, selector: Mapping[str, str]) -> bool:
    """Whether a Service selects the same workload as a selector, and currently has no pods."""
    same = covers(service.selector, selector) or covers(selector, service.selector)
    return bool(service.selector) and same and not any(facts.selected(service.selector))


def _ports(
    space: _Space, policy: Object, pods: Iterable[Pod], field_name: str, numbers: Iterable[int]
) -> Iterator[Finding]:
    """Yield the ports in a field that none of the policy's pods has."""
    unknown = set(numbers)
    known, hints = False, dict[int, str]()
    for pod in pods if unknown else ():
        exposed = space.exposed(pod)
        ports = {*(port.port for port in pod.ports), *(target for _, _, target in exposed)}
        known, unknown = known or bool(ports), unknown - ports
        for service, port, target in exposed:
            if port.port in unknown and port.port not in hints:
                hint = f"port {port.port} of Service {service.name} forwards to {target}: write {target}"
                hints[port.port] = hint
        if not unknown:
            return
    # Pods need not declare their ports: if no port is known, any number may be correct.
    for number in sorted(unknown - space.listed_ports) if known or space.listed_ports else ():
        yield problem_of(
            policy,
            f"{field_name} {number}: no selected pod declares port {number}, and no Service forwards to it, "
            "so it has no effect unless the application listens on it anyway",
            hints.get(number, ""),
        )


def _target(facts: NamespaceFacts, policy: ModePolicy, target: TargetSelector) -> Iterator[Finding]:
    if target.service in facts.unknown_services:
        return  # The Service was rejected: until it is repaired, the policy is STRICT for the namespace.
    service = facts.services.get(target.service.partition(".")[0])
    if service is None or target.service not in (service.name, service.host):
        yield problem_of(
            policy,
            f"target {target.service} is not a Service in namespace {policy.namespace}, so it has no effect",
            nearest(target.service, islice(facts.services, MAX_CANDIDATES)),
        )
        return
    names = {name for port in service.ports for name in (port.port, port.name) if name}
    for port in target.ports:
        if port not in names:
            yield problem_of(
                policy,
                f"target {target.service} port {port}: the Service has no such port, so it has no effect",
                f"its ports are {_format_ports(service.ports)}" if service.ports else "",
            )
    if _have_no_sidecar(facts.selected(service.selector)):
        what = f"target {target.service}: no pod of the Service has a sidecar, so it has no effect"
        yield problem_of(policy, what, _INJECT)


def _service(facts: NamespaceFacts, service: Service) -> Iterator[Finding]:
    listed = [group for e in facts.endpoints.get(service.name, ()) for group in e.groups if group.addresses]
    names = {port.name for group in listed for port in group.ports}
    pods = [pod for pod in facts.selected(service.selector) if not pod.ended]
    if not service.ports or names.issuperset(port.name for port in service.ports):
        return
    if not pods and not listed:
        if service.selector:
            what = f"selector {_matches_no_pod(service, service.selector, 'it has no endpoints')}"
            yield problem_of(service, what, _similar_label(facts, service.selector), notice=True)
        else:
            what = "it has no selector, and no EndpointSlice with addresses, so it has no endpoints"
            yield problem_of(service, what, "add an EndpointSlice or a selector", notice=True)
        return
    for port in service.ports:
        if pods and port.name not in names and all(target_port(port, pod) is None for pod in pods):
            declared = dict.fromkeys(f"{p.name} ({p.port})" for pod in pods for p in pod.ports if p.name)
            yield problem_of(
                service,
                f"targetPort {port.target}: no container of its pods declares a port with this name, "
                f"so port {port.port} has no endpoints",
                f"its pods declare {', '.join(islice(declared, MAX_PER_OBJECT))}" if declared else "",
            )


def _matches_no_pod(owner: Object, selector: Mapping[str, str], effect: str = "it has no effect") -> str:
    return f"{format_selector(selector)} matches no pod in namespace {owner.namespace}, so {effect}"


def _format_ports(ports: Iterable[ServicePort]) -> str:
    texts = (f"{port.port} ({port.name})" if port.name else str(port.port) for port in ports)
    return ", ".join(islice(texts, MAX_PER_OBJECT))


def _similar_label(facts: NamespaceFacts, selector: Mapping[str, str]) -> str:
    """Suggest an existing label for the first pair of a selector that no pod has."""
    for key, value in sorted(selector.items()):
        if (key, value) not in facts.labels:
            values = nearest(value, islice((v for k, v in facts.labels if k == key), MAX_CANDIDATES))
            keys = nearest(key, islice((k for k, v in facts.labels if v == value), MAX_CANDIDATES))
            suggested_pair = values.replace(DID_YOU_MEAN, f"{DID_YOU_MEAN}{key}=")
            return suggested_pair or keys.replace("?", f"={value}?")
    return ""


# --- the mesh --------------------------------------------------------------------------


def _has_sidecars(mesh: Mesh) -> bool:
    return any(pod.has_sidecar and not pod.ended for pod in mesh.pods())


def _policies(mesh: Mesh) -> Iterator[Object]:
    for name in mesh.namespaces():
        facts = mesh.in_namespace(name, with_defaults=False).facts.values()
        yield from (fact for fact in facts if isinstance(fact, ModePolicy))


def _in_mesh_without_sidecars(mesh: Mesh, policies: Iterable[Object]) -> Iterator[Finding]:
    """Yield a problem for each policy of a mesh without sidecars; a notice if it has no pods either."""
    has_pods = any(True for _ in mesh.pods())
    for policy in policies:
        what = "no pod in the mesh has a sidecar, so it has no effect"
        yield problem_of(policy, what, _INJECT if has_pods else "", notice=not has_pods)


def _unused_labels(mesh: Mesh) -> Iterator[Finding]:
    """Yield the labels of Namespaces that add their pods to a mesh of Istio, but not to this one."""
    for fact in mesh.namespace_objects():
        if NAMESPACE_LABEL in fact.meta.labels:
            continue
        label = "" if fact.name == mesh.config.root_namespace else unused_label(fact.meta.labels)
        pods = mesh.in_namespace(fact.name, with_defaults=False).pods.values()
        if label and not (pods and all(pod.has_sidecar for pod in pods)):
            what = f"label {label} has no effect: it adds no sidecar to pods, so their traffic is plaintext"
            yield problem_of(fact, what, f"label the Namespace {NAMESPACE_LABEL}=enabled", notice=True)


def _disregarded(mesh: Mesh) -> Iterator[Finding]:
    # Endpoint lookups write to a mesh's cache, and the event loop uses `mesh` at the same time.
    copy = mesh.with_own_caches()
    messages: dict[Ref, list[str]] = {}
    for entry in disregarded(copy):
        messages.setdefault(entry.ref, []).append(entry.what)
    owners = [owner for ref in messages if (owner := copy.get(ref))]
    for owner in owners:
        yield from capped(owner, (problem_of(owner, what) for what in messages[owner.ref]))
