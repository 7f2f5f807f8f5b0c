"""Which DestinationRule speaks for a client and a service, and what it says for a port and subset.

Lookup and merging are Istio's (facts: pilot's push_context and sidecar scope, restated): the client's namespace, then the
service's, then the root namespace; the first that has a rule for the host decides, and nothing is merged across namespaces.
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
    """The DestinationRules of one host in one namespace that were merged, oldest first, into what clients get."""

    owners: Mapping[str, Ref]
    """Who says it: the object that each subset is from; under `""`, the object that the top-level policy is from."""
    host: str
    policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: frozenset[str] = frozenset()
    selector: Mapping[str, str] | None = None

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The objects that the rule was made from."""
        return tuple(dict.fromkeys(self.owners.values()))

    def subset(self, name: str) -> Subset | None:
        """Return the subset of that name."""
        return next((subset for subset in self.subsets if subset.name == name), None)

    def for_port(self, port: int, subset: str = "") -> TrafficPolicy:
        """Return what holds for a service port and subset (`""`: the service as a whole); its `ports` is empty.

        A port's entry replaces the whole policy of its level. A subset's fields override, one by one, those of the service; where
        the subset has an entry for the port, its four parts replace them wholesale.
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
        """Return the object whose `tls` `for_port` gave."""
        chosen = self.subset(subset)
        own = chosen is not None and _at_port(chosen.policy, port).tls is not None
        return self.owners[subset if own else ""]


def _at_port(policy: TrafficPolicy | None, port: int) -> TrafficPolicy:
    if policy is None:
        return TrafficPolicy()
    return policy.ports.get(port) or replace(policy, ports={})


def client_rule(mesh: Mesh, namespace: str, labels: Mapping[str, str], service: Service) -> ClientRule | None:
    """Return the rule that holds for clients with these labels in a namespace when they speak to a service."""
    root = mesh.config.root_namespace
    own = _rules(mesh, namespace, service)
    if namespace == root:
        # The root namespace's public rules are the whole mesh's: they come last for its own clients, too.
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
    """Yield a namespace's rules for a service, those for some clients only first, then oldest first."""
    default = mesh.config.default_destination_rule_export_to
    for rule in mesh.in_namespace(namespace).rules:
        if rule.is_about(service.host):
            names = rule.export_to or default
            yield ClientRule(
                owners={"": rule.ref} | {subset.name: rule.ref for subset in rule.subsets},
                host=rule.host,
                policy=rule.policy,
                subsets=rule.subsets,
                # A rule for some clients only is never for other namespaces.
                export_to=frozenset(
                    namespace if name == "." or rule.selector is not None else name for name in names
                ),
                selector=rule.selector,
            )


def _merge(rules: Iterable[ClientRule]) -> list[ClientRule]:
    """Keep the rules with the most specific host; join those for the same clients, the first having the last word."""
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
