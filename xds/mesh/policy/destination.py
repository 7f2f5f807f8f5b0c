"""Select the DestinationRule for a client and a service, and its settings for a port and subset.

Lookup and merging follow Istio's pilot (push context and sidecar scope): the client's namespace, then the
service's, then the root namespace. The first that has a rule for the host decides; rules are not merged
across namespaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.namespace import covers
from xds.mesh.model.objects import Ref, Service
from xds.mesh.model.traffic import Subset, TrafficPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRule:
    """The DestinationRules of one host in one namespace, merged oldest first."""

    owners: Mapping[str, Ref]
    """Object that each subset comes from, by subset name; under `""`, the object that the top-level policy
    comes from."""
    host: str
    """Host of the rules: a full name or a wildcard."""
    policy: TrafficPolicy | None = None
    """Top-level trafficPolicy."""
    subsets: tuple[Subset, ...] = ()
    """Subsets of all merged rules."""
    export_to: frozenset[str] = frozenset()
    """Namespaces whose clients the rule applies to; `*` is every namespace."""
    selector: Mapping[str, str] | None = None
    """Labels of the clients that the rule applies to; None for all."""

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Objects that the rule was merged from."""
        return tuple(dict.fromkeys(self.owners.values()))

    def subset(self, name: str) -> Subset | None:
        """Return the subset of that name."""
        return next((subset for subset in self.subsets if subset.name == name), None)

    def for_port(self, port: int, subset: str = "") -> TrafficPolicy:
        """Return the settings for a service port and subset (`""`: the service as a whole).

        The result's `ports` is empty. A port's entry replaces the whole policy of its level. A subset's
        fields override those of the service one by one; a subset's entry for the port replaces all four.
        """
        base = _at_port(self.policy, port)
        chosen = self.subset(subset)
        if chosen is None or chosen.policy is None:
            return base
        own = _at_port(chosen.policy, port)
        if port in chosen.policy.ports:
            return own
        return TrafficPolicy(
            tls=own.tls or base.tls,
            connection_pool=own.connection_pool or base.connection_pool,
            outlier_detection=own.outlier_detection or base.outlier_detection,
            load_balancer=own.load_balancer or base.load_balancer,
        )

    def tls_owner(self, port: int, subset: str = "") -> Ref:
        """Return the object that sets the `tls` that `for_port` returns."""
        chosen = self.subset(subset)
        own = chosen is not None and _at_port(chosen.policy, port).tls is not None
        return self.owners[subset if own else ""]


def _at_port(policy: TrafficPolicy | None, port: int) -> TrafficPolicy:
    if policy is None:
        return TrafficPolicy()
    return policy.ports.get(port) or replace(policy, ports={})


def client_rule(mesh: Mesh, namespace: str, labels: Mapping[str, str], service: Service) -> ClientRule | None:
    """Return the rule for clients with these labels in a namespace that call a service."""
    root = mesh.config.root_namespace
    own = _rules(mesh, namespace, service)
    if namespace == root:
        # Public rules of the root namespace are mesh-wide: they come last for its own clients as well.
        found = _merge(rule for rule in own if rule.export_to == {root})
    else:
        found = _merge(rule for rule in own if rule.export_to & {"*", namespace})
    for owner in dict.fromkeys((service.namespace, root)):
        if not found:
            public = (rule for rule in _rules(mesh, owner, service) if rule.export_to != {owner})
            found = [rule for rule in _merge(public) if rule.export_to & {"*", namespace}]
    for rule in found:
        if rule.selector is not None and covers(rule.selector, labels):
            return rule
    return next((rule for rule in reversed(found) if rule.selector is None), None)


def _rules(mesh: Mesh, namespace: str, service: Service) -> Iterator[ClientRule]:
    """Yield a namespace's rules for a service: rules with a workloadSelector first, then oldest first."""
    default = mesh.config.default_destination_rule_export_to
    for rule in mesh.in_namespace(namespace).rules:
        if rule.is_about(service.host):
            names = rule.export_to or default
            yield ClientRule(
                owners={"": rule.ref} | {subset.name: rule.ref for subset in rule.subsets},
                host=rule.host,
                policy=rule.policy,
                subsets=rule.subsets,
                # A rule with a workloadSelector never applies to other namespaces.
                export_to=frozenset(
                    namespace if name == "." or rule.selector is not None else name for name in names
                ),
                selector=rule.selector,
            )


def _merge(rules: Iterable[ClientRule]) -> list[ClientRule]:
    """Keep the rules with the most specific host; merge those for the same clients, first rule first."""
    matching = list(rules)
    best = max((_specificity(rule.host) for rule in matching), default=None)
    merged: list[ClientRule] = []
    for rule in matching:
        if _specificity(rule.host) != best:
            continue
        for place, other in enumerate(merged):
            if (other.export_to, other.selector) == (rule.export_to, rule.selector):
                known = {subset.name for subset in other.subsets}
                merged[place] = replace(
                    other,
                    owners={**rule.owners, **other.owners, "": (other if other.policy else rule).owners[""]},
                    policy=other.policy or rule.policy,
                    subsets=other.subsets + tuple(s for s in rule.subsets if s.name not in known),
                )
                break
        else:
            merged.append(rule)
    return merged


def _specificity(host: str) -> tuple[bool, int]:
    return not host.startswith("*"), len(host)
