"""Envoy's side of an aggregated stream, without I/O.

The model does what Envoy 1.40 was observed to do (tests/testing/test_fidelity.py compares the two):

- It subscribes to all clusters, and to all listeners once the first clusters are warm.
- It subscribes to the assignments of its clusters, then to the secrets of the clusters with an assignment,
  and to the routes, secrets and extensions of its listeners.
- A new or changed cluster warms until its assignment is sent again and its secrets are there. Meanwhile,
  Envoy withholds its answers to responses of clusters, except to the first.
- A listener stays active until the new one has its routes. The routes of an old listener stay subscribed
  until its connections are drained.
- It accepts the valid part of a rejected response of clusters or listeners, and nothing of another rejected
  response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from xds.protocol.order import WILDCARD_TYPES
from xds.protocol.session import Variant
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, Resource, ResourceKey
from xds.testing.messages import Request, Response

_WILDCARD = "*"
"""Name that stands for all resources, next to those that are requested on demand."""
_KINDS = {CLUSTER: "cluster(s)", LISTENER: "listener(s)"}
"""Types whose valid resources are accepted from a rejected response, as Envoy's errors call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why the client rejects a resource."""

    message: str
    """Error message of the NACK."""
    whole: bool = False
    """Whether the client accepts nothing of the response, as if the resource violated a proto constraint."""
    when: Callable[[Resource], bool] | None = None
    """Condition on the resource; None to reject each version of it."""


class EnvoyModel:
    """A model of Envoy: its resources, and the requests that each event causes.

    Args:
        variant: Variant of the protocol.
    """

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.resources: dict[str, dict[str, Resource]] = {}
        """Accepted resources by type URL and name, including those that warm."""
        self.warm_clusters: set[str] = set()
        """Clusters that can be used. A changed cluster stays usable while its new version warms."""
        self.active: dict[str, Resource] = {}
        """Active listeners by name."""
        self.draining: set[ResourceKey] = set()
        """Resources of replaced and removed listeners that still have connections."""
        self.rejected: dict[ResourceKey, Rejection] = {}
        """Resources to reject, by type URL and name. An empty name stands for all resources of the type."""
        self.is_live = False
        """Whether the first clusters and listeners have arrived and are warm, which makes Envoy live."""
        self._unassigned: set[str] = set()
        """Warming clusters that wait for their assignment."""
        self._warming: set[str] = set()
        """Clusters that wait for their assignment or for a secret."""
        self._gone: set[ResourceKey] = set()
        """Resources of which the server has said that they do not exist."""
        self._demanded: dict[str, set[str]] = {}
        self._order: list[str] = []
        """Types in the order in which they were first subscribed to."""
        self._subscribed: dict[str, tuple[str, ...]] = {}
        """Names of each subscription on the stream; empty for the legacy wildcard."""
        self._nonces: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        """Version of the last accepted response of each type (SotW)."""
        self._unsent: list[Request] = []
        """Answers to responses of clusters, which are sent when no cluster warms."""
        self._is_initialized = False
        """Whether the first clusters are warm."""

    @property
    def warming(self) -> frozenset[ResourceKey]:
        """Clusters and listeners that cannot be used yet, or not in their newest version."""
        listeners = (
            name for name, listener in self._of(LISTENER).items() if self.active.get(name) is not listener
        )
        return frozenset(
            (*((CLUSTER, name) for name in self._warming), *((LISTENER, name) for name in listeners))
        )

    def connect(self) -> list[Request]:
        """Start a stream, and return its first requests. They report the resources of an earlier stream."""
        self._nonces, self._unsent = {}, []
        self._subscribed = {}
        if not self._order:
            return [self._subscribe(CLUSTER)]
        # Envoy sends no request for clusters while clusters are warming.
        return [
            self._subscribe(kind)
            for kind in self._order
            if not (kind == CLUSTER and self._withholds) and (kind in WILDCARD_TYPES or self.wanted(kind))
        ]

    def receive(self, response: Response, error: str = "") -> list[Request]:
        """Process a response, and return the requests that result, in Envoy's order.

        Args:
            response: The response.
            error: Error message with which to reject all resources of the response, or a response without
                resources. The default is to reject those of `rejected`.
        """
        kind = response.type_url
        if kind not in self._subscribed:
            return []  # Envoy ignores it.
        self._nonces[kind] = response.nonce
        if error and not response.resources:
            return self._answer(kind, error)
        rejections = {
            resource.name: rejection
            for resource in response.resources
            if (rejection := Rejection(message=error) if error else self.rejection(resource))
        }
        if whole := [rejection for rejection in rejections.values() if rejection.whole]:
            return self._answer(kind, whole[0].message)
        accepted = [each for each in response.resources if each.name not in rejections]
        if rejections and kind not in _KINDS:
            accepted = []
        changed = {each.name for each in accepted if self._is_changed_cluster(each)}
        self._apply(response, accepted)
        if not rejections:
            self._versions[kind] = response.version
        requests = self._follow()
        if changed and self.variant is Variant.SOTW and ENDPOINT not in {each.type_url for each in requests}:
            requests.append(self._sotw_request(ENDPOINT))  # Envoy asks for their assignments again.
        answers = self._answer(kind, _error(kind, rejections))
        if kind == CLUSTER and self._withholds:
            self._unsent += answers
            return requests
        requests += self._initialize()
        if not self._withholds:
            requests += self._release()
        # A removed cluster is destroyed later, and with it the subscription to its secrets.
        late = [each for each in requests if each.type_url == SECRET and kind == CLUSTER]
        return [*(each for each in requests if each not in late), *answers, *late]

    def rejection(self, resource: Resource) -> Rejection | None:
        """Return why a resource is rejected; None to accept it."""
        for name in (resource.name, ""):
            rejection = self.rejected.get((resource.type_url, name))
            if rejection and (rejection.when is None or rejection.when(resource)):
                return rejection
        return None

    def demand(self, type_url: str, *names: str) -> list[Request]:
        """Subscribe to resources on demand, in addition to those that others refer to."""
        self._demanded.setdefault(type_url, set()).update(names)
        return self._follow()

    def drain(self) -> list[Request]:
        """Close the last connections of replaced and removed listeners."""
        self.draining.clear()
        return self._follow()

    def stop_warming(self) -> list[Request]:
        """Use clusters although resources are missing, as Envoy does 15 s after it has requested them."""
        self.warm_clusters |= self._warming
        self._warming.clear()
        self._unassigned.clear()
        return [*self._follow(), *self._initialize(), *self._release()]

    def wanted(self, type_url: str) -> tuple[str, ...]:
        """Return the sorted names that the client subscribes to by name."""
        names = {name for kind, name in self._references() if kind == type_url}
        return tuple(sorted(names | self._demanded.get(type_url, set())))

    def is_subscribed(self, type_url: str, name: str) -> bool:
        """Whether the client has subscribed to a resource by name on its stream."""
        return name in self._subscribed.get(type_url, ())

    # --- resources ---

    def _of(self, type_url: str) -> dict[str, Resource]:
        return self.resources.setdefault(type_url, {})

    def _apply(self, response: Response, accepted: Iterable[Resource]) -> None:
        kind = response.type_url
        removed = set(response.removed)
        if self.variant is Variant.SOTW and kind in WILDCARD_TYPES:
            removed = self._of(kind).keys() - {resource.name for resource in response.resources}
        for name in removed:
            self._remove(kind, name)
        for resource in accepted:
            self._accept(resource)
        self._update_warming()
        self.is_live = self.is_live or (LISTENER in self._nonces and not self.warming)

    def _is_changed_cluster(self, resource: Resource) -> bool:
        previous = self._of(CLUSTER).get(resource.name)
        has_assignment = any(kind == ENDPOINT for kind, _ in resource.refs)
        return bool(
            resource.type_url == CLUSTER
            and previous
            and previous.version != resource.version
            and has_assignment
        )

    def _accept(self, resource: Resource) -> None:
        kind, name = resource.type_url, resource.name
        if kind not in WILDCARD_TYPES and name not in self._subscribed[kind]:
            return
        previous = self._of(kind).get(name)
        if kind == CLUSTER and (previous is None or previous.version != resource.version):
            self._warming.add(name)
            if any(ref == ENDPOINT for ref, _ in resource.refs):
                self._unassigned.add(name)
        if kind == ENDPOINT:
            self._assigned(name)
        if kind == LISTENER and previous and previous.version == resource.version:
            return  # The active listener stays.
        self._gone.discard((kind, name))
        self._of(kind)[name] = resource

    def _remove(self, kind: str, name: str) -> None:
        if kind in WILDCARD_TYPES:
            self._of(kind).pop(name, None)
        else:
            self._gone.add((kind, name))
        if kind == CLUSTER:
            self._warming.discard(name)
            self._unassigned.discard(name)
            self.warm_clusters.discard(name)
        elif kind == LISTENER and (listener := self.active.pop(name, None)):
            self.draining.update(listener.refs)
        elif kind == ENDPOINT:
            self._assigned(name)

    def _assigned(self, assignment: str) -> None:
        """Note that the server has sent an assignment, or that it does not exist."""
        self._unassigned -= {
            name for name in self._unassigned if (ENDPOINT, assignment) in self._of(CLUSTER)[name].refs
        }

    def _update_warming(self) -> None:
        for name in self._warming - self._unassigned:
            secrets = (ref for ref in self._of(CLUSTER)[name].refs if ref[0] == SECRET)
            if all(self._is_answered(ref) for ref in secrets):
                self._warming.discard(name)
                self.warm_clusters.add(name)
        for name, listener in self._of(LISTENER).items():
            previous = self.active.get(name)
            if previous is not listener and all(self._is_answered(ref) for ref in listener.refs):
                self.active[name] = listener
                if previous:
                    self.draining.update(previous.refs)

    def _is_answered(self, ref: ResourceKey) -> bool:
        kind, name = ref
        return name in self._of(kind) or (kind != ROUTE and ref in self._gone)

    # --- requests ---

    def _references(self) -> Iterable[ResourceKey]:
        for kind, resources in self.resources.items():
            if kind == CLUSTER:
                for name, cluster in resources.items():
                    # A cluster requests its secrets when it has its assignment.
                    is_assigned = name not in self._unassigned or name in self.warm_clusters
                    yield from (ref for ref in cluster.refs if ref[0] != SECRET or is_assigned)
            elif kind in WILDCARD_TYPES:
                for resource in resources.values():
                    yield from resource.refs
        for listener in self.active.values():
            yield from listener.refs
        yield from self.draining

    def _follow(self) -> list[Request]:
        """Subscribe to the resources that others now refer to, and unsubscribe from all others."""
        wanted: dict[str, set[str]] = {kind: set() for kind in (ENDPOINT, SECRET, ROUTE, *self._subscribed)}
        for kind, name in self._references():
            wanted.setdefault(kind, set()).add(name)
        for kind, demanded in self._demanded.items():
            wanted.setdefault(kind, set()).update(demanded)
        requests = []
        for kind, all_names in wanted.items():
            names = tuple(sorted(all_names))
            if kind in WILDCARD_TYPES and kind not in self._subscribed and not names:
                continue
            previous = self._subscribed.get(kind, ())
            if names == previous:
                continue
            requests.append(self._subscribe(kind))
            for name in set(previous) - set(names):
                self._of(kind).pop(name, None)
                self._gone.discard((kind, name))
        return requests

    def _subscribe(self, kind: str) -> Request:
        """Make a request for the names that the client now wants."""
        names, previous = self.wanted(kind), self._subscribed.get(kind)
        if kind not in self._order:
            self._order.append(kind)
        self._subscribed[kind] = names
        if self.variant is Variant.SOTW:
            return self._sotw_request(kind)
        known: Mapping[str, str] = {}
        if previous is None:
            known = {
                name: resource.version
                for name, resource in self._of(kind).items()
                if kind in WILDCARD_TYPES or name in names
            }
        added = tuple(name for name in names if name not in (previous or ()))
        if previous is None and added and kind in WILDCARD_TYPES:
            added = (_WILDCARD, *added)
        return Request(
            type_url=kind,
            names=added,
            unsubscribe=tuple(name for name in previous or () if name not in names),
            initial_versions=known,
        )

    def _sotw_request(self, kind: str, error: str | None = None) -> Request:
        names = self._subscribed[kind]
        if names and kind in WILDCARD_TYPES:
            names = (_WILDCARD, *names)
        nonce, version = self._nonces.get(kind, ""), self._versions.get(kind, "")
        return Request(type_url=kind, names=names, version=version, nonce=nonce, error=error)

    def _answer(self, kind: str, error: str | None) -> list[Request]:
        if self.variant is Variant.SOTW:
            return [self._sotw_request(kind, error)]
        return [Request(type_url=kind, nonce=self._nonces[kind], error=error)]

    @property
    def _withholds(self) -> bool:
        return self._is_initialized and bool(self._warming)

    def _release(self) -> list[Request]:
        """Return the answers that were not sent. In the SotW variant, the last one answers all."""
        unsent, self._unsent = self._unsent, []
        if CLUSTER not in self._subscribed:
            return [self._subscribe(CLUSTER)]
        return unsent[-1:] if self.variant is Variant.SOTW else unsent

    def _initialize(self) -> list[Request]:
        """Subscribe to listeners when the first clusters are warm."""
        if self._is_initialized or CLUSTER not in self._nonces or self._warming:
            return []
        self._is_initialized = True
        return [self._subscribe(LISTENER)]


def _error(kind: str, rejections: Mapping[str, Rejection]) -> str | None:
    if not rejections:
        return None
    if kind not in _KINDS:
        return next(iter(rejections.values())).message
    listed = ", ".join(f"{name}: {rejection.message}" for name, rejection in rejections.items())
    return f"Error adding/updating {_KINDS[kind]} {listed}"
