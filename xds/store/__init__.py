"""A store of resources that a program sets for all nodes, a group of nodes, or one node.

    store = Store()
    server = XdsServer(store, "127.0.0.1:18000")
    store.set(cluster, listener)                # for all nodes
    store.set(route, node="ingress-1")          # for one node

The library is independent of the control plane in `xds.mesh` and of Kubernetes.
"""

from xds.protocol.events import Acked, Connected, Nacked, Subscribed
from xds.store.checkpoints import Checkpoint
from xds.store.clients import NackError
from xds.store.events import Disconnected, Event, Events
from xds.store.scopes import Change
from xds.store.store import Store

__all__ = [
    "Acked",
    "Change",
    "Checkpoint",
    "Connected",
    "Disconnected",
    "Event",
    "Events",
    "NackError",
    "Nacked",
    "Store",
    "Subscribed",
]
