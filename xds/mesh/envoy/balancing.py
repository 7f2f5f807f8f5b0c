"""Load balancing of clusters: algorithm, consistent hash and slow start."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterLbPolicy,
    ClusterLeastRequestLbConfig,
    ClusterMaglevLbConfig,
    ClusterRingHashLbConfig,
    ClusterRoundRobinLbConfig,
    ClusterSlowStartConfig,
)
from envoy_data_plane.envoy.config.core.v3 import RuntimeDouble
from envoy_data_plane.envoy.config.route.v3 import (
    RouteActionHashPolicy,
    RouteActionHashPolicyConnectionProperties,
    RouteActionHashPolicyCookie,
    RouteActionHashPolicyHeader,
    RouteActionHashPolicyQueryParameter,
)
from envoy_data_plane.envoy.type.v3 import HashPolicy, HashPolicySourceIp, Percent

from xds.mesh.envoy.common import seconds
from xds.mesh.model.loadbalancer import MAX_HASH_ENTRIES, HashKey, LoadBalancer, Simple, Warmup

_POLICIES = {
    Simple.UNSPECIFIED: ClusterLbPolicy.LEAST_REQUEST,
    Simple.LEAST_REQUEST: ClusterLbPolicy.LEAST_REQUEST,
    Simple.ROUND_ROBIN: ClusterLbPolicy.ROUND_ROBIN,
    Simple.RANDOM: ClusterLbPolicy.RANDOM,
    # With PASSTHROUGH, each endpoint has its own cluster. Only requests to the service's name use this one.
    Simple.PASSTHROUGH: ClusterLbPolicy.LEAST_REQUEST,
}


def balance(cluster: Cluster, settings: LoadBalancer) -> None:
    """Set the load balancing of a cluster."""
    if chosen := settings.consistent_hash:
        if chosen.maglev:
            cluster.lb_policy = ClusterLbPolicy.MAGLEV
            cluster.maglev_lb_config = ClusterMaglevLbConfig(table_size=chosen.size)
        else:
            cluster.lb_policy = ClusterLbPolicy.RING_HASH
            # Envoy enlarges the ring, up to the maximum, until the smallest weight has an entry.
            cluster.ring_hash_lb_config = ClusterRingHashLbConfig(
                minimum_ring_size=chosen.size, maximum_ring_size=MAX_HASH_ENTRIES
            )
        return
    cluster.lb_policy = _POLICIES[settings.simple]
    if settings.warmup and cluster.lb_policy is ClusterLbPolicy.ROUND_ROBIN:
        config = ClusterRoundRobinLbConfig(slow_start_config=_slow_start(settings.warmup))
        cluster.round_robin_lb_config = config
    elif settings.warmup:
        cluster.least_request_lb_config = ClusterLeastRequestLbConfig(
            slow_start_config=_slow_start(settings.warmup)
        )


def _slow_start(warmup: Warmup) -> ClusterSlowStartConfig:
    aggression, percent = warmup.aggression, warmup.minimum_percent
    return ClusterSlowStartConfig(
        slow_start_window=seconds(warmup.duration),
        # Envoy requires a key. No runtime layer has it.
        aggression=None
        if aggression is None
        else RuntimeDouble(default_value=aggression, runtime_key="xds.slow_start.aggression"),
        min_weight_percent=None if percent is None else Percent(value=percent),
    )


@lru_cache(maxsize=1024)
def route_hash(key: HashKey | None) -> Sequence[RouteActionHashPolicy]:
    """Return the hash policy of routes to a cluster with this key."""
    if key is None:
        return ()
    if key.header:
        return (RouteActionHashPolicy(header=RouteActionHashPolicyHeader(header_name=key.header)),)
    if cookie := key.cookie:
        config = RouteActionHashPolicyCookie(name=cookie.name, path=cookie.path, ttl=seconds(cookie.ttl))
        return (RouteActionHashPolicy(cookie=config),)
    if key.query_parameter:
        parameter = RouteActionHashPolicyQueryParameter(name=key.query_parameter)
        return (RouteActionHashPolicy(query_parameter=parameter),)
    source = RouteActionHashPolicyConnectionProperties(source_ip=key.source_ip)
    return (RouteActionHashPolicy(connection_properties=source),)


def connection_hash(key: HashKey | None) -> list[HashPolicy]:
    """Return the hash policy of TCP connections. Only the source address can be their key."""
    return [HashPolicy(source_ip=HashPolicySourceIp())] if key and key.source_ip else []
