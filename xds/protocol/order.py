"""What has to be in place before what: the order in which the types of a stream are sent, and are taken away."""

from __future__ import annotations

from xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LB_ENDPOINT,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
)

_IN_ORDER = (
    RUNTIME,
    CLUSTER,
    ENDPOINT,
    LB_ENDPOINT,
    SECRET,
    EXTENSION_CONFIG,
    LISTENER,
    SCOPED_ROUTE,
    ROUTE,
    VIRTUAL_HOST,
)
ORDER = {type_url: place for place, type_url in enumerate(_IN_ORDER)}
"""The order in which types are sent; others come last."""

AFTER_CLUSTERS = frozenset({LISTENER, SCOPED_ROUTE, ROUTE, VIRTUAL_HOST})
"""Types that name clusters, and so wait until those are in place."""

USERS = {
    SCOPED_ROUTE: (LISTENER,),
    ROUTE: (LISTENER, SCOPED_ROUTE),
    VIRTUAL_HOST: (ROUTE,),
    CLUSTER: (LISTENER, SCOPED_ROUTE, ROUTE, VIRTUAL_HOST),
    ENDPOINT: (CLUSTER,),
    LB_ENDPOINT: (ENDPOINT,),
    SECRET: (CLUSTER, LISTENER),
}
"""By type, the types that use its resources: one goes away after those that used it. Users come before used."""

WILDCARD_TYPES = frozenset({CLUSTER, LISTENER, SCOPED_ROUTE})
"""Types that a client which names nothing wants all of, and that the older variant always sends in full.

The protocol says so of the first two. Envoy treats the scopes of routes in the same way: it asks for them without a name,
and drops all that a response leaves out.
"""

NEVER_REMOVED = frozenset({EXTENSION_CONFIG})
"""Types that a client is not told to drop what it asks for: as long as it asks, a listener needs it for every request."""
