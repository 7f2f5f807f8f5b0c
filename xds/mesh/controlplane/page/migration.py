"""How far each namespace and workload is on the way to STRICT, and what is missing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from xds.checkpoint import Checkpoint
from xds.mesh.controlplane.page import advice
from xds.mesh.controlplane.page.advice import MAX_NAMES, Break
from xds.mesh.controlplane.page.observed import ObservedTraffic, TargetKey
from xds.mesh.controlplane.page.words import traffic_words
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import join_names
from xds.mesh.model.objects import Change, Meta, Mode, ModePolicy, Pod, PodKey, Ref
from xds.mesh.model.workload import Workload, WorkloadKey, workload_key, workloads_of
from xds.mesh.observe.workloads import pod_target
from xds.mesh.policy.direct import Refusal
from xds.mesh.policy.hops import Clients, clients_of
from xds.mesh.policy.mtls import served_mode
from xds.mesh.policy.prediction import Effect, HopChange, Prediction, predict_change, scope_of
from xds.mesh.policy.remedy import refusal_remedy, remedy

MAX_BREAKS = 20
"""Maximum number of changes that a row lists. The rest are only counted."""
PUBLISH_INTERVAL = 0.5
"""Seconds of work after which incomplete rows are published."""
_OTHER_PORTS = 0
"""Stands for the ports of a pod to which no Service forwards."""
_INTERNAL = {"servers", "workloads"}
"""Fields of `Break` that the API does not report."""


class Modes(NamedTuple):
    """The modes of the ports of pods with a sidecar."""

    counts: Mapping[Mode, int]
    """Number of pods by mode. A pod whose ports have several modes counts for each of them."""
    strict: int
    """Number of pods whose sidecars are connected, and whose ports are all STRICT."""
    connected: int
    """Number of pods whose sidecars are connected."""
    decided_by: tuple[Ref, ...]
    """Objects that decided."""


Breaks: TypeAlias = Mapping[str, Sequence[Break]]
"""What STRICT would stop, by namespace. Namespaces that are not checked yet are missing."""


async def compute_breaks(mesh: Mesh) -> AsyncIterator[Breaks]:
    """Yield what STRICT would stop in the namespaces that are checked so far, and at last in all."""
    loop = asyncio.get_running_loop()
    published_at = loop.time()
    breaks: dict[str, Sequence[Break]] = {}
    with_sidecars = {pod.namespace for pod in clients_of(mesh) if pod.has_sidecar}
    for namespace in sorted({pod.namespace for pod in clients_of(mesh)}):
        # Without a sidecar, nothing refuses plaintext.
        is_checked = namespace in with_sidecars
        breaks[namespace] = await asyncio.to_thread(find_breaks, mesh, namespace) if is_checked else ()
        if loop.time() >= published_at + PUBLISH_INTERVAL:
            yield dict(breaks)
            published_at = loop.time()
    yield breaks


def _modes(mesh: Mesh, pods: Iterable[Pod], connected: Collection[PodKey]) -> Modes:
    counts: Counter[Mode] = Counter()
    deciders: dict[Ref, None] = {}
    strict = connected_count = 0
    for pod in pods:
        if pod.has_sidecar:
            is_connected = pod.key in connected
            connected_count += is_connected
            ports = {exposure.target for exposure in mesh.exposures(pod)} or {_OTHER_PORTS}
            decisions = [served_mode(mesh, pod, port) for port in sorted(ports)]
            deciders |= dict.fromkeys(decision.decided_by for decision in decisions)
            modes = {decision.mode for decision in decisions}
            counts.update(modes)
            strict += is_connected and modes == {Mode.STRICT}
    return Modes(counts, strict, connected_count, tuple(deciders))


# --- what STRICT would stop ---------------------------------------------------------------------------------


def find_breaks(mesh: Mesh, namespace: str) -> list[Break]:
    """Return what stops working if a PeerAuthentication sets STRICT in a namespace."""
    found = _plan_strict(mesh, namespace)
    hops = [change for change in found.hops if change.effect in (Effect.BREAKS, Effect.MAY_BREAK)]
    return [*map(_broken_hop, hops), *map(_refused, found.refusals)]


def _plan_strict(mesh: Mesh, namespace: str) -> Prediction:
    """Return the effects of STRICT as the mode of a namespace. Policies for workloads stay more specific."""
    policies = mesh.in_namespace(namespace).peer_authentications
    current = next((policy for policy in policies if not policy.selector and not policy.scope_unknown), None)
    if current:
        strict = replace(current, mode=Mode.STRICT)
    else:
        meta = Meta(ref=Ref("PeerAuthentication", namespace, "default"))
        strict = ModePolicy(meta=meta, mode=Mode.STRICT)
    change = Change(applied=(strict,))
    after = mesh.apply(change)
    return predict_change(mesh, after, scope_of(change, mesh, after))


def _broken_hop(change: HopChange) -> Break:
    clients = format_workloads(change.clients)
    client = next(change.clients[0].pods)
    return Break(
        effect=str(change.effect),
        clients=clients,
        target=f"{change.service.name}.{change.service.namespace}:{change.port.port}",
        remedy=remedy(change.after, clients, client),
        servers=frozenset(workload_key(endpoint.pod) for endpoint in change.endpoints if endpoint.pod),
        workloads=_names(change.clients),
    )


def _refused(refusal: Refusal) -> Break:
    pods = [pod for clients in refusal.clients for pod in clients.pods]
    clients = traffic_words(refusal.traffic, refusal.source)
    return Break(
        effect=str(Effect.BREAKS if refusal.breaks else Effect.MAY_BREAK),
        clients=clients,
        target=f"port {refusal.port} of {format_workloads(refusal.clients)}",
        remedy=refusal_remedy(refusal),
        servers=frozenset(map(workload_key, pods)),
        workloads=(clients,),
    )


def format_workloads(clients: Iterable[Clients]) -> str:
    """Return the workloads of pods as text, such as `sleep.legacy, web.shop and 3 more`."""
    return join_names(_names(clients), MAX_NAMES)


def _names(clients: Iterable[Clients]) -> tuple[str, ...]:
    keys = workloads_of(pod for item in clients for pod in item.pods)
    return tuple(f"{name}.{namespace}" for namespace, name in keys)


# --- rows ---------------------------------------------------------------------------------------------------


async def rows(
    mesh: Mesh, breaks: Breaks, observed: ObservedTraffic, connected: Collection[PodKey]
) -> list[dict[str, Any]]:
    """Return a row for each namespace, followed by those of its workloads, as JSON values.

    Args:
        mesh: the facts.
        breaks: what STRICT would stop.
        observed: the observed traffic.
        connected: the pods whose sidecars are connected to a control plane.
    """
    checkpoint = Checkpoint()
    by_namespace: dict[str, dict[Workload, Modes]] = {}
    for workload in workloads_of(clients_of(mesh)).values():
        by_namespace.setdefault(workload.namespace, {})[workload] = _modes(mesh, workload.pods, connected)
        await checkpoint()
    found = []
    for namespace, workloads in by_namespace.items():
        broken = breaks.get(namespace)
        found.append(_row(mesh, (namespace, ""), workloads, broken, observed))
        for workload, modes in workloads.items():
            own = None if broken is None else [each for each in broken if workload.key in each.servers]
            found.append(_row(mesh, workload.key, {workload: modes}, own, observed))
        await checkpoint()
    return found


def _row(
    mesh: Mesh,
    key: WorkloadKey,
    workloads: Mapping[Workload, Modes],
    breaks: Sequence[Break] | None,
    observed: ObservedTraffic,
) -> dict[str, Any]:
    counts: Counter[Mode] = Counter()
    for found in workloads.values():
        counts.update(found.counts)
    refs = dict.fromkeys(ref for found in workloads.values() for ref in found.decided_by)
    row: dict[str, Any] = {
        "namespace": key[0],
        "workload": key[1],
        "pods": sum(len(workload.pods) for workload in workloads),
        "sidecars": sum(workload.sidecars for workload in workloads),
        "connected": sum(found.connected for found in workloads.values()),
        "strict": sum(found.strict for found in workloads.values()),
        "modes": {str(mode): counts[mode] for mode in Mode if counts[mode]},
        "decidedBy": [{**ref._asdict(), "place": _place(mesh, ref)} for ref in refs],
        "breaks": None if breaks is None else [_break_value(each) for each in breaks[:MAX_BREAKS]],
        "moreBreaks": len((breaks or ())[MAX_BREAKS:]),
        "observed": observed.plaintext_to(_targets(mesh, workloads)),
    }
    without = [workload.name for workload in workloads if workload.sidecars < len(workload.pods)]
    row["stage"], row["nextStep"] = advice.next_step(row, without, breaks)
    row["verdict"] = advice.verdict(row, breaks)._asdict()
    return row


def _targets(mesh: Mesh, workloads: Iterable[Workload]) -> dict[TargetKey, None]:
    """Return the targets of traffic to workloads: services, and pods for ports without a service."""
    targets: dict[TargetKey, None] = {}
    for pod in (pod for workload in workloads for pod in workload.pods):
        for exposure in mesh.exposures(pod):
            targets[exposure.service.namespace, exposure.service.name] = None
        targets[pod.namespace, pod_target(pod)] = None
    return targets


def _place(mesh: Mesh, ref: Ref) -> str:
    fact = mesh.get(ref)
    return fact.meta.place if fact else ""


def _break_value(each: Break) -> dict[str, str]:
    return {name: value for name, value in each._asdict().items() if name not in _INTERNAL}
