"""What servers accept from any client that could exist: in plaintext, and with each identity.

`xds.mesh.policy.reach` predicts what known clients send. That protects no server: a client can bypass its
sidecar, connect to a pod's address, and use a service account that does not exist yet. Here, only what the
server's own sidecar refuses counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from xds.mesh.model.authorization import Attribute, Rule
from xds.mesh.model.mesh import Endpoint, Mesh, target_port
from xds.mesh.model.objects import Interception, MeshConfig, Mode, Pod, Ref, Service, ServicePort
from xds.mesh.policy.access import Permission, PortRules, permission, port_rules
from xds.mesh.policy.authorization import Access, conditions_of
from xds.mesh.policy.describe import OTHER_PORTS
from xds.mesh.policy.mtls import ModeDecision, enforced_mode, ports_with_own_mode
from xds.mesh.policy.reach import is_closed


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


def accepted(config: MeshConfig, enforced: Enforcement, identity: str) -> Permission | None:
    """Return how a server accepts connections, perhaps only of some requests; None if it refuses them all.

    Args:
        config: settings of the mesh.
        enforced: what the server's sidecar enforces.
        identity: SPIFFE ID of the client, which sends mutual TLS; empty for plaintext.
    """
    refused = Mode.DISABLE if identity else Mode.STRICT
    mode = enforced.mode.mode if enforced.mode else Mode.DISABLE
    if enforced.is_closed or mode is refused:
        return None
    if enforced.rules is None:
        return Permission(Access.ALLOWED)
    found = permission(config, enforced.rules, identity)
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
