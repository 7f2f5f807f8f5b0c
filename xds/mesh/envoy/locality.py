"""Locality load balancing: which endpoints a client prefers, and how it distributes requests.

The results are priorities and weights in the client's load assignments. They do not depend on modes: an
endpoint whose mode changes moves to another sub-zone (ADR 3), but keeps its priority and its share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from xds.mesh.model.loadbalancer import LocalityLb, LocalityPattern
from xds.mesh.model.locality import Locality, label_of, locality_of
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import MeshConfig, Pod
from xds.mesh.model.traffic import TrafficPolicy

_SCALE = 1_000_000
"""Sum of the weights of endpoints for one percent. The sum for all must be a 32-bit number."""


class ClientLocality(NamedTuple):
    """What locality load balancing depends on: clients with equal values have the same assignments."""

    locality: Locality = ("", "", "")
    """Region, zone and sub-zone of the client."""
    labels: tuple[tuple[str, str], ...] = ()
    """The client's labels that a `failoverPriority` names."""


NO_CLIENT = ClientLocality()
"""Any client, if no setting depends on localities."""


class Place(NamedTuple):
    """Where a load assignment puts an endpoint."""

    priority: int = 0
    """Priority of its locality; 0 is the highest."""
    weight: int = 0
    """Part of the weight of its locality; 0 if localities have no weights."""


NO_PREFERENCE = Place()
"""Place of all endpoints, if localities have no effect."""


def setting_of(config: MeshConfig, policy: TrafficPolicy) -> LocalityLb | None:
    """Return the locality settings for a policy; None if localities have no effect.

    As in Istio, failover needs outlier detection. Without it, Envoy would not notice that endpoints fail.
    """
    own = policy.load_balancer.locality if policy.load_balancer else None
    setting = config.locality_lb if own is None else own
    is_active = bool(setting.distribute or policy.outlier_detection)
    return setting if setting.enabled and is_active else None


def client_of(mesh: Mesh, pod: Pod) -> ClientLocality:
    """Return what locality load balancing depends on in a client; NO_CLIENT if nothing does."""
    key = "locality labels"
    if key not in mesh.scratch:
        mesh.scratch[key] = _labels_in_use(mesh)
    labels: tuple[str, ...] | None = mesh.scratch[key]
    if labels is None:
        return NO_CLIENT
    locality = locality_of(pod.meta.labels)
    return ClientLocality(
        locality, tuple((label, label_of(pod.meta.labels, locality, label)) for label in labels)
    )


def _labels_in_use(mesh: Mesh) -> tuple[str, ...] | None:
    """Return the labels that a `failoverPriority` names; None if localities have no effect at all."""
    default = mesh.config.locality_lb
    settings = [default] if default.enabled and default.distribute else []
    for policy in _policies(mesh):
        # The parts of a policy may be merged with those of others.
        own = policy.load_balancer.locality if policy.load_balancer else None
        if own and own.enabled:
            settings.append(own)
        if default.enabled and policy.outlier_detection:
            settings.append(default)
    if not settings:
        return None
    return tuple(sorted({label for setting in settings for label, _ in setting.failover_priority}))


def _policies(mesh: Mesh) -> Iterator[TrafficPolicy]:
    """Yield all parts of all DestinationRules that clients are served or will be served."""
    for rule in (*mesh.rules(), *filter(None, mesh.served.rules.values())):
        for policy in (rule.policy, *(subset.policy for subset in rule.subsets)):
            if policy:
                yield policy
                yield from policy.ports.values()


def places(setting: LocalityLb, client: ClientLocality, endpoints: Sequence[Endpoint]) -> list[Place | None]:
    """Return the place of each endpoint; None for endpoints that the client does not use."""
    if setting.distribute:
        return _distributed(setting, client, endpoints)
    ranks = [_rank(setting, client, endpoint) for endpoint in endpoints]
    # Envoy requires that no priority is skipped.
    priorities = {rank: priority for priority, rank in enumerate(sorted(set(ranks)))}
    return [Place(priorities[rank]) for rank in ranks]


def _distributed(
    setting: LocalityLb, client: ClientLocality, endpoints: Sequence[Endpoint]
) -> list[Place | None]:
    weights = next(
        (entry.weights for entry in setting.distribute if _matches(entry.clients, client.locality)), None
    )
    if weights is None:  # The cluster has weights for the sake of other clients.
        return [Place(weight=1) for _ in endpoints]
    chosen = [
        next((item for item in weights if _matches(item[0], endpoint.locality)), None)
        for endpoint in endpoints
    ]
    counts = Counter(chosen)
    return [item and Place(weight=max(1, item[1] * _SCALE // counts[item])) for item in chosen]


def _matches(pattern: LocalityPattern, locality: Locality) -> bool:
    return locality[: len(pattern)] == pattern


def _rank(setting: LocalityLb, client: ClientLocality, endpoint: Endpoint) -> tuple[int, int]:
    """Return how far an endpoint is from a client. Lower ranks get requests first."""
    priority = setting.failover_priority
    labels = endpoint.pod.meta.labels if endpoint.pod else {}
    own = dict(client.labels)
    matching = 0
    for label, value in priority:
        if label_of(labels, endpoint.locality, label) != (own.get(label, "") if value is None else value):
            break
        matching += 1
    distance = 0 if priority and not setting.failover else _distance(setting, client.locality, endpoint)
    return len(priority) - matching, distance


def _distance(setting: LocalityLb, client: Locality, endpoint: Endpoint) -> int:
    """Return 0 for the client's own sub-zone, 1 for its zone, 2 for its region, 3 and 4 for other regions."""
    region = client[0]
    if not region:  # An unknown locality prefers no endpoint.
        return 0
    if region == endpoint.region:
        return 2 if client[1] != endpoint.zone else 1 if client[2] != endpoint.sub_zone else 0
    preferred = dict(setting.failover).get(region, endpoint.region)
    return 3 if endpoint.region == preferred else 4
