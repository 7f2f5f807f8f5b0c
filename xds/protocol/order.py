"""What has to be in place before what: the order in which the types of a stream are sent, and are taken away."""

from __future__ import annotations

from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET

ORDER = {CLUSTER: 0, ENDPOINT: 1, SECRET: 2, LISTENER: 3, ROUTE: 4}
"""The order in which types are sent; others come last."""

AFTER_CLUSTERS = (LISTENER, ROUTE)
"""Types that name clusters, and so wait until those are in place."""

USERS = {
    ROUTE: (LISTENER,),
    CLUSTER: (LISTENER, ROUTE),
    ENDPOINT: (CLUSTER,),
    SECRET: (CLUSTER, LISTENER),
}
"""By type, the types that use its resources: one goes away after those that used it. Users come before used."""

WILDCARD_TYPES = frozenset({CLUSTER, LISTENER})
"""Types that a client which names nothing wants all of, and that the older variant always sends in full."""
