"""The Sidecars that show clients the services that they were observed to call."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import printable
from xds.mesh.observe.record import Flow, Record, in_words
from xds.mesh.policy.visibility import default_sidecar


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedServices:
    """The services that the clients of each namespace call."""

    hosts: Mapping[str, tuple[str, ...]]
    """`NAMESPACE/HOST` of the services, by the namespace of their clients."""
    omitted: tuple[tuple[str, str], ...]
    """Namespaces without a Sidecar in `hosts`, and why."""
    mode: str = ""
    """`outboundTrafficPolicy.mode` of the mesh-wide Sidecar, which these replace; empty without one."""


def used_services(mesh: Mesh, flows: Iterable[Flow], namespaces: Collection[str] = ()) -> UsedServices:
    """Return the services that clients called, for the namespaces that have sidecars and no Sidecar object.

    Args:
        mesh: the mesh.
        flows: the traffic, in any mode.
        namespaces: namespaces of the clients; empty for all.
    """
    called: dict[str, set[str]] = {}
    for flow in flows:
        # Ports of pods that belong to no service are unknown addresses with and without a Sidecar.
        if flow.client.namespace and (service := mesh.service(flow.target.namespace, flow.target.name)):
            called.setdefault(flow.client.namespace, set()).add(f"{service.namespace}/{service.host}")
    hosts, omitted = dict[str, tuple[str, ...]](), list[tuple[str, str]]()
    for namespace in sorted({pod.namespace for pod in mesh.pods() if pod.has_sidecar}):
        if namespaces and namespace not in namespaces:
            continue
        if existing := mesh.in_namespace(namespace).sidecars:
            omitted.append((namespace, f"it has {', '.join(sorted(str(each.ref) for each in existing))}"))
        elif namespace not in called:
            omitted.append((namespace, "no traffic from it to services was observed"))
        else:
            hosts[namespace] = tuple(sorted(called[namespace]))
    replaced = default_sidecar(mesh)
    allow_any = replaced.allow_any_outbound if replaced else None
    mode = {None: "", True: "ALLOW_ANY", False: "REGISTRY_ONLY"}[allow_any]
    return UsedServices(hosts=hosts, omitted=tuple(omitted), mode=mode)


def sidecar_document(record: Record, missing: Iterable[str], found: UsedServices) -> Iterator[str]:
    """Yield the lines of the Sidecars for a record, as YAML with comments.

    Args:
        record: the record.
        missing: why traffic may be missing in it.
        found: the services.
    """
    yield f"# Shows the services that were called from {in_words(record.since)} to {in_words(record.until)}."
    yield "# Clients call all others in plaintext, or not at all with REGISTRY_ONLY. Check with xds plan."
    yield from (f"# Incomplete: {printable(each)}" for each in missing)
    yield from (f"# No Sidecar for namespace {name}: {reason}" for name, reason in found.omitted)
    for number, (namespace, hosts) in enumerate(found.hosts.items()):
        if number:
            yield "---"
        yield "apiVersion: networking.istio.io/v1"
        yield "kind: Sidecar"
        yield "metadata:"
        yield "  name: default"
        yield f"  namespace: {json.dumps(namespace)}"
        yield "spec:"
        if found.mode:
            yield f"  outboundTrafficPolicy: {{mode: {found.mode}}}"
        yield "  egress:"
        yield "  - hosts:"
        yield from (f"    - {json.dumps(host)}" for host in hosts)
