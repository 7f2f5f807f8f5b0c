"""Adapter for the CNCF xds-test-harness: worlds of resources by node, changed one resource at a time.

Resources are encoded by a foreign codec. A scenario's version is written into the resource, so an update
changes content, and a response shows which content it carries.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tests.peers.xdsprotos import Codec
from xds.protocol.events import Acked, Nacked, Subscribed
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, TYPE_PREFIX, Resource, ResourceSet, Snapshot

TYPES = {"CDS": CLUSTER, "EDS": ENDPOINT, "LDS": LISTENER, "RDS": ROUTE}
_PLACE = {"socket_address": {"address": "127.0.0.1", "port_value": 10000}}


def _cluster(name: str, version: str) -> dict[str, Any]:
    eds = {"eds_config": {"ads": {}, "resource_api_version": "V3"}}
    return {"name": name, "alt_stat_name": version, "type": "EDS", "eds_cluster_config": eds}


def _assignment(name: str, version: str) -> dict[str, Any]:
    endpoint = {"hostname": version, "address": _PLACE}
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}


def _listener(name: str, version: str) -> dict[str, Any]:
    return {"name": name, "stat_prefix": version, "address": _PLACE}


def _routes(name: str, version: str) -> dict[str, Any]:
    return {"name": name, "virtual_hosts": [{"name": version, "domains": ["*"]}]}


_MAKE: dict[str, Callable[[str, str], dict[str, Any]]] = {
    CLUSTER: _cluster,
    ENDPOINT: _assignment,
    LISTENER: _listener,
    ROUTE: _routes,
}


def read(resource: dict[str, Any]) -> tuple[str, str, str]:
    """Return the type, the name and the scenario's version of a resource, given the JSON form of its Any."""
    match resource:
        case {"alt_stat_name": version, "name": name}:
            pass
        case {"endpoints": [{"lb_endpoints": [{"endpoint": {"hostname": version}}]}], "cluster_name": name}:
            pass
        case {"stat_prefix": version, "name": name}:
            pass
        case {"virtual_hosts": [{"name": version}], "name": name}:
            pass
    assert resource == {"@type": resource["@type"], **_MAKE[resource["@type"]](name, version)}
    return resource["@type"], name, version


class Adapter:
    """The target's state, as the `Proxies` of a server."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._worlds: defaultdict[str, dict[str, dict[str, str]]] = defaultdict(dict)
        """By node, by type URL: name and version."""
        self._subscribers: list[Subscriber] = []
        self.answers: asyncio.Queue[Acked | Nacked] = asyncio.Queue()
        self.subscriptions: asyncio.Queue[Subscribed] = asyncio.Queue()
        self.nodes: list[Node] = []

    def set_state(self, node: str, version: str, **types: str) -> None:
        """Replace the world of a node: `CDS="A,B"` has two clusters."""
        self._worlds[node] = {
            TYPES[short]: dict.fromkeys(names.split(","), version) for short, names in types.items()
        }
        self._publish(node)

    def clear_state(self, node: str) -> None:
        """Leave nothing of a node's world."""
        self._worlds[node] = {type_url: {} for type_url in self._worlds[node]}
        self._publish(node)

    def add(self, node: str, type_url: str, name: str, version: str) -> None:
        """Add a resource."""
        assert name not in self._worlds[node][type_url]
        self._worlds[node][type_url][name] = version
        self._publish(node)

    def update(self, node: str, type_url: str, name: str, version: str) -> None:
        """Change a resource."""
        assert self._worlds[node][type_url][name] != version
        self._worlds[node][type_url][name] = version
        self._publish(node)

    def remove(self, node: str, type_url: str, name: str) -> None:
        """Remove a resource."""
        del self._worlds[node][type_url][name]
        self._publish(node)

    def world(self, node: str, type_url: str) -> dict[str, str]:
        """Return name and version of all that there is now."""
        return self._worlds[node][type_url]

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        subscriber = Subscriber(node, stream)
        subscriber.publish(self._snapshot(node.id))
        self._subscribers.append(subscriber)
        self.nodes.append(node)
        return subscriber

    def disconnect(self, subscriber: Subscriber) -> None:
        self._subscribers.remove(subscriber)

    def observe(self, subscriber: Subscriber, event: Subscribed | Acked | Nacked) -> None:
        if isinstance(event, Subscribed):
            self.subscriptions.put_nowait(event)
        else:
            self.answers.put_nowait(event)

    def _publish(self, node: str) -> None:
        snapshot = self._snapshot(node)
        for subscriber in self._subscribers:
            if subscriber.node.id == node:
                subscriber.publish(snapshot)

    def _snapshot(self, node: str) -> Snapshot:
        return Snapshot(
            {
                type_url: ResourceSet(self._resource(type_url, *item) for item in names.items())
                for type_url, names in self._worlds[node].items()
            }
        )

    def _resource(self, type_url: str, name: str, version: str) -> Resource:
        body = self._codec.encode(type_url.removeprefix(TYPE_PREFIX), _MAKE[type_url](name, version))
        refs = ((ENDPOINT, name),) if type_url == CLUSTER else ()
        return Resource.of(type_url, name, body, refs=refs)
