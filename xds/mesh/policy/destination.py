"""Select the DestinationRule for a client and a service, and its settings for a port and subset.

As in Istio's pilot (push context and sidecar scope), rules are looked up in the client's namespace, then in
the service's namespace, then in the root namespace. The first namespace with a rule for the host decides.
Rules in different namespaces are not merged.

Unlike in Istio, only rules of the client's namespace and of the root namespace make a sidecar read files: a
tenant must not choose which files the sidecars of other tenants open. With other rules, a client sends the
mesh's mutual TLS instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import DestinationRule, Ref, Service
from xds.mesh.model.traffic import ClientTls, Subset, TlsMode, TrafficPolicy, reads_files
from xds.mesh.policy.visibility import default_sidecar, exported_to, namespaces_with_sidecars, sidecar_of

MAX_SUBSET_CLUSTERS = 1_024
"""Maximum number of clusters for subsets of a Service: its ports times the subsets of its rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRule:
    """DestinationRules for one host in one namespace, merged into one. Older rules take precedence."""

    owners: Mapping[str, Ref]
    """DestinationRule that defines each subset, by subset name.

    The key `""` has the DestinationRule that defines the top-level trafficPolicy.
    """
    host: str
    """Host of the merged rules: a full name or a wildcard."""
    policy: TrafficPolicy | None = None
    """Top-level trafficPolicy of the oldest rule that has one."""
    subsets: tuple[Subset, ...] = ()
    """Subsets of all merged rules; among subsets with the same name, the oldest rule's."""
    export_to: frozenset[str] = frozenset()
    """Namespaces whose clients the rule applies to; `*` means every namespace."""
    selector: Mapping[str, str] | None = None
    """Labels of the clients that the rule applies to; None for all."""

    def subset_names(self, service: Service) -> tuple[str, ...]:
        """Return the subsets for which a Service gets clusters: none if they would be too many.

        A rule for a wildcard would multiply them by the number of Services.
        """
        if self.host.startswith("*") or has_too_many_subsets(self, service):
            return ()
        return tuple(subset.name for subset in self.subsets)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """DestinationRules that the rule was merged from."""
        return tuple(dict.fromkeys(self.owners.values()))

    def subset(self, name: str) -> Subset | None:
        """Return the subset with this name; None if there is none."""
        return next((subset for subset in self.subsets if subset.name == name), None)

    def for_port(self, port: int, subset: str = "") -> TrafficPolicy:
        """Return the settings for a service port, and for a subset unless `subset` is empty.

        An entry in `portLevelSettings` replaces the whole trafficPolicy that contains it. If the subset has
        an entry for the port, only that entry applies. Otherwise, each field of the subset's policy overrides
        the same field of the rule's policy. The `ports` of the result is empty.
        """
        rule_policy = _at_port(self.policy, port)
        chosen = self.subset(subset)
        if chosen is None or chosen.policy is None:
            return rule_policy
        subset_policy = _at_port(chosen.policy, port)
        if port in chosen.policy.ports:
            return subset_policy
        return TrafficPolicy(
            tls=subset_policy.tls or rule_policy.tls,
            connection_pool=subset_policy.connection_pool or rule_policy.connection_pool,
            outlier_detection=subset_policy.outlier_detection or rule_policy.outlier_detection,
            load_balancer=subset_policy.load_balancer or rule_policy.load_balancer,
        )

    def tls_owner(self, port: int, subset: str = "") -> Ref:
        """Return the DestinationRule whose `tls` settings `for_port` returns."""
        chosen = self.subset(subset)
        is_set_by_subset = chosen is not None and _at_port(chosen.policy, port).tls is not None
        return self.owners[subset if is_set_by_subset else ""]


def has_too_many_subsets(rule: ClientRule | DestinationRule, service: Service) -> bool:
    """Whether a Service gets no clusters for the subsets of a rule, because they would be too many."""
    return len(rule.subsets) * len(service.ports) > MAX_SUBSET_CLUSTERS


def _at_port(policy: TrafficPolicy | None, port: int) -> TrafficPolicy:
    if policy is None:
        return TrafficPolicy()
    return policy.ports.get(port) or (replace(policy, ports={}) if policy.ports else policy)


def client_rule(mesh: Mesh, namespace: str, labels: Mapping[str, str], service: Service) -> ClientRule | None:
    """Return the rule that applies to clients of a service.

    Args:
        mesh: the facts.
        namespace: the clients' namespace.
        labels: the clients' labels.
        service: Service that the clients call.
    """
    return _client_rule(mesh, lambda name: mesh.in_namespace(name).rules, namespace, labels, service)


RuleKey: TypeAlias = tuple[str, tuple[bool, ...], Ref | None]
"""Namespace of clients, which `workloadSelector`s of its rules match them, and their Sidecar."""


def rule_key(mesh: Mesh, namespace: str, labels: Mapping[str, str]) -> RuleKey:
    """Return a key for clients: those with equal keys have the same services and `client_rule` for each.

    Namespaces without rules, which no rule or service names in `exportTo`, share one key.
    """
    if namespace not in _distinct_namespaces(mesh):
        return "", (), None
    selectors = (rule.selector for rule in mesh.in_namespace(namespace).rules if rule.selector is not None)
    sidecar = sidecar_of(mesh, namespace, labels)
    matched = tuple(covers(selector, labels) for selector in selectors)
    return namespace, matched, sidecar.ref if sidecar else None


def _distinct_namespaces(mesh: Mesh) -> frozenset[str]:
    """Return the namespaces whose clients may have other rules or services than clients elsewhere."""
    if "namespaces with rules" not in mesh.scratch:
        names = {*mesh.config.default_destination_rule_export_to}
        for rule in (*mesh.rules(), *filter(None, mesh.served.rules.values())):
            names.update((rule.namespace, *rule.export_to))
        for name in mesh.namespaces():
            names |= mesh.in_namespace(name).export_scopes
        if "*" not in mesh.config.default_service_export_to:
            names.update(mesh.config.default_service_export_to, mesh.namespaces())
        names |= namespaces_with_sidecars(mesh)
        default = default_sidecar(mesh)
        if default and any(name == "." for name, _ in default.hosts):
            names.update(mesh.namespaces())
        mesh.scratch["namespaces with rules"] = frozenset(names)
    namespaces: frozenset[str] = mesh.scratch["namespaces with rules"]
    return namespaces


def distinguished_namespaces(mesh: Mesh, service: Service) -> frozenset[str]:
    """Return the namespaces whose clients may have another rule for a service, or not see it.

    Clients in all other namespaces have the same `client_rule` for the service.
    """
    names = {*exported_to(mesh, service)}
    if sidecars := namespaces_with_sidecars(mesh):
        # A Sidecar of the mesh may let only clients in the service's own namespace see it.
        names.update(sidecars, (service.namespace,))
    for rule in _rules_about(mesh, service.host):
        names.update((rule.namespace, *(rule.export_to or mesh.config.default_destination_rule_export_to)))
    return frozenset(names)


def _rules_about(mesh: Mesh, host: str) -> Iterator[DestinationRule]:
    """Yield the rules whose host matches a full name."""
    by_host: dict[str, list[DestinationRule]] | None = mesh.scratch.get(_rules_about)
    if by_host is None:
        by_host = mesh.scratch[_rules_about] = {}
        for rule in mesh.rules():
            by_host.setdefault(rule.host, []).append(rule)
    for pattern in (host, *(f"*{host[start:]}" for start in range(len(host) + 1))):
        yield from by_host.get(pattern, ())


def served_rule_key(mesh: Mesh, namespace: str, labels: Mapping[str, str]) -> tuple[str, tuple[Ref, ...]]:
    """Like `rule_key`, for `served_client_rule`: clients with equal keys are served the same rules."""
    if namespace not in _distinct_namespaces(mesh):
        return "", ()
    rules = mesh.served_rules(namespace)
    return namespace, tuple(
        rule.ref for rule in rules if rule.selector is not None and covers(rule.selector, labels)
    )


def served_client_rule(
    mesh: Mesh, namespace: str, labels: Mapping[str, str], service: Service
) -> ClientRule | None:
    """Return the rule that clients of a service are currently served.

    During a rollout, it can differ from the rule that `client_rule` returns.
    """
    return _client_rule(mesh, mesh.served_rules, namespace, labels, service)


def rules_with_tls(
    mesh: Mesh, namespace: str, labels: Mapping[str, str], service: Service, port: int
) -> tuple[Ref, ...]:
    """Return the DestinationRules with TLS settings for a service port that could apply to clients.

    They are in order of precedence. At most one of them decides: `ClientRule.tls_owner` of `client_rule`.

    Args:
        mesh: the facts.
        namespace: the clients' namespace.
        labels: the clients' labels.
        service: Service that the clients call.
        port: port of the Service.
    """
    rules = (
        rule
        for level in _levels(mesh, namespace, service)
        for rule in sorted(
            _rules(mesh, lambda name: mesh.in_namespace(name).rules, level, service),
            key=lambda rule: _specificity(rule.host),
            reverse=True,
        )
        if _is_visible(rule, namespace, labels)
    )
    return tuple(rule.owners[""] for rule in rules if _at_port(rule.policy, port).tls)


def could_apply(
    mesh: Mesh, rule: DestinationRule, namespace: str, labels: Mapping[str, str], service: Service
) -> bool:
    """Return whether a rule applies to clients of a service unless other rules override it.

    Args:
        mesh: the facts.
        rule: a DestinationRule, which need not be in the mesh.
        namespace: the clients' namespace.
        labels: the clients' labels.
        service: Service that the clients call.
    """
    return rule.namespace in _levels(mesh, namespace, service) and any(
        _is_visible(item, namespace, labels)
        for item in _rules(mesh, lambda _: (rule,), rule.namespace, service)
    )


def _levels(mesh: Mesh, namespace: str, service: Service) -> Iterable[str]:
    """Return the namespaces whose rules can apply to clients of a service, in order of precedence."""
    return dict.fromkeys((namespace, service.namespace, mesh.config.root_namespace))


def _is_visible(rule: ClientRule, namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether `exportTo` and the workloadSelector of a rule include clients."""
    is_exported = bool(rule.export_to & {"*", namespace})
    return is_exported and (rule.selector is None or covers(rule.selector, labels))


_RulesOf: TypeAlias = Callable[[str], Iterable[DestinationRule]]
"""Returns the rules of a namespace, in the order of `NamespaceFacts.rules`."""


def _client_rule(
    mesh: Mesh, rules_of: _RulesOf, namespace: str, labels: Mapping[str, str], service: Service
) -> ClientRule | None:
    root = mesh.config.root_namespace
    client_rules = _rules(mesh, rules_of, namespace, service)
    if namespace == root:
        # Exported rules of the root namespace are mesh-wide defaults. The service's namespace overrides them,
        # even for clients in the root namespace.
        rules = _merge(rule for rule in client_rules if rule.export_to == {root})
    else:
        rules = _merge(rule for rule in client_rules if rule.export_to & {"*", namespace})
    for owner in dict.fromkeys((service.namespace, root)):
        if not rules:
            exported = (rule for rule in _rules(mesh, rules_of, owner, service) if rule.export_to != {owner})
            rules = [rule for rule in _merge(exported) if rule.export_to & {"*", namespace}]
            if owner != root:
                rules = [
                    _without_files(rule) if reads_files(rule.policy, rule.subsets) else rule for rule in rules
                ]
    for rule in rules:
        if rule.selector is not None and covers(rule.selector, labels):
            return rule
    return next((rule for rule in reversed(rules) if rule.selector is None), None)


def _without_files(rule: ClientRule) -> ClientRule:
    """Replace TLS settings with files by ISTIO_MUTUAL, as for a rejected rule: it never becomes plaintext."""

    def replaced(policy: TrafficPolicy | None) -> TrafficPolicy | None:
        if policy is None:
            return None
        ports = {number: _without_file_tls(settings) for number, settings in policy.ports.items()}
        return replace(_without_file_tls(policy), ports=ports)

    subsets = (replace(subset, policy=replaced(subset.policy)) for subset in rule.subsets)
    return replace(rule, policy=replaced(rule.policy), subsets=tuple(subsets))


def _without_file_tls(policy: TrafficPolicy) -> TrafficPolicy:
    if policy.tls and policy.tls.reads_files:
        return replace(policy, tls=ClientTls(mode=TlsMode.ISTIO_MUTUAL))
    return policy


def _rules(mesh: Mesh, rules_of: _RulesOf, namespace: str, service: Service) -> Iterator[ClientRule]:
    """Yield the rules of a namespace for a service, oldest first.

    Rules with a workloadSelector come before all others.
    """
    default = mesh.config.default_destination_rule_export_to
    for rule in rules_of(namespace):
        if rule.is_about(service.host):
            names = rule.export_to or default
            yield ClientRule(
                owners={"": rule.ref} | {subset.name: rule.ref for subset in rule.subsets},
                host=rule.host,
                policy=rule.policy,
                subsets=rule.subsets,
                # A rule with a workloadSelector never applies to clients in other namespaces.
                export_to=frozenset(
                    namespace if name == "." or rule.selector is not None else name for name in names
                ),
                selector=rule.selector,
            )


def _merge(rules: Iterable[ClientRule]) -> list[ClientRule]:
    """Keep the rules with the most specific host, and merge rules for the same clients.

    Earlier rules take precedence over later ones.
    """
    candidates = list(rules)
    most_specific = max((_specificity(rule.host) for rule in candidates), default=None)
    merged: list[ClientRule] = []
    for rule in candidates:
        if _specificity(rule.host) != most_specific:
            continue
        for index, earlier in enumerate(merged):
            if (earlier.export_to, earlier.selector) == (rule.export_to, rule.selector):
                defined = {subset.name for subset in earlier.subsets}
                policy_owner = (earlier if earlier.policy else rule).owners[""]
                merged[index] = replace(
                    earlier,
                    owners={**rule.owners, **earlier.owners, "": policy_owner},
                    policy=earlier.policy or rule.policy,
                    subsets=earlier.subsets + tuple(s for s in rule.subsets if s.name not in defined),
                )
                break
        else:
            merged.append(rule)
    return merged


def _specificity(host: str) -> tuple[bool, int]:
    return not host.startswith("*"), len(host)
