"""Resources for those who connect: set, changed and removed by a program, for one node, a group of nodes, or all.

    store = Store()
    server = XdsServer(store, "127.0.0.1:18000")
    store.set(cluster, listener)                # for every node
    store.set(route, node="ingress-1")          # and this for one

The library stands alone: nothing of the mesh, of Kubernetes or of files is imported for it.
"""

from xds.protocol.events import Acked, Connected, Nacked, Subscribed
from xds.store.clients import NackError
from xds.store.events import Disconnected, Event, Events
from xds.store.scopes import Change
from xds.store.store import Store

__all__ = [
    "Acked",
    "Change",
    "Connected",
    "Disconnected",
    "Event",
    "Events",
    "NackError",
    "Nacked",
    "Store",
    "Subscribed",
]
