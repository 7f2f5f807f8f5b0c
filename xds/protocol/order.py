"""The order in which types are sent and removed on one stream, so that an update drops no traffic.

This is the make-before-break order of Envoy's xDS protocol page. Clusters and their endpoints are sent before
the listeners and routes that use them, and a cluster is removed after the routes that used it.
"""

from __future__ import annotations

from xds.protocol.types import SHORT_NAMES
from xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LB_ENDPOINT,
    LISTENER,
    ROUTE,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
)

ORDER = {type_url: position for position, type_url in enumerate(SHORT_NAMES)}
"""Position of each type in the sending order. Other types are sent last."""

AFTER_CLUSTERS = frozenset({LISTENER, SCOPED_ROUTE, ROUTE, VIRTUAL_HOST})
"""Types that refer to clusters. They are sent after the client has ACKed its clusters."""

USERS = {
    SCOPED_ROUTE: (LISTENER,),
    ROUTE: (LISTENER, SCOPED_ROUTE),
    VIRTUAL_HOST: (ROUTE,),
    CLUSTER: (LISTENER, SCOPED_ROUTE, ROUTE, VIRTUAL_HOST),
    ENDPOINT: (CLUSTER,),
    LB_ENDPOINT: (ENDPOINT,),
    SECRET: (CLUSTER, LISTENER),
}
"""Types that use the resources of each type.

A resource is removed after the resources that used it. Each type comes after the types that use it.
"""

WILDCARD_TYPES = frozenset({CLUSTER, LISTENER, SCOPED_ROUTE})
"""Types with a legacy wildcard (an empty first request), whose SotW responses have the full state.

Envoy's xDS protocol page defines this for clusters and listeners. Envoy treats scoped routes in the same way:
it subscribes without a name, and deletes the resources that a response omits.
"""

NEVER_REMOVED = frozenset({EXTENSION_CONFIG})
"""Types whose resources are not removed while a client subscribes to them.

A listener that subscribes to an extension configuration needs it for each request.
"""
