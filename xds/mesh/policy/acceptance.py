"""What servers accept from any client that could exist: in plaintext, and with each identity.

`xds.mesh.policy.reach` predicts what known clients send. That protects no server: a client can bypass its
sidecar, connect to a pod's address, and use a service account that does not exist yet. Here, only what the
server's own sidecar refuses counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import NamedTuple, TypeVar

from xds.mesh.model.authorization import Attribute, Rule
from xds.mesh.model.mesh import Endpoint, Mesh, target_port
from xds.mesh.model.names import natural_key
from xds.mesh.model.objects import Interception, MeshConfig, Mode, Pod, Ref, Service, ServicePort, spiffe_id
from xds.mesh.policy.access import (
    IdentityIndex,
    IdentityPattern,
    Permission,
    PortRules,
    permission,
    port_rules,
)
from xds.mesh.policy.authorization import Access, Request, conditions_of
from xds.mesh.policy.describe import OTHER_PORTS
from xds.mesh.policy.hop_text import MAX_NAMES, format_target
from xds.mesh.policy.identities import account_of, representatives
from xds.mesh.policy.mtls import ModeDecision, enforced_mode, ports_with_own_mode
from xds.mesh.policy.reach import Result, is_closed

MAX_ACCOUNTS = 20
"""Maximum number of service accounts of a class that are named."""
T = TypeVar("T")


class Enforcement(NamedTuple):
    """What a sidecar enforces at a port."""

    mode: ModeDecision | None
    """The mode; None if no sidecar intercepts the port, so that everything is accepted."""
    rules: PortRules | None
    """AuthorizationPolicies' rules; None if there are none."""
    is_closed: bool
    """Whether the port belongs to the sidecar, which closes it to other pods."""


def enforcement(mesh: Mesh, endpoint: Endpoint) -> Enforcement:
    """Return what the sidecar in front of an endpoint enforces."""
    mode, pod = enforced_mode(mesh, endpoint), endpoint.pod
    if pod and pod.interception is Interception.NONE and not mesh.exposure(pod, endpoint.port):
        mode = None  # Its sidecar has no listener for the port.
    rules = port_rules(mesh, pod, endpoint.port) if pod and mode else None
    return Enforcement(mode, rules, is_closed(mesh, endpoint))


def accepted(
    config: MeshConfig, enforced: Enforcement, identity: str, request: Request | None = None
) -> Permission | None:
    """Return how a server accepts connections, perhaps only of some requests; None if it refuses them all.

    Args:
        config: settings of the mesh.
        enforced: what the server's sidecar enforces.
        identity: SPIFFE ID of the client, which sends mutual TLS; empty for plaintext.
        request: what else is known, as for `request_to`.
    """
    refused = Mode.DISABLE if identity else Mode.STRICT
    mode = enforced.mode.mode if enforced.mode else Mode.DISABLE
    if enforced.is_closed or mode is refused:
        return None
    if enforced.rules is None:
        return Permission(Access.ALLOWED)
    found = permission(config, enforced.rules, identity, request)
    return None if found.access is Access.DENIED else found


def service_endpoints(mesh: Mesh, service: Service, port: ServicePort) -> list[Endpoint]:
    """Return the endpoints of a service port, also those of pods that are not ready."""
    found = {
        (each.pod.ref if each.pod else each.address, each.port): each
        for each in mesh.endpoints(service, port)
    }
    for pod in mesh.in_namespace(service.namespace).selected(service.selector):
        target = target_port(port, pod)
        if target is not None and not pod.ended:
            found.setdefault((pod.ref, target), Endpoint(address=pod.address, port=target, pod=pod))
    return [*found.values()]


def unknown_pods(mesh: Mesh, service: Service, port: ServicePort) -> Iterator[str]:
    """Yield what is not known of the endpoints of a service port: noun phrases."""
    if not service_endpoints(mesh, service, port):
        yield f"pods of {format_target(service, port)}"
    for listed in mesh.unknown_endpoints(service, port):
        yield f"{listed.entry.pod}, which {listed.source} lists"


def pod_endpoints(mesh: Mesh, pod: Pod) -> Iterator[Endpoint]:
    """Yield the ports of a pod that Services, containers, policies or annotations name, then OTHER_PORTS.

    The sidecar's own ports are left out.
    """
    named = {port.port for port in pod.ports} | {each.target for each in mesh.exposures(pod)}
    named.update(pod.redirection.inbound_ports or (), pod.redirection.exclude_inbound_ports)
    if pod.has_sidecar:
        named.update(ports_with_own_mode(mesh, pod), _ports_in_rules(mesh, pod))
        named -= mesh.config.own_ports(pod.interception)
    for port in (*sorted(named), OTHER_PORTS):
        yield Endpoint(address=pod.address, port=port, pod=pod)


def _ports_in_rules(mesh: Mesh, pod: Pod) -> set[int]:
    rules = port_rules(mesh, pod, OTHER_PORTS)
    named: Iterable[Rule] = (
        rule.rule for each in (rules.each if rules else ()) for rule in (*each.deny, *(each.allow or ()))
    )
    return {
        int(pattern.text)
        for rule in named
        for condition in conditions_of(rule)
        if condition.attribute is Attribute.DESTINATION_PORT
        for pattern in (*condition.values, *condition.excluded)
    }


class ClientClass(NamedTuple):
    """Clients that policies cannot tell apart, or that get the same result."""

    identity: str
    """SPIFFE ID of one of them; empty for plaintext, which any client can send."""
    accounts: tuple[str, ...] = ()
    """Existing service accounts among them, as NAMESPACE/NAME in natural order: at most MAX_ACCOUNTS."""
    more_accounts: int = 0
    """Number of other existing service accounts among them."""
    is_everyone: bool = False
    """Whether all clients with an identity are among them."""

    @property
    def mode(self) -> str:
        """What they send: `mtls` or `plaintext`."""
        return Result.MTLS if self.identity else Result.PLAINTEXT

    def __str__(self) -> str:
        if self.is_everyone or not self.identity:
            return "any service account" if self.identity else "any client"
        if not self.accounts:
            return f"{account_of(self.identity)} (does not exist yet)"
        more = len(self.accounts[MAX_NAMES:]) + self.more_accounts
        return ", ".join(self.accounts[:MAX_NAMES]) + (f" and {more} more" if more else "")


def clients_by_result(
    mesh: Mesh, patterns: Collection[IdentityPattern], result: Callable[[str], T | None]
) -> Iterator[tuple[T, ClientClass]]:
    """Group all identities that could exist by a result that depends only on patterns; leave out None.

    Args:
        mesh: the facts.
        patterns: the patterns.
        result: returns the result for a SPIFFE ID.
    """
    index, results = IdentityIndex(mesh.config, patterns), dict[frozenset[IdentityPattern], T | None]()
    examples: dict[T | None, str] = {}
    # Existing identities are not only those of valid names, so they may be of more classes.
    for identity in chain(representatives(mesh.config, patterns), known_identities(mesh)):
        matching = index.matching(identity)
        if matching not in results:
            results[matching] = result(identity)
            examples.setdefault(results[matching], identity)
    known: dict[T | None, list[str]] = {}
    for identity in known_identities(mesh) if {*examples} - {None} else ():
        known.setdefault(results[index.matching(identity)], []).append(identity)
    for each, identity in examples.items():
        if each is not None:
            existing = known.get(each, [])
            accounts = tuple(map(account_of, existing[:MAX_ACCOUNTS]))
            yield (
                each,
                ClientClass(
                    [*existing[:1], identity][0],
                    accounts,
                    len(existing) - len(accounts),
                    is_everyone=len(examples) == 1,
                ),
            )


def known_identities(mesh: Mesh) -> list[str]:
    """Return the SPIFFE IDs of the service accounts of the mesh, in natural order."""
    key = "known identities"
    if key not in mesh.scratch:
        namespaces = ((name, mesh.in_namespace(name)) for name in mesh.namespaces())
        accounts = [(name, account) for name, facts in namespaces for account in facts.service_accounts]
        accounts.sort(key=lambda account: natural_key(*account))
        mesh.scratch[key] = [spiffe_id(mesh.config.trust_domain, *account) for account in accounts]
    found: list[str] = mesh.scratch[key]
    return found


def why_accepted(
    enforced: Enforcement, identity: str, found: Permission | None
) -> tuple[str, tuple[Ref, ...]]:
    """Return why a server accepts connections, in words, and the objects that decide it.

    Args:
        enforced: what the server's sidecar enforces.
        identity: SPIFFE ID of the client; empty for plaintext.
        found: the result of `accepted`; None to explain only the mode.
    """
    if enforced.mode is None:
        return "no sidecar intercepts the port", ()
    mode, decided_by, _ = enforced.mode
    parts, refs = ([], ()) if identity else ([f"mode {mode} ({decided_by})"], (decided_by,))
    if found and found.conditions:
        parts += found.conditions
    elif found and found.policies:
        parts.append(f"allowed by {', '.join(map(str, found.policies))}")
    elif found:
        parts.append("no AuthorizationPolicy " + ("denies it" if enforced.rules else "applies"))
    return "; ".join(parts), (*refs, *(found.policies if found else ()))
