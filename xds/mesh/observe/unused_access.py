"""Access that ALLOW policies give to clients, and that recorded traffic did not use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import NamedTuple, TypeAlias

from xds.mesh.model.authorization import Rule
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import MeshConfig, Pod, Ref, spiffe_id
from xds.mesh.model.workload import workloads_of
from xds.mesh.observe.edges import Client, TrafficMode
from xds.mesh.observe.least_privilege import flows_by_target, received
from xds.mesh.observe.record import Flow
from xds.mesh.observe.replay import AddressClasses
from xds.mesh.observe.workloads import workload as client_of
from xds.mesh.policy.acceptance import Enforcement, accepted, enforcement, pod_endpoints
from xds.mesh.policy.access import IdentityIndex, PortRules, patterns_of, request_to
from xds.mesh.policy.authorization import Request, allow_policies_of, conditions_of, holds
from xds.mesh.policy.describe import OTHER_PORTS
from xds.mesh.policy.hop_text import format_clients, format_target
from xds.mesh.policy.hops import Clients, Grouping, clients_of
from xds.mesh.policy.identities import representatives

_Sender: TypeAlias = tuple[Client, str, Request | None]
"""A client, its SPIFFE ID (empty in plaintext), and what is known of its address."""
_Subjects: TypeAlias = set[Client | str]
"""Service accounts, and words for other clients: those that have a value of a rule, or send `plaintext`."""


class UnusedRule(NamedTuple):
    """Access to servers that a rule of an ALLOW policy gives to clients, and that they did not use."""

    policy: Ref
    """The ALLOW policy."""
    rule: int
    """Index in `spec.rules`."""
    is_used: bool
    """Whether a client used the rule, perhaps for other servers."""
    clients: tuple[Clients, ...]
    """Pods of the service accounts to which the rule allows some requests, and that sent none."""
    others: tuple[str, ...]
    """Unused values of the rule that no pod has, such as `source.namespace old`, and `plaintext`."""
    servers: tuple[str, ...] = ()
    """The servers, as SERVICE.NAMESPACE:PORT, or `port PORT of WORKLOAD.NAMESPACE`."""

    @property
    def unused_by(self) -> str:
        """The clients and the other values in short."""
        return ", ".join(filter(None, (format_clients(self.clients), *self.others)))


class UnusedAccess(NamedTuple):
    """Access that ALLOW policies give to clients, and that they did not use."""

    rules: tuple[UnusedRule, ...]
    """The rules that give it, by policy and index. A rule may occur several times, with other servers."""
    checked: int
    """Number of rules that give any access."""
    unrestricted: int
    """Number of workloads with a sidecar and without an ALLOW policy."""


def unused_access(mesh: Mesh, flows: Iterable[Flow], namespaces: Collection[str] = ()) -> UnusedAccess:
    """Return the access that each rule of ALLOW policies gives on its own, and recorded traffic did not use.

    A client used all rules that allow some of its requests to a server that it called, because a record does
    not say which requests it sent. No rule gives access that DENY policies deny. A port that was not called
    is left out unless a Service, a container or a policy names it.

    Args:
        mesh: the facts.
        flows: the traffic.
        namespaces: namespaces of the servers; empty for all.
    """
    config, addresses, by_target = mesh.config, AddressClasses([mesh]), flows_by_target(mesh, flows)
    pods: dict[Client, list[Pod]] = {}
    for pod in clients_of(mesh):
        pods.setdefault(client_of(pod), []).append(pod)

    def sender(flow: Flow) -> _Sender:
        """Return who sent a flow. A pod may have had another address then."""
        client = flow.client
        identity = spiffe_id(config.trust_domain, *client) if flow.mode is TrafficMode.MTLS else ""
        return client, identity, None if client.namespace else addresses.request(client.name)

    # An address that is not known is in no block but 0.0.0.0/0.
    unknown = addresses.request("0.0.0.0")
    existing = {
        (client, spiffe_id(config.trust_domain, *client), addresses.request(address) or unknown)
        for client, found in pods.items()
        for address in [each for pod in found for each in pod.addresses] or [""]
    }

    @cache
    def given_by(rule: Rule, enforced: Enforcement) -> _Subjects:
        found = _allowed(config, rule, enforced, existing)
        identities = ("", *representatives(config, patterns_of(enforced.rules)))
        others = _allowed(config, rule, enforced, [(Client("", ""), each, None) for each in identities])
        return {each for each in found if isinstance(each, Client)} | (others - found)

    uses: dict[tuple[Ref, int, str, str], tuple[_Subjects, _Subjects]] = {}
    unrestricted = 0
    for workload in workloads_of(pod for pod in clients_of(mesh) if pod.has_sidecar).values():
        restricted = [pod for pod in workload.pods if allow_policies_of(mesh, pod)]
        unrestricted += not restricted and workload.namespace in (namespaces or [workload.namespace])
        for pod in restricted:
            calls: dict[int, list[_Sender]] = {each.port: [] for each in pod_endpoints(mesh, pod)}
            for port, flow in received(mesh, pod, by_target):
                calls.setdefault(port, []).append(sender(flow))
            for port in calls.keys() - {OTHER_PORTS}:
                exposure = mesh.exposure(pod, port)
                server = f"port {port} of {workload.name}.{workload.namespace}"
                server = format_target(exposure.service, exposure.port) if exposure else server
                for policy, rule, index, enforced in _rules(mesh, pod, port):
                    use = uses.setdefault((policy, index, pod.namespace, server), (set(), set()))
                    use[0].update(given_by(rule, enforced))
                    use[1].update(_allowed(config, rule, enforced, calls[port]))
    used_rules = {key[:2] for key, (_, used) in uses.items() if used}
    checked = [key for key, use in uses.items() if use[0] and key[2] in (namespaces or [key[2]])]
    grouping, found = Grouping(pods), dict[UnusedRule, list[str]]()
    for key in sorted(checked, key=lambda key: (*key[:2], natural_key(key[3]))):
        if unused := uses[key][0] - uses[key][1]:
            clients = grouping.merge(client for client in pods if client in unused)
            others = sorted(each for each in unused if isinstance(each, str))
            row = UnusedRule(*key[:2], key[:2] in used_rules, clients, tuple(others))
            found.setdefault(row, []).append(key[3])
    rows = tuple(row._replace(servers=tuple(servers)) for row, servers in found.items())
    return UnusedAccess(rows, len({key[:2] for key in checked}), unrestricted)


def _rules(mesh: Mesh, pod: Pod, port: int) -> Iterator[tuple[Ref, Rule, int, Enforcement]]:
    """Yield each rule of ALLOW policies, and what a sidecar enforces at a port without the other ones."""
    enforced = enforcement(mesh, Endpoint(address=pod.address, port=port, pod=pod))
    for policy in allow_policies_of(mesh, pod):
        for index, rule in enumerate(policy.rules):
            if rules := enforced.rules:
                named = policy.ref, rule
                http, tcp = (
                    each and each._replace(allow=tuple(it for it in each.allow or () if it[1:] == named))
                    for each in (rules.http, rules.tcp)
                )
                yield *named, index, enforced._replace(rules=PortRules(port, http, tcp))


def _allowed(config: MeshConfig, rule: Rule, enforced: Enforcement, senders: Iterable[_Sender]) -> _Subjects:
    """Return which accounts a rule allows some requests, and which of its values these or others have."""
    values = {
        f"{each.attribute} {value}": each._replace(values=(value,), excluded=())
        for each in conditions_of(rule)
        if each.attribute.is_of_client
        for value in each.values
    }
    index, classes = IdentityIndex(config, patterns_of(enforced.rules)), dict[object, list[_Sender]]()
    for sender in senders:
        key = bool(sender[1]), index.matching(sender[1]), sender[2]
        classes.setdefault(key, []).append(sender)
    found: _Subjects = set()
    for group in classes.values():
        _, identity, request = group[0]
        if accepted(config, enforced, identity, request):
            asked = request_to(OTHER_PORTS, identity, request)
            found.update(words for words, each in values.items() if holds(config, each, asked) is not False)
            found.update(client for client, *_ in group if client.namespace)
            found.update(() if identity else ("plaintext",))
    return found
