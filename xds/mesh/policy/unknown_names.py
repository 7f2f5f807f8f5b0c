"""Find names in objects that nothing in the mesh has: namespaces, identities, hosts, ports and subsets.

A mistyped one is valid, so parsing does not report it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count, islice

from xds.mesh.model.authorization import Attribute, PatternKind
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import MAX_CANDIDATES
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import (
    CLUSTER_DOMAIN,
    DEFAULT_TRUST_DOMAIN,
    AuthorizationPolicy,
    DestinationRule,
    Problem,
    Ref,
    Service,
    Sidecar,
    TrafficFact,
    selects,
)
from xds.mesh.parse.reading import DID_YOU_MEAN, nearest, shown
from xds.mesh.policy.authorization import conditions_of
from xds.mesh.policy.destination import MAX_SUBSET_CLUSTERS, has_too_many_subsets
from xds.mesh.policy.finding import Finding, capped, format_selector, problem_of

API_SERVER = f"kubernetes.default.svc.{CLUSTER_DOMAIN}"
"""Host of the API server. Its Service exists in every cluster, but rarely in a folder of manifests."""
MAX_SUGGESTIONS = 100
"""Maximum number of names for which one check looks for a similar one, which takes up to 10 ms each."""

_PRINCIPAL = re.compile("([^/]+)/ns/([^/]+)/sa/([^/]+)")
_SERVICE_SUFFIX = f".svc.{CLUSTER_DOMAIN}"
_SCOPES = (".", "*", "~")
"""Entries of `exportTo` that are not names of namespaces."""


def missing_namespaces(mesh: Mesh) -> dict[str, None]:
    """Return namespaces that seem not to exist.

    They contain only policies and DestinationRules, and have no Namespace object.
    """
    always_exist = ("", mesh.config.root_namespace)
    return {
        name: None
        for name in mesh.namespaces()
        if name not in always_exist
        and not mesh.get(Ref("Namespace", "", name))
        and all(
            isinstance(fact, TrafficFact)
            for fact in mesh.in_namespace(name, with_defaults=False).facts.values()
        )
    }


def in_missing(mesh: Mesh, missing: Iterable[str]) -> Iterator[Finding]:
    """Yield the objects of namespaces that seem not to exist."""
    existing = [name for name in mesh.namespaces() if name and name not in missing]
    for name in missing:
        what = f"namespace {name} does not exist (it contains only policies), so it has no effect"
        hint = nearest(name, existing[:MAX_CANDIDATES])
        for fact in mesh.in_namespace(name, with_defaults=False).facts.values():
            yield problem_of(fact, what, hint)


def unknown_identities(
    mesh: Mesh, missing: Collection[str], policies: Iterable[AuthorizationPolicy]
) -> Iterator[Finding]:
    """Yield the identities in policies that no known workload has; those with wildcards are not checked."""
    known = _Identities(mesh, missing)
    for policy in policies:
        conditions = (condition for rule in policy.rules for condition in conditions_of(rule))
        found = dict.fromkeys(
            (condition.attribute, pattern.text)
            for condition in conditions
            if condition.attribute.is_identity
            for pattern in (*condition.values, *condition.excluded)
            if pattern.kind is PatternKind.EXACT
        )
        yield from capped(policy, (each for pair in found for each in known.check(policy, *pair)))


class _Identities:
    """The identities of a mesh's workloads."""

    def __init__(self, mesh: Mesh, missing: Collection[str]) -> None:
        self._mesh = mesh
        self._namespaces = _known_namespaces(mesh, missing)
        self._suggestions = _Suggestions()

    def check(self, policy: AuthorizationPolicy, attribute: Attribute, text: str) -> Iterator[Finding]:
        """Yield what is wrong with an identity, or with a part of one."""
        config, name = self._mesh.config, f"{attribute} {shown(text)}"
        domain, namespace, account = config.trust_domain, "", ""
        match attribute:
            case Attribute.PRINCIPAL:
                if not (found := _PRINCIPAL.fullmatch(text)):
                    hint = "write TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT"
                    yield problem_of(policy, f"{name}: no pod has an identity like this", hint)
                    return
                named, namespace, account = found.groups()
                domain = domain if named == DEFAULT_TRUST_DOMAIN else named
            case Attribute.SERVICE_ACCOUNT:
                namespace, _, account = text.partition("/")
            case Attribute.NAMESPACE:
                namespace = text
            case _:
                domain = text
        accounts = self._mesh.in_namespace(namespace).service_accounts
        if domain not in config.trust_domains:
            hint = f"the trust domains of the mesh are {', '.join(config.trust_domains)}"
            yield problem_of(policy, f"{name}: no pod has this trust domain", hint)
        elif namespace and namespace not in self._namespaces:
            hint = self._suggestions.nearest(namespace, self._namespaces)
            yield problem_of(policy, f"{name}: no known object is in this namespace", hint, notice=True)
        elif account and account not in accounts:
            hint = self._suggestions.nearest(account, accounts)
            what = f"{name}: no known pod or ServiceAccount has this identity"
            yield problem_of(policy, what, hint, notice=True)


def unknown_export_scopes(
    mesh: Mesh, missing: Collection[str], exported: Iterable[Service | DestinationRule]
) -> Iterator[Finding]:
    """Yield the namespaces in `exportTo` in which no object is known."""
    by_ref = {each.ref: each for each in exported if each.export_to}  # A ServiceEntry has several services.
    if not by_ref:  # In most meshes.
        return
    known, suggestions = _known_namespaces(mesh, missing), _Suggestions()
    for owner in by_ref.values():
        unknown = [name for name in owner.export_to if name not in _SCOPES and name not in known]
        yield from capped(
            owner,
            (
                problem_of(
                    owner,
                    f"exportTo {name}: no known object is in this namespace",
                    suggestions.nearest(name, known),
                    notice=True,
                )
                for name in unknown
            ),
        )


def _known_namespaces(mesh: Mesh, missing: Collection[str]) -> set[str]:
    namespaces = (fact.name for fact in mesh.namespace_objects())
    return {*namespaces, *mesh.namespaces()}.difference(missing, ("",))


class _Suggestions:
    """Similar names, for a limited number of names."""

    def __init__(self) -> None:
        self._number = count()

    def take(self) -> bool:
        """Count a name. Return whether the limit allows to look for a similar one."""
        return next(self._number) < MAX_SUGGESTIONS

    def nearest(self, name: str, known: Iterable[str]) -> str:
        """Return `did you mean ...?` with the most similar known name, or an empty string."""
        return nearest(name, islice(sorted(known), MAX_CANDIDATES)) if self.take() else ""


def unmatched_rules(mesh: Mesh, rules: Collection[DestinationRule]) -> Iterator[Finding]:
    """Yield what DestinationRules match no Service, port or pod with."""
    services = list(mesh.services()) if rules else []
    outside: dict[str, list[Service]] = {}
    for service in services:
        if service.entry_host:
            outside.setdefault(service.entry_host, []).append(service)
    for rule in rules:
        if rule.host != API_SERVER:
            yield from capped(rule, _rule(mesh, rule, services, outside))


def _rule(
    mesh: Mesh, rule: DestinationRule, services: list[Service], outside: Mapping[str, list[Service]]
) -> Iterator[Finding]:
    """Yield what a rule matches nothing with. `outside` are the Services of ServiceEntries, by host."""
    if rule.host.startswith("*"):
        matched = [service for service in services if rule.is_about(service.host)]
    else:
        name, _, namespace = rule.host.removesuffix(_SERVICE_SUFFIX).partition(".")
        service = mesh.service(namespace, name)
        matched = [service] if service and rule.is_about(service.host) else outside.get(rule.host, [])
    if not matched:
        full_host = _suggest_full_host(mesh, rule)
        is_external = not (full_host or rule.host.startswith("*") or rule.host.endswith(_SERVICE_SUFFIX))
        yield problem_of(
            rule,
            f"host {rule.host} matches no Service, so it has no effect",
            "" if is_external else full_host or _similar_host(mesh, rule.host, services),
            notice=is_external,
        )
        return
    ports = {port.port for service in matched for port in service.ports}
    policies = (rule.policy, *(subset.policy for subset in rule.subsets))
    for number in sorted({number for policy in policies if policy for number in policy.ports} - ports):
        yield problem_of(
            rule,
            f"portLevelSettings {number}: no Service that host {rule.host} matches has this port, "
            "so it has no effect",
        )
    if rule.subsets and rule.host.startswith("*"):
        yield problem_of(rule, f"subsets of the wildcard {rule.host} have no effect", notice=True)
    for service in matched:
        if has_too_many_subsets(rule, service):
            yield problem_of(
                rule,
                f"{len(rule.subsets):,} subsets of {service.ref} with {len(service.ports):,} ports would "
                f"need more than {MAX_SUBSET_CLUSTERS:,} clusters, so its subsets have no effect",
            )
    pods = [
        pod
        for service in (matched if rule.subsets else ())
        for pod in mesh.in_namespace(service.namespace).selected(service.selector)
    ]
    for subset in rule.subsets if pods else ():
        if not any(covers(subset.labels, pod.meta.labels) for pod in pods):
            yield problem_of(
                rule,
                f"subset {subset.name}: {format_selector(subset.labels)} matches no pod of host {rule.host}, "
                "so it has no effect",
                notice=True,
            )


def _suggest_full_host(mesh: Mesh, rule: DestinationRule) -> str:
    """Suggest the full name for a host such as `web.shop` or `web.shop.svc`; empty without such a Service."""
    name, _, namespace = rule.host.removesuffix(".svc").partition(".")
    return f"{DID_YOU_MEAN}{name}.{namespace}{_SERVICE_SUFFIX}?" if mesh.service(namespace, name) else ""


def _similar_host(mesh: Mesh, host: str, services: list[Service]) -> str:
    namespace = host.removesuffix(_SERVICE_SUFFIX).partition(".")[2]
    candidates = list(mesh.in_namespace(namespace).services.values()) or services
    return nearest(host, (service.host for service in islice(candidates, MAX_CANDIDATES)))


def unknown_egress_hosts(mesh: Mesh, sidecars: Collection[Sidecar]) -> Iterator[Finding]:
    """Yield the services that Sidecars name, but that do not exist; hosts with wildcards are not checked."""
    services = list(mesh.services()) if sidecars else []
    namespaces: dict[str, set[str]] = {}
    for service in services:
        namespaces.setdefault(service.host, set()).add(service.namespace)
    suggestions = _Suggestions()
    for sidecar in sidecars:
        is_mesh_wide = sidecar.is_mesh_wide(mesh.config.root_namespace)
        own = "*" if is_mesh_wide else sidecar.namespace  # What `.` stands for: the client's namespace.
        unknown = list[Finding]()
        for namespace, host in sidecar.hosts:
            found = namespaces.get(host, set())
            name = own if namespace == "." else namespace
            is_known = bool(found) if name == "*" else name in found
            if is_known or name == "~" or "*" in host or host == API_SERVER:
                continue
            hint = f"{DID_YOU_MEAN}{min(found)}/{host}?" if found else ""
            if not found and suggestions.take():
                hint = _similar_host(mesh, host, services)
            unknown.append(
                problem_of(sidecar, f"egress host {namespace}/{host} matches no Service", hint, notice=True)
            )
        yield from capped(sidecar, unknown)


def unmatched_discovery_selectors(mesh: Mesh) -> Iterator[Finding]:
    """Yield the discoverySelectors that match no Namespace. None is checked if no Namespace is known."""
    labels = [fact.meta.labels for fact in mesh.namespace_objects()]
    selectors = mesh.config.discovery_selectors if labels else ()
    unmatched = [
        number
        for number, selector in enumerate(selectors)
        if not any(selects(selector, each) for each in labels)
    ]
    hides_all = len(unmatched) == len(selectors)
    where = "MeshConfig"
    for number in unmatched:
        what = f"discoverySelectors[{number}] matches no Namespace"
        consequence = ", so clients see no services of any Namespace" if hides_all else ""
        yield Ref(where, "", ""), Problem(where=where, what=what + consequence, notice=not hides_all)
