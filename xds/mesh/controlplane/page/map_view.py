"""The map that one client looks at: boxes of namespaces, nodes and edges, with their positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from xds.checkpoint import Checkpoint
from xds.mesh.controlplane.page.graph import OUTSIDE_KEY, Graph, Prediction
from xds.mesh.controlplane.page.layout import (
    Band,
    Box,
    LabelPlacer,
    Layout,
    arrange,
    clamp_width,
    connect,
    link_box,
)
from xds.mesh.controlplane.page.observed import Flow, ObservedTraffic
from xds.mesh.controlplane.page.words import reason_words
from xds.mesh.model.memory import ServiceKey
from xds.mesh.model.names import natural_key
from xds.mesh.model.workload import Workload, WorkloadKey
from xds.mesh.observe.edges import TrafficMode, format_rate
from xds.mesh.policy.reach import RANKS, Failure, Result

MAX_OPEN_SERVICES = 30
"""Number of services up to which all namespaces are open. In a larger mesh, they are closed until opened."""
MAX_LABELS = 100
"""Number of edges up to which those that do not fail have a label, too."""
MAX_REASONS = 40
"""Number of failing edges up to which their labels contain the reason."""
MAX_EDGES = 800
"""Maximum number of edges on a map. The worst ones are shown, the others are only counted."""
MAX_CELLS = 2_500
"""Maximum number of cells with a connection of a matrix, like MAX_EDGES."""
MAX_CONDITIONS = 3
"""Maximum number of conditions that an edge names."""

POSSIBLE, PROBLEMS, PLAINTEXT, DENIED = "possible", "problems", "plaintext", "denied"
"""Filters: all possible connections, those that fail, those that use plaintext, and those that
AuthorizationPolicies deny."""
FILTERS = POSSIBLE, PROBLEMS, PLAINTEXT, DENIED


class Selection(NamedTuple):
    """What a client looks at."""

    width: int
    """Width of the map, in pixels."""
    opened: frozenset[str] = frozenset()
    """Namespaces that are not in their default state, which depends on MAX_OPEN_SERVICES."""
    node: str = ""
    """Show only the connections of this node, including possible ones; empty for all."""
    namespace: str = ""
    """Show only what is connected to this namespace, which is open in a large mesh; empty for all."""
    search: str = ""
    """Open the namespaces with workloads and services whose names contain all of these words."""
    only: str = ""
    """A filter, to show such connections; empty for those with traffic and those that fail, or for all
    possible ones in a mesh without observed traffic."""


class _MapConnection(NamedTuple):
    """A workload that calls a service."""

    workload: WorkloadKey
    client: str
    """A pod of the workload, as POD.NAMESPACE."""
    service: ServiceKey
    result: Result


@dataclass(slots=True)
class _MapEdge:
    """The connections between two nodes."""

    counts: dict[Result, int] = field(default_factory=lambda: dict.fromkeys(Result, 0))
    """Number of endpoints by result, summed over the workloads and services of closed namespaces."""
    reasons: dict[str, Result] = field(default_factory=dict)
    conditions: dict[str, None] = field(default_factory=dict)
    """Conditions of AuthorizationPolicies that allow only some requests, in words."""
    services: dict[ServiceKey, int] = field(default_factory=dict)
    """Number of workloads that call each service."""
    worst: _MapConnection | None = None
    """One of the connections with the worst result."""
    seen: Sequence[Flow] = ()
    """Its observed traffic, and denied requests."""
    is_failing: bool = False
    """Whether requests have failed lately."""

    @property
    def result(self) -> str:
        """The result as a word: `fails`, `denied`, `plaintext`, `mixed` or `mtls`."""
        if self.counts[Result.FAILS]:
            return "denied" if self.failure == Failure.ACCESS_DENIED else "fails"
        if not self.counts[Result.PLAINTEXT]:
            return "mtls"
        return "mixed" if self.counts[Result.MTLS] else "plaintext"

    @property
    def failure(self) -> str:
        """Why connections fail, if some do: ACCESS_DENIED only if there is no other reason."""
        failures = [reason for reason, result in self.reasons.items() if result is Result.FAILS]
        return min(failures, key=lambda reason: reason == Failure.ACCESS_DENIED)


_RANKS = {"fails": 0, "plaintext": 1, "mixed": 2, "denied": 3, "mtls": 4}
_EdgeKey: TypeAlias = tuple[str, str]
"""IDs of the nodes of a client and a service."""


async def map_view(graph: Graph, selection: Selection, observed: ObservedTraffic) -> dict[str, Any]:
    """Return the map as JSON values: boxes of namespaces, nodes and edges, with their positions.

    A large mesh is a matrix of namespaces until one of them is open: its edges have no positions.
    """
    names = sorted({key[0] for key in (*graph.workloads, *graph.services)}, key=natural_key)
    is_large = len(graph.services) > MAX_OPEN_SERVICES
    by_default = {selection.namespace} if is_large else names
    opened = {name for name in names if (name in selection.opened) != (name in by_default)}
    found = _matching(graph, selection.search)
    if len(found) <= MAX_OPEN_SERVICES:
        opened |= {namespace for namespace, _ in found}
    is_matrix = is_large and not opened
    if outside := [each for each in graph.outside if each.service in graph.published | observed.from_outside]:
        namespace, name = OUTSIDE_KEY
        clients = Workload(namespace=namespace, name=name, pods=())
        graph = replace(
            graph,
            workloads={OUTSIDE_KEY: clients, **graph.workloads},
            predictions=[*graph.predictions, *outside],
        )
    edges = await _edges(graph, opened, observed)
    if is_large and not is_matrix:
        edges = {key: edge for key, edge in edges.items() if opened & set(map(_namespace, key))}
    if selection.namespace:
        edges = {key: edge for key, edge in edges.items() if selection.namespace in map(_namespace, key)}
    dead = _without_endpoint(graph)
    shows_possible = is_matrix or not observed
    shown = {
        key: edge
        for key, edge in edges.items()
        if _is_shown(edge, selection.only, is_possible=shows_possible or selection.node in key)
    }
    ranked = sorted(shown, key=lambda key: (*_rank(shown[key]), *key))
    kept = {node for key in ranked for node in key}
    if selection.only not in {PLAINTEXT, DENIED}:
        kept |= {_service_node(key, opened) for key in dead if selection.namespace in {"", key[0]}}
    if selection.node:
        ranked = [key for key in ranked if selection.node in key]
    nodes = _nodes(graph, opened, dead)
    is_filtered = selection.only in {PROBLEMS, PLAINTEXT, DENIED}
    if is_filtered or selection.namespace or (is_large and not is_matrix):
        whole = {selection.namespace} if selection.namespace else opened
        kept |= {node for node in nodes if not is_filtered and _namespace(node) in whole}
        nodes = {node: value for node, value in nodes.items() if node in kept}
    layout = arrange(tuple(_bands([OUTSIDE_KEY[0], *names], nodes)), clamp_width(selection.width))
    limit = MAX_CELLS if is_matrix else MAX_EDGES
    return {
        "width": layout.width,
        "height": layout.height,
        "isLarge": is_large,
        "isMatrix": is_matrix,
        "namespaces": [
            {"name": name, "open": name in opened or name == OUTSIDE_KEY[0], **box._asdict()}
            for name, box in layout.bands.items()
        ],
        "nodes": [{**node, **layout.nodes[node["id"]]._asdict()} for node in nodes.values()],
        "edges": await _edge_values(
            {key: shown[key] for key in ranked[:limit]}, None if is_matrix else layout, observed
        ),
        "moreEdges": len(ranked[limit:]),
        "unusedEdges": 0 if selection.only or selection.node else len(edges) - len(shown),
        "allNamespaces": names,
        "matches": len(found),
    }


def _is_shown(edge: _MapEdge, only: str, *, is_possible: bool) -> bool:
    """Whether a filter selects an edge. By default, `is_possible` selects it without traffic."""
    fails = edge.is_failing or edge.result == "fails"
    by_filter = {
        POSSIBLE: True,
        PROBLEMS: fails,
        PLAINTEXT: edge.counts[Result.PLAINTEXT] > 0,
        DENIED: edge.result == "denied",
    }
    return by_filter.get(only, is_possible or fails or bool(edge.seen))


def _matching(graph: Graph, search: str) -> set[tuple[str, str]]:
    """Return the workloads and services whose names contain all words of a search; none without words."""
    words = search.lower().split()
    keys = {*graph.workloads, *graph.services} if words else ()
    return {key for key in keys if all(word in f"{key[1]}.{key[0]}".lower() for word in words)}


def _rank(edge: _MapEdge) -> tuple[int, bool, bool]:
    """Return the place of an edge: the worst first, then failing ones and those with traffic."""
    return _RANKS[edge.result], not edge.is_failing, not edge.seen


async def _edges(graph: Graph, opened: set[str], observed: ObservedTraffic) -> dict[_EdgeKey, _MapEdge]:
    """Return the connections between nodes, in slices of a few milliseconds."""
    checkpoint = Checkpoint()
    edges: dict[_EdgeKey, _MapEdge] = {}
    members: dict[int, dict[str, list[tuple[WorkloadKey, str]]]] = {}
    for prediction in graph.predictions:
        await checkpoint()
        if not prediction.endpoints:
            continue
        senders, service = prediction.senders, prediction.service
        if id(senders) not in members:
            by_node: dict[str, list[tuple[WorkloadKey, str]]] = {}
            for workload, client in senders.examples.items():
                by_node.setdefault(_client_node(workload, opened), []).append((workload, client))
            members[id(senders)] = by_node
        target = _service_node(service, opened)
        own = _only(graph.servers[service])  # A workload rarely calls itself.
        own_node = _client_node(own, opened) if own in senders.examples else ""
        for node, callers in members[id(senders)].items():
            others = callers if node != own_node else [caller for caller in callers if caller[0] != own]
            if others:
                edge = edges.get((node, target))
                if edge is None:
                    edge = edges[node, target] = _MapEdge()
                _add(edge, prediction, others)
    traffic = observed.between_nodes(
        {key: _client_node(key, opened) for key in graph.workloads},
        {key: _service_node(key, opened) for key in graph.services},
    )
    for key in traffic.keys() & edges:
        edges[key].seen, edges[key].is_failing = traffic[key], observed.has_failed(traffic[key])
    return edges


def _only(workloads: frozenset[WorkloadKey]) -> WorkloadKey:
    """Return the only workload of a service; an unused key if it has several."""
    return next(iter(workloads)) if len(workloads) == 1 else ("", "")


def _add(edge: _MapEdge, prediction: Prediction, callers: Sequence[tuple[WorkloadKey, str]]) -> None:
    result, service = prediction.result, prediction.service
    edge.counts[result] += prediction.endpoints * len(callers)
    edge.services[service] = max(edge.services.get(service, 0), len(callers))
    if result is not Result.MTLS:
        edge.reasons.setdefault(prediction.reason, result)
    edge.conditions.update(dict.fromkeys(prediction.conditions))
    if edge.worst is None or RANKS[result] < RANKS[edge.worst.result]:
        edge.worst = _MapConnection(*callers[0], service, result)


def _without_endpoint(graph: Graph) -> dict[ServiceKey, str]:
    """Return the services with a port that has no ready endpoint, and the reason."""
    return {
        prediction.service: prediction.reason
        for prediction in graph.predictions
        if not prediction.endpoints and prediction.result is Result.FAILS
    }


def _client_node(key: WorkloadKey, opened: set[str]) -> str:
    namespace, name = key
    is_single = namespace in opened or key == OUTSIDE_KEY
    return f"workload/{namespace}/{name}" if is_single else f"workloads/{namespace}"


def _service_node(key: ServiceKey, opened: set[str]) -> str:
    namespace, name = key
    return f"service/{namespace}/{name}" if namespace in opened else f"services/{namespace}"


def _namespace(node: str) -> str:
    return node.split("/")[1]


def _nodes(graph: Graph, opened: set[str], dead: Mapping[ServiceKey, str]) -> dict[str, dict[str, Any]]:
    """Return the nodes as JSON values, by ID."""
    nodes: dict[str, dict[str, Any]] = {}
    for key, workload in graph.workloads.items():
        node = _client_node(key, opened)
        value = nodes.setdefault(node, _node(node, key) | {"workloads": 0, "pods": 0, "sidecars": 0})
        value["workloads"] += 1
        value["pods"] += len(workload.pods)
        value["sidecars"] += workload.sidecars
    for key in sorted(graph.services, key=lambda key: natural_key(*key)):
        node = _service_node(key, opened)
        value = nodes.setdefault(node, _node(node, key) | {"services": 0, "problem": "", "why": ""})
        value["services"] += 1
        if key in dead and not value["problem"]:
            value["problem"], value["why"] = dead[key], reason_words(dead[key])
    return nodes


def _node(node: str, key: tuple[str, str]) -> dict[str, Any]:
    kind = node.partition("/")[0]
    return {"id": node, "kind": kind, "namespace": key[0], "name": key[1] if node.count("/") > 1 else ""}


def _bands(names: Iterable[str], nodes: Mapping[str, Mapping[str, Any]]) -> list[Band]:
    columns: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in names}
    for node, value in nodes.items():
        columns[value["namespace"]][not value["kind"].startswith("workload")].append(node)
    return [Band(name, *map(tuple, column)) for name, column in columns.items() if any(column)]


async def _edge_values(
    edges: Mapping[_EdgeKey, _MapEdge], layout: Layout | None, observed: ObservedTraffic
) -> list[dict[str, Any]]:
    """Return the edges as JSON values, worst first; without a layout, without positions."""
    checkpoint, values = Checkpoint(), []
    placer = LabelPlacer(map(link_box, layout.bands.values()) if layout else ())
    has_texts = sum(edge.result == "fails" for edge in edges.values()) <= MAX_REASONS
    for (client, service), edge in edges.items():
        await checkpoint()
        worst = edge.worst
        assert worst is not None  # noqa: S101 - an edge has a connection
        seen = observed.value(edge.seen) if edge.seen else None
        value: dict[str, Any] = {
            "id": f"{client} {service}",
            "from": client,
            "to": service,
            "predicted": {
                "result": edge.result,
                **{str(result): edge.counts[result] for result in Result},
                "reasons": list(edge.reasons),
                "why": [reason_words(reason) for reason in edge.reasons],
                "conditions": list(edge.conditions)[:MAX_CONDITIONS],
                "moreConditions": len(list(edge.conditions)[MAX_CONDITIONS:]),
            },
            "observed": seen,
            "connections": sum(edge.services.values()),
            "example": {
                "client": worst.client,
                "service": f"{worst.service[1]}.{worst.service[0]}",
                "result": str(worst.result),
            },
        }
        if layout:
            curve = connect(layout.nodes[client], layout.nodes[service])
            is_labelled = edge.result == "fails" or edge.is_failing or len(edges) <= MAX_LABELS
            text = _label(edge, seen) if is_labelled and has_texts else ""
            box: Box | None = placer.place(curve, _label_width(text)) if is_labelled else None
            if box is None and text:
                text = ""
                box = placer.place(curve, _label_width(text))
            value |= {"path": curve.path, "label": {"text": text, **box._asdict()} if box else None}
        values.append(value)
    return values


def _label(edge: _MapEdge, observed: Mapping[str, Any] | None) -> str:
    """Return the text beside the symbol of an edge; empty if the symbol says everything."""
    conditional = "conditional" if edge.conditions else ""
    predicted, seen = _predicted_label(edge), [*_observed_labels(edge, observed)]
    if predicted == "denied" and any(text.endswith(" denied") for text in seen):
        predicted = ""
    return ", ".join(filter(None, (predicted, conditional, *seen)))


def _predicted_label(edge: _MapEdge) -> str:
    counts = edge.counts
    total = sum(counts.values())
    if counts[Result.FAILS]:
        some = "" if counts[Result.FAILS] == total else f"{counts[Result.FAILS]} of {total}: "
        return some + (reason_words(edge.failure) if edge.result == "fails" else "denied")
    return f"{counts[Result.MTLS]} of {total}" if edge.result == "mixed" else ""


def _observed_labels(edge: _MapEdge, observed: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the rate, the failures, and what was observed if the prediction does not say it.

    A sidecar accepts the connection of a request that it denies.
    """
    if observed is None:
        return
    rates = observed["requestsPerMinute"]
    if rate := sum(rates.values()):
        yield f"{format_rate(rate)}/min"
    if rates.get(TrafficMode.REFUSED):
        yield "plaintext refused"
    elif rates.get(TrafficMode.PLAINTEXT) and edge.result not in {"plaintext", "mixed", "denied"}:
        yield "plaintext accepted"
    if edge.is_failing:
        yield f"{observed['failedPerHour']} failed"
    if observed["deniedPerHour"]:
        yield f"{observed['deniedPerHour']} denied"


def _label_width(text: str) -> int:
    """Return the width of a label in pixels: a symbol, and text in the small font."""
    return 22 + (6 * len(text) + 6 if text else 0)
